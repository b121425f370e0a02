"""How a command ends: work that is not done, or output that did not arrive, is not reported as success."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import hybvit
from hybvit import checkpoint, cli, config
from hybvit.errors import DivergedError
from hybvit.evaluation import plots
from hybvit.evaluation.report import plain
from hybvit.method.vit import HybViT
from hybvit.presets import preset
from hybvit.storage import lock_folder

from .conftest import ENDLESS, QUICK, TINY
from .conftest import hybvit as command
from .forked import Forked
from .forked import command as run_command

CFG = config.Config(model=hybvit.ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=3, dim=16, depth=1, heads=2))


def shell(line: str, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """A command line as bash runs it, with `hybvit`, and the exit code of its first part."""
    changed = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    line = f"{line.replace('hybvit', f'{sys.executable} -m hybvit', 1)}; exit ${{PIPESTATUS[0]}}"
    known = {name: value for name, value in changed.items() if value is not None}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=known, capture_output=True, text=True, timeout=120)


TRAIN = f"hybvit train digits --out run --train.steps=4 {' '.join(TINY)}"


def into_full(words: list[str]) -> None:
    with open("/dev/full", "w") as sys.stdout:
        run_command(words)


def into_closed_pipe(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as sys.stdout:
        run_command(words)


@pytest.mark.slow
@pytest.mark.parametrize(("output", "code"), [(into_closed_pipe, 0), (into_full, 3)])
def test_a_training_whose_output_is_lost_finishes(tmp_path, output, code):
    training = Forked(output, ["train", "digits", "--out", str(tmp_path / "run"), "--train.steps=4", *TINY])
    _, said = training.communicate()
    assert training.poll() == code, said
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[1]["step"] == 4
    assert re.fullmatch(r"hybvit: standard output: cannot be written \(.*\).*; the work went on without it\n", said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    ["hybvit presets > /dev/full", "hybvit --help > /dev/full", "hybvit presets >&-", "hybvit sample --help > /dev/full"],
)
def test_output_that_did_not_arrive_exits_3_with_one_line(tmp_path, line):
    done = shell(line, tmp_path)
    assert done.returncode == 3, done.stderr
    assert "standard output: cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_listing_as_it_ends_other_programs(tmp_path):
    done = shell("hybvit presets | true", tmp_path)  # true ends long before Python has started
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["hybvit presets 2>&-", f"{TRAIN} 2>&- >&- <&-", "hybvit presets 2>/dev/full"])
def test_closed_streams_are_no_crash(tmp_path, line):
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr
    if "train" in line:
        assert checkpoint.newest(tmp_path / "run" / "checkpoints")[1]["step"] == 4


def with_hangup(words: list[str], folder: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    os.chdir(folder)
    run_command(words)


@pytest.mark.slow
def test_a_hangup_saves_like_a_termination(tmp_path):
    words = ["train", "digits", "--out", str(tmp_path / "run"), *TINY, *ENDLESS]
    training = Forked(with_hangup, words, tmp_path)
    while not checkpoint.step_folders(tmp_path / "run" / "checkpoints"):
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)
    os.kill(training.pid, signal.SIGHUP)
    _, said = training.communicate(timeout=60)
    assert training.poll() == 75
    assert "SIGHUP" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("words", ["sample digits -n 100000 --folder drawn", "evaluate digits --suites fidelity --out results"])
def test_a_signal_ends_any_command_with_a_line(tmp_path, number, words):
    going = Forked(with_hangup, words.split(), tmp_path)
    while not any(tmp_path.iterdir()):
        assert going.poll() is None, going.communicate()
        time.sleep(0.05)
    time.sleep(1)
    os.kill(going.pid, number)
    _, said = going.communicate(timeout=60)
    assert going.poll() in (75, 130)
    assert "interrupted" in said.splitlines()[-1]
    assert not list(tmp_path.glob("**/*.part"))


def test_two_calls_do_not_draw_into_one_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn").mkdir()
    lock = lock_folder(tmp_path / "drawn")
    words = ["sample", "digits", "-n", "1", "--steps", "1", "--folder", "drawn"]
    assert cli.main(words) == 2
    lock.close()
    assert cli.main(words) == 0


@pytest.mark.parametrize("arguments", [["sample", "-n", "1", "--steps", "2"], ["classify", "a.png"]])
def test_a_model_whose_answers_are_not_finite_is_no_success(tmp_path, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = HybViT(CFG.model)
    model = hybvit.HybridModel(net, CFG, "cpu")
    assert command("sample", "digits", "-n", "1", "--steps", "1", "--out", "a.png").returncode == 0
    for value, code in ((float("nan"), 5), (3e38, 4)):  # not finite; finite, with answers that are not
        for weight in net.parameters():
            weight.data.fill_(value)
        model.save_pretrained("model")
        done = command(arguments[0], "model", *arguments[1:])
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    with pytest.raises(DivergedError, match="not finite"):
        model.predict(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_a_snapshot_of_a_diverged_step_is_not_kept(tmp_path):
    hot = ("--optim.lr=1e30", "--optim.clip=0", "--optim.warmup_steps=0", "--optim.name=sgd", "--train.precision=fp32")
    run = ("train", "digits", "--out", tmp_path / "run", "--train.steps=20", *TINY, *hot, "--train.checkpoint_every=20")
    done = command(*run, "--train.snapshot_every=1", "--train.log_every=20")
    assert done.returncode == 4, done.stderr
    for folder in checkpoint.step_folders(tmp_path / "run" / "snapshots"):
        for tensor in checkpoint.read_tensors(folder / "ema.safetensors").values():
            assert tensor.isfinite().all()


def test_a_user_without_a_home_has_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as with no HOME and an unknown user id
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    done = command("datasets")
    assert done.returncode == 0, done.stderr


# messages


def test_a_warning_is_one_line_of_text(monkeypatch):
    def warns(arguments: list[str]) -> None:  # pytest keeps what is warned of, so this asks for its text
        sys.stderr.write(warnings.formatwarning("half of\n it is  damaged", UserWarning, "f.py", 1))

    monkeypatch.setattr("hybvit.cli.presets.main", warns)
    assert command("presets").stderr == "warning: half of it is damaged\n"
    assert "UserWarning" in warnings.formatwarning("x", UserWarning, "f.py", 1)


def test_a_file_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("evaluate", "x" * 5000)
    assert done.returncode == 3
    assert done.stderr.startswith("hybvit: xxxx")
    assert done.stderr.count("\n") == 1
    if sys.version_info < (3, 14):  # later such a path is merely absent
        assert done.stderr.endswith(": File name too long\n")
    Path("loop").symlink_to("loop")
    for words in (
        ["classify", "loop", "1.png"],
        ["train", "digits", "--data", "loop"],
        ["train", "digits", "--data", "x" * 5000],
    ):
        done = command(*words)
        assert done.returncode in (2, 3), words
        assert "internal" not in done.stderr, words


@pytest.mark.slow
@pytest.mark.parametrize("error", [DivergedError, config.ConfigError])
def test_a_model_that_cannot_be_used_is_named(tiny_run, tmp_path, monkeypatch, error):
    def diverged(*args: object, **kwargs: object) -> None:
        raise error("the logits are not finite")

    monkeypatch.setattr(hybvit.HybridModel, "predict", diverged)
    monkeypatch.setattr(hybvit.HybridModel, "sample", diverged)
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    for words in (["classify", tiny_run, tmp_path / "1.png"], ["sample", tiny_run, "-n", "1", "--out", tmp_path / "grid.png"]):
        assert command(*words).stderr == f"hybvit: {tiny_run}: the logits are not finite\n"


def test_a_preview_that_diverges_names_the_run_and_the_step(tmp_path, monkeypatch):
    def diverged(*args: object, **kwargs: object) -> None:
        raise DivergedError("the images are not finite")

    monkeypatch.setattr(hybvit.HybridModel, "sample", diverged)
    done = command("train", "digits", "--out", tmp_path / "run", *TINY, "--train.steps=2", "--train.preview_every=2")
    assert (done.returncode, done.stderr) == (4, f"hybvit: {tmp_path / 'run'}: step 2: the images are not finite\n")


def test_a_preview_that_fails_loses_no_step_and_takes_no_more_steps_than_there_are(tmp_path, monkeypatch):
    words = ("train", "digits", "--out", tmp_path / "run", *TINY, "--train.preview_every=2", "--diffusion.steps=10")
    assert command(*words, "--train.steps=2").returncode == 0
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "step-00000004.png")

    monkeypatch.setattr("hybvit.training.progress.save_image", full)
    done = command(*words, "--train.steps=4", "--train.checkpoint_every=2")
    assert (done.returncode, done.stderr) == (3, "hybvit: step-00000004.png: No space left on device\n")
    assert (tmp_path / "run" / "checkpoints" / "step-00000004").is_dir()


def test_a_system_without_a_folder_for_temporary_files_is_said(monkeypatch):
    def full(arguments: list[str]) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("hybvit.cli.presets.main", full)
    done = command("presets")
    assert (done.returncode, done.stderr) == (3, "hybvit: the system says: No usable temporary directory found in ['/tmp']\n")


def test_a_deleted_folder_is_said(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = command("presets")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("hybvit: the current folder: No such file")
    assert command("--version").returncode == 0


@pytest.mark.slow
def test_an_answer_that_the_terminal_cannot_show_is_still_an_answer(tmp_path):
    """Names of files and classes in an encoding that lacks their letters; text in files is UTF-8 whatever the locale."""
    Image.new("L", (8, 8), 90).save(tmp_path / "caf\u00e9.png")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "hybvit", "classify", "digits", "caf\u00e9.png"]
    done = subprocess.run(words, cwd=tmp_path, env=ascii_only, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"caf" in done.stdout


# names


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$a", "$a$", "$\\frac$", "a$b$c", "$$", "\\$x$", "_a", "<b>", "a_b^{c", "%s", "{x}"])
@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib warns of a legend that it leaves empty
def test_a_class_name_kills_no_plot(name):
    other = "other"
    assert "<svg" in plots.confusion([[1, 2], [3, 4]], [name, other])
    assert "<svg" in plots.bars({name: 0.5, other: 0.2}, "accuracy")
    assert "<svg" in plots.histograms({name: [1.0, 2.0], other: [3.0]}, "x")
    assert "<svg" in plots.histogram_panels({name: [1.0, 2.0], other: [3.0]}, "x")
    assert "<svg" in plots.curves({name: [(0, 1), (1, 2)]}, "x", "y")


def test_a_long_legend_stands_below_the_lines():
    def height(number: int, letters: int = 1) -> float:
        drawn = plots.curves({f"{k}" * letters: [(0, k), (1, k)] for k in range(number)}, "x", "y")
        return float(re.search(r'height="([\d.]+)pt"', drawn)[1])

    assert height(1) == height(4) < height(5) == height(6) < height(8)
    assert height(5, letters=40) > height(8)  # a line for each, since two would not stand beside each other


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", r"a\|b"),
        ("[x](http://y)", r"\[x\](http://y)"),
        ("two\n# lines", "two # lines"),
        ("`code` *and* _more_", r"\`code\` \*and\* \_more\_"),
        ("fidelity/fd_cnn_1000", "fidelity/fd_cnn_1000"),
    ],
)
def test_a_name_is_text_in_the_report(name, written):
    assert plain(name) == written


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "abc"}, {"WORLD_SIZE": "-3"}, {"WORLD_SIZE": "1.5"}, {"WORLD_SIZE": "2"}])
def test_processes_that_torchrun_did_not_start_are_refused(monkeypatch, variables):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = command("evaluate", "digits", "--suites=accuracy", *QUICK)
    assert found.returncode == 2
    assert "WORLD_SIZE is" in found.stderr


# arguments


@pytest.mark.slow
def test_a_home_in_an_option_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert command("sample", "digits", "-n", "1", "--steps", "1", "--out=~/x/grid.png").returncode == 0
    assert command("sample", "digits", "-n", "1", "--steps", "1", "--folder=~/y").returncode == 0
    assert command("train", "digits", *TINY, "--train.steps=1", "--out=~/run").returncode == 0
    assert command("evaluate", "digits", "--suites=accuracy", *QUICK, "--out=~/judged").returncode == 0
    made = {path.name for path in (tmp_path / "home").iterdir()} - {".cache", ".config"}  # those are of matplotlib
    assert made == {"judged", "run", "x", "y"}
    assert not Path("~").exists()


@pytest.mark.parametrize("field", ["data.root", "data.test_root", "train.init"])
@pytest.mark.parametrize(("text", "place"), [("~", ""), ("~/x", "/x"), ("~/a b", "/a b")])
def test_a_home_in_a_field_is_expanded_and_never_nothing(tmp_path, monkeypatch, field, text, place):
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in ([f"--{field}", text], [f"--{field}={text}"]):
        assert config.value_of(config.parse(words, preset("digits")), field) == f"{tmp_path}{place}"
    assert config.value_of(config.parse([f"--{field}", "null"], preset("digits")), field) is None
    assert config.value_of(config.parse([f"--{field}", "a~b"], preset("digits")), field) == "a~b"


@pytest.mark.parametrize(
    ("name", "message"), [("fashion_mnist", "are not the model's"), ("folder", "must be one of"), ("clothes", "must be one of")]
)
def test_a_data_set_that_is_named_is_the_one_that_is_judged(tmp_path, name, message):
    judged = command("evaluate", "digits", "--dataset", name, "--suites=accuracy", *QUICK, "--out", str(tmp_path))
    assert judged.returncode == 2
    assert message in judged.stderr


def test_one_bad_file_costs_no_answer_of_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("sample", "digits", "-n", "2", "--steps", "1", "--folder", ".").returncode == 0
    Path("bad.png").write_text("no image")
    done = command("classify", "digits", "000000.png", "bad.png", "000001.png", "none.png")
    assert done.returncode == 3
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["000000.png", "000001.png"]
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["bad.png", "none.png"]
    assert command("classify", "digits", "bad.png").returncode == 3


@pytest.mark.parametrize(("label", "drawn"), [("1", "'1' (number 0)"), ("3", "'3' (number 2)"), ("0", "'1' (number 0)")])
def test_a_class_name_goes_before_a_number_and_is_said(tmp_path, label, drawn):
    torch.manual_seed(0)
    cfg = config.override(CFG, data={"classes": ("1", "2", "3")})
    hybvit.HybridModel(HybViT(cfg.model), cfg, "cpu").save_pretrained(tmp_path / "model")
    asked = ("sample", tmp_path / "model", "-n", "1", "--steps", "1", "--label", label, "--guidance", "1")
    done = command(*asked, "--out", tmp_path / "grid.png")
    assert done.returncode == 0, done.stderr
    assert f"of class {drawn}" in done.stdout
    shutil.rmtree(tmp_path / "model")
