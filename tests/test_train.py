from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from hybvit.checkpoint import digest_of, newest, read_tensors, step_folders
from hybvit.config import differences, load_config, override, parse
from hybvit.errors import CheckpointError, ConfigError, DataError, DivergedError
from hybvit.loading import load
from hybvit.method.vit import HybViT, ViTConfig
from hybvit.presets import preset
from hybvit.storage import lock_folder
from hybvit.training import loop
from hybvit.training.ema import ema_decay
from hybvit.training.loop import train
from hybvit.training.optim import build_optimizers, learning_rate, optimizer_tensors, restore_optimizers
from hybvit.training.run_folder import Groups, RunFolder, copied, read_metrics

from .conftest import ENDLESS, TINY, hybvit, opened
from .forked import Forked, started, until

STEPS = 60
SMALL = parse([*TINY, "--train.steps=3"], preset("digits"))


def command(out: Path, *more: str) -> list[str]:
    return ["train", "digits", "--out", str(out), f"--train.steps={STEPS}", *TINY, *more]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{path.stem}/{k}": v for path in folder.glob("*.safetensors") for k, v in read_tensors(path).items()}


def final_state(out: Path) -> dict[str, torch.Tensor]:
    folder, manifest, problems = newest(out / "checkpoints")
    assert manifest["step"] == STEPS
    assert problems == []
    return state(folder)


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("train") / "whole"
    assert hybvit(*command(out)).returncode == 0
    return out


@pytest.mark.slow
def test_one_seed_gives_identical_weights(uninterrupted, tmp_path):
    again = started(*command(tmp_path / "again"))  # of a server with its own random hashes and addresses
    assert again.wait() == 0, again.communicate()
    assert_identical(final_state(uninterrupted), final_state(tmp_path / "again"))
    assert hybvit(*command(tmp_path / "other", "--train.seed=1")).returncode == 0
    changed = final_state(tmp_path / "other")
    assert not torch.equal(changed["network/positions"], final_state(uninterrupted)["network/positions"])


@pytest.mark.slow
def test_a_preview_shows_the_accuracy_on_the_test_images(tmp_path):
    """Of the averaged weights, as `hybvit evaluate` finds it; digits that training has seen are easier."""
    assert hybvit(*command(tmp_path, f"--train.preview_every={STEPS}")).returncode == 0
    shown = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "test/accuracy" in line]
    model = load(tmp_path, "cpu")
    test = opened(model.cfg).test
    assert [line["step"] for line in shown] == [STEPS]
    right = model.predict(test.in_memory).labels == test.labels
    assert shown[0]["test/accuracy"] == right.double().mean().item()


@pytest.mark.slow
def test_loader_workers_change_nothing_and_stop_with_the_run(uninterrupted, tmp_path):
    out = tmp_path / "two"
    assert hybvit(*command(out, "--data.workers=2")).returncode == 0
    assert_identical(final_state(uninterrupted), final_state(out))
    stopped = tmp_path / "stopped"
    running = started(*command(stopped, "--data.workers=2", *ENDLESS))
    until(running, lambda: step_folders(stopped / "checkpoints"))
    os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C does: workers get it too
    _, said = running.communicate(timeout=60)
    assert running.poll() == 75
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)


@pytest.mark.slow
def test_a_stream_of_shards_resumes_exactly(tmp_path):
    from .test_shards import write_shards

    write_shards(tmp_path / "data" / "train", [40, 50, 30])
    write_shards(tmp_path / "data" / "test", [6])
    shards = ["train", "paper_32", "--data", str(tmp_path / "data"), "--data.shuffle_buffer=16", *TINY]
    shards += ["--model.image_size=8", "--model.patch_size=4", f"--train.steps={STEPS}", "--train.log_every=1"]
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert hybvit(*shards, "--out", whole).returncode == 0
    running = started(*shards, "--out", pieces)
    until(running, lambda: len(step_folders(pieces / "checkpoints")) >= 2)
    running.kill()
    running.wait()
    assert newest(pieces / "checkpoints")[1]["step"] < STEPS
    assert hybvit(*shards, "--out", pieces).returncode == 0
    assert_identical(final_state(whole), final_state(pieces))


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_ends_the_same(uninterrupted, tmp_path):
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    for _ in range(40):
        process = started(*command(out, "--train.checkpoint_every=3"))
        before = len(step_folders(out / "checkpoints"))
        deadline = time.monotonic() + 60
        while kills < 4 and process.poll() is None and time.monotonic() < deadline:
            if len(step_folders(out / "checkpoints")) != before or (out / "metrics.jsonl").exists():
                time.sleep(rng.random() * 0.03)
                break
            time.sleep(0.005)
        if kills < 4 and process.poll() is None:
            process.kill()
            kills += 1
        error = process.communicate(timeout=60)[1]
        if process.poll() == 0:
            break
        assert process.poll() == -signal.SIGKILL, error
    assert kills >= 2
    assert_identical(final_state(uninterrupted), final_state(out))
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})


@pytest.mark.slow
def test_a_network_with_dropout_resumes_exactly(tmp_path):
    """Dropout alone draws from torch's own generator, whose state goes into the checkpoints."""
    cfg = override(
        preset("cifar10_wrn28_10"),
        model={"image_size": 8, "channels": 1},
        network={"depth": 10, "width": 1, "dropout": 0.5},
        data={"name": "digits", "crop_padding": 1},
        train={"steps": 6, "batch_size": 8, "checkpoint_every": 3, "keep_checkpoints": 2, "log_every": 1},
    )
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    train(cfg, str(whole), lambda line: None)
    shutil.copytree(whole, halted)
    shutil.rmtree(step_folders(halted / "checkpoints")[0])
    torch.rand(7)  # another state than at the end of the first run
    train(cfg, halted, lambda line: None)
    states = [read_tensors(step_folders(run / "checkpoints")[0] / "network.safetensors") for run in (whole, halted)]
    assert_identical(*states)


@pytest.mark.parametrize("name", ["digits", "cifar10_wrn28_10"])
def test_a_checkpoint_is_of_its_step_however_late_it_is_copied(tmp_path, monkeypatch, name):
    """Weights must wait for the copy; the batch statistics of the residual network change before, with the next loss."""
    cfg = override(
        preset(name),
        model={"image_size": 8, "channels": 1, "dim": 16, "depth": 1, "heads": 2, "readout_width": 4},
        network={"depth": 10, "width": 1},
        data={"name": "digits", "crop_padding": 1},
        train={"steps": 3, "batch_size": 8, "checkpoint_every": 1, "keep_checkpoints": 3},
    )
    train(cfg, tmp_path / "at once", lambda line: None)

    def late(groups: Groups) -> Groups:
        time.sleep(0.3)  # a step takes a tenth of it
        return copied(groups)

    monkeypatch.setattr("hybvit.training.run_folder.copied", late)
    train(cfg, tmp_path / "late", lambda line: None)
    runs = [step_folders(tmp_path / out / "checkpoints") for out in ("at once", "late")]
    assert [folder.name for folder in runs[0]] == ["step-00000003", "step-00000002", "step-00000001"]
    for folders in zip(*runs, strict=True):
        assert_identical(*map(state, folders))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_exits_75_and_the_same_command_resumes(uninterrupted, tmp_path, number, workers):
    """Schedulers, timeouts and terminals send it to the whole process group, so to the workers that load images too."""
    out = tmp_path / "stopped"
    process = started(*command(out, "--train.checkpoint_every=1000", f"--data.workers={workers}"))
    until(process, (out / "metrics.jsonl").exists)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=60)[1]
    assert process.poll() == 75, error
    assert "the state is saved" in error
    assert len(error.splitlines()) == 1
    stopped_at = newest(out / "checkpoints")[1]["step"]
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == stopped_at
    resumed = hybvit(*command(out, "--train.checkpoint_every=1000"))
    assert resumed.returncode == 0
    assert "resumed at step" in resumed.stdout
    assert_identical(final_state(uninterrupted), final_state(out))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(uninterrupted, tmp_path):
    out = tmp_path / "damaged"
    assert hybvit(*command(out)).returncode == 0
    (step_folders(out / "checkpoints")[0] / "network.safetensors").write_bytes(b"rubbish")
    again = hybvit(*command(out))
    assert again.returncode == 0
    assert "warning" in again.stdout
    assert_identical(final_state(uninterrupted), final_state(out))
    for folder in step_folders(out / "checkpoints"):
        (folder / "manifest.json").unlink()
    assert hybvit(*command(out)).returncode == 5


def test_a_run_folder_holds_what_the_design_names(uninterrupted):
    lines = read_metrics(uninterrupted / "metrics.jsonl")
    assert lines[-1]["step"] == STEPS
    assert {"loss", "ce", "denoising", "gradient_norm", "lr", "seconds", "images_per_second"} <= lines[-1].keys()
    assert lines[-1]["loss"] == pytest.approx(
        lines[-1]["ce"] + preset("digits").objective.alpha * lines[-1]["denoising"], rel=1e-4
    )
    environment = json.loads((uninterrupted / "environment.json").read_text())
    assert {"torch", "threads", "seed"} <= environment.keys()
    assert len(step_folders(uninterrupted / "checkpoints")) == preset("digits").train.keep_checkpoints


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_tells_where_it_was(uninterrupted, tmp_path):
    out = tmp_path / "moved"
    shutil.copytree(uninterrupted, out)
    shutil.rmtree(step_folders(out / "checkpoints")[0])
    manifest = step_folders(out / "checkpoints")[0] / "manifest.json"
    before = json.loads(manifest.read_text())
    moved = {**before, "device": "a GPU"}
    manifest.write_text(json.dumps({**moved, "digest": digest_of(moved)}))
    again = hybvit(*command(out))
    assert "was written with device = a GPU" in again.stdout
    assert_identical(final_state(uninterrupted), final_state(out))
    environment = json.loads((out / "environment.json").read_text())
    assert environment["device"] == before["device"]
    (earlier,) = environment["earlier"]
    assert (earlier["device"], earlier["until_step"]) == ("a GPU", before["step"])


def test_another_configuration_in_the_same_folder_is_refused(uninterrupted):
    refused = hybvit(*command(uninterrupted, "--optim.lr=0.5"))
    assert refused.returncode == 2
    assert "optim.lr" in refused.stderr
    assert "--out" in refused.stderr


@pytest.mark.parametrize(
    "refused",
    [
        {"train": {"init": "no/such/model"}},
        {"data": {"labelled": 10**6}},
        {"optim": {"lr": 1e30, "name": "sgd", "clip": 0.0, "warmup_steps": 0}},
        {"objective": {"kind": "vit"}, "train": {"steps": 1}},
    ],
)
def test_a_folder_without_a_checkpoint_takes_other_settings(tmp_path, monkeypatch, refused):
    """Whatever ended a run before its first checkpoint, the cure works in the same folder: nothing contradicts it."""
    monkeypatch.setattr(RunFolder, "save", lambda self, step, keep, **tensors: None)
    with contextlib.suppress(ConfigError, DataError, CheckpointError, DivergedError):
        train(override(SMALL, **refused), tmp_path / "run", lambda line: None)
    monkeypatch.undo()
    train(SMALL, tmp_path / "run", lambda line: None)
    resolved = {"data.fingerprint", "data.classes", "train.compile", "train.precision"}
    assert differences(load_config(tmp_path / "run" / "config.yaml"), SMALL).keys() <= resolved
    assert {line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")} <= set(range(SMALL.train.steps + 1))
    with pytest.raises(ConfigError, match="was started with"):
        train(override(SMALL, optim={"lr": 0.5}), tmp_path / "run", lambda line: None)


def test_what_the_folder_says_is_said_before_the_images_are_opened(tiny_run, monkeypatch):
    """Opening them, and trying steps, may take minutes."""

    def opens(cfg):
        raise AssertionError("the images were opened")

    monkeypatch.setattr(loop, "open_images", opens)
    cfg = load_config(tiny_run / "config.yaml")
    asked = override(cfg, data={"classes": ()}, train={"compile": "auto", "precision": "auto"})  # as the command line has them
    with pytest.raises(ConfigError, match=r"was started with optim\.lr = "):
        train(override(asked, optim={"lr": 0.5}), tiny_run)
    with pytest.raises(ConfigError, match=r"was started with train\.steps = 20, not 10"):
        train(override(asked, train={"steps": 10}), tiny_run)
    with lock_folder(tiny_run), pytest.raises(ConfigError, match="in use by another process"):
        train(asked, tiny_run)
    for sound in (asked, override(asked, train={"steps": 30, "log_every": 7})):
        with pytest.raises(AssertionError, match="opened"):
            train(sound, tiny_run)


def test_divergence_exits_4_and_saves_nothing_broken(tmp_path):
    out = tmp_path / "diverged"
    hot = ("--optim.lr=1e30", "--optim.clip=0", "--optim.warmup_steps=0", "--optim.name=sgd", "--train.precision=fp32")
    diverged = hybvit(*command(out, *hot))
    assert diverged.returncode == 4, diverged.stderr
    assert "is not finite" in diverged.stderr
    assert step_folders(out / "checkpoints") == []
    # The loss of the last step is from before its update: the weights themselves must be looked at.
    one = hybvit(*command(tmp_path / "one", *hot, "--optim.lr=1e38", "--optim.name=adamw", "--train.steps=1"))
    assert one.returncode == 4, one.stderr
    assert step_folders(tmp_path / "one" / "checkpoints") == []
    # A checkpoint from before the divergence stays, and is sound.
    late = hybvit(*command(tmp_path / "late", *hot, "--optim.lr=1e30", "--optim.warmup_steps=40", "--train.checkpoint_every=1"))
    assert late.returncode == 4, late.stderr
    assert step_folders(tmp_path / "late" / "checkpoints") != []
    for folder in step_folders(tmp_path / "late" / "checkpoints"):
        assert all(bool(v.isfinite().all()) for v in read_tensors(folder / "network.safetensors").values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "genvit"])
def test_single_objectives_train(tmp_path, kind):
    out = tmp_path / kind
    assert hybvit(*command(out, "--objective", kind, "--train.preview_every=30", "--train.track=tensorboard")).returncode == 0
    assert list((out / "tensorboard").glob("events*"))
    last = read_metrics(out / "metrics.jsonl")
    assert any("test/accuracy" in line for line in last) == (kind == "vit")
    assert (out / "samples").is_dir() == (kind == "genvit")


def test_the_schedule_warms_up_and_ends_at_min_lr():
    cfg = override(preset("digits"), optim={"lr": 0.1, "warmup_steps": 10, "min_lr": 1e-3}, train={"steps": 110})
    rates = [learning_rate(step, cfg) for step in range(111)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx((0.1 + 1e-3) / 2)
    assert rates[110] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_ema_decay():
    cfg = override(preset("digits"), train={"ema_decay": 0.99, "ema_warmup": True})
    assert ema_decay(0, cfg) == 0.1
    assert ema_decay(10_000, cfg) == 0.99
    assert ema_decay(0, override(cfg, train={"ema_warmup": False})) == 0.99


def test_ema_is_the_average_of_the_weights_after_each_step(tmp_path):
    out = tmp_path / "ema"
    args = [
        "train",
        "digits",
        "--out",
        str(out),
        "--train.steps=3",
        *TINY,
        "--train.checkpoint_every=1",
        "--train.keep_checkpoints=9",
    ]
    args += ["--train.ema_decay=0.75", "--train.ema_warmup=false"]
    assert hybvit(*args).returncode == 0
    states = [
        (read_tensors(f / "network.safetensors"), read_tensors(f / "ema.safetensors"))
        for f in step_folders(out / "checkpoints")[::-1]
    ]
    for (_, before), (weights, after) in zip(states, states[1:], strict=False):
        for key, value in after.items():
            torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * weights[key])


def test_alpha_falls_over_the_run_and_every_term_is_logged(tmp_path):
    out = tmp_path / "falls"
    balance = ("--objective.alpha=8", "--objective.alpha_end=0", "--objective.noisy_labels=0.5", "--train.log_every=1")
    assert hybvit("train", "digits", "--out", out, *TINY, "--train.steps=4", *balance).returncode == 0
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["denoising_weight"] for line in lines] == [8, 6, 4, 2]
    for line in lines:
        total = line["ce"] + 0.5 * line["noisy_ce"] + line["denoising_weight"] * line["denoising"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_optimiser_state_round_trips(name):
    cfg = override(preset("digits"), optim={"name": name}).optim
    torch.manual_seed(0)
    nets = [HybViT(ViTConfig(image_size=8, patch_size=4, dim=8, depth=1, heads=1)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    first, second = (build_optimizers(net, cfg) for net in nets)

    def step(net, optimizers):
        net.zero_grad()
        out = net(torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), torch.tensor([3]))
        (out.prediction.square().mean() + out.logits.square().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()

    step(nets[0], first)
    nets[1].load_state_dict(nets[0].state_dict())
    restore_optimizers(second, {k: v.clone() for k, v in optimizer_tensors(first).items()})
    for net, optimizers in zip(nets, (first, second), strict=True):
        step(net, optimizers)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_short_training_learns(tmp_path):
    """Half a minute of the real recipe's loop: labels far above chance, denoising far below predicting nothing."""
    out = tmp_path / "learns"
    args = [
        "train",
        "digits",
        "--out",
        out,
        "--train.steps=200",
        "--model.dim=48",
        "--model.depth=2",
        "--train.preview_every=200",
    ]
    assert hybvit(*args, "--train.batch_size=32", "--optim.lr=3e-3", "--train.ema_decay=0.9").returncode == 0
    lines = read_metrics(out / "metrics.jsonl")
    assert lines[-1]["test/accuracy"] > 0.5
    denoising = [line["denoising"] for line in lines if "denoising" in line]
    assert denoising[-1] < 0.75 * denoising[0]
    assert math.isfinite(denoising[-1])
    assert os.listdir(out / "samples")


def train_and_fork(folder: Path, words: list[str]) -> None:
    cfg = parse(words, preset("digits"))
    train(cfg, folder / "first", say=str)
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    train(cfg, folder / "second", say=str)
    os._exit(0)


@pytest.mark.slow
def test_a_process_that_is_forked_after_a_training_trains_too(tmp_path):
    """No thread of the parent is in the child, so none that writes checkpoints may be kept for later."""
    process = Forked(train_and_fork, tmp_path, [*TINY, "--train.steps=2"])
    _, error = process.communicate(timeout=60)
    assert process.poll() == 0, error
    assert newest(tmp_path / "second" / "checkpoints")[1]["step"] == 2
