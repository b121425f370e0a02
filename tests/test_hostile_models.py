"""A model from a stranger: its configuration runs, opens, fetches and builds nothing that its user did not ask for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

import hybvit
from hybvit import checkpoint, cli
from hybvit.config import Config, load_config, override, to_yaml
from hybvit.data.cells import check_classes
from hybvit.data.shards import is_url, open_shard, shard_names
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.method.vit import HybViT
from hybvit.model import HybridModel

CFG = Config(model=hybvit.ViTConfig(image_size=8, patch_size=4, channels=1, dim=16, depth=1, heads=2))


@pytest.mark.parametrize("name", ["New\u00a0York", "東京\u3000都", "\N{MAN}\u200d\N{WOMAN}", "a\tb", "a\u2028b"])
def test_a_model_of_any_classes_that_data_may_have_can_be_loaded(tmp_path, name):
    cfg = override(CFG, model={"num_classes": 2}, data={"classes": (name, "other")})
    checkpoint.write_folder(tmp_path / "m", {"model": HybViT(cfg.model).state_dict()}, {"config.yaml": to_yaml(cfg)})
    try:
        check_classes([name], "the data")
    except DataError:
        with pytest.raises(CheckpointError, match="not one line"):
            hybvit.load(tmp_path / "m", "cpu")
    else:
        assert hybvit.load(tmp_path / "m", "cpu").classes == (name, "other")


def exported(folder: Path, cfg: Config) -> Path:
    """A sound export whose configuration is what its author wrote."""
    torch.manual_seed(0)
    weights = HybViT(CFG.model).state_dict()
    checkpoint.write_folder(folder, {"model": weights}, {"config.yaml": to_yaml(cfg)})
    return folder


def run_folder(folder: Path, cfg: Config) -> Path:
    torch.manual_seed(0)
    weights = HybViT(CFG.model).state_dict()
    checkpoint.write_folder(folder / "checkpoints" / "step-00000001", {"ema": weights}, {}, step=1)
    (folder / "config.yaml").write_text(to_yaml(cfg), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("make", [exported, run_folder])
@pytest.mark.parametrize(
    ("form", "root"),
    [
        ("shards", "pipe:touch {there}; echo http://x/y.tar"),
        ("shards", "pipe:touch {there}"),
        ("shards", "http://127.0.0.1:9/x'; touch {there}; '.tar"),
        ("shards", "/{{nonexistent,etc}}/passwd.tar::pipe:touch {there}"),
        ("folder", "/etc"),
        ("manifest", "/etc/passwd"),
        ("huggingface", "hf://someone/something"),
    ],
)
def test_no_command_opens_what_a_model_names(tmp_path, monkeypatch, capsys, make, form, root):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "executed"
    named = root.format(there=there)
    cfg = override(CFG, data={"name": form, "root": named, "test_root": named}, train={"init": named})
    model = make(tmp_path / "model", cfg)
    for arguments in (["evaluate", str(model)], ["evaluate", str(model), "--suites", "speed"]):
        assert cli.main(arguments) == 2
        assert "--data" in capsys.readouterr().err
    assert cli.main(["sample", str(model), "-n", "1", "--steps", "1"]) == 0
    assert not there.exists()
    loaded = hybvit.load(model)
    assert (loaded.cfg.data.root, loaded.cfg.data.test_root, loaded.cfg.train.init) == (None, None, None)


def test_an_export_tells_nobody_where_its_images_lay(tmp_path):
    cfg = override(CFG, data={"root": "/home/me/secret", "test_root": "/home/me/tests"}, train={"init": "/home/me/before"})
    HybridModel(HybViT(CFG.model), cfg, "cpu").save_pretrained(tmp_path / "export")
    assert "/home/me" not in (tmp_path / "export" / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "address",
    [
        "pipe:touch {there}",
        "PIPE:touch {there}",
        "file:///etc/passwd",
        "ftp://x/y.tar",
        "gs://b/y.tar",
        "hf://d/y.tar",
        "sftp://x/y",
    ],
)
def test_shards_come_from_paths_and_http_alone(tmp_path, address):
    """Whoever names them: the user's own command too."""
    there = tmp_path / "executed"
    with pytest.raises(ConfigError, match="local paths and http and https addresses only"):
        shard_names(address.format(there=there))
    with pytest.raises(ConfigError):
        open_shard(address.format(there=there))
    assert not there.exists()


def test_an_address_is_never_given_to_a_shell(tmp_path):
    there = tmp_path / "executed"
    for text in (f"http://127.0.0.1:9/x';touch {there};'.tar", f"http://127.0.0.1:9/$(touch {there}).tar"):
        with pytest.raises(DataError, match="cannot be read"):
            open_shard(text)
    assert not there.exists()


def test_what_looks_like_a_scheme_but_is_a_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ab:c.tar").write_bytes(b"x")
    assert not is_url("ab:c.tar")
    assert not is_url("C:\\shards\\a.tar")
    assert open_shard("ab:c.tar").read() == b"x"


BOUNDS = [
    "model.depth", "model.dim", "model.image_size", "model.num_classes", "model.mlp_ratio", "model.stem_width", "model.heads",
    "train.batch_size", "train.labelled_batch_size", "data.workers", "diffusion.steps", "network.depth", "network.width",
    "network.layers", "jem.replay", "jem.steps", "data.shuffle_buffer", "data.repeats", "data.crop_padding", "data.memory_gib",
    "train.steps",
]  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_a_size_that_no_machine_has_is_refused_at_once(tmp_path, name):
    group, leaf = name.split(".")
    text = to_yaml(CFG)
    lines, inside = [], False
    for line in text.splitlines():
        inside = line == f"{group}:" if not line.startswith(" ") else inside
        lines.append(f"  {leaf}: 10000000000000" if inside and line.startswith(f"  {leaf}:") else line)
    (tmp_path / "config.yaml").write_text("\n".join(lines), encoding="utf-8")
    started = time.process_time()
    with pytest.raises(ConfigError, match=rf"{name} is 1.*at most"):
        load_config(tmp_path / "config.yaml")
    assert time.process_time() - started < 2


@pytest.mark.slow
@pytest.mark.parametrize("model", [{"depth": 1024, "dim": 4096}, {"num_classes": 2**24}, {"image_size": 4096}])
def test_a_network_larger_than_its_weights_is_not_built(tmp_path, model):
    """1024 layers of 4096 would be 137 GiB; the file has some kilobytes."""
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"is missing|has shape"):
        hybvit.load(exported(tmp_path / "huge", override(CFG, model=model)))
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "classes", [("a",), ("a", "a", *"bcdefghi"), ("\x1b[31mred", *"bcdefghij"), ("b\nhybvit: ok", *"cdefghijk")]
)
def test_the_names_of_a_stored_model_s_classes_are_complete_and_plain(tmp_path, classes):
    folder = exported(tmp_path / "model", override(CFG, model={"num_classes": 10}, data={"classes": classes}))
    with pytest.raises(CheckpointError, match=r"data\.classes"):
        hybvit.load(folder)


def test_a_manifest_names_files_of_its_own_folder_alone(tmp_path):
    folder = exported(tmp_path / "model", CFG)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"]["../../etc/passwd"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match="manifest"):
        hybvit.load(folder)
