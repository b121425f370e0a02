"""The device and its arithmetic, chosen in one place."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """``auto`` -> bf16 where the device multiplies bf16 matrices faster than fp32 ones, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs; losses and optimiser stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
