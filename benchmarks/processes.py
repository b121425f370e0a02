"""Time training steps of one process with all cores against as many processes of one core, alternately; alone, and beside busy
programs.

    python benchmarks/processes.py PRESET [--any.field VALUE ...] [--write]     --write: results/processes.json

The data set of the preset must be there (`hybvit datasets`), and nothing else should run.
"""

from __future__ import annotations

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

REPEATS, PARTS, STEPS = 3, 4, 5  # repeats of either kind; parts of a run, of which the first is a warm-up; steps of a part
BUSY = 2  # other programs


def seconds_per_step(processes: int, words: list[str], folder: Path) -> float:
    """The median over the parts of a run, on all cores."""
    cores = os.cpu_count() or 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(launcher if processes > 1 else [sys.executable]), "-m", "hybvit", "train", *words, "--out", str(folder)]
    length = ["--train.steps", str(PARTS * STEPS), "--train.log_every", str(STEPS), "--train.preview_every", "0"]
    threads = {"OMP_NUM_THREADS": str(max(1, cores // processes))}
    subprocess.run([*command, *length, "--data.workers", "0"], env=os.environ | threads, check=True, stdout=subprocess.DEVNULL)
    parts = [line["seconds"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    return statistics.median(parts[1:]) / STEPS


def compared(words: list[str], busy: int) -> dict[str, Any]:
    """Both ways in turn, beside so many busy programs of one thread."""
    cores, taken = os.cpu_count() or 1, dict[int, list[float]]()
    with busy_programs(busy), tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            for processes in (1, cores):
                out = Path(folder) / f"{processes}-{repeat}"
                taken.setdefault(processes, []).append(seconds_per_step(processes, words, out))
    one, many = (statistics.median(values) for values in taken.values())
    print(
        f"beside {busy}: {1000 * one:.0f} ms in one process, {1000 * many:.0f} ms in {cores} ({many / one - 1:+.1%})",
        flush=True,
    )
    return {"busy": busy, "seconds_per_step": taken, "overhead": many / one - 1}


def main() -> None:
    parser = options(__doc__)
    args, words = parser.parse_known_args()
    if not words:
        parser.error("PRESET is missing")
    if (os.cpu_count() or 1) < 2:
        sys.exit("one core: there is nothing to compare")
    found = {
        "command": ["hybvit train", *words], "rows": [compared(words, busy) for busy in (0, BUSY)], "repeats": REPEATS,
        "environment": environment(),
    }  # fmt: skip
    keep("processes", found, args.write)


if __name__ == "__main__":
    main()
