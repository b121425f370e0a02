"""What the scripts of this folder share: figures are kept with `--write` alone, so that a quick try overwrites nothing."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, with ``--write``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures in results/, where the documentation reads them")
    return parser


def keep(name: str, record: Mapping[str, Any], write: bool) -> None:
    """Write results/NAME.json; print the record where it is not to be written."""
    text = json.dumps(record, indent=1)
    if write:
        (RESULTS / f"{name}.json").write_text(text + "\n")
    else:
        print(text)


def command() -> str:
    """The command that this process was started with, from the repository's root."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


@contextlib.contextmanager
def busy_programs(number: int) -> Iterator[None]:
    """So many other programs, each of which keeps a core busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def share(hits: Tensor) -> dict[str, float]:
    """The share of a bool [N] that is true, with Wilson's 95 % interval."""
    from hybvit.metrics.classification import wilson_interval  # imports torch, which not every script needs

    value = hits.double().mean().item()
    low, high = wilson_interval(value, len(hits))
    return {"value": value, "n": len(hits), "low": low, "high": high}
