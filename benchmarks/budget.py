"""Where the time of a joint training step goes: the parts of a step by PyTorch's profiler, beside a large matrix product.

    python benchmarks/budget.py [PRESET ...] [--write]     --write: results/budget.json

Nothing else should run on the machine.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from recording import keep, options
from torch.profiler import ProfilerActivity, profile

from hybvit.config import override
from hybvit.devices import environment, has_fast_bf16, keep_freed_memory
from hybvit.presets import preset
from hybvit.training.cost import Operations
from hybvit.training.loop import training_step

PRESETS = ("paper_32", "cifar10_pocket_v2")
BATCH, REPEATS = 32, 5  # images of either mini-batch
PARTS = (  # the first whose words are in the name of an operation takes it
    ("matrix products", ("mm", "linear")),
    ("attention", ("attention", "softmax")),
    ("convolutions", ("convolution",)),
    ("norms", ("norm",)),
    ("activations", ("gelu", "silu")),
    (
        "copies, casts and concatenations",
        ("copy", "cat", "clone", "contiguous", "to_copy", "zero_", "fill_", "slice", "select"),
    ),
    ("sums and products of single values", ("add", "mul", "sub", "sum", "div", "abs", "lerp", "sign", "neg", "pow")),
)


def part_of(name: str) -> str:
    return next((part for part, words in PARTS if any(word in name for word in words)), "the rest")


def peak(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a product of large square matrices."""
    a, b = torch.randn(2, size, size).to(dtype)
    a @ b
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times)


def measure(name: str, precision: str) -> dict[str, Any]:
    """Seconds of a step, and the share of each part, which adds up to what the profiler saw."""
    cfg = override(preset(name), train={"batch_size": BATCH, "labelled_batch_size": BATCH})
    step = training_step(cfg, device=torch.device("cpu"))
    with Operations() as counter:
        step(precision)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        step(precision)
        times.append(time.perf_counter() - started)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(REPEATS):
            step(precision)
    parts: dict[str, float] = {}
    for event in seen.key_averages():
        if event.key.startswith("aten::") or "mkldnn" in event.key:
            part = part_of(event.key)
            parts[part] = parts.get(part, 0.0) + event.self_cpu_time_total
    whole = sum(parts.values())
    return {
        "preset": name, "precision": precision, "seconds": statistics.median(times), "flop": counter.total,
        "peak": peak(torch.bfloat16 if precision == "bf16" else torch.float32),
        "parts": {part: value / whole for part, value in sorted(parts.items(), key=lambda item: -item[1])},
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("presets", nargs="*", default=list(PRESETS), metavar="PRESET")
    args = parser.parse_args()
    keep_freed_memory()
    precisions = ["fp32"] + ["bf16"] * has_fast_bf16(torch.device("cpu"))
    found = []
    for name in args.presets:
        for precision in precisions:
            found.append(measure(name, precision))
            print(json.dumps(found[-1], indent=1), flush=True)
    record = {"steps": found, "batch": BATCH, "repeats": REPEATS, "environment": environment()}
    keep("budget", record, args.write)


if __name__ == "__main__":
    main()
