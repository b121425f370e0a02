"""Time training steps of one process with all cores against as many processes of one core, alternately.

    python benchmarks/processes.py PRESET [--any.field VALUE ...]

writes results/processes.json. The data set of the preset must be there (`hybvit datasets`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hybvit.devices import environment
from hybvit.training.run_folder import read_metrics

ROOT = Path(__file__).resolve().parent.parent
REPEATS, PARTS, STEPS = 3, 6, 5  # repeats of either kind; parts of a run, of which the first is a warm-up; steps of a part


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


def main(words: list[str]) -> None:
    cores, taken = os.cpu_count() or 1, dict[int, list[float]]()
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(REPEATS):
            for processes in (1, cores):
                taken.setdefault(processes, []).append(
                    seconds_per_step(processes, words, Path(folder) / f"{processes}-{repeat}")
                )
    one, many = (statistics.median(values) for values in taken.values())
    found = {
        "command": ["hybvit train", *words], "seconds_per_step": taken, "overhead": many / one - 1, "repeats": REPEATS,
        "environment": environment(),
    }  # fmt: skip
    (ROOT / "results" / "processes.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{1000 * one:.0f} ms in one process of {cores} threads, {1000 * many:.0f} ms in {cores}: {many / one - 1:+.1%}")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
