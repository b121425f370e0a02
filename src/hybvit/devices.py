"""The device and its arithmetic, chosen in one place."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import __version__

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def best_device() -> torch.device:
    """CUDA (the local rank's GPU under torchrun), then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees, instead of giving it back and faulting every page in again at the next step.

    On the CPU this makes a step with activations of several megabytes about a tenth faster. Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**28)


@cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones; a CPU that cannot takes some thirty times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` -> bf16 where the device is made for it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs; losses and optimiser stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def environment() -> dict[str, Any]:
    """What a number depends on besides the configuration."""
    return {
        "hybvit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "world_size": 1,
    }


@cache
def device_name() -> str:
    """The GPU, or the model of the CPU as far as the system tells."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return f"{platform.processor()} (MPS)"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"
