"""Images by index: in memory as uint8 where they fit, decoded when asked for where they do not.

``pixels`` are uint8 [N, C, H, W]; ``x`` is float [N, C, H, W] in [-1, 1], what networks take. The range changes here only.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError
from .files import Files
from .images import read_image

Decode = Callable[[int], Tensor]  # index -> uint8 [C, H, W]; raises DataError


def to_x(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """float in [-1, 1] (clipped to it) -> uint8 0..255."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def evenly_spaced(n: int, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """At most ``count`` of the indices 0..n-1 at equal distances, both ends included: int64 [min(n, count)]."""
    return torch.linspace(0, n - 1, min(n, count), dtype=dtype).round().long()


class BadFiles:
    """Unreadable images: each is named on standard error and left out, until there are more than ``limit``.

    The count is shared with loader workers.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._seen = torch.zeros(1 << 16, dtype=torch.bool).share_memory_()  # by a hash of the message

    @property
    def count(self) -> int:
        return int(self._seen.sum())

    def add(self, error: DataError) -> None:
        """Raises the error itself where the limit is exceeded."""
        place = zlib.crc32(str(error).encode()) % len(self._seen)
        if self._seen[place]:
            return
        self._seen[place] = True
        if self.count > self.limit:
            if self.limit == 0:
                raise DataError(f"{error} (--data.max_bad_files N leaves out up to N such files)")
            raise DataError(f"{error}: bad file number {self.count}, more than data.max_bad_files = {self.limit}")
        print(f"warning: left out: {error} ({self.count} of at most {self.limit})", file=sys.stderr, flush=True)


class Decoding(NamedTuple):
    """How image files become pixels: the model's channels and size, what bad files may cost, and the memory to use (bytes)."""

    channels: int
    size: int
    bad_files: BadFiles
    memory: int


class Stream(Protocol):
    """Pictures that can only be read from the beginning; uint8 [N, C, H, W] in the manner of a tensor."""

    shape: torch.Size

    def __len__(self) -> int: ...

    def first(self, n: int) -> ImageSet:
        """The first n, in memory, with their labels."""


class LazyPictures:
    """Pictures decoded when they are asked for, by a pool of threads."""

    def __init__(self, n: int, decode: Decode, decoding: Decoding) -> None:
        self.decode, self.bad_files = decode, decoding.bad_files
        self.shape = torch.Size((n, decoding.channels, decoding.size, decoding.size))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B] -> pixels and the indices that they really are of: a bad file is replaced by the next good one."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(self._good, index.tolist()))
        return torch.stack([pixels for pixels, _ in found]), torch.tensor([i for _, i in found])

    def _good(self, i: int) -> tuple[Tensor, int]:
        for candidate in range(i, i + len(self)):
            try:
                return self.decode(candidate % len(self)), candidate % len(self)
            except DataError as error:
                self.bad_files.add(error)
        raise DataError("no image can be read")


@dataclass(frozen=True)
class ImageSet:
    """pixels uint8 [N, C, H, W]; labels int64 [N] in 0..K-1, or None where there are none."""

    pixels: Tensor | LazyPictures | Stream
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images at ``index`` [B] with their labels, in memory."""
        if isinstance(self.pixels, Tensor):
            pixels = self.pixels[index]
        else:
            assert isinstance(self.pixels, LazyPictures)  # a stream has no place to go to
            pixels, index = self.pixels.read(index)
        return pixels, None if self.labels is None else self.labels[index]

    def first(self, n: int) -> ImageSet:
        """The first n, in memory."""
        if not isinstance(self.pixels, (Tensor, LazyPictures)):
            return self.pixels.first(n)
        return ImageSet(*self.take(torch.arange(min(n, len(self)))))

    def subsample(self, n: int) -> ImageSet:
        """At most n images at equal distances, both ends included (files are often sorted by class); of a stream the first."""
        if not isinstance(self.pixels, (Tensor, LazyPictures)):
            return self.pixels.first(n)
        return ImageSet(*self.take(evenly_spaced(len(self), n)))

    @property
    def in_memory(self) -> Tensor:
        """The pixels of a set that was taken into memory, uint8 [N, C, H, W]."""
        assert isinstance(self.pixels, Tensor)
        return self.pixels

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All images once, in order."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))

    def where(self, chosen: Tensor) -> ImageSet:
        """The images at the True entries of bool [N], or at indices [B], as a set of the same kind."""
        index = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen
        labels = None if self.labels is None else self.labels[index]
        if isinstance(self.pixels, Tensor):
            return ImageSet(self.pixels[index], labels)
        assert isinstance(self.pixels, LazyPictures)  # streams have their split in their shards
        lazy, kept = self.pixels, index.tolist()
        _, channels, size, _ = lazy.shape
        decoding = Decoding(channels, size, lazy.bad_files, 0)
        return ImageSet(LazyPictures(len(kept), lambda i: lazy.decode(kept[i]), decoding), labels)


@dataclass(frozen=True)
class Dataset:
    """A data set opened for one model; ``unlabelled`` are further images for the denoising mini-batch, ``held_out`` training
    images that are not trained on."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    unlabelled: ImageSet | None = None
    held_out: ImageSet | None = None


def of_each_class(images: ImageSet, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """bool [N]: what ``choose`` takes of the indices [M] of each class, or of all images where there are no labels."""
    labels = torch.zeros(len(images), dtype=torch.int64) if images.labels is None else images.labels
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[choose((labels == label).nonzero().flatten())] = True
    return chosen


def every_fifth(images: ImageSet) -> Tensor:
    """bool [N]: of each class its first, sixth, eleventh ... image."""
    return of_each_class(images, lambda members: members[::5])


def pictures(n: int, decode: Decode, labels: Sequence[int] | Tensor | None, decoding: Decoding, what: str) -> ImageSet:
    """An image set of n pictures: decoded now if they fit into ``decoding.memory``, when asked for otherwise."""
    labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
    if n * decoding.channels * decoding.size**2 > decoding.memory:
        return ImageSet(LazyPictures(n, decode, decoding), labels)
    pixels = torch.empty(n, decoding.channels, decoding.size, decoding.size, dtype=torch.uint8)
    good = torch.ones(n, dtype=torch.bool)

    def read(i: int) -> DataError | None:
        try:
            pixels[i] = decode(i)
        except DataError as error:
            return error
        return None

    bar = tqdm(total=n, unit="image", desc=f"reading {what}", disable=n < 2000 or not sys.stderr.isatty(), leave=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        for i, error in enumerate(pool.map(read, range(n))):
            bar.update()
            if error is not None:
                decoding.bad_files.add(error)
                good[i] = False
    return ImageSet(pixels, labels) if bool(good.all()) else ImageSet(pixels, labels).where(good)


def picture_files(files: Files, names: list[str], labels: Sequence[int] | None, decoding: Decoding) -> ImageSet:
    """An image set of picture files in a folder or zip archive."""
    listed = np.array(names)  # one object instead of a million: forked workers would otherwise copy the list by counting it

    def decode(i: int) -> Tensor:
        name = str(listed[i])
        with files.open(name) as file:
            return read_image(files.source / name, decoding.channels, decoding.size, file)

    return pictures(len(names), decode, labels, decoding, files.source.name)
