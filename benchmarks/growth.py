"""How time and memory grow: of a training step with batch, tokens, width and depth; of evaluations with their images.

    python benchmarks/growth.py [--preset NAME] [--batch N] [--repeats N] [--write]     --write: results/growth.json

Times are processor time of one thread, so that other programs disturb them little; the repeats of a
step alternate between its sizes. It takes about five minutes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1"}  # read when torch is imported

import torch
from recording import keep, options

from hybvit import load
from hybvit.data.image_set import to_x
from hybvit.devices import environment, keep_freed_memory, resolve_precision, working_memory
from hybvit.metrics.fidelity import Statistics, frechet_distance, precision_recall
from hybvit.metrics.likelihood import sampled_bound
from hybvit.presets import preset
from hybvit.training.bench.growth import MEMORY, sizes
from hybvit.training.bench.record import exponent, quartiles
from hybvit.training.bench.rows import with_batch_size
from hybvit.training.cost import cost
from hybvit.training.loop import training_step

CPU = torch.device("cpu")
IMAGES = (128, 256, 512, 1024)  # of an evaluation
FEATURES = 512  # of an image, for distances
STEPS, DRAWS = 20, 8  # of the sampler; times of each image for its bound


def seconds(call: Callable[[], object]) -> float:
    """Processor time."""
    started = time.process_time()
    call()
    return time.process_time() - started


def alternating(calls: Mapping[int, Callable[[], object]], repeats: int) -> dict[int, list[float]]:
    """Size -> the seconds of each repeat, after a call to warm up."""
    for call in calls.values():
        call()
    taken: dict[int, list[float]] = {size: [] for size in calls}
    for _ in range(repeats):
        for size, call in calls.items():
            taken[size].append(seconds(call))
    return taken


def of_a_step(name: str, batch: int, what: str, repeats: int) -> dict[str, Any]:
    """Seconds, memory and operations of a training step, with clipping, optimizer and weight average, at several sizes."""
    configs, precision = sizes(with_batch_size(preset(name), batch), what), resolve_precision("auto", CPU)
    calls = {size: partial(training_step(cfg, CPU, update=True), precision) for size, cfg in configs.items()}
    taken = alternating(calls, repeats)
    points = [
        {
            "size": size,
            "seconds": quartiles(taken[size])._asdict(),
            "memory_mib": working_memory(calls[size], CPU),
            "gflop": cost(cfg).train_gflop_per_step,
        }
        for size, cfg in configs.items()
    ]
    return {"what": what, "points": points, "expected_memory": MEMORY[what], **fitted(points, "memory_mib", "gflop")}


def evaluations() -> dict[str, tuple[Callable[[int], object], str]]:
    """What an evaluation consists of -> a call of it for so many images, and the exponent of its time to expect."""
    model = load("digits", "cpu")
    pixels = torch.randint(256, (max(IMAGES), *model.image_shape), dtype=torch.uint8)
    features = torch.randn(2, max(IMAGES), FEATURES)

    def bound(n: int) -> object:
        with torch.no_grad():
            return sampled_bound(model.predict_x0, model.diffusion, to_x(pixels[:n]), torch.Generator().manual_seed(0), DRAWS)

    return {
        "classify": (lambda n: model.predict(pixels[:n]), "1"),
        "draw": (lambda n: model.draw(range(n), "dpmpp_2m", STEPS, 0), "1"),
        "bound on the likelihood": (bound, "1"),
        "precision and recall": (lambda n: precision_recall(*features[:, :n]), "2"),
        "Frechet distance": (
            lambda n: frechet_distance(*map(Statistics.of, features[:, :n])),
            "1, beside a root of matrices",
        ),
    }


def of_an_evaluation(name: str, call: Callable[[int], object], expected: str, repeats: int) -> dict[str, Any]:
    """Seconds of a part of an evaluation with several numbers of images."""
    taken = alternating({n: partial(call, n) for n in IMAGES}, repeats)
    points = [{"size": n, "seconds": quartiles(taken[n])._asdict()} for n in IMAGES]
    return {"part": name, "what": "images", "points": points, "expected": expected, **fitted(points)}


def fitted(points: list[dict[str, Any]], *others: str) -> dict[str, Any]:
    """The exponents of the seconds, and of other figures where all points have them."""
    at = [point["size"] for point in points]
    found = {"seconds": exponent(at, [point["seconds"]["median"] for point in points])}
    for name in others:
        values = [point[name] for point in points]
        if all(values):
            found[name] = exponent(at, values)
    return {"exponents": found}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--preset", default="cifar10_pocket_v2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()
    found = {
        "preset": args.preset, "batch": args.batch, "repeats": args.repeats, "precision": resolve_precision("auto", CPU),
        "steps": [of_a_step(args.preset, args.batch, what, args.repeats) for what in MEMORY],
        "evaluations": [of_an_evaluation(name, *part, args.repeats) for name, part in evaluations().items()],
        "environment": environment(),
    }  # fmt: skip
    for row in (*found["steps"], *found["evaluations"]):
        medians = [f"{point['size']}: {point['seconds']['median']:.3g} s" for point in row["points"]]
        print(row.get("part", "step"), row["what"], ", ".join(medians), row["exponents"])
    keep("growth", found, args.write)


if __name__ == "__main__":
    main()
