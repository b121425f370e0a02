"""How fast a model draws images: in fp32 and bf16, its threads sharing each operation or each drawing a part, and compiled.

    python benchmarks/sampling.py [--model NAME] [--repeats N] [--processor-time] [--compiled] [--write]

`--write`: results/sampling.json. Images per second and the share of what a large matrix product reaches, medians of alternating
repeats. ``--processor-time`` counts processor time instead, for a machine with other work; use it with OMP_NUM_THREADS=1.
``--compiled`` also compiles the denoising passes, which takes a minute or two for each number of images in a part.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from recording import keep, options

from hybvit import devices, load
from hybvit.model import HybridModel
from hybvit.networks import build_network, compile_network
from hybvit.training.bench import PEAK_SIZE, matrix_product, precisions, product_gflop
from hybvit.training.bench.peers import denoising_gflop
from hybvit.training.bench.record import quartiles

CPU = torch.device("cpu")
SAMPLER, STEPS, BATCHES = "dpmpp_2m", 20, (32, 64, 128)
SHARED, APART, COMPILED = "threads share operations", "a part for each thread", "a part for each thread, compiled"


def cases(model: HybridModel, compiled: HybridModel | None) -> dict[tuple[str, str, int], Callable[[], object]]:
    """(how, precision, images) -> a call that draws them."""

    def draw(drawn_by: HybridModel, precision: str, least: int, n: int) -> torch.Tensor:
        drawn_by.sampling_precision, devices.LEAST_ROWS = precision, least
        return drawn_by.draw(range(n), SAMPLER, STEPS, 0)

    ways = {SHARED: (model, 10**9)} if torch.get_num_threads() > 1 else {}
    ways |= {APART: (model, 1)} | ({COMPILED: (compiled, 1)} if compiled else {})
    return {
        (how, precision, n): partial(draw, drawn_by, precision, least, n)
        for how, (drawn_by, least) in ways.items()
        for precision in precisions(CPU)
        for n in BATCHES
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    args = parser.parse_args()
    devices.keep_freed_memory()
    clock = time.process_time if args.processor_time else time.perf_counter
    model, compiled = load(args.model, "cpu"), load(args.model, "cpu") if args.compiled else None
    if compiled is not None:
        compile_network(compiled.net)
    calls: dict[Any, Callable[[], object]] = {**cases(model, compiled)}
    calls |= {precision: matrix_product(CPU, precision) for precision in precisions(CPU)}
    taken: dict[Any, list[float]] = {name: [] for name in calls}
    for repeat in range(args.repeats + 1):  # the first warms up
        for name, call in calls.items():
            started = clock()
            call()
            taken[name] += [clock() - started] if repeat else []
    gflop = STEPS * denoising_gflop(model.cfg, lambda: build_network(model.cfg))
    peak = {precision: product_gflop(CPU) / statistics.median(taken[precision]) for precision in precisions(CPU)}
    rows = []
    for how, precision, n in cases(model, compiled):
        found = quartiles(taken[how, precision, n])
        rate = n / found.median
        rows.append(
            {
                "how": how, "precision": precision, "images": n, "seconds": found._asdict(), "images_per_second": rate,
                "fraction_of_peak": rate * gflop / peak[precision],
            }
        )  # fmt: skip
        print(f"{how:<34}{precision:<6}{n:>4} images: {rate:6.1f} images/s, {rows[-1]['fraction_of_peak']:.0%} of the peak")
    found = {
        "model": args.model, "sampler": SAMPLER, "steps": STEPS, "repeats": args.repeats, "gflop_per_image": gflop,
        "rows": rows, "clock": "processor time" if args.processor_time else "wall-clock time",
        "peak_gflop_per_second": peak, "side": PEAK_SIZE["cpu"], "environment": devices.environment(),
    }  # fmt: skip
    keep("sampling", found, args.write)


if __name__ == "__main__":
    main()
