"""The machine: its devices, how many threads pay, memory and disk, and the compiler."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..devices import busy_share, cpp_compiler, cpu_name, has_fast_bf16, usable_cores
from ..errors import quantity
from ..storage import cache_folder
from .finding import Finding

BUSY = 0.2  # share of the cores that other programs keep busy, from which threads wait for each other
MEMORY, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
LEAST_MEMORY, LEAST_DISK, LEAST_SHARED = 2 << 30, 1 << 30, 256 << 20  # bytes


def devices() -> Iterator[Finding]:
    """The CPU and every GPU, each with whether bf16 is fast on it."""
    fast = has_fast_bf16(torch.device("cpu"))
    facts = {"name": cpu_name(), "cores": os.cpu_count(), "usable_cores": len(usable_cores()), "fast_bf16": fast}
    cores = f"{facts['usable_cores']} of {quantity(os.cpu_count() or 1, 'core')} usable"
    yield Finding("devices", "cpu", f"{cpu_name()}, {cores}, {describe_bf16(fast)}", facts=facts)
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield gpu(torch.device("cuda", i))
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", f"Apple GPU, {describe_bf16(False)}", facts={"fast_bf16": False})
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            yield Finding(
                "devices", "cuda", "torch is a build for CPUs, beside NVIDIA's driver", "warning", "install torch for CUDA"
            )
        else:
            words = f"no GPU is visible to torch, built for CUDA {torch.version.cuda}"
            yield Finding(
                "devices", "cuda", words, "warning", "see nvidia-smi: the driver may be too old; CUDA_VISIBLE_DEVICES"
            )


def describe_bf16(fast: bool) -> str:
    return "bf16 is fast" if fast else "bf16 is slow (float32 is used)"


def gpu(device: torch.device) -> Finding:
    """A CUDA device, with one product tried on it: torch may be built for other GPUs."""
    about, name = torch.cuda.get_device_properties(device), str(device)
    facts = {"name": about.name, "memory": about.total_memory, "fast_bf16": has_fast_bf16(device), "cuda": torch.version.cuda}
    try:
        free, _ = torch.cuda.mem_get_info(device)
        (torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().item()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:150]
        cure = "install torch for this GPU and its driver, or hide it: CUDA_VISIBLE_DEVICES=''"
        return Finding("devices", name, f"{about.name} does not compute: {reason}", "broken", cure, facts)
    facts["free_memory"] = free
    memory = f"{gib(free)} of {gib(about.total_memory)} free"
    return Finding("devices", name, f"{about.name}, {memory}, {describe_bf16(has_fast_bf16(device))}", facts=facts)


def threads() -> Iterator[Finding]:
    """How many threads torch uses, for how many cores, and whether other programs keep these busy."""
    n, cores = torch.get_num_threads(), len(usable_cores())
    quota = cpu_quota()
    facts = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    said = ", ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    words = f"torch uses {n}{f' ({said})' if said else ''}"
    pays = max(1, min(cores, int(quota) if quota is not None else cores))
    if n > pays:
        limit = quantity(cores, "usable core") if quota is None else f"a quota of {quantity(quota, 'core', 'g')}"
        yield Finding(
            "threads", "number", f"{words}, on {limit}", "warning", f"OMP_NUM_THREADS={pays}", {**facts, "threads": n}
        )
    else:
        yield Finding("threads", "number", words, facts={**facts, "threads": n})
    busy = busy_share()
    if busy is None:
        return
    words = f"they keep {busy:.0%} of the usable cores busy now"
    cure = (
        "OMP_NUM_THREADS=1 is faster meanwhile, since threads wait for each other" if n > 1 else "timings mean little meanwhile"
    )
    if busy < BUSY:
        yield Finding("threads", "other programs", words, facts={"busy": busy})
    else:
        yield Finding("threads", "other programs", words, "warning", cure, {"busy": busy})


def cpu_quota() -> float | None:
    """The cores that a container may use, if its cgroup limits them."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory() -> Iterator[Finding]:
    """Memory, the part of it that loader processes share, and the disk below each folder that hybvit writes to."""
    found = available_memory()
    if found is not None:
        free, total = found
        words, facts = f"{gib(free)} of {gib(total)} available", {"available": free, "total": total}
        cure = "end other programs; train with a smaller --train.batch_size, --train.accumulate or --train.recompute"
        yield Finding("memory", "memory", words, *(("warning", cure) if free < LEAST_MEMORY else ("ok", "")), facts)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        small = size < LEAST_SHARED
        cure = "docker run --shm-size 1g, or train with --data.workers 0" if small else ""
        yield Finding("memory", "shared memory", gib(size), "warning" if small else "ok", cure, {"total": size})
    places = {"current folder": Path.cwd(), "cache": cache_folder(), "temporary files": Path(tempfile.gettempdir())}
    for name, folder in places.items():
        yield disk(name, folder)


def disk(name: str, folder: Path) -> Finding:
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
    facts = {"path": str(folder), "free": free, "writable": writable}
    words = f"{folder}: {gib(free)} free" + ("" if writable else ", but not writable")
    cure = {"cache": "XDG_CACHE_HOME=FOLDER", "temporary files": "TMPDIR=FOLDER"}.get(name, "work in another folder")
    return Finding("memory", name, words, *(("ok", "") if writable and free >= LEAST_DISK else ("warning", cure)), facts)


def available_memory() -> tuple[int, int] | None:
    """(available, total) bytes of the machine, or of the container where its cgroup allows less; None where that is unknown."""
    try:
        figures = dict(line.split(":") for line in MEMORY.read_text().splitlines())
        free, total = (int(figures[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError):
        return None
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))  # "max" is no number
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        given_back = int(kinds["inactive_file"])  # pages of files that were read, which the kernel gives up first
    except (OSError, ValueError, KeyError):
        return free, total
    return min(free, limit - used + given_back), min(total, limit)


def gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def compiler() -> Iterator[Finding]:
    """What --train.compile needs: a C++ compiler, and Python's headers."""
    name = cpp_compiler()
    found, header = shutil.which(name), Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = [] if found else [f"no {name}"]
    missing += [] if header.is_file() else ["no Python.h"]
    facts = {"compiler": found, "python_header": header.is_file()}
    if missing:
        words = f"{' and '.join(missing)}: --train.compile does not work on a CPU"
        yield Finding("compiler", "C++", words, "absent", "install g++ and python3-dev, or set CXX", facts)
    else:
        yield Finding("compiler", "C++", f"{found}, for --train.compile", facts=facts)
