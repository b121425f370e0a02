"""What a person who waits sees: what a command will take, how far it is, and what to do next."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from hybvit import cli, devices, waiting
from hybvit.checkpoint import CALIBRATION
from hybvit.cli.next_step import NEXT, suggest
from hybvit.config import parse
from hybvit.evaluation import Options
from hybvit.evaluation.adapters import Adapted
from hybvit.evaluation.expected import announce_suites, work_of
from hybvit.evaluation.suites import run_suites
from hybvit.export.folder import SUFFIXES
from hybvit.metrics.autoattack import autoattack, has_autoattack
from hybvit.metrics.autoattack import passes as attack_passes
from hybvit.presets import preset
from hybvit.training.loop import train

from .conftest import QUICK, TINY, hybvit
from .test_evaluate import context

COMMANDS_WITHOUT = {"completion", "finetune", "serve"}  # a script, what `train` says too, and what lasts until it is ended


class Log(io.StringIO):
    """Standard error of a command whose output goes to a file."""

    tells = True


@pytest.fixture
def log(monkeypatch) -> Log:
    made = Log()
    monkeypatch.setattr(waiting, "sys", SimpleNamespace(stderr=made))  # not sys.stderr, which pytest sets anew
    return made


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that Progress reads, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Every forecast is worth saying."""
    monkeypatch.setattr(waiting, "LEAST_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (86400, "24.0 h"), (268000, "3.1 days")],
)
def test_a_duration_has_the_digits_of_a_forecast(seconds, words):
    assert waiting.duration(seconds) == words


def test_a_forecast_is_made_of_what_takes_long():
    assert waiting.forecast(4.9, 100) is None
    assert waiting.forecast(720, 1e9 / 2**20) == "expected: about 12 min and 1.0 GB of memory"
    assert waiting.forecast(720, None, at_most=True) == "expected: at most 12 min"


def test_a_log_gets_a_line_every_ten_seconds(log, clock):
    with waiting.Progress(8, "samples") as progress:
        for _ in range(8):
            clock[0] += 6
            progress.update()
    assert log.getvalue().splitlines() == ["samples: 25%, about 36 s left", "samples: 50%, about 24 s left",
                                           "samples: 75%, about 12 s left", "samples: 100%, about 1 s left"]  # fmt: skip


def test_parts_of_a_unit_move_the_innermost_progress_only(log, clock):
    with waiting.Progress(2, "outer", at_most=True) as outer:
        waiting.part_done(0.5)
        with waiting.Progress(1, "inner") as inner:
            waiting.part_done(0.25)
        with waiting.unwatched():
            waiting.part_done(0.25)
        clock[0] = 20
        waiting.part_done(0.5)
        assert (outer.reached, inner.reached) == (1, 0.25)
        outer.update()
        assert outer.reached == 1
        waiting.part_done(3)  # more than there was to be
        assert outer.reached == 2
    waiting.part_done(1)  # nobody waits
    assert log.getvalue() == "outer: 50%, at most 20 s left\n"


def test_a_quiet_command_and_python_code_see_nothing(monkeypatch, clock):
    for stream in (cli.output.Stream(io.StringIO(), "standard error", True, quiet=True), io.StringIO()):
        monkeypatch.setattr(waiting, "sys", SimpleNamespace(stderr=stream))
        with waiting.Progress(2, "samples") as progress:
            clock[0] += 60
            progress.update()
        waiting.tell("expected")
        assert stream.getvalue() == ""


SCRIPT = """
import sys, time
from hybvit.cli.output import guarded
from hybvit import waiting
waiting.BAR_AFTER, waiting.LINE_SECONDS = 0.05, 0.2
with guarded(False):
    with waiting.Progress(12, "samples") as progress:
        for _ in range(12):
            time.sleep(0.06)
            progress.update()
        waiting.tell("a line")
"""


def on_terminal(*words: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 1 << 16):
            written += part
    except OSError:  # how the end of a terminal shows on Linux
        pass
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


@pytest.mark.slow
def test_a_terminal_gets_a_bar_with_the_time_left_and_a_log_plain_lines():
    shown = on_terminal(sys.executable, "-c", SCRIPT)
    bars = re.findall(r"samples: +\d+%\|[^|]*\| 00:0\d, about 00:0\d left", shown)
    assert len(bars) > 2
    assert "\r" in shown
    assert "a line\r\n" in shown
    logged = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = logged.stderr.splitlines()
    assert lines[-1] == "a line"
    assert all(re.fullmatch(r"samples: \d+%, about \d s left", line) for line in lines[:-1])
    assert len(lines) > 2
    assert "\r" not in logged.stderr + logged.stdout


def test_a_sampling_and_a_bound_report_every_step(tiny_run, monkeypatch):
    from hybvit import load
    from hybvit.data.image_set import to_x

    model, parts = load(tiny_run), list[float]()
    monkeypatch.setattr(waiting.Progress, "part", lambda self, share: parts.append(share))
    pixels = model.sample(5, steps=4, batch_size=3)
    assert parts == [0.25] * 8  # of each of two batches
    for change in (
        lambda: model.vary(pixels, 0.5, steps=4, batch_size=3),
        lambda: model.inpaint(pixels, torch.ones(8, 8, dtype=torch.bool), steps=3, repeats=2, batch_size=3),
        lambda: model.interpolate(pixels[:1], pixels[1:2], frames=3, steps=3),
        lambda: model.bits_per_dim(to_x(pixels[:1])),
        lambda: model.predict(pixels),
    ):
        parts.clear()
        with waiting.Progress(1, "it"):
            change()
        assert len(parts) >= 1
        assert sum(parts) == pytest.approx(1)


@pytest.mark.skipif(not has_autoattack(), reason="needs pyautoattack")
@pytest.mark.parametrize("robust", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_autoattack_takes_at_most_what_it_says_and_arrives_at_the_end(robust, monkeypatch):
    monkeypatch.setattr("hybvit.metrics.autoattack.ITERATIONS", 100)
    seen = {"passes": 0.0, "last": 0.0}
    reach = waiting.Progress._reach

    def watched(self, place):
        assert self.total >= place >= seen["last"]
        seen["last"] = place
        seen["total"] = self.total
        reach(self, place)

    monkeypatch.setattr(waiting.Progress, "_reach", watched)
    scale = 1e4 if robust else 1e-2  # of the margin by which the first pixels decide

    def logits(x):
        seen["passes"] += len(x) * (3 if torch.is_grad_enabled() and x.requires_grad else 1)
        return scale * x.flatten(1)[:, :4]

    x = torch.zeros(3, 1, 4, 4)
    x[torch.arange(3), 0, 0, torch.arange(3)] = 0.9
    autoattack(logits, x, torch.arange(3), 0.02, "linf", 0, queries=40, progress="attack")
    most = sum(3 * attack_passes(name, 4, 40) for name in ("apgd-ce", "apgd-t", "fab-t", "square"))
    assert seen["total"] == most
    assert seen["last"] == most if robust else seen["last"] <= most
    assert seen["passes"] < 1.3 * most


def test_a_training_says_after_its_first_steps_what_the_others_will_take(tmp_path, impatient, monkeypatch):
    monkeypatch.setattr("hybvit.training.progress.TIMED", 0.0)
    said = list[str]()
    train(parse(["--train.steps=6", *TINY], preset("digits")), tmp_path / "run", said.append)
    forecasts = [line for line in said if line.startswith("expected")]
    assert len(forecasts) == 1
    assert re.fullmatch(r"expected: about \d+ s and \d+\.\d GB of memory", forecasts[0])
    assert said.index(forecasts[0]) == 1  # before the first losses


def test_a_short_command_says_nothing_of_its_time(tiny_run, tmp_path):
    done = hybvit("sample", tiny_run, "-n", "2", "--steps=2", "--out", tmp_path / "grid.png")
    assert "expected" not in done.stderr
    assert done.stderr.startswith("next: ")


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "-n", "3", "--steps", "2"),
        ("edit", "--vary", "0.5"),
        pytest.param(("edit", "--into", "3"), marks=pytest.mark.slow),
    ],
)
def test_a_long_command_says_before_what_it_will_take(words, tiny_run, tmp_path, impatient):
    hybvit("sample", tiny_run, "-n", "1", "--steps=1", "--out", tmp_path / "picture.png")
    command, *options = words
    pictures = [tmp_path / "picture.png"] if command == "edit" else []
    done = hybvit(command, tiny_run, *pictures, *options, "--out", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    bound = "at most" if "--into" in words else "about"
    assert re.fullmatch(rf"expected: {bound} \d+ (s|min) and \d+\.\d GB of memory", first)
    assert hybvit(command, tiny_run, *pictures, *options, "--out", tmp_path / "out.png", "--quiet").stderr == ""


def test_a_forecast_is_the_time_of_each_call_as_often_as_it_is_made(log, impatient, monkeypatch):
    times = iter([2.0, 0.5, 0.1])
    monkeypatch.setattr(devices, "seconds", lambda call: next(times))
    monkeypatch.setattr(devices, "peak_mib", lambda device: 1e9 / 2**20)
    devices.announce([(list, 100), (dict, 300), (set, 0)], torch.device("cpu"), held=5e8)
    assert log.getvalue() == "expected: about 4 min and 1.5 GB of memory\n"  # 100 of 2 s, and 300 of 0.1 s, when warm


class Counting(Adapted):
    """An external model that counts the images that go through it."""

    def __init__(self) -> None:
        self.seen = dict.fromkeys(("logits", "gradients", "denoised", "drawn"), 0)
        super().__init__((1, 8, 8), self.of_logits, self.of_denoise, device="cpu", classes=tuple("0123456789"))
        self.weights = torch.randn(64, 10)

    def of_logits(self, x: torch.Tensor) -> torch.Tensor:
        self.seen["gradients" if torch.is_grad_enabled() and x.requires_grad else "logits"] += len(x)
        return x.flatten(1) @ getattr(self, "weights", torch.zeros(64, 10))

    def of_denoise(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen["denoised"] += len(x)
        return 0.1 * x

    def draw(self, indices, sampler, steps, seed, guidance=0.0):
        self.seen["drawn"] += len(indices) * steps
        return torch.zeros(len(indices), 1, 8, 8, dtype=torch.uint8)


OPTIONS = Options(
    limit=60, samples=40, steps=3, bound_images=16, bound_draws=6, attack_images=16, autoattack_images=0, attack_steps=3,
    corruption_images=30, certified_images=4, certified_votes=20, out_of_distribution=("noise",), certified_noise=(0.25,),
)  # fmt: skip


@pytest.mark.parametrize("suite", ["accuracy", "probe", "ood", "corruptions", "likelihood", "fidelity", "certified"])
def test_a_suite_sends_as_many_images_through_the_model_as_is_said(suite, tmp_path):
    model = Counting()
    ctx = context(model, tmp_path, OPTIONS)
    said = work_of(ctx, suite)._asdict()
    run_suites(ctx, (suite,), lambda line: None)
    reference = 2500 if suite == "ood" else 0  # training images that densities are fitted to, and ranks taken among
    for kind, images in said.items():
        most = 1.3 * images + 60 if suite != "certified" else images
        if suite == "certified" or kind == "gradients":
            assert model.seen[kind] <= images + 60, kind
        else:
            assert 0.5 * images <= model.seen[kind] <= most + reference, kind


def test_only_what_is_to_be_measured_is_announced(tiny_run, tmp_path, impatient):
    words = ["evaluate", tiny_run, *QUICK, "--suites", "accuracy,likelihood", "--out", tmp_path]
    first = hybvit(*words)
    assert re.match(r"expected: about \d+ s and \d+\.\d GB of memory\n", first.stderr), first.stderr
    assert "expected" not in hybvit(*words).stderr  # both are stored
    log = Log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "sys", SimpleNamespace(stderr=log))
        announce_suites(context(Counting(), tmp_path, OPTIONS), ["robustness"])
    assert log.getvalue().startswith("expected: at most")


# The next command


def test_every_command_has_a_next_one():
    assert {key.split()[0] for key in NEXT} | COMMANDS_WITHOUT == set(cli.COMMANDS)
    facts = {name: "a b" for template in NEXT.values() for name in re.findall(r"\{(\w+)\}", template)}
    for template in NEXT.values():
        command, *words = template.split()
        build_parser = import_module(f"hybvit.cli.{command.replace('-', '_')}").build_parser
        known = {option for action in build_parser()._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= known, template
    assert facts
    assert {f"export --format {form}" for form in (*SUFFIXES, "safetensors")} <= NEXT.keys()


def test_the_next_command_can_be_copied_into_a_shell(log):
    suggest("train", run="my runs/it's", data=["--data", "a;b $HOME"])
    (line,) = log.getvalue().splitlines()
    assert line.startswith("next: hybvit evaluate ")
    words = ["evaluate", "my runs/it's", "--data", "a;b $HOME", "--report"]
    assert shlex.split(line.removeprefix("next: hybvit ")) == words


def run_next(said: str) -> subprocess.CompletedProcess[str]:
    """Run the command that was said."""
    (line,) = re.findall(r"^next: hybvit (.*)$", said, re.MULTILINE)
    done = hybvit(*shlex.split(line))
    assert done.returncode == 0, (line, done.stderr)
    return done


@pytest.mark.slow
def test_the_next_commands_lead_from_samples_to_an_edit_and_from_figures_to_a_calibration(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)  # the calibration is kept in it
    done = hybvit("sample", run, "-n", "2", "--steps=2", "--out", "a grid.png")
    for _ in range(3):  # single files, classified, edited
        done = run_next(done.stderr)
    assert (tmp_path / "edit.png").is_file()
    assert "next: hybvit serve" in done.stderr
    done = hybvit("evaluate", run, *QUICK, "--suites=accuracy", "--out", "figures")
    done = run_next(done.stderr)  # with a report
    assert "--half-of-test" not in done.stderr  # its training held images out
    run_next(done.stderr)
    assert (run / CALIBRATION).is_file()


# Output for programs


def test_figures_for_a_program_are_one_object_and_nothing_else(tiny_run, tmp_path):
    words = ["evaluate", tiny_run, *QUICK, "--suites=accuracy,likelihood", "--report", "--out", tmp_path, "--json"]
    for quiet in ((), ("--quiet",)):
        done = hybvit(*words, *quiet)
        assert done.returncode == 0
        assert done.stdout.count("\n") == 1
        assert json.loads(done.stdout) == json.loads((tmp_path / "results.json").read_text())
        assert "next:" not in done.stderr
        assert ("results.json written" in done.stderr) is not bool(quiet)
    assert done.stderr == ""
    assert hybvit(*words[:2], "--json", "--suites=none").stdout == ""


def test_lists_for_a_program_are_an_object_a_line(tiny_run):
    presets = [json.loads(line) for line in hybvit("presets", "--json").stdout.splitlines()]
    assert [entry["name"] for entry in presets] == list(cli.train.PRESETS)
    assert (
        parse([], preset("digits")).train.steps
        == next(p for p in presets if p["name"] == "digits")["configuration"]["train"]["steps"]
    )
    for words in (["datasets", "--json"], ["doctor", "--json"]):
        done = hybvit(*words)
        assert all(json.loads(line) for line in done.stdout.splitlines())
        assert "next:" not in done.stderr
