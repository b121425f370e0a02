"""Train the digits with every option that makes steps faster, and plainly, from the same seeds: are the losses the same?

    python benchmarks/curves.py [--seeds 0,1,2] [--any.field VALUE ...] [--write]

`--write`: results/curves.json and docs/speed_curves.svg.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import ROOT, keep, options

from hybvit.devices import environment
from hybvit.evaluation import plots
from hybvit.training.run_folder import read_metrics

STEPS, EVERY, LAST = 600, 20, 10  # steps of a training, between two records of the loss, and records of its end
WAYS = {
    "plain": ["--train.precision", "fp32", "--train.compile", "false", "--data.workers", "0"],
    "fast": ["--train.precision", "bf16", "--train.compile", "true", "--data.workers", "1"],
}


def training(words: list[str], seed: int, folder: Path) -> list[float]:
    """The mean loss of every so many steps."""
    length = ["--train.steps", str(STEPS), "--train.log_every", str(EVERY), "--train.preview_every", "0"]
    command = [sys.executable, "-m", "hybvit", "train", "digits", "--out", str(folder), "--train.seed", str(seed)]
    threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    subprocess.run([*command, *length, *words], check=True, stdout=subprocess.DEVNULL, env=os.environ | threads)
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    args, fields = parser.parse_known_args()
    seeds, losses = [int(seed) for seed in args.seeds.split(",")], dict[str, list[list[float]]]()
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for way, words in WAYS.items():
                losses.setdefault(way, []).append(training([*words, *fields], seed, Path(folder) / f"{way}-{seed}"))
                print(way, seed, losses[way][-1][-1], flush=True)
    ends = {way: [statistics.mean(curve[-LAST:]) for curve in curves] for way, curves in losses.items()}
    record: dict[str, Any] = {
        "command": ["hybvit train digits", *fields], "ways": WAYS, "seeds": seeds, "steps": STEPS, "every": EVERY,
        "losses": losses, "ends": ends, "environment": environment(),
    }  # fmt: skip
    keep("curves", record, args.write)
    if not args.write:
        return
    shown = {
        way: [((k + 1) * EVERY, statistics.mean(values)) for k, values in enumerate(zip(*curves, strict=True))]
        for way, curves in losses.items()
    }
    (ROOT / "docs" / "speed_curves.svg").write_text(plots.curves(shown, "step", "loss", markers=False))


if __name__ == "__main__":
    main()
