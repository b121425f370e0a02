from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import stat
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hybvit
from hybvit import checkpoint, config, loading
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.method.vit import HybViT, ViTConfig
from hybvit.presets import preset
from hybvit.training.run_folder import RunFolder


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
    checkpoint.prune(tmp_path, 100, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_prune_keeps_what_was_just_written_and_not_the_damaged_one_of_a_later_step(tmp_path):
    for step in (50, 60, 100):
        write(checkpoint.step_folder(tmp_path, step), step)
    (checkpoint.step_folder(tmp_path, 100) / "network.safetensors").write_bytes(b"")
    checkpoint.prune(tmp_path, 60, 1)  # the run went on from step 50
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000060"]


def test_a_checkpoint_that_cannot_be_written_costs_one_interval(tmp_path, monkeypatch):
    written, full = checkpoint.write_folder, [10]

    def write_folder(folder, *arguments, **facts):
        if facts["step"] in full:
            raise DataError(f"{folder}: cannot be written (No space left on device)")
        written(folder, *arguments, **facts)

    monkeypatch.setattr(checkpoint, "write_folder", write_folder)
    with RunFolder(tmp_path / "run", preset("digits")) as run:
        for step in (5, 10, 15):
            with warnings.catch_warnings(record=True) as said:
                run.save(step, 2, network={"w": torch.full((3,), float(step))})
        assert "step-00000010: cannot be written (No space left on device)" in str(said[0].message)
        found = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
        assert "step-00000015" in found  # at once, not when the next one is due
        full += [20, 25]
        run.save(20, 2, network={"w": torch.zeros(3)})
        with pytest.warns(UserWarning, match="step-00000020"), pytest.raises(DataError, match="step-00000025"):
            run.save(25, 2, network={"w": torch.zeros(3)})


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


# what the manifest covers


def small_run(folder, seed=0, steps=(1,)):
    """A run folder with checkpoints, as training leaves it."""
    cfg = config.override(preset("digits"), model={"dim": 16, "depth": 1, "heads": 2, "readout_width": 4}, train={"seed": seed})
    torch.manual_seed(seed)
    weights = HybViT(cfg.model).state_dict()
    with RunFolder(folder, cfg) as run:
        for step in steps:
            run.save(step, len(steps), network=weights, ema=weights, optimizer={"x": torch.zeros(1)})
    return cfg


def resume(folder, cfg):
    return RunFolder(folder, cfg).newest()


@pytest.mark.slow
def test_every_flipped_bit_of_a_manifest_is_found_or_changes_nothing(tmp_path):
    write(tmp_path / "step-00000006", step=6)
    path = tmp_path / "step-00000006" / "manifest.json"
    raw, before = path.read_bytes(), checkpoint.verify(path.parent)
    for place in range(len(raw)):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with contextlib.suppress(CheckpointError):
                assert checkpoint.verify(path.parent) == before


@pytest.mark.parametrize(
    "text", ['{"sha256": {}}', '{"sha256": []}', "[]", "null", '{"sha256": null}', '{"step": 7}', "", "7", "[" * 100_000]
)
def test_a_manifest_that_names_no_file_does_not_verify(tmp_path, text):
    write(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.verify(tmp_path / "a")


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_an_export_whose_manifest_leaves_out_a_file_is_refused(golden_config, tmp_path, name):
    hybvit.HybridModel(HybViT(golden_config), config.Config(model=golden_config), "cpu").save_pretrained(tmp_path / "a")
    manifest = checkpoint.verify(tmp_path / "a")
    del manifest["sha256"][name]
    (tmp_path / "a" / "manifest.json").write_text(json.dumps({**manifest, "digest": checkpoint.digest_of(manifest)}))
    with pytest.raises(CheckpointError, match=f"does not name {name}"):
        hybvit.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["network", "ema", "optimizer"])
def test_a_checkpoint_without_a_file_does_not_resume(tmp_path, name):
    cfg = small_run(tmp_path / "run")
    (folder,) = checkpoint.step_folders(tmp_path / "run" / "checkpoints")
    manifest = checkpoint.verify(folder)
    del manifest["sha256"][f"{name}.safetensors"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "digest": checkpoint.digest_of(manifest)}))
    with pytest.raises(CheckpointError, match=f"does not name {name}"):
        resume(tmp_path / "run", cfg)


def test_a_checkpoint_under_another_step_is_refused(tmp_path):
    cfg = small_run(tmp_path / "run")
    (folder,) = checkpoint.step_folders(tmp_path / "run" / "checkpoints")
    folder.rename(folder.with_name("step-00000009"))
    with pytest.raises(CheckpointError, match="is of step 1, its folder of step 9"):
        resume(tmp_path / "run", cfg)


@pytest.mark.parametrize("how", ["same configuration", "other seed", "no id"])
def test_a_checkpoint_of_another_run_is_refused_on_resume_and_load(tmp_path, how):
    cfg = small_run(tmp_path / "run", steps=(1, 2))
    small_run(tmp_path / "other", seed=how == "other seed", steps=(5,))
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-00000005", tmp_path / "run" / "checkpoints" / "step-00000005")
    if how == "no id":
        (tmp_path / "run" / "run.id").unlink()
    for use in (lambda: resume(tmp_path / "run", cfg), lambda: hybvit.load(tmp_path / "run")):
        with pytest.raises(CheckpointError, match="step-00000005: a checkpoint of another run") as refused:
            use()
        assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("change", [("target: v", "target: eps"), ("seed: 0", "seed: 1"), ("- '3'", "- '8'")])
def test_a_configuration_that_its_checkpoint_does_not_know_is_refused(tmp_path, change):
    small_run(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    if change[0] not in text:
        change = ("classes: []", "classes: [a]")
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(CheckpointError, match=r"was written with \w+\.\w+ = "):
        hybvit.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"was written with \w+\.\w+ = "):
        resume(tmp_path / "run", config.load_config(path))


@pytest.mark.slow
def test_what_a_resume_may_change_does_not_make_it_another_run(tmp_path):
    cfg = small_run(tmp_path / "run")
    cfg = config.override(cfg, train={"log_every": 3}, data={"root": "elsewhere"})
    assert resume(tmp_path / "run", cfg)[0] == 1
    assert hybvit.load(tmp_path / "run").cfg.train.log_every == 3


def test_a_checkpoint_loads_without_its_run(tmp_path):
    cfg = small_run(tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "checkpoints" / "step-00000001", tmp_path / "alone")
    assert hybvit.load(tmp_path / "alone").cfg == cfg


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(golden_config, tmp_path, value):
    net = HybViT(golden_config)
    net.class_token.data[0] = value
    hybvit.HybridModel(net, config.Config(model=golden_config), "cpu").save_pretrained(tmp_path / "a")
    with pytest.raises(CheckpointError, match="class_token contains values that are not finite"):
        hybvit.load(tmp_path / "a")


def test_a_file_that_is_deleted_while_it_is_opened_is_a_checkpoint_error(tmp_path, monkeypatch):
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    from_file = torch.UntypedStorage.from_file

    def too_late(name, *arguments, **options):
        Path(name).unlink()
        return from_file(name, *arguments, **options)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", too_late)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: unreadable"):
        checkpoint.read_tensors(tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_folder_that_is_called_a_dot_takes_a_calibration_and_keeps_what_lies_in_it(golden_config, tmp_path, monkeypatch):
    model = hybvit.HybridModel(HybViT(golden_config), config.Config(model=golden_config), "cpu")
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / ".git").mkdir(mode=0o755)
    (tmp_path / "a" / ".git" / "config").write_text("x")
    monkeypatch.chdir(tmp_path / "a")
    checkpoint.add_file(Path(), "extra.bin", b"1")
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "a" / "extra.bin").read_bytes() == b"1"
    assert stat.S_IMODE((tmp_path / "a" / ".git").stat().st_mode) == 0o755
    checkpoint.verify(tmp_path / "a")


def test_an_interruption_leaves_no_part_of_a_folder(golden_config, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = hybvit.HybridModel(HybViT(golden_config), config.Config(model=golden_config), "cpu")
    monkeypatch.setattr(checkpoint, "write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(tmp_path / "a")
    assert [*tmp_path.iterdir()] == []
