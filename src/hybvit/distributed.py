"""All use of torch.distributed: rank, world size, and sharing work on many images between processes (``torchrun``)."""

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

from .errors import ConfigError


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Yield (rank, world size); under torchrun the process group exists for the duration of the ``with`` block."""
    written = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not written.isdecimal():
        raise ConfigError(f"WORLD_SIZE is {written!r}: it must be the number of processes; torchrun sets it")
    world = int(written)
    if world <= 1 or dist.is_initialized():
        yield rank(), max(world, 1)
        return
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:  # a variable is missing or wrong, or the other processes do not answer
        raise ConfigError(f"WORLD_SIZE is {world}, but the processes do not meet: start them with torchrun ({error})") from None
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def share_batches(n: int, size: int, work: Callable[[Tensor], Tensor | tuple[Tensor, ...]], what: str) -> tuple[Tensor, ...]:
    """Apply ``work`` to the indices 0..n - 1 in batches of ``size`` -> the concatenated results, in order, on the CPU.

    Batches are assigned to the processes in turn. Their content does not depend on the number of processes, so neither do the
    results.

    Args:
        work: int64 [b] -> a tensor [b, ...] or a tuple of such tensors.
        what: label of the progress bar.
    """
    starts = range(0, n, size)
    own = {}
    hidden = rank() != 0 or not sys.stderr.isatty() or len(starts) < 3
    for start in tqdm(list(starts[rank() :: world_size()]), desc=what, unit="batch", disable=hidden, leave=False):
        result = work(torch.arange(start, min(start + size, n)))
        own[start] = tuple(part.detach().cpu() for part in (result if isinstance(result, tuple) else (result,)))
    parts = {start: result for of_rank in all_gather(own) for start, result in of_rank.items()}
    return tuple(torch.cat(column) for column in zip(*(parts[start] for start in starts), strict=True))
