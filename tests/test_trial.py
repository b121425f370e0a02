"""The trial before a new run: which number of threads, and whether to compile; it leaves no trace in what the run computes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hybvit.config import Config, load_config, override, parse
from hybvit.errors import ConfigError
from hybvit.presets import preset
from hybvit.training import trial
from hybvit.training.loop import train
from hybvit.training.trial import decided, try_compiling, try_threads

from .conftest import TINY

CPU = torch.device("cpu")
CFG = parse([*TINY, "--train.steps=600", "--train.precision=fp32"], preset("digits"))


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """Two threads that nobody asked for; what a trial says."""
    for name in trial.GIVEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(trial, "busy_share", lambda: 0.0)
    monkeypatch.setattr(trial, "PAUSE", 0.0)
    monkeypatch.setattr(trial, "usable_cores", lambda: set(range(4)))
    torch.set_num_threads(2)
    return []


def taking(milliseconds: dict[int, float]) -> Callable[[], None]:
    """A step that takes so long with each number of threads."""
    return lambda: time.sleep(milliseconds[torch.get_num_threads()] / 1e3)


def never(cfg: Config) -> Callable[[str], object]:
    raise AssertionError("a trial was made")


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ({1: 10, 2: 30}, 1),
        ({1: 15, 2: 10}, 2),
        ({1: 10, 2: 10.4}, 2),  # by less than what may be noise
        ({1: 30, 2: 10, 4: 30}, 2),
        ({1: 40, 3: 30}, 3),
    ],
)
def test_fewer_threads_are_taken_where_they_are_clearly_faster(said, milliseconds, chosen):
    most = max(milliseconds)
    torch.set_num_threads(most)
    assert try_threads(taking(milliseconds), most, said.append) >= milliseconds[chosen] / 1e3
    assert torch.get_num_threads() == chosen
    assert len(said) == (chosen != most)
    assert all(f"instead of {most}: a step takes" in line and f"OMP_NUM_THREADS={most}" in line for line in said)


def test_a_disturbance_of_one_trial_is_no_reason_for_fewer_threads(said, monkeypatch):
    found = iter([{"1": [1.0], "2": [5.0]}, {"1": [1.0], "2": [0.6]}])
    monkeypatch.setattr(trial, "alternating", lambda *_, **__: next(found))
    assert try_threads(lambda: None, 2, said.append) == 0.6
    assert torch.get_num_threads() == 2
    assert not said


@pytest.mark.parametrize(
    ("busy", "cores", "most", "chosen"),
    [(1.0, 2, 2, 1), (0.5, 2, 2, 1), (0.15, 2, 2, 2), (0.4, 16, 16, 10), (0.4, 16, 8, 8), (None, 2, 2, 2)],
)
def test_no_more_threads_are_taken_than_other_programs_leave_cores(said, monkeypatch, busy, cores, most, chosen):
    """Whatever the trial says, which here is that more threads are always faster."""
    monkeypatch.setattr(trial, "busy_share", lambda: busy)
    monkeypatch.setattr(trial, "usable_cores", lambda: set(range(cores)))
    torch.set_num_threads(most)
    try_threads(lambda: time.sleep(0.02 / torch.get_num_threads()), most, said.append)
    assert torch.get_num_threads() == chosen
    assert len(said) == (chosen != most)
    assert all(
        f"other programs keep {busy:.0%} of the cores busy; OMP_NUM_THREADS={most} keeps {most}" in line for line in said
    )


def test_a_trial_is_made_of_new_long_runs_in_which_the_threads_are_free(said, tmp_path, monkeypatch):
    asked = list[Config]()

    def step_of(cfg: Config) -> Callable[[str], object]:
        asked.append(cfg)
        torch.rand(1)
        step = taking({1: 1, 2: 9})
        return lambda precision: step()

    def threads(cfg: Config = CFG, out: Path = tmp_path / "new", steps: trial.StepOf | None = never) -> int:
        with decided(cfg, out, CPU, steps, said.append) as found:
            assert found == override(cfg, train={"compile": False})
            return torch.get_num_threads()

    assert threads(override(CFG, train={"steps": 499})) == threads(steps=None) == 2
    before = torch.get_rng_state()
    assert threads(steps=step_of) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert [cfg.train.compile for cfg in asked] == [False]
    assert torch.get_num_threads() == 2  # only as long as the run lasts
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads(steps=step_of) == 2


@pytest.mark.slow
def test_a_run_with_a_trial_computes_what_it_would_without_and_resumes_exactly(said, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "FEWEST_STEPS", 1)
    alternating = trial.alternating
    monkeypatch.setattr(trial, "alternating", lambda calls, *_, **__: alternating(calls, 1) and {"1": [1.0], "2": [3.0]})
    cfg = override(CFG, train={"steps": 4, "checkpoint_every": 2})

    def weights(name: str) -> list[torch.Tensor]:
        return list(train(cfg, tmp_path / name, said.append).net.state_dict().values())

    tried = weights("tried")
    assert json.loads((tmp_path / "tried" / "environment.json").read_text())["threads"] == 1
    assert load_config(tmp_path / "tried" / "config.yaml").train.compile is False
    shutil.rmtree(tmp_path / "tried" / "checkpoints" / "step-00000004")
    said.clear()
    resumed = weights("tried")
    assert "1 thread, as before; OMP_NUM_THREADS sets another number" in said[0]
    assert not any("not bit-exact" in line for line in said)
    torch.set_num_threads(1)
    plain = list(train(cfg, tmp_path / "plain", said.append, trial=False).net.state_dict().values())
    for a, b, c in zip(tried, resumed, plain, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)


def test_a_run_of_another_machine_takes_the_threads_of_this_one(said, tmp_path):
    train(override(CFG, train={"steps": 1}), tmp_path, said.append)
    facts = json.loads((tmp_path / "environment.json").read_text())

    def threads(**changes: object) -> int:
        (tmp_path / "environment.json").write_text(json.dumps({**facts, **changes}))
        with decided(CFG, tmp_path, CPU, never, said.append):
            return torch.get_num_threads()

    assert threads(threads=1) == 1
    assert threads(threads=1, device="another") == threads(threads=8) == threads(threads="1") == threads(threads=0) == 2
    (tmp_path / "environment.json").unlink()
    with decided(CFG, tmp_path, CPU, never, said.append):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("compiled", "steps", "pays"), [(0.004, 600, True), (0.004, 10, False), (0.02, 600, False)])
def test_compiling_pays_where_the_run_saves_more_than_it_takes(said, compiled, steps, pays):
    def step_of(cfg: Config) -> Callable[[str], object]:
        assert cfg.train.compile is True
        time.sleep(0.1)
        return lambda precision: time.sleep(compiled)

    cfg = override(CFG, train={"steps": steps})
    assert try_compiling(cfg, lambda: time.sleep(0.01), step_of, said.append) is pays
    assert ("; a step takes" in said[-1], "not compiled" in said[-1]) == (True, not pays)


def test_a_step_that_cannot_be_compiled_is_not(said):
    def step_of(cfg: Config) -> Callable[[str], object]:
        raise RuntimeError("no\nheaders")

    assert not try_compiling(CFG, lambda: None, step_of, said.append)
    assert said[-1] == "train.compile auto: not compiled, since that failed (no headers)"


def test_compiling_is_tried_in_runs_over_an_hour_and_then_kept(said, tmp_path, monkeypatch):
    tried = list[str]()
    monkeypatch.setattr(trial, "try_compiling", lambda *args: tried.append("") or True)
    monkeypatch.setenv("CXX", "python3")

    def compiles(out: Path, **fields: object) -> bool:
        with decided(
            override(CFG, train=fields), out, CPU, lambda cfg: lambda precision: time.sleep(0.002), said.append
        ) as cfg:
            return cfg.train.compile

    assert compiles(tmp_path, steps=10**7)
    assert not compiles(tmp_path, steps=10**4)
    assert not compiles(tmp_path, steps=10**7, compile=False)
    assert compiles(tmp_path, steps=10**4, compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiles(tmp_path, steps=10**7)
    assert len(tried) == 1
    train(override(CFG, train={"steps": 1, "compile": False}), tmp_path, said.append)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("compile: false", "compile: true"))
    assert compiles(tmp_path)
    with pytest.raises(ConfigError, match=r"was started with train\.compile = True, not False"):
        train(override(CFG, train={"steps": 1, "compile": False}), tmp_path, said.append)


def test_what_train_compile_takes():
    assert parse(["--train.compile=auto"], CFG).train.compile == "auto"
    assert parse(["--train.compile", "true"], CFG).train.compile is True
    with pytest.raises(ConfigError, match=r"train\.compile is maybe: it must be auto or true or false"):
        parse(["--train.compile", "maybe"], CFG)
    with pytest.raises(ConfigError, match="it must be auto, true or false"):
        override(CFG, train={"compile": "maybe"})
