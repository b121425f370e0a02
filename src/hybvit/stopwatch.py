"""How long calls take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch


def alternating(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    span: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, list[float]]:
    """Seconds per call, in ``repeats`` repeats that alternate between the calls, so that a change of the machine's speed
    affects all of them. Each is made once before, to warm up. A GPU's work counts until it is done.

    Args:
        calls: name -> what is timed.
        span: seconds that one repeat of one call lasts: a call that is shorter is made several times, and the mean counts.
        say: takes a line for each call that tells how many times it is made in a repeat.

    Returns:
        Name -> ``repeats`` values, in order; those of one repeat belong together.
    """
    often: dict[str, int] = {}
    for name, call in calls.items():
        often[name] = max(1, round(span / seconds(call)))
        say(f"  {name}: {often[name]} calls a repeat")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call, often[name]))
    return taken


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Seconds per call, once; the mean of so many in a row."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times
