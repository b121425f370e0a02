"""The command that makes sense after another one, said with the paths of that one, to be copied into a shell."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..waiting import tell

# What was done -> the command to suggest; a {word} in braces stands for what `suggest` is given under that name.
NEXT = {
    "bench": "bench {arguments} --out bench.json",
    "bench --out": "bench {arguments} --compare {out}",
    "calibrate": "evaluate {model} {data} --suites calibration,doubt --report",
    "calibrate with --data": "serve {model}",
    "classify": "edit {model} {image} --vary 0.5",
    "classify without a denoiser": "serve {model}",
    "datasets": "show-data {preset} {data}",
    "doctor": "sample digits",
    "edit": "serve {model}",
    "evaluate": "evaluate {arguments} --report",
    "evaluate --report": "serve {model}",
    "evaluate --report without a calibration": "calibrate {model} {data} {half} {out}",
    "export --format onnx": "export {model} --int8 --out {int8}",
    "export --format safetensors": "serve {out}",
    "export --format torch": "serve {model}",
    "export --int8": "serve {model}",
    "presets": "show digits",
    "push": "sample {repo}",
    "push --dry-run": "push {arguments}",
    "reproduce": "reproduce {names} --scale full --dry-run",
    "reproduce --dry-run": "reproduce {arguments}",
    "sample": "sample {arguments} --folder {folder}",
    "sample --folder": "classify {model} {image}",
    "sample --folder without classes": "serve {model}",
    "show": "train {preset} {fields}",
    "show-data": "train {preset} {data} {fields}",
    "train": "evaluate {run} {data} --report",
}


def suggest(done: str, **facts: str | Path | Sequence[str]) -> None:
    """Say the next command after ``done``, a key of :data:`NEXT`; with ``--quiet`` nothing.

    Args:
        facts: a word, or any number of words, for each name in braces.
    """
    words = list[str]()
    for word in NEXT[done].split():
        fact = facts[word[1:-1]] if word.startswith("{") else word
        words += [str(fact)] if isinstance(fact, (str, Path)) else fact
    sys.stdout.flush()  # what was said before comes first, where both streams are one
    if getattr(sys.stdout, "lost", None) is None:  # else what did not arrive is to be said, and only that
        tell(f"next: hybvit {shlex.join(words)}")


def data_options(root: str | None, test_root: str | None = None) -> list[str]:
    """The words that say again where the data are, which a command takes from nowhere else for your own images."""
    return [word for option, place in (("--data", root), ("--data.test_root", test_root)) if place for word in (option, place)]
