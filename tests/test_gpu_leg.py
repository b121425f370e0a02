"""benchmarks/gpu_leg.py: a leg goes on where the last one stopped, whatever happened to it. Rehearsed with small networks."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hybvit import checkpoint
from hybvit.config import load_config, override, parse, to_yaml
from hybvit.presets import preset
from hybvit.training.cost import cost
from hybvit.training.loop import train
from hybvit.training.run_folder import read_metrics

from .forked import Forked
from .forked import script as run_script

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_leg.py"
SMALL = ("--samples", "20", "--save-every", "0.2", "--checkpoint-every", "5")
TINY = ("--preset", "digits", "--model.dim=16", "--model.depth=2", "--model.heads=2", "--train.batch_size=8")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_leg", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leg(*words: str) -> Forked:
    return Forked(run_script, SCRIPT, ["run", *SMALL, *words])


def finished(*words: str) -> None:
    process = leg(*words)
    said = process.communicate(timeout=300)
    assert process.poll() == 0, said


@pytest.mark.slow
def test_a_killed_leg_is_gone_on_with_and_another_recipe_starts_from_its_average(script, tmp_path):
    state = tmp_path / "first" / "leg.json"
    killed = leg("--out", str(tmp_path / "first"), "--seconds", "300", *TINY)
    while not state.is_file():
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    first = json.loads(state.read_text())
    assert "metrics" not in first["legs"][0]
    assert first["legs"][0]["fields"] == [word for word in TINY if word.startswith("--model.") or word.startswith("--train.")]
    assert "/" not in "".join(first["files"])

    finished("--state", str(tmp_path / "first"), "--out", str(tmp_path / "second"), "--seconds", "3")
    second = json.loads((tmp_path / "second" / "leg.json").read_text())
    one, two = second["legs"]
    assert one == first["legs"][0]
    assert two["step"] == one["step"] + two["steps"] > one["step"]
    assert two["images"] == two["steps"] * 16
    assert {"test/accuracy", "fidelity/fd_cnn-digits_20"} <= two["metrics"].keys()
    assert str(tmp_path) not in (tmp_path / "second" / "leg.json").read_text()

    drawn = argparse.Namespace(state=tmp_path / "second", out=tmp_path / "legs.json", plot=tmp_path / "legs.svg")
    script.curve(drawn)
    assert json.loads(drawn.out.read_text()) == {"legs": second["legs"]}
    assert "test/accuracy" in drawn.plot.read_text()

    args = argparse.Namespace(state=tmp_path / "second", checkpoint_every=5)
    cfg, run, legs = script.prepared(args, ["--train.steps=4"], tmp_path / "other recipe")
    assert (legs, cfg.train.steps, list(run.parent.glob("other"))) == (second["legs"], 4, [])
    average = checkpoint.read_tensors(
        checkpoint.step_folders(run.with_name(script.SAME) / "checkpoints")[0] / "ema.safetensors"
    )
    start = checkpoint.read_tensors(Path(cfg.train.init) / "model.safetensors")
    assert all(torch.equal(start[name], average[name]) for name in start)


def test_what_travels_is_packed_into_one_folder_of_a_size_that_is_carried(script, tmp_path, monkeypatch):
    for split in ("train", "test"):
        (tmp_path / "images" / split / "cat").mkdir(parents=True)
        (tmp_path / "images" / split / "cat" / "0.jpg").write_bytes(split.encode())
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "leg.json").write_text('{"files": {}}')
    words = {"data": tmp_path / "images", "state": tmp_path / "state"}
    script.pack_up(argparse.Namespace(out=tmp_path / "luggage", **words))
    assert (tmp_path / "luggage" / "state" / "leg.json").is_file()
    packed = argparse.Namespace(out=tmp_path / "again", data=tmp_path / "luggage" / "images.tar", state=None)  # as it was sent
    script.pack_up(packed)
    subprocess.run(["tar", "-xf", packed.out / "images.tar", "-C", tmp_path / "again"], check=True)
    assert (tmp_path / "again" / "train" / "cat" / "0.jpg").read_bytes() == b"train"
    monkeypatch.setattr(script, "LUGGAGE", 100)
    with pytest.raises(SystemExit, match="at most 0 MiB travel"):
        script.pack_up(argparse.Namespace(out=tmp_path / "heavy", **words))
    with pytest.raises(SystemExit, match="neither an archive nor a folder with train and test"):
        script.pack_up(argparse.Namespace(out=tmp_path / "heavy", data=tmp_path / "state", state=None))
    with pytest.raises(SystemExit, match="luggage: exists: name a new folder"):
        script.pack_up(argparse.Namespace(out=tmp_path / "luggage", **words))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"images", "state", "luggage", "again"}  # nothing is left of what failed


def test_luggage_without_images_is_refused_before_a_training(script, tmp_path):
    args = argparse.Namespace(out=tmp_path / "out", luggage=tmp_path / "nothing", data=None, state=None)
    with pytest.raises(SystemExit, match=r"images\.tar: missing: --luggage is a folder that `pack` left"):
        script.leg(args, [])


def test_checks_that_fail_or_take_too_long_are_said_and_leave_nothing_running(script, tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "steps.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "CHECK_SECONDS", 5)
    found = script.checks("digits", tmp_path)
    assert found["step"] is None
    assert re.search("no tests ran|not found|not done after", found["tests"])
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended may still wait for its parent."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_default_preset_fits_and_one_that_does_not_is_refused_before_a_training(script, tmp_path, monkeypatch):
    assert 4 * cost(preset("cifar10_v2")).parameters < script.LARGEST
    monkeypatch.setattr(script, "LARGEST", 1000)
    monkeypatch.setattr(script, "train_for", lambda *_: pytest.fail("it trains"))
    args = argparse.Namespace(out=tmp_path / "out", luggage=None, data=None, state=None, preset="digits", checkpoint_every=1)
    with pytest.raises(SystemExit, match="the weights and their averages take 2 MiB"):
        script.leg(args, [])


def test_what_was_left_to_the_machine_is_no_other_recipe(script, tmp_path, monkeypatch):
    before = override(preset("digits"), train={"compile": True, "precision": "bf16"})

    def unpacked(state: Path, run: Path) -> list[object]:
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(to_yaml(before))
        return [{}]

    monkeypatch.setattr(script, "unpack", unpacked)
    args = argparse.Namespace(state=tmp_path, checkpoint_every=5)
    cfg, run, _ = script.prepared(args, ["--train.compile", "auto", "--train.precision", "auto"], tmp_path / "work")
    assert run.name == script.SAME
    assert (cfg.train.compile, cfg.train.precision) == (True, "bf16")


def test_a_state_is_exact_if_it_fits_and_else_rounded_without_momentum(script, monkeypatch):
    torch.manual_seed(0)
    weights = {"w": torch.randn(8, 8), "n": torch.arange(3)}
    tensors = {
        "network": weights,
        "ema": weights,
        "optimizer": {"0/momentum_buffer": torch.randn(8, 8), "1/0/exp_avg": torch.ones(2)},
    }
    exact = script.small(tensors)
    assert torch.equal(exact["network/w"], weights["w"])
    monkeypatch.setattr(script, "LARGEST", 600)
    rounded = script.small(tensors)
    assert "optimizer/0/momentum_buffer" not in rounded
    assert (rounded["ema/w"].dtype, rounded["ema/n"].dtype) == (torch.bfloat16, torch.int64)
    assert rounded["optimizer/1/0/exp_avg"].dtype == torch.float32
    torch.testing.assert_close(rounded["ema/w"].float(), weights["w"], rtol=2**-8, atol=0)
    monkeypatch.setattr(script, "LARGEST", size_without_optimizer := script.size_of(rounded) - 8)
    assert script.small(tensors).keys() == {name for name in rounded if not name.startswith("optimizer/")}
    assert script.size_of(script.small(tensors)) == size_without_optimizer
    monkeypatch.setattr(script, "LARGEST", 100)
    with pytest.raises(SystemExit, match="are carried"):
        script.small(tensors)


def test_a_run_goes_on_from_a_state_without_the_optimizer(script, tmp_path, monkeypatch):
    cfg = parse([*TINY[2:], "--train.steps=4", "--train.precision=fp32", "--train.preview_every=0"], preset("digits"))
    train(cfg, tmp_path / "run", lambda line: None)
    monkeypatch.setattr(script, "LARGEST", 5 * cost(cfg).parameters)
    (tmp_path / "out").mkdir()
    script.pack(tmp_path / "run", tmp_path / "out", [], {})
    assert script.unpack(tmp_path / "out", tmp_path / "next")[0]["step"] == 4
    said = list[str]()
    train(override(load_config(tmp_path / "next" / "config.yaml"), train={"steps": 6}), tmp_path / "next", said.append)
    assert any("resumed at step 4 of 6" in line for line in said)
    assert read_metrics(tmp_path / "next" / "metrics.jsonl")[-1]["step"] == 6


def test_no_file_of_a_state_is_larger_than_what_is_carried(script, monkeypatch):
    monkeypatch.setattr(script, "PART", 1000)
    tensors = {f"network/{i}": torch.zeros(n) for i, n in enumerate((100, 100, 100, 300, 1))}
    parts = script.parts_of(tensors)
    assert [len(part) for part in parts] == [2, 1, 1, 1]
    assert dict(pair for part in parts for pair in part.items()).keys() == tensors.keys()


def test_a_damaged_state_is_refused(script, tmp_path):
    (tmp_path / "state-1-0.safetensors").write_bytes(b"rubbish")
    found = {"step": 1, "config": "", "legs": [], "files": {"state-1-0.safetensors": "0" * 64}}
    (tmp_path / "leg.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="damaged"):
        script.unpack(tmp_path, tmp_path / "run")
    assert not checkpoint.step_folders(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize(
    "text", [None, "", "[]", '{"legs": []}', '{"step": 1, "config": "", "legs": [], "files": {"gone": "0"}}']
)
def test_a_missing_or_cut_state_is_said_in_one_line(script, tmp_path, monkeypatch, text):
    if text is not None:
        (tmp_path / "leg.json").write_text(text)
    words = [
        "gpu_leg.py",
        "run",
        "--out",
        str(tmp_path / "out"),
        "--seconds",
        "1",
        "--state",
        str(tmp_path),
        "--preset",
        "digits",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert str(tmp_path) in str(stop.value)
    assert "\n" not in str(stop.value)
