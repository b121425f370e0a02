"""How time and memory of a training step grow with its size, beside what the operations say."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...config import Config, override
from ...devices import environment, keep_freed_memory, resolve_precision
from ...errors import ConfigError, quantity
from ..cost import cost
from ..loop import training_step
from . import time_calls
from .record import exponent, quartiles
from .rows import Settings, with_batch_size

FACTORS = (0.5, 1.0, 1.5, 2.0)  # of the preset's size
MEMORY = {  # exponent of the memory beyond weights: of activations alone, and with attention weights or gradients
    "batch": "1",
    "tokens": "1, and 2 where attention weights are kept",
    "width": "1, and 2 of the gradients",
    "depth": "1",
}


def scaled(cfg: Config, what: str, factor: float) -> tuple[int, Config]:
    """The configuration with ``factor`` times the batch, tokens, width or depth, about -> (that size, configuration)."""
    m = cfg.model
    if what == "batch":
        size = max(1, round(factor * cfg.train.batch_size))
        return size, with_batch_size(cfg, size)
    if cfg.network.name != "vit":
        raise ConfigError(f"--growth {what}: it is of the ViT, and network.name is {cfg.network.name}")
    if what == "tokens":
        side = max(1, round(math.sqrt(factor) * m.image_size / m.patch_size))
        return side**2 + 1, replace(cfg, model=replace(m, image_size=side * m.patch_size))
    if what == "width":  # heads of the same width
        heads = max(1, round(factor * m.heads))
        dim = heads * m.dim // m.heads
        return dim, replace(cfg, model=replace(m, heads=heads, dim=dim))
    depth = max(1 + (m.tap < m.depth), round(factor * m.depth))
    tap = None if m.class_depth is None else min(max(1, round(m.tap * depth / m.depth)), depth - (m.tap < m.depth))
    return depth, replace(cfg, model=replace(m, depth=depth, class_depth=tap))


def sizes(cfg: Config, what: str) -> dict[int, Config]:
    """The configurations that are timed, by size, in order.

    Raises:
        ConfigError: the network is too small for three sizes.
    """
    found = dict(scaled(cfg, what, factor) for factor in FACTORS)
    if len(found) < 3:
        raise ConfigError(f"--growth {what}: {', '.join(map(str, found))} is all that this network can be scaled to")
    return dict(sorted(found.items()))


def growth(subject: str, cfg: Config, what: str, device: torch.device, settings: Settings) -> dict[str, Any]:
    """Time a training step at several sizes, alternately -> the record."""
    started = time.perf_counter()
    keep_freed_memory()
    precision, found = resolve_precision(cfg.train.precision, device), sizes(cfg, what)
    calls: dict[str, Callable[[], object]] = {}
    for size, scaled_cfg in found.items():
        step = training_step(override(scaled_cfg, train={"compile": False}), device)
        calls[str(size)] = lambda step=step: step(precision)  # type: ignore[misc]
    timed = time_calls(calls, device, settings, started)
    points = [
        {
            "size": size,
            "seconds": quartiles(timed.seconds[str(size)])._asdict(),
            "memory_mib": timed.memory[str(size)],
            "gflop": cost(scaled_cfg).train_gflop_per_step,
        }
        for size, scaled_cfg in found.items()
    ]
    return {
        "subject": subject,
        "growth": what,
        "precision": precision,
        "repeats": len(timed.seconds[str(points[0]["size"])]),
        "points": points,
        "exponents": exponents(points),
        "expected": {"memory": MEMORY[what]},
        "environment": environment(),
    }


def exponents(points: list[dict[str, Any]]) -> dict[str, float]:
    """The exponents that the points fit; that of the memory is missing where it was not measured."""
    at = [point["size"] for point in points]
    found = {
        "seconds": exponent(at, [point["seconds"]["median"] for point in points]),
        "operations": exponent(at, [point["gflop"] for point in points]),
    }
    memory = [point["memory_mib"] for point in points]
    return {**found, "memory": exponent(at, memory)} if all(memory) else found


def growth_table(record: dict[str, Any]) -> list[str]:
    """The record in lines for a terminal."""
    what, found = record["growth"], record["exponents"]
    lines = [
        f"{record['subject']} on {record['environment']['device']}, "
        f"{quantity(record['environment']['threads'], 'thread')}: "
        f"a training step in {record['precision']}, medians of {quantity(record['repeats'], 'alternating repeat')}",
        f"{what:>8}{'ms (quartiles)':>32}{'GFLOP':>10}{'MiB':>8}",
    ]
    for point in record["points"]:
        ms = "{median:,.1f} ({low:,.1f} to {high:,.1f})".format(**{k: 1000 * v for k, v in point["seconds"].items()})
        memory = "-" if point["memory_mib"] is None else f"{point['memory_mib']:,.0f}"
        lines.append(f"{point['size']:>8}{ms:>32}{point['gflop']:>10,.4g}{memory:>8}")
    lines.append(f"time   ~ {what}^{found['seconds']:.2f} (the operations: {what}^{found['operations']:.2f})")
    if "memory" in found:
        lines.append(f"memory ~ {what}^{found['memory']:.2f} (expected: {record['expected']['memory']})")
    return lines
