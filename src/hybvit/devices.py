"""The device and its arithmetic, chosen in one place; what it is, and how long calls take on it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
import ctypes
import gc
import math
import os
import platform
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .distributed import world_size
from .errors import ConfigError, quantity
from .waiting import forecast, tell, tells, unwatched

LEAST_ROWS = 16  # of a batch for one thread: with fewer, what a call costs beside its arithmetic takes more than is won
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LEAST_REPEATS = 3  # of what is timed, where the time allows no more
WATCHED = 0.5  # seconds for which the cores are watched
WARM = 1.0  # seconds of a first call, above which what it takes to warm up does not count


def best_device() -> torch.device:
    """CUDA (the local rank's GPU under torchrun), then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        place, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place >= devices:
            raise ConfigError(f"LOCAL_RANK is {place}, but this machine has {devices} GPUs: start at most as many processes")
        return torch.device("cuda", place)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def random_state_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context after which torch's own random numbers, on the CPU and this device, go on as if it had not been."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a training step frees, instead of returning it and page-faulting again in the next step.

    On a CPU, a step with activations of several megabytes becomes about 10 % faster. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)  # glibc's maximum
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**28)


def in_threads(work: Callable[[slice], torch.Tensor], n: int, device: torch.device) -> torch.Tensor:
    """``work(rows)`` for parts of the rows 0..n - 1, side by side on a CPU, in as many threads as torch would use -> the
    results, in order, as one tensor.

    Each part is computed by one thread alone. A small network has too little in one operation for threads to share it, and
    threads that share wait for each other, longest where other programs keep the cores busy. A part has at least
    :data:`LEAST_ROWS` rows: the operations of fewer are shared as usual, and so are those of other devices.

    Args:
        work: must not depend on what other parts do; what torch keeps for each thread, such as autocast, it sets itself.
    """
    threads = torch.get_num_threads()
    parts = min(threads, n // LEAST_ROWS) if device.type == "cpu" else 1
    if parts < 2:
        return work(slice(0, n))
    edges = [n * i // parts for i in range(parts + 1)]
    given_up = threading.Event()

    def alone(rows: slice) -> torch.Tensor:
        _given_up.set(given_up)
        return work(rows)

    pool = concurrent.futures.ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,))
    try:
        first, *others = (slice(low, high) for low, high in pairwise(edges))
        here = contextvars.copy_context()  # the progress of the caller moves with the first part, which stands for all
        done = [pool.submit(here.run, alone, first), *(pool.submit(alone, rows) for rows in others)]
        return torch.cat([part.result() for part in done])
    except BaseException:
        given_up.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # part of it is of the whole process


_given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)


def go_on() -> None:
    """To be called now and then by the work of :func:`in_threads`: it raises once the whole is given up, after Ctrl-C or an
    error in another part, since a thread cannot be ended from outside."""
    given_up = _given_up.get()
    if given_up is not None and given_up.is_set():
        raise RuntimeError("the other parts were given up")


@cache
def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 on this device; on other CPUs they are about thirty times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` -> bf16 if the device has fast bf16 matrix products, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of the network; losses and optimizer stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def environment() -> dict[str, Any]:
    """Versions and hardware, on which a result depends besides the configuration."""
    return {
        "hybvit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "world_size": world_size(),
    }


def cpp_compiler() -> str:
    """The compiler that torch.compile calls on a CPU, which may not be there."""
    return (os.environ.get("CXX") or "g++").split()[0]


@cache
def device_name() -> str:
    """The name of the GPU, or the model of the CPU if the system reports it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor()} (MPS)" if torch.backends.mps.is_available() else cpu_name()


def cpu_name() -> str:
    """The model of the CPU if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def usable_cores() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_share(span: float = WATCHED) -> float | None:
    """The share of the usable cores' time, in 0..1, that other programs take in so many seconds; None where Linux's /proc is
    missing."""

    def ticks() -> tuple[int, int]:
        idle = total = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *counted = line.split()
            if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in usable_cores():
                idle, total = idle + sum(map(int, counted[3:5])), total + sum(map(int, counted[:8]))
        return idle, total

    try:
        before = ticks()
        time.sleep(span)  # this process does nothing meanwhile
        after = ticks()
    except (OSError, ValueError):
        return None
    passed = after[1] - before[1]
    return 1 - (after[0] - before[0]) / passed if passed else None


def alternating(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    span: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
    limit: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds per call, in ``repeats`` repeats that alternate between the calls, so that a change of the machine's speed
    affects all of them. Each is made once before, to warm up. A GPU's work counts until it is done.

    Args:
        calls: name -> what is timed.
        span: seconds that one repeat of one call lasts: a call that is shorter is made several times, and the mean counts.
        say: takes a line for each call that tells how many times it is made in a repeat.
        limit: seconds that all of it should take, with the warm-up: when another repeat would exceed it, the repeats end, but
            not before the third.

    Returns:
        Name -> ``repeats`` values or fewer, in order; those of one repeat belong together.
    """
    started = time.perf_counter()
    often: dict[str, int] = {}
    for name, call in calls.items():
        often[name] = max(1, round(span / seconds(call)))
        say(f"  {name}: {quantity(often[name], 'call')} a repeat")
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(repeats):
        before = time.perf_counter()
        for name, call in calls.items():
            taken[name].append(seconds(call, often[name]))
        now = time.perf_counter()
        if done + 1 >= LEAST_REPEATS and now + (now - before) > started + limit:
            break
    return taken


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Seconds per call, once; the mean of so many in a row."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize()
    return (time.perf_counter() - started) / times


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def announce(
    calls: Iterable[tuple[Callable[[], object], float]], device: torch.device, held: float = 0, at_most: bool = False
) -> None:
    """Say what work will take before it starts, where that is long and somebody reads it (:func:`.waiting.forecast`).

    Args:
        calls: parts of the work, such as one batch, and how often each is made. Each is timed once; nothing it does counts.
        held: bytes that the results will take, on top of the most memory that was held until then.
        at_most: whether the work may end early.

    A call that fails is no reason to stop: nothing is said, and the work itself raises what is to be said.
    """
    if not tells():
        return
    try:
        with unwatched():
            taken = sum(times * _warm_seconds(call) for call, times in calls if times)
    except Exception:
        return
    line = forecast(taken, peak_mib(device) + held / 2**20, at_most)
    if line is not None:
        tell(line)


def _warm_seconds(call: Callable[[], object]) -> float:
    """Seconds of a call: of a second one where the first is so short that warming up shows in it."""
    first = seconds(call)
    return first if first > WARM else min(first, seconds(call))


def peak_mib(device: torch.device) -> float:
    """The most memory held so far: of the GPU if ``device`` is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def working_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """Make a call -> the most memory that it held on top of what was held before, in MiB; None where that cannot be measured.

    With CUDA it is exact and of tensors only. On a CPU it is the growth of the process's resident memory, as Linux tells it:
    with buffers of libraries and to whole pages, so that some MiB mean nothing. On other systems it is not measured.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    resident = _reset_resident_peak() if device.type == "cpu" else None
    call()
    return None if resident is None else max(_status("VmHWM") - resident, 0) / 1024


def _reset_resident_peak() -> int | None:
    """Let the high-water mark of the resident memory be what is resident now -> that, in KiB; None where there is none."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that the process keeps would hide what the call takes of it
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, LookupError):
        return None


def _status(name: str) -> int:
    """A figure of this process in KiB, from Linux's /proc."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(name)
    return int(found[1])
