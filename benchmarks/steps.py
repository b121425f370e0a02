"""Time training steps of presets on this machine: compiled, on random images, and as a share of what a matrix product reaches.

    python benchmarks/steps.py PRESET [PRESET ...] --out results/gpu_steps.json

All compile side by side, which takes most of the time; then they are timed one after the other. A preset with
both tasks is timed in turn with denoising alone on the same batch: the price of a joint step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import threading
from pathlib import Path
from typing import Any

import torch

from hybvit.config import Config, minibatches, override
from hybvit.devices import alternating, best_device, environment, peak_mib, resolve_precision
from hybvit.presets import preset
from hybvit.reproduce.timing import REPEATS, SPAN, warmed_up
from hybvit.storage import write_text
from hybvit.training.bench import PEAK_SIZE, matrix_product
from hybvit.training.cost import cost

PATIENCE = 400  # seconds that a preset waits for the others to be compiled


def peak_tflops(device: torch.device, precision: str, repeats: int = 20) -> float:
    """10^12 operations a second of a matrix product on random numbers."""
    taken = alternating({"product": matrix_product(device, precision)}, repeats)["product"]
    return 2 * PEAK_SIZE[device.type] ** 3 / statistics.median(taken) / 1e12


def measured(name: str, wait: Any, alone: Any) -> dict[str, Any]:
    cfg = override(preset(name), train={"compile": True})
    device = best_device()
    precision = resolve_precision(cfg.train.precision, device)
    kinds: dict[str, Config] = {"joint" if cfg.objective.kind == "hybvit" else "step": cfg}
    if cfg.objective.kind == "hybvit":
        kinds["denoising"] = override(cfg, objective={"kind": "genvit"})
    steps = warmed_up(kinds, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        wait.wait(PATIENCE)
    except threading.BrokenBarrierError:  # another preset failed, or takes too long: it may still compile
        quiet = False
    else:
        quiet = True
    with alone:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        peak, taken = peak_tflops(device, precision), alternating(steps, REPEATS, SPAN)
        memory = peak_mib(device)
    record: dict[str, Any] = {"batch": minibatches(cfg), "precision": precision}
    record |= {"peak_tflops": peak, "peak_mib": memory, "steps": cfg.train.steps, "quiet": quiet}
    for kind, its in kinds.items():
        seconds, gflop = statistics.median(taken[kind]), cost(its).train_gflop_per_step
        record[kind] = {
            "seconds": seconds,
            "spread": (max(taken[kind]) - min(taken[kind])) / seconds,
            "gflop": gflop,
            "fraction_of_peak": gflop / 1e3 / seconds / peak,
            "images_per_second": sum(minibatches(its)) / seconds,
            "hours": seconds * its.train.steps / 3600,
        }
    if "joint" in taken:
        pairs = zip(taken["joint"], taken["denoising"], strict=True)
        record["joint_over_denoising"] = statistics.median(joint / denoising for joint, denoising in pairs)
    return record


def work(name: str, wait: Any, alone: Any, found: Any) -> None:
    try:
        found[name] = measured(name, wait, alone)
        print(name, json.dumps(found[name]), flush=True)
    except Exception:
        wait.abort()
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+", metavar="PRESET")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    context = mp.get_context("spawn")  # CUDA does not survive a fork
    with context.Manager() as manager:
        found, wait, alone = manager.dict(), context.Barrier(len(args.presets)), context.Lock()
        workers = [context.Process(target=work, args=(name, wait, alone, found)) for name in args.presets]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        record = {"presets": {name: found[name] for name in args.presets if name in found}, "repeats": REPEATS}
    record |= {"device": best_device().type, "environment": environment()}
    write_text(args.out, json.dumps(record, indent=1) + "\n")
    missing = [name for name in args.presets if name not in record["presets"]]
    if missing:
        raise SystemExit(f"not measured: {', '.join(missing)}")


if __name__ == "__main__":
    main()
