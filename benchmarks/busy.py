"""Train the digits with all threads, with one, and with the number that a trial finds; alone and beside busy programs.

    python benchmarks/busy.py [--busy N] [--repeats N] [--any.field VALUE ...]

writes results/busy.json: the images per second of each training, in turn. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hybvit.devices import environment
from hybvit.training.run_folder import read_metrics

ROOT = Path(__file__).resolve().parent.parent
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


def keep(found: list[dict[str, Any]], fields: list[str]) -> None:
    record = {"command": ["hybvit train digits", *fields], "steps": STEPS, "runs": found, "environment": environment()}
    (ROOT / "results" / "busy.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="busy programs of one thread (2)")
    parser.add_argument("--repeats", type=int, default=5)
    args, fields = parser.parse_known_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            for busy in (0, args.busy):
                others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
                try:
                    for way, given in WAYS.items():
                        row = {"way": way, "busy": busy, **training(given, fields, Path(folder) / f"{repeat}-{busy}-{way}")}
                        print(row, flush=True)
                        found.append(row)
                        keep(found, fields)
                finally:
                    for other in others:
                        other.kill()
                        other.wait()


if __name__ == "__main__":
    main()
