"""Every suite of `hybvit evaluate` on a network with fixed weights: numbers and plots that a refactor must leave as they are.

    python -m tests.recorded     measures them anew and writes tests/data/evaluation/results.json

The network had 250 steps of training on the digits with noisy labels and label conditioning. It is right 3 times in 4, so that
no score is perfect and every confidence has something to tell. On other kinds of CPU the numbers differ by about 1e-7.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybvit import devices
from hybvit.evaluation import plots

from .conftest import DATA, hybvit

FOLDER = DATA / "evaluation"
MODEL, RECORD = FOLDER / "model", FOLDER / "results.json"
WORDS = (
    "--limit=100", "--samples=40", "--steps=4", "--bound-images=6", "--bound-draws=4", "--attack-images=8",
    "--autoattack-images=0", "--attack-steps=2", "--corruption-images=12", "--certified-images=4", "--certified-votes=40",
    "--reading-images=16", "--reading-attacks=8",
)  # fmt: skip
WHOLE_BOUND = ("--limit=20", "--bound-images=2", "--bound-draws=all", "--suites=ood,likelihood")


def measure(out: Path) -> None:
    """Every suite, with batches that leave a rest of all numbers of images, the report, and what was drawn (drawn.json)."""
    found: dict[str, Any] = {}
    render = plots.svg

    def remembered(figure: Any) -> str:
        text = render(figure)
        found[digest(text)] = drawn(figure)
        return text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "svg", remembered)
        done = hybvit("evaluate", MODEL, *WORDS, "--batch-size=7", "--suites=all", "--report", "--out", out)
    assert done.returncode == 0, done.stderr
    (out / "drawn.json").write_text(json.dumps(found, default=float))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def measure_whole_bound(out: Path) -> None:
    """The suites that compute a bound, by all of its terms."""
    done = hybvit("evaluate", MODEL, *WHOLE_BOUND, "--out", out)
    assert done.returncode == 0, done.stderr


def numbers_of(out: Path) -> dict[str, Any]:
    """The metrics, tables, notes and pictures of the suites, without what was timed."""
    plotted = json.loads((out / "drawn.json").read_text()) if (out / "drawn.json").is_file() else {}
    found: dict[str, Any] = {}
    for suite in json.loads((out / "results.json").read_text())["suites"]:
        folder = out / "evaluation" / suite
        stored = json.loads((folder / "result.json").read_text())
        found[suite] = {name: stored[name] for name in ("metrics", "tables", "notes", "pictures")}
        found[suite]["grids"] = {path.stem: seen(path) for path in sorted(folder.glob("*.png"))}
        if plotted:
            found[suite]["plots"] = {path.stem: plotted[digest(path.read_text())] for path in sorted(folder.glob("*.svg"))}
    if "speed" in found:
        found["speed"] = {name: value for name, value in found["speed"]["metrics"].items() if "gflop" in name}
    return found


def seen(path: Path) -> list[float]:
    """The mean brightness of 8 rows and 8 columns of a grid of images."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("L"))).double()
    return [part.mean().item() for axis in (0, 1) for part in pixels.tensor_split(8, dim=axis)]


def drawn(figure: Any) -> list[Any]:
    """The words that stand around a figure, and what is drawn on each of its axes."""
    words = [text.get_text() for text in (figure._supxlabel, figure._supylabel, figure._suptitle) if text]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [*words, *legends, *(drawn_on(axes) for axes in figure.axes if axes.get_visible())]


def drawn_on(axes: Any) -> dict[str, Any]:
    """Its words, and the coordinates of its lines, error bars, bars, stairs, cells and texts."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle, StepPatch
    from matplotlib.ticker import FixedLocator

    words = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()]
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_locator(), FixedLocator):
            words += [text.get_text() for text in axis.get_ticklabels()]
    if legend := axes.get_legend():
        words += [text.get_text() for text in legend.get_texts()]
    found = {
        "words": words,
        "lines": [line.get_xydata().T.tolist() for line in axes.lines],
        "errors": [
            part.tolist() for bars in axes.collections if isinstance(bars, LineCollection) for part in bars.get_segments()
        ],
        "bars": [[*bar.get_xy(), bar.get_width(), bar.get_height()] for bar in axes.patches if isinstance(bar, Rectangle)],
        "stairs": [[part.tolist() for part in steps.get_data()[:2]] for steps in axes.patches if isinstance(steps, StepPatch)],
        "cells": [cells.get_array().tolist() for cells in axes.images],
        "texts": [[*text.get_position(), text.get_text()] for text in axes.texts],
    }
    return {name: value for name, value in found.items() if value}


def rounded(found: Any) -> Any:
    """With seven digits, so that the file stays small."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [rounded(value) for value in found]
    return float(f"{found:.7g}") if isinstance(found, float) else found


def differences(found: Any, recorded: Any, where: str = "") -> list[str]:
    """What differs, by more than rounding on another kind of CPU: one line each."""
    if isinstance(recorded, dict) and isinstance(found, dict) and found.keys() == recorded.keys():
        return [line for name in recorded for line in differences(found[name], recorded[name], f"{where}/{name}")]
    if isinstance(recorded, list) and isinstance(found, list) and len(found) == len(recorded):
        return [line for i, one in enumerate(recorded) for line in differences(found[i], one, f"{where}[{i}]")]
    if isinstance(recorded, float) or isinstance(found, float):
        same = isinstance(found, (int, float)) and found == pytest.approx(recorded, rel=1e-4, abs=1e-6)
    else:
        same = found == recorded
    return [] if same else [f"{where}: {str(found)[:200]}, recorded {str(recorded)[:200]}"]


def main() -> None:
    devices.has_fast_bf16 = lambda device: False  # samples are drawn in float32
    with tempfile.TemporaryDirectory() as folder:
        every, whole = Path(folder) / "every", Path(folder) / "whole"
        measure(every)
        measure_whole_bound(whole)
        found = {"every": numbers_of(every), "whole_bound": numbers_of(whole)}
    RECORD.write_text(json.dumps(rounded(found), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
