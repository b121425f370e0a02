"""Which images a model was trained on: 8 bytes for each of them, kept beside its weights, so that none is taken for a test
image, wherever it lies now and whatever lists it.

An image is known by the name of its file, without folders, and its size; where two images of the training share both, and for
formats whose size says nothing, by its size and a checksum of its content.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ..catalog import OWN_IMAGES
from ..errors import CheckpointError, DataError
from .fingerprint import ListedImage

TRAINED_ON, DIGESTS = "trained_on", "digests"  # the file without its suffix, and the tensor in it: int64 [N], sorted

Read = Callable[[int], bytes]  # index of an image -> the content of its file


def digest(*facts: object) -> int:
    text = "\n".join(map(str, facts)).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), signed=True)


def by_name(image: ListedImage) -> int:
    return digest("name", image.name.rpartition("/")[2], image.size)


def by_content(image: ListedImage, read: Read, i: int) -> int:
    return digest("content", image.size, image.content or checksum(read, i))


def checksum(read: Read, i: int) -> int | None:
    """The checksum of an image's content; None where it cannot be read, which whoever decodes it will explain."""
    with suppress(DataError, OSError):
        return zlib.crc32(read(i))
    return None


def ambiguous(image: ListedImage) -> int:
    """Kept where a name and a size do not tell images of the training apart."""
    return digest("ambiguous", by_name(image))


def digests_of(images: Sequence[ListedImage], read: Read, trained: Sequence[int]) -> Tensor:
    """What is kept of the images with the indices ``trained``: int64, sorted. Of the others, with which they must not be
    confused, only names and sizes count."""
    alike = Counter(by_name(image) for image in images if not image.content)
    kept = set[int]()
    for i in trained:
        image = images[i]
        if image.content or alike[by_name(image)] > 1:
            kept.add(by_content(image, read, i))
        if not image.content:
            kept.add(ambiguous(image) if alike[by_name(image)] > 1 else by_name(image))
    return torch.tensor(sorted(kept), dtype=torch.int64)


def recognize(kept: Tensor, images: Sequence[ListedImage], read: Read) -> list[bool]:
    """Which images a model was trained on, by what is kept of those."""
    known = set(kept.tolist())

    def is_known(i: int, image: ListedImage) -> bool:
        if image.content:
            return by_content(image, read, i) in known
        return by_name(image) in known or (ambiguous(image) in known and by_content(image, read, i) in known)

    return [is_known(i, image) for i, image in enumerate(images)]


def united(*parts: tuple[str, Tensor | None]) -> Tensor | None:
    """What is kept after trainings on several data sets, each with the name of its form (``data.name``) and its own.

    None if all of them are sets with a name, and if it is unknown for one of the user's own: then nothing can be shown.
    """
    found = [kept for _, kept in parts if kept is not None]
    if not found or any(kept is None and name in OWN_IMAGES for name, kept in parts):
        return None
    return torch.cat(found).unique()


def checked(tensors: Mapping[str, Tensor], where: object) -> Tensor:
    """What a model keeps, from its file.

    Raises:
        CheckpointError: it is something else.
    """
    kept = tensors.get(DIGESTS)
    if kept is None or kept.dtype != torch.int64 or kept.ndim != 1:
        raise CheckpointError(f"{where}: damaged: it must hold {DIGESTS}, int64 [N]")
    return kept
