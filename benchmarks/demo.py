"""The demo: train the digits preset, evaluate it, sample from it.

python benchmarks/demo.py            # what `make demo` does
python benchmarks/demo.py --check    # hold the figures of the last demo to the bars
python benchmarks/demo.py --record   # time it quiet and beside busy programs, each from the start, so it deletes runs/digits:
                                     # results/demo.json. Stop everything else first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from recording import RESULTS, busy_programs

RUN = Path("runs/digits")
PARTS = ("training", "evaluation", "samples")
BARS = {
    "judge/svm_accuracy": 0.98,
    "test/accuracy": 0.97,
    "samples/svm_agreement": 0.8,
    "samples/svm_classes_covered": 10,
    "samples/svm_smallest_class_share": 0.03,
}
LONGEST_SECONDS = 120
MOST_PROCESSES = 4  # that share the evaluation, one for each core: the network is too small for two threads to share
LIMITS = (  # of the evaluation, so that it takes less than a minute on two cores
    "--samples=300", "--attack-images=16", "--autoattack-images=8", "--bound-images=64", "--bound-draws=16",
)  # fmt: skip


def hybvit(*arguments: str, processes: int = 1) -> None:
    """One command, as a user types it; its failure is ours."""
    words, environment = [], dict(os.environ)
    if processes > 1:
        words = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
        environment["OMP_NUM_THREADS"] = "1"  # each; torchrun says so where it is not set
    print(f"$ {f'torchrun {chr(32).join(words[1:])} hybvit.cli' if words else 'hybvit'} {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", *words, "hybvit.cli", *arguments], env=environment).returncode
    if code:
        sys.exit(code)


def demo() -> None:
    times = [time.monotonic()]
    hybvit("train", "digits", "--out", str(RUN))
    times.append(time.monotonic())
    processes = min(MOST_PROCESSES, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    hybvit("evaluate", str(RUN), "--report", *LIMITS, processes=processes)
    times.append(time.monotonic())
    hybvit("sample", str(RUN), "-n", "64", "--sampler", "ddpm", "--steps", "100", "--out", str(RUN / "samples" / "grid.png"))
    times.append(time.monotonic())
    parts = {name: round(b - a, 1) for name, a, b in zip(PARTS, times, times[1:], strict=False)}
    seconds = sum(parts.values())
    (RUN / "demo.json").write_text(json.dumps({"seconds": round(seconds, 1), "parts": parts}) + "\n")
    print(
        f"\n{seconds:.0f} s in all. Open {RUN / 'report.html'} in a browser; "
        f"{RUN / 'samples' / 'grid.png'} holds 64 new digits."
    )


def record() -> None:
    """Time the demo from the start, alone and beside busy programs of one thread, as many as there are cores."""
    from hybvit.devices import environment

    found = []
    for busy in (0, os.cpu_count() or 1):
        shutil.rmtree(RUN, ignore_errors=True)
        with busy_programs(busy):
            demo()
        threads = json.loads((RUN / "environment.json").read_text())["threads"]
        found.append({"busy": busy, "training_threads": threads, **json.loads((RUN / "demo.json").read_text())})
        print(found[-1], flush=True)
    (RESULTS / "demo.json").write_text(json.dumps({"demos": found, "environment": environment()}, indent=1) + "\n")


def check() -> None:
    """Print each figure beside its bar; exit 1 where one is missed."""
    metrics = json.loads((RUN / "results.json").read_text())["metrics"]
    missed = 0
    for name, bar in BARS.items():
        value = metrics[name]["value"]
        missed += value < bar
        print(f"{'missed' if value < bar else 'ok':<8}{name:<36}{value:.4f}, bar {bar}")
    seconds = json.loads((RUN / "demo.json").read_text())["seconds"]
    print(f"{'ok' if seconds <= LONGEST_SECONDS else 'slow':<8}{'seconds':<36}{seconds}, aim {LONGEST_SECONDS}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    for kind in (check, record):
        mode.add_argument(f"--{kind.__name__}", dest="call", action="store_const", const=kind, default=demo)
    parser.parse_args().call()
