"""What is kept of the images that a model was trained on, to tell later whether others are the same, or share some.

A fingerprint holds the numbers of training and test images, a digest of their names, sizes and classes, and digests of a few
training images: ``800+200 0f1e2d3c4b5a6978 00a1b2c3d4e5.01b2c3d4e5f6``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError

KEPT = 16  # training images: if two sets share half of them, the chance that none of these is shared is 2e-5
DIGITS = 12  # hexadecimal, of the digest of an image


class ListedImage(NamedTuple):
    """An image that need not be read yet: its name below the folder, its size in bytes, the name of its class, and a checksum
    of its content if all files of its format and resolution have one size; else 0."""

    name: str
    size: int
    class_name: str = ""
    content: int = 0


UNCOMPRESSED = (".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".tif", ".tiff", ".sgi")


def listed(name: str, size: int, checksum: Callable[[], int], class_name: str = "") -> ListedImage:
    """An image as it is listed; ``checksum`` gives the CRC-32 of its content, and is called only where its size says little."""
    content = 0
    if name.lower().endswith(UNCOMPRESSED):
        with suppress(DataError, OSError):  # whoever decodes it says why it cannot be read
            content = checksum()
    return ListedImage(name, size, class_name, content)


def facts(image: ListedImage) -> tuple[object, ...]:
    return tuple(image) if image.content else tuple(image)[:3]


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def digests(images: Sequence[ListedImage]) -> list[str]:
    checked = (f"\n{image.content}" if image.content else "" for image in images)
    return [digest_of(f"{image.name}\n{image.size}{more}")[:DIGITS] for image, more in zip(images, checked, strict=True)]


def fingerprint(train: Sequence[ListedImage], test: Sequence[ListedImage], numbers: tuple[int, int] | None = None) -> str:
    """The fingerprint of a data set; the order of its images does not matter.

    Args:
        numbers: how many images they are, where shards stand in their place.
    """
    lines = sorted(f"{split}\n{facts(image)}" for split, part in (("train", train), ("test", test)) for image in part)
    of_train, of_test = numbers or (len(train), len(test))
    return f"{of_train}+{of_test} {digest_of(chr(10).join(lines))[:16]} {'.'.join(sorted(digests(train))[:KEPT])}"


def numbers(kept: str) -> str:
    """``800 training and 200 test images``"""
    train, _, test = kept.partition(" ")[0].partition("+")
    return f"{int(train):,} training and {int(test):,} test images" if test else "unknown"


def shares_training_images(kept: str, images: Sequence[ListedImage]) -> bool:
    """Whether some of ``images`` are training images of a fingerprint; true if there is none to tell by."""
    _, _, some = kept.rpartition(" ")
    return " " not in kept or not set(some.split(".")).isdisjoint(digests(images))


def share_training_images(kept: str, other: str) -> bool:
    """Whether two fingerprints share one of the training images that they keep, which are those of the smallest digests: sets
    that have most of their images in common do. False if one of them keeps none."""
    first, second = ({*text.rpartition(" ")[2].split(".")} if " " in text else set() for text in (kept, other))
    return not first.isdisjoint(second)


def pixel_digests(pixels: Tensor) -> Tensor:
    """A digest of each image, from uint8 [N, C, H, W]: int64 [N]. Equal images have equal ones, whatever file they are from."""
    rows = pixels.cpu().contiguous().flatten(1).numpy()
    values = [int.from_bytes(hashlib.sha256(row.data).digest()[:8], signed=True) for row in rows]
    return torch.tensor(values, dtype=torch.int64)
