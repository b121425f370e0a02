"""`hybvit completion`: the scripts, as the shells themselves read and run them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hybvit.cli import COMMANDS
from hybvit.cli.completion import SHELLS, command_of
from hybvit.config import field_options
from hybvit.hub import bundled

from .conftest import hybvit

TRY = """. {script}
try() {{
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _hybvit
    echo "${{COMPREPLY[*]}}"
}}
complete -p hybvit > /dev/null || exit 1
"""
CASES = {  # what is typed, as the words that bash makes of it -> what is offered
    ("hybvit", "sho"): {"show", "show-data"},
    ("hybvit", "train", "fashion_mnist_"): {"fashion_mnist_pocket", "fashion_mnist_v2"},
    ("hybvit", "train", "digits", "--objective", ""): {"vit", "genvit", "hybvit"},
    ("hybvit", "train", "--objective", "=", "g"): {"genvit"},
    ("hybvit", "train", "--objective", "="): {"vit", "genvit", "hybvit"},
    ("hybvit", "train", "--train.prec"): {"--train.precision"},
    ("hybvit", "show", "digits", "--train.compile", ""): {"auto", "true", "false"},
    ("hybvit", "classify", ""): {"cifar10", "digits", "fashion-mnist"},
    ("hybvit", "sample", "digits", "--out", ""): set(),  # bash then offers files
    ("hybvit", "sample", "digits", "--ou"): {"--out"},
    ("hybvit", "datasets", "celeba_"): {"celeba_hq"},
    ("hybvit", "reproduce", "table13"): {"table13"},
    ("hybvit", "completion", "z"): {"zsh"},
    ("hybvit", "train", "digits", "--train.track", "t"): {"tensorboard", "trackio"},
    ("hybvit", "finetune", "digits", "--data.name", "fashion"): {"fashion_mnist"},
    ("hybvit", "nonsense", ""): set(),
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict[str, Path]:
    """The script of each shell, as a file."""
    folder, found = tmp_path_factory.mktemp("completion"), {}
    for shell in SHELLS:
        done = hybvit("completion", shell)
        assert done.returncode == 0, done.stderr
        found[shell] = folder / shell
        found[shell].write_text(done.stdout)
    return found


@pytest.mark.slow
def test_the_parsers_of_all_commands_wait_for_torch_alone():
    """Each of the others takes a second or more to import."""
    code = (
        "import sys; from hybvit.cli.completion import main; main(['bash']); "
        "print(sorted({'sklearn', 'torchvision', 'torch._dynamo', 'torch.distributed.tensor'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_bash_offers_what_fits(scripts):
    lines = [f"try {' '.join(repr(word) for word in words)}" for words in CASES]
    script = TRY.format(script=scripts["bash"]) + "\n".join(lines)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    offered = [set(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(CASES, offered, strict=True)) == CASES


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_can_read_its_script(shell, scripts):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", scripts[shell]], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_option_and_model_is_in_every_script(shell, scripts):
    text = scripts[shell].read_text()
    names = {name for command in COMMANDS for option in command_of(command, "").options for name in option.names}
    assert set(field_options()) < names
    for name in (*COMMANDS, *bundled(), *(name for name in names if name.startswith("--"))):
        assert name.removeprefix("--") in text, name


def test_help_is_quoted_as_each_shell_needs_it(scripts):
    fish, zsh = (scripts[shell].read_text() for shell in ("fish", "zsh"))
    assert "print a preset\\'s full configuration" in fish
    assert "print a preset'\"'\"'s full configuration" in zsh
