"""Time how long a checkpoint holds up the steps of a training, and how long writing it takes, which goes on beside them.

python benchmarks/checkpoints.py [PRESET ...] [--write]     --write: results/checkpoints.json
"""

from __future__ import annotations

import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from recording import ROOT, keep, options

from hybvit.data.batches import random_batch
from hybvit.devices import environment, keep_freed_memory
from hybvit.method.objective import hybrid_loss
from hybvit.networks import build_network, number_of_parameters
from hybvit.presets import preset
from hybvit.training.loop import state_of
from hybvit.training.optim import build_optimizers, optimizer_tensors
from hybvit.training.run_folder import RunFolder

PRESETS = ("digits", "cifar10_pocket_v2", "cifar10", "imagenet224_v2")
REPEATS = 7


def measure(name: str) -> dict[str, Any]:
    """Medians over the checkpoints of a run that has taken one step, in seconds.

    The tensors are copied while the next gradient is computed. It is one of four images here, so real steps wait no longer.
    """
    cfg = preset(name)
    net, diffusion, batch = build_network(cfg), cfg.diffusion.build(), random_batch(cfg, "cpu", (2, 2))
    average, optimizers = deepcopy(net), build_optimizers(net, cfg.optim)

    def gradient() -> float:
        started = time.perf_counter()
        hybrid_loss(net, diffusion, batch, cfg.objective).total.backward()
        return time.perf_counter() - started

    gradient()
    for optimizer in optimizers:
        optimizer.step()
    found = {part: list[float]() for part in ("held_up", "writing", "gradient", "gradient_beside")}
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder, RunFolder(Path(folder) / "run", cfg) as run:

        def save(step: int) -> float:
            started = time.perf_counter()
            own = {"optimizer": optimizer_tensors(optimizers)}
            run.save(step, 1, network=state_of(net, run.path, step), ema=average.state_dict(), **own)
            return time.perf_counter() - started

        for repeat in range(REPEATS + 1):
            started = time.perf_counter()
            save(2 * repeat + 1)
            run.finish_writing()
            found["writing"].append(time.perf_counter() - started)
            found["gradient"].append(gradient())
            held = save(2 * repeat + 2)
            found["gradient_beside"].append(gradient())
            started = time.perf_counter()
            run.finish_copying()
            found["held_up"].append(held + time.perf_counter() - started)
            run.finish_writing()
        (newest,) = (Path(folder) / "run" / "checkpoints").glob("step-*")
        size = sum(path.stat().st_size for path in newest.iterdir())
    medians = {part: statistics.median(seconds[1:]) for part, seconds in found.items()}
    return {"parameters": number_of_parameters(net), "bytes": size, **medians, "share": medians["held_up"] / medians["writing"]}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("presets", nargs="*", default=list(PRESETS), metavar="PRESET")
    args = parser.parse_args()
    keep_freed_memory()  # as a training does
    (ROOT / "runs").mkdir(exist_ok=True)
    found = {}
    for name in args.presets:
        found[name] = measure(name)
        print(name, found[name], flush=True)
    record = {"presets": found, "repeats": REPEATS, "environment": environment()}
    keep("checkpoints", record, args.write)


if __name__ == "__main__":
    main()
