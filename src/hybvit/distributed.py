"""The communication between processes (``torchrun``): rank, world size, and sharing work on many images."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ConfigError, DivergedError, Interrupted
from .waiting import Progress

T = TypeVar("T")
LONGEST_WAIT = timedelta(hours=2)  # for a download or a preview of the first process
LOST = re.compile(  # how it is noticed that a process ended
    r"connection (closed|reset|refused)|closed by peer|broken pipe|timed out|remote process exited|socket", re.IGNORECASE
)
LOADING = re.compile(r"DataLoader worker \(.*?\) (is killed by signal: [^.]*|exited unexpectedly)")  # how torch says it


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Yield (rank, world size); under torchrun the process group exists for the duration of the ``with`` block."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    if tasks != "1" and not os.environ.get("WORLD_SIZE"):
        raise ConfigError(
            f"srun started {tasks} tasks that do not know of each other: start one torchrun on each machine, as slurm.sh of "
            "docs/scale.md does; WORLD_SIZE=1 lets each task work alone, on a run of its own"
        )
    written = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not written.isdecimal():
        raise ConfigError(f"WORLD_SIZE is {written!r}: it must be the number of processes; torchrun sets it")
    world = int(written)
    if world <= 1 or dist.is_initialized():
        yield rank(), max(world, 1)
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    except (ValueError, RuntimeError) as error:  # a variable is missing or wrong, or the other processes do not answer
        raise ConfigError(f"WORLD_SIZE is {world}, but the processes do not meet: start them with torchrun ({error})") from None
    try:
        yield dist.get_rank(), dist.get_world_size()
    except BaseException:
        with suppress(Exception):  # to end the group in order would wait for what a lost process never sends
            dist.distributed_c10d._abort_process_group()
        raise
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


def from_first(call: Callable[[], T]) -> T:
    """What a call returns in the first process, sent to all. Where it raises, all processes end; the first says why."""
    if world_size() == 1:
        return call()
    box: list[Any] = [None, True]
    failure: BaseException | None = None
    if rank() == 0:
        try:
            box = [call(), False]
        except BaseException as error:
            failure = error
    dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if box[1]:
        raise SystemExit(1)
    return box[0]


def first_of_all(call: Callable[[], T]) -> T:
    """Call it in the first process of each machine before the others there, which then find its downloads and caches -> each
    its own result. Where it raises, all processes end."""
    found, failure, leads = list[T](), None, int(os.environ.get("LOCAL_RANK", rank())) == 0
    for turn in (True, False) if world_size() > 1 else (leads,):
        if leads is turn:
            try:
                found.append(call())
            except BaseException as error:
                failure = error
        if any(all_gather(failure is not None)):
            raise failure or SystemExit(1)
    return found[0]


def is_first() -> bool:
    """Whether this is the first process, also where the group does not exist yet, or no longer."""
    return os.environ.get("RANK", "0") in ("", "0")


def is_alone() -> bool:
    """Whether this process was started without others."""
    return os.environ.get("WORLD_SIZE", "").strip() in ("", "0", "1")


def any_of_all(value: str | None) -> str | None:
    """The value of the first process that has one, for all."""
    if world_size() == 1:
        return value
    said = torch.tensor([value is not None], dtype=torch.int32)
    dist.all_reduce(said)
    return next(filter(None, all_gather(value))) if said.item() else None


def mean_of_all(values: Tensor) -> Tensor:
    """The mean over the processes of float [n]."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def share_rows(stacks: list[Tensor], work: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    """``work(stacks)`` for rows that do not depend on each other: each process does its part of every stack [n, ...].

    The processes have the same stacks, and ``work`` keeps the shape of each.
    """
    world = world_size()
    if world == 1:
        return work(stacks)
    rows = [torch.arange(rank(), -(-len(stack) // world) * world, world, device=stack.device) for stack in stacks]
    own = work([stack[index.clamp(max=len(stack) - 1)] for stack, index in zip(stacks, rows, strict=True)])
    found = []
    for stack, part in zip(stacks, own, strict=True):
        parts = [torch.empty_like(part) for _ in range(world)]
        dist.all_gather(parts, part.contiguous())
        found.append(torch.stack(parts, dim=1).flatten(0, 1)[: len(stack)])
    return found


@contextmanager
def naming_lost_processes(what: str) -> Iterator[None]:
    """Say in one line that another process of ``what`` ended, or one that loads its images, instead of how that was noticed.

    Raises:
        Interrupted: it did.
    """
    try:
        yield
    except (RuntimeError, KeyboardInterrupt) as caught:
        # A launcher terminates the processes that are left, which may come while this one is ending by itself.
        error = caught if isinstance(caught, RuntimeError) else caught.__context__
        if (loading := LOADING.match(str(error))) is not None:
            raise Interrupted(
                f"{what}: a process that loads images {loading[1]}: fewer --data.workers take less memory; the same command "
                "resumes from the last checkpoint"
            ) from error
        if world_size() == 1 or isinstance(error, (DivergedError, Interrupted)) or not LOST.search(str(error)):
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if rank() > 1:  # the first says it, or the second, in case that it was the first
            raise SystemExit(75) from None
        reason = " ".join(str(error).split())[:100]
        raise Interrupted(
            f"{what}: another of its processes ended ({reason}); the same command resumes from the last checkpoint"
        ) from error


@contextmanager
def said_once() -> Iterator[None]:
    """Let the first process alone say what ends all of them: a signal, or a loss that is not finite."""
    try:
        yield
    except (DivergedError, Interrupted) as error:
        if rank() == 0:
            raise
        raise SystemExit(4 if isinstance(error, DivergedError) else 75) from None


def share_calls(calls: Sequence[Callable[[], T]], what: str | None = None) -> list[T]:
    """The results of calls that do not depend on each other, in order. Each is made by one process, in turn.

    Args:
        what: what to call the work while somebody waits for it; None where the calls show how far they are.
    """
    mine, own = range(rank(), len(calls), world_size()), {}
    with Progress(len(mine), what or "", shown=rank() == 0 and what is not None) as progress:
        for i in mine:
            own[i] = calls[i]()
            progress.update()
    found = {i: result for of_rank in all_gather(own) for i, result in of_rank.items()}
    return [found[i] for i in range(len(calls))]


def share_batches(n: int, size: int, work: Callable[[Tensor], Tensor | tuple[Tensor, ...]], what: str) -> tuple[Tensor, ...]:
    """Apply ``work`` to the indices 0..n - 1 in batches of at most ``size`` -> the concatenated results, in order, on the CPU.

    Batches are assigned to the processes in turn, and differ by one in size, so that none waits long for the others. Their
    content does not depend on the number of processes, so neither do the results.

    Args:
        work: int64 [b] -> a tensor [b, ...] or a tuple of such tensors.
        what: what to call the work while somebody waits for it.
    """

    def on_cpu(index: Tensor) -> tuple[Tensor, ...]:
        result = work(index)
        return tuple(part.detach().cpu() for part in (result if isinstance(result, tuple) else (result,)))

    parts = share_calls([partial(on_cpu, index) for index in torch.arange(n).tensor_split(-(-n // size))], what)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
