"""The few calls into torch.distributed: who we are, and work on many images that processes share (``torchrun``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, world size); under torchrun the process group lives as long as this block."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield rank(), max(world, 1)
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(mine: Any) -> list[Any]:
    """What every process holds, in the order of their ranks."""
    if world_size() == 1:
        return [mine]
    everything: list[Any] = [None] * world_size()
    dist.all_gather_object(everything, mine)
    return everything


def share_batches(n: int, size: int, work: Callable[[Tensor], Tensor | tuple[Tensor, ...]], what: str) -> tuple[Tensor, ...]:
    """``work`` on the numbers 0..n - 1 in batches of ``size`` -> its results for all of them, in order, on the CPU.

    Batches are dealt out to the processes in turn. What is in a batch does not depend on how many there are, so neither do the
    results.
    """
    starts = range(0, n, size)
    mine = {}
    hidden = rank() != 0 or not sys.stderr.isatty() or len(starts) < 3
    for start in tqdm(list(starts[rank() :: world_size()]), desc=what, unit="batch", disable=hidden, leave=False):
        result = work(torch.arange(start, min(start + size, n)))
        mine[start] = tuple(part.detach().cpu() for part in (result if isinstance(result, tuple) else (result,)))
    parts = {start: result for of_rank in gathered(mine) for start, result in of_rank.items()}
    return tuple(torch.cat(column) for column in zip(*(parts[start] for start in starts), strict=True))
