from __future__ import annotations

import dataclasses

import pytest
import torch

import hybvit
from hybvit import checkpoint, loading
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.method.vit import HybViT, ViTConfig


def write(folder, step=1):
    checkpoint.write_folder(folder, {"network": {"w": torch.arange(5.0)}}, {"note.txt": "hello"}, step=step)


def test_a_folder_round_trips_and_replaces_its_older_self(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "a", step=2)
    assert checkpoint.verify(tmp_path / "a")["step"] == 2
    assert checkpoint.read_tensors(tmp_path / "a" / "network.safetensors")["w"].tolist() == [0, 1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["network.safetensors", "note.txt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_any_damage_is_found_and_named(tmp_path, name, damage):
    write(tmp_path / "a")
    path = tmp_path / "a" / name
    raw = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw if damage == "flip" else raw[:-3])
    with pytest.raises(CheckpointError, match=f"{name}|network|note"):
        checkpoint.verify(tmp_path / "a")


def test_newest_skips_damaged_checkpoints(tmp_path):
    for step in (5, 10):
        write(checkpoint.step_folder(tmp_path, step), step)
    (checkpoint.step_folder(tmp_path, 10) / "network.safetensors").write_bytes(b"")
    folder, manifest, problems = checkpoint.newest(tmp_path)
    assert (folder.name, manifest["step"], len(problems)) == ("step-00000005", 5, 1)
    (checkpoint.step_folder(tmp_path, 5) / "network.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        checkpoint.newest(tmp_path)


def test_prune_keeps_the_newest_and_deletes_leftovers_of_a_kill(tmp_path):
    for step in (5, 10, 100):
        write(checkpoint.step_folder(tmp_path, step), step)
    (tmp_path / ".step-00000110.99.part").mkdir()
    checkpoint.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


# published files


def layouts(state):
    full = dict(state.get("model_state_dict", state))
    bare = {k.removeprefix("denoise_fn."): v for k, v in full.items() if k.startswith("denoise_fn.")}
    return {
        "wrapped": {"model_state_dict": full},
        "unwrapped": full,
        "bare": bare,
        "bare wrapped": {"model_state_dict": bare, "epoch": 500},
        "data parallel": {"model_state_dict": {f"module.{k}": v for k, v in full.items()}},
    }


@pytest.mark.parametrize("layout", ["wrapped", "unwrapped", "bare", "bare wrapped", "data parallel"])
def test_published_weights_in_every_layout(golden, golden_config, tmp_path, layout):
    torch.save(layouts(golden["published_state_dict"])[layout], tmp_path / "ckpt.pth")
    model = hybvit.load_published(tmp_path / "ckpt.pth", golden_config)
    with torch.no_grad():
        assert (model.logits(golden["x"]) - golden["logits"]).abs().max() < 1e-5
        assert (model.denoise(golden["x_t"], golden["t"] + 1) - golden["eps"]).abs().max() < 1e-5


def test_every_weight_has_its_own_published_name():
    net = HybViT(ViTConfig(dim=48, depth=12, heads=4))
    names = [loading.published_name(key) for key in net.state_dict()]
    assert len(set(names)) == len(names)
    assert "transformer.layers.11.0.fn.to_qkv.weight" in names


def change(state, how):
    tensors = dict(layouts(state)["unwrapped"])
    key = "denoise_fn.transformer.layers.1.0.fn.to_qkv.weight"
    if how == "missing":
        del tensors[key]
    elif how == "shape":
        tensors[key] = tensors[key][:-1]
    elif how == "unknown":
        tensors["denoise_fn.extra.weight"] = tensors[key]
    else:
        tensors["betas"] = tensors["betas"] * 0.5
    return tensors


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("missing", "to_qkv.weight is missing"),
        ("shape", r"to_qkv.weight has shape \[143, 48\]"),
        ("unknown", "extra.weight"),
        ("betas", "betas"),
    ],
)
def test_published_files_that_do_not_fit_name_the_key(golden, golden_config, tmp_path, how, named):
    torch.save(change(golden["published_state_dict"], how), tmp_path / "ckpt.pth")
    with pytest.raises(CheckpointError, match=named):
        hybvit.load_published(tmp_path / "ckpt.pth", golden_config)


def test_a_configuration_of_another_size_names_the_first_key(golden_file):
    with pytest.raises(CheckpointError, match=r"has shape \[.*\], the given configuration needs"):
        hybvit.load_published(golden_file, ViTConfig(dim=64, depth=2, heads=4))


@pytest.mark.parametrize(
    "form", [{"pixel_readout": "conv"}, {"long_skips": True}, {"final_norm": True}, {"time": "adaln_zero"}]
)
def test_networks_of_another_form_cannot_take_published_weights(golden_file, golden_config, form):
    with pytest.raises(CheckpointError, match=f"model.{next(iter(form))}"):
        hybvit.load_published(golden_file, dataclasses.replace(golden_config, **form))


def test_ambiguous_published_files_are_refused(golden, golden_config, tmp_path):
    full = layouts(golden["published_state_dict"])["unwrapped"]
    key = "denoise_fn.cls_token"
    for changed, named in (
        ({**full, "cls_token": full[key]}, "cls_token occurs twice"),
        ({**full, key: full[key] * float("nan")}, "not finite"),
        ({**full, "epoch": 3}, "epoch is of type int"),
        ({**full, "betas": torch.empty(0)}, "betas has shape"),
    ):
        torch.save(changed, tmp_path / "ckpt.pth")
        with pytest.raises(CheckpointError, match=named):
            hybvit.load_published(tmp_path / "ckpt.pth", golden_config)


def test_the_schedule_comes_from_the_buffers_or_the_caller(golden, golden_config, tmp_path):
    bare = layouts(golden["published_state_dict"])["bare"]
    linear = hybvit.Diffusion.linear(250).beta[1:].float()
    torch.save({**bare, "betas": linear}, tmp_path / "linear.pth")
    found = hybvit.load_published(tmp_path / "linear.pth", golden_config).cfg.diffusion
    assert (found.schedule, found.steps) == ("linear", 250)
    torch.save(bare, tmp_path / "bare.pth")
    assert hybvit.load_published(tmp_path / "bare.pth", golden_config, found).diffusion.T == 250


def test_files_without_weights_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        hybvit.load_published(tmp_path / "none.pth", ViTConfig())
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("text.pth", "list.pth"):
        with pytest.raises(CheckpointError, match=name):
            hybvit.load_published(tmp_path / name, ViTConfig())


# exported folders


def test_export_round_trips(golden, golden_config, golden_file, tmp_path):
    model = hybvit.load_published(golden_file, golden_config)
    model.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    for again in (hybvit.load(tmp_path / "model"), hybvit.HybridModel.from_pretrained(tmp_path / "model")):
        assert again.cfg == model.cfg
        assert torch.equal(again.logits(golden["x"]), model.logits(golden["x"]))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        hybvit.load(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="choose another folder"):
        model.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"


def test_strict_loading_names_the_key():
    net = HybViT(ViTConfig(image_size=8, patch_size=2, dim=16, depth=1, heads=2))
    tensors = net.state_dict()
    for broken, named in (
        ({k: v for k, v in tensors.items() if k != "positions"}, "positions is missing"),
        ({**tensors, "positions": torch.zeros(1)}, "positions has shape"),
        ({**tensors, "more": torch.zeros(1)}, "more is not a weight"),
    ):
        with pytest.raises(CheckpointError, match=named):
            checkpoint.load_strictly(net, broken, "file")
