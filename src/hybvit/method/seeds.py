"""Independent random streams from one seed. Every use names its stream and index, so the order of uses does not matter."""

from __future__ import annotations

import torch
from torch import Tensor

STREAMS = {
    "weights": 0,
    "order of labeled images": 1,
    "order of clean images": 2,
    "augmentation": 3,
    "noise": 4,
    "samples": 5,
    "bound": 6,
    "order of labeled images, in a buffer": 7,
    "order of clean images, in a buffer": 8,
    "mixing": 9,
    "flips of clean images": 10,
    "labels of samples": 11,
    "corruptions": 12,
    "edits": 13,
    "smoothing": 16,
    "readings": 20,
    "labeled images": 21,
    "augmentation of unlabeled images": 22,
}

SPLITMIX_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # (shift, factor) of splitmix64's finalizer, then
SPLITMIX_LAST = 31  # a final shift (Steele et al. 2014)


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """(seed, stream, index) -> a 63-bit seed; index is an epoch, a step or an image.

    The seed is mixed by splitmix64's finalizer, because neighboring seeds give similar initial Mersenne Twister states.
    PyTorch's generators on a CPU take its lower 32 bits: among n images, about n^2 / 2^33 pairs have the same noise (0.3 pairs
    of 50,000).
    """
    z = (seed * 0x9E3779B97F4A7C15 + STREAMS[stream] * 0xD1342543DE82EF95 + index * 0xBF58476D1CE4E5B9 + 1) % 2**64
    for shift, factor in SPLITMIX_STEPS:
        z = (z ^ (z >> shift)) * factor % 2**64
    return (z ^ (z >> SPLITMIX_LAST)) % 2**63


def splitmix64(z: Tensor) -> Tensor:
    """The same finalizer, elementwise on an int64 tensor whose bits are read as unsigned integers."""
    for shift, factor in SPLITMIX_STEPS:
        z = (z ^ unsigned_shift(z, shift)) * (factor - 2**64)  # int64 products wrap around; both factors exceed 2^63
    return z ^ unsigned_shift(z, SPLITMIX_LAST)


def unsigned_shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; >> on int64 would extend the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one stream and index; it is used for every target device."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))


def to_device_async(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the work queued there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) noise with the shape of x, generated on the device of x.

    For a batch of large images, generating noise on the CPU takes longer than a training step on a GPU. Another device
    therefore gets its own generator, seeded by the given CPU one: results are repeatable there, but differ from the CPU's.
    """
    if x.is_meta:
        return torch.empty_like(x)
    if generator is not None and x.device.type != "cpu":
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
