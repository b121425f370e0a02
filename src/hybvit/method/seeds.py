"""Independent random streams from one seed: every random act names its stream and its index, so order never matters."""

from __future__ import annotations

import torch
from torch import Tensor

STREAMS = {
    "weights": 0,
    "order of labelled images": 1,
    "order of clean images": 2,
    "augmentation": 3,
    "noise": 4,
    "samples": 5,
    "bound": 6,
    "order of labelled images, in a buffer": 7,
    "order of clean images, in a buffer": 8,
    "mixing": 9,
    "flips of clean images": 10,
    "labels of samples": 11,
}

SPLITMIX_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # shift and factor of splitmix64's finaliser, and
SPLITMIX_LAST = 31  # a last shift (Steele et al. 2014)


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """(seed, stream, index) -> a 63-bit seed; index is an epoch, a step or an image. splitmix64's finaliser does the mixing,
    since neighbouring seeds would give Mersenne states that start alike."""
    z = (seed * 0x9E3779B97F4A7C15 + STREAMS[stream] * 0xD1342543DE82EF95 + index * 0xBF58476D1CE4E5B9 + 1) % 2**64
    for shift, factor in SPLITMIX_STEPS:
        z = (z ^ (z >> shift)) * factor % 2**64
    return (z ^ (z >> SPLITMIX_LAST)) % 2**63


def splitmix64(z: Tensor) -> Tensor:
    """The same finaliser of each of some int64, whose bits stand for an unsigned number."""
    for shift, factor in SPLITMIX_STEPS:
        z = (z ^ unsigned_shift(z, shift)) * (factor - 2**64)  # products of int64 wrap around; both factors are above 2^63
    return z ^ unsigned_shift(z, SPLITMIX_LAST)


def unsigned_shift(z: Tensor, bits: int) -> Tensor:
    """Zeros come in from the left, where >> would copy the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one random act, whatever device its draws are for."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))


def to_device_async(draws: Tensor, device: torch.device) -> Tensor:
    """Draws of a CPU generator on their way to a device, without waiting there for what it still has to do."""
    return draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else draws.to(device)


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) in the shape of x, from a CPU generator, drawn where x is.

    A CPU takes longer to draw the noise of a batch of large images than a GPU to train on it. So another device gets a
    generator of its own, seeded by the given one: repeatable there, but not the numbers of the CPU.
    """
    if x.is_meta:
        return torch.empty_like(x)
    if generator is not None and x.device.type != "cpu":
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
