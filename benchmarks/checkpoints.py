"""Time how long a checkpoint holds up the steps of a training, and how long writing it takes, which goes on beside them.

    python benchmarks/checkpoints.py [PRESET ...]

writes results/checkpoints.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from hybvit.data.batches import random_batch
from hybvit.devices import environment, keep_freed_memory
from hybvit.method.objective import hybrid_loss
from hybvit.networks import build_network, number_of_parameters
from hybvit.presets import preset
from hybvit.training.optim import build_optimizers, optimizer_tensors
from hybvit.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ("digits", "cifar10_pocket_v2", "cifar10", "imagenet224_v2")
REPEATS = 7


def measure(name: str) -> dict[str, Any]:
    """Medians over the checkpoints of a run that has taken one step, in seconds."""
    cfg = preset(name)
    net = build_network(cfg)
    average, optimizers = deepcopy(net), build_optimizers(net, cfg.optim)
    hybrid_loss(net, cfg.diffusion.build(), random_batch(cfg, "cpu", (2, 2)), cfg.objective).total.backward()
    for optimizer in optimizers:
        optimizer.step()
    held, written = list[float](), list[float]()
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder, RunFolder(Path(folder) / "run", cfg) as run:
        for step in range(1, REPEATS + 2):
            started = time.perf_counter()
            own = {"optimizer": optimizer_tensors(optimizers)}
            run.save(step, 1, network=net.state_dict(), ema=average.state_dict(), **own)
            held.append(time.perf_counter() - started)
            run.finish_writing()
            written.append(time.perf_counter() - started - held[-1])
        (newest,) = (Path(folder) / "run" / "checkpoints").glob("step-*")
        size = sum(path.stat().st_size for path in newest.iterdir())
    return {
        "parameters": number_of_parameters(net),
        "bytes": size,
        "held_up": statistics.median(held[1:]),
        "writing": statistics.median(written[1:]),
        "share": statistics.median(a / b for a, b in zip(held[1:], written[1:], strict=True)),
    }


def main(names: list[str]) -> None:
    keep_freed_memory()  # as a training does
    (ROOT / "runs").mkdir(exist_ok=True)
    found = {}
    for name in names:
        found[name] = measure(name)
        print(name, found[name], flush=True)
    record = {"presets": found, "repeats": REPEATS, "environment": environment()}
    (ROOT / "results" / "checkpoints.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or list(PRESETS))
