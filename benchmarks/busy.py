"""Train the digits with all threads, with one, and with the number that a trial finds; alone and beside busy programs.

    python benchmarks/busy.py [--busy N] [--repeats N] [--any.field VALUE ...] [--write]     --write: results/busy.json

prints the images per second of each training, in turn. Nothing else should run on the machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import busy_programs, keep, options

from hybvit.devices import environment
from hybvit.training.run_folder import read_metrics

STEPS = 600  # of the preset `digits`
ALL = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
WAYS = {
    "all threads, that spin as OpenMP lets them": ALL | {"GOMP_SPINCOUNT": "300000"},  # what libgomp does if nothing is said
    "all threads": ALL,
    "one thread": {"OMP_NUM_THREADS": "1"},
    "by a trial": {},
}
SET_HERE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")


def training(given: dict[str, str], fields: list[str], folder: Path) -> dict[str, Any]:
    """Images per second of a training, the seconds of the whole command, and its number of threads."""
    kept = {name: value for name, value in os.environ.items() if name not in SET_HERE}
    words = ["train", "digits", "--train.steps", str(STEPS), "--train.preview_every", "0", "--out", str(folder), *fields]
    started = os.times().elapsed
    subprocess.run([sys.executable, "-m", "hybvit", *words], env=kept | given, check=True, stdout=subprocess.DEVNULL)
    whole = os.times().elapsed - started
    rates = [line["images_per_second"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    threads = json.loads((folder / "environment.json").read_text())["threads"]
    return {"images_per_second": statistics.median(rates), "seconds": whole, "threads": threads}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--busy", type=int, default=2, help="busy programs of one thread (2)")
    parser.add_argument("--repeats", type=int, default=5)
    args, fields = parser.parse_known_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            for busy in (0, args.busy):
                with busy_programs(busy):
                    for way, given in WAYS.items():
                        row = {"way": way, "busy": busy, **training(given, fields, Path(folder) / f"{repeat}-{busy}-{way}")}
                        print(row, flush=True)
                        found.append(row)
    record = {"command": ["hybvit train digits", *fields], "steps": STEPS, "runs": found, "environment": environment()}
    keep("busy", record, args.write)


if __name__ == "__main__":
    main()
