"""Sets of images with labels: in memory as uint8 if they fit, otherwise decoded on access.

``pixels`` are uint8 [N, C, H, W]; ``x`` is float [N, C, H, W] in [-1, 1], the input of the networks. Only this file converts
between the two.
"""

from __future__ import annotations

import mmap
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..waiting import Progress
from . import decoded
from .files import Files
from .images import Originals, check_start, read_image

Decode = Callable[[int], Tensor]  # index -> uint8 [C, H, W]; raises DataError


def to_x(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1].

    Raises:
        ValueError: the pixels are no uint8 tensor.
    """
    kind = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
    if kind != torch.uint8:
        raise ValueError(f"pixels are {kind}: to_x takes a tensor of uint8, 0 to 255")
    return pixels.float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """float in [-1, 1] (clipped to it) -> uint8 0..255."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def evenly_spaced(n: int, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """At most ``count`` evenly spaced indices from 0..n-1, including both ends: int64 [min(n, count)]."""
    return torch.linspace(0, n - 1, min(n, count), dtype=dtype).round().long()


class BadFiles:
    """Counts unreadable images. Each is reported on standard error and skipped; more than ``limit`` are an error.

    The count is shared with the loader workers.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # indexed by a hash of the message; anonymous memory, which needs no file as torch's shared memory does
        self._seen = torch.frombuffer(mmap.mmap(-1, 1 << 16), dtype=torch.bool)

    @property
    def count(self) -> int:
        return int(self._seen.sum())

    def add(self, error: DataError) -> None:
        """Count a file once; raises a DataError if the limit is exceeded."""
        slot = zlib.crc32(str(error).encode(errors="backslashreplace")) % len(self._seen)
        if self._seen[slot]:
            return
        self._seen[slot] = True
        if self.count > self.limit:
            if self.limit == 0:
                raise DataError(f"{error} (--data.max_bad_files N skips up to N such files)")
            raise DataError(f"{error}: bad file number {self.count}, more than data.max_bad_files = {self.limit}")
        said = " ".join(str(error).split())  # a name may have line breaks
        print(f"warning: skipped: {said} ({self.count} of at most {self.limit})", file=sys.stderr, flush=True)


class Decoding(NamedTuple):
    """Settings for decoding images: the model's channels and size, the count of bad files, the memory limit in bytes, and a
    record of what the images were before."""

    channels: int
    size: int
    bad_files: BadFiles
    memory: int
    originals: Originals | None = None


class Stream(Protocol):
    """Images uint8 [N, C, H, W] that can be read only in sequence, from the beginning."""

    shape: torch.Size

    def __len__(self) -> int: ...

    def first(self, n: int) -> ImageSet:
        """The first n images, in memory, with their labels."""


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of a process that decode images. They stay: each opens an archive once, whose index may take seconds."""
    return ThreadPoolExecutor(os.cpu_count())


class LazyImages:
    """Images that are decoded on access, by a pool of threads."""

    def __init__(self, n: int, decode: Decode, decoding: Decoding) -> None:
        self.decode, self.bad_files = decode, decoding.bad_files
        self.shape = torch.Size((n, decoding.channels, decoding.size, decoding.size))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B] -> pixels, and the indices that were actually read: a bad file is replaced by the next good one."""
        found = list(_threads(os.getpid()).map(self._good, index.tolist()))
        return torch.stack([pixels for pixels, _ in found]), torch.tensor([i for _, i in found])

    def _good(self, i: int) -> tuple[Tensor, int]:
        for candidate in range(i, i + len(self)):
            try:
                return self.decode(candidate % len(self)), candidate % len(self)
            except DataError as error:
                self.bad_files.add(error)
        raise DataError("none of the images can be read")


@dataclass(frozen=True)
class ImageSet:
    """A set of images: pixels uint8 [N, C, H, W] and labels int64 [N] in 0..K-1, or None if it is unlabeled."""

    pixels: Tensor | LazyImages | Stream
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images at ``index`` [B] with their labels, in memory."""
        if isinstance(self.pixels, Tensor):
            pixels = self.pixels[index]
        else:
            assert isinstance(self.pixels, LazyImages)  # a stream has no random access
            pixels, index = self.pixels.read(index)
        return pixels, None if self.labels is None else self.labels[index]

    def first(self, n: int) -> ImageSet:
        """The first n images, in memory."""
        if not isinstance(self.pixels, (Tensor, LazyImages)):
            return self.pixels.first(n)
        return ImageSet(*self.take(torch.arange(min(n, len(self)))))

    def subsample(self, n: int) -> ImageSet:
        """At most n evenly spaced images, since files are often sorted by class; for a stream, the first n."""
        if not isinstance(self.pixels, (Tensor, LazyImages)):
            return self.pixels.first(n)
        return ImageSet(*self.take(evenly_spaced(len(self), n)))

    @property
    def in_memory(self) -> Tensor:
        """The pixels of a set that is in memory, uint8 [N, C, H, W]."""
        assert isinstance(self.pixels, Tensor)
        return self.pixels

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All images once, in order, in batches of ``size``."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))

    def where(self, chosen: Tensor) -> ImageSet:
        """The subset at the True entries of a mask bool [N], or at the indices [B]; lazy sets stay lazy."""
        index = chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen
        labels = None if self.labels is None else self.labels[index]
        if isinstance(self.pixels, Tensor):
            return ImageSet(self.pixels[index], labels)
        assert isinstance(self.pixels, LazyImages)  # streams are split by shards
        lazy, kept = self.pixels, index.tolist()
        _, channels, size, _ = lazy.shape
        decoding = Decoding(channels, size, lazy.bad_files, 0)
        return ImageSet(LazyImages(len(kept), lambda i: lazy.decode(kept[i]), decoding), labels)


@dataclass(frozen=True)
class Dataset:
    """A data set opened for one model.

    Attributes:
        train, test: the two splits.
        classes: class names in label order; empty without labels.
        unlabelled: additional images for the denoising mini-batch.
        held_out: images split off the training set, not used for training.
        all_test: whether ``test`` holds all images; ``train`` then holds the same ones, for comparison.
        fingerprint: what tells these images from others (``data/fingerprint.py``); empty for a named data set.
        trained_on: what a model keeps of the training images and those held out (``data/trained_on.py``), int64 [N]; None if
            they are not known by their files.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    unlabelled: ImageSet | None = None
    held_out: ImageSet | None = None
    fingerprint: str = ""
    all_test: bool = False
    trained_on: Tensor | None = None


def reorder_classes(data: Dataset, classes: Sequence[str]) -> Dataset:
    """The data with its classes in the order of a model's, if they are the same classes in another order; else unchanged."""
    if not isinstance(data.train.pixels, (Tensor, LazyImages)):
        return data  # a stream numbers its classes itself
    if data.classes == tuple(classes) or sorted(data.classes) != sorted(classes) or len(set(classes)) < len(classes):
        return data
    place = torch.tensor([list(classes).index(name) for name in data.classes])

    def renumbered(images: ImageSet | None) -> ImageSet | None:
        return images if images is None or images.labels is None else replace(images, labels=place[images.labels])

    train, test, held_out = renumbered(data.train), renumbered(data.test), renumbered(data.held_out)
    assert train is not None
    assert test is not None
    return replace(data, train=train, test=test, held_out=held_out, classes=tuple(classes))


def select_per_class(images: ImageSet, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """A mask bool [N]: ``choose`` maps the indices [M] of a class to the selected ones. Unlabeled images are one class."""
    labels = torch.zeros(len(images), dtype=torch.int64) if images.labels is None else images.labels
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[choose((labels == label).nonzero().flatten())] = True
    return chosen


def every_fifth(images: ImageSet) -> Tensor:
    """A mask bool [N] of the first, sixth, eleventh ... image of each class."""
    return select_per_class(images, lambda members: members[::5])


def load_images(
    n: int,
    decode: Decode,
    labels: Sequence[int] | Tensor | None,
    decoding: Decoding,
    what: str,
    stamps: Callable[[], Iterable[str]] | None = None,
) -> ImageSet:
    """An image set of n images, decoded now if they fit into ``decoding.memory``, else on access.

    Args:
        what: the label of the progress bar.
        stamps: text that changes with the images, if decoded ones are to be kept for the next time.
    """
    labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
    if n * decoding.channels * decoding.size**2 > decoding.memory:
        for i in evenly_spaced(n, 16 if decoding.originals else 0).tolist():  # a look at a few, for their values
            with suppress(DataError):
                decode(i)
        return ImageSet(LazyImages(n, decode, decoding), labels)
    originals = decoding.originals or Originals()
    place = None
    if stamps and decoding.originals and n >= decoded.FEWEST:
        place = decoded.place_of(stamps, decoding.channels, decoding.size, originals.bits)
    if place and (found := decoded.read(place, (n, decoding.channels, decoding.size, decoding.size))):
        originals.add(*found[1])
        return ImageSet(found[0], labels)
    before = len(originals.notes)
    pixels, good = decode_all(n, decode, decoding, what)
    if place and len(notes := originals.notes[before:]) == n:  # else there is a bad file, to be reported the next time too
        decoded.write(place, pixels, notes)
    return ImageSet(pixels, labels) if bool(good.all()) else ImageSet(pixels, labels).where(good)


def decode_all(n: int, decode: Decode, decoding: Decoding, what: str) -> tuple[Tensor, Tensor]:
    """Decode n images -> their pixels, and a mask bool [n] of those that could be read."""
    pixels = torch.empty(n, decoding.channels, decoding.size, decoding.size, dtype=torch.uint8)
    good = torch.ones(n, dtype=torch.bool)

    def read(chunk: range) -> list[tuple[int, DataError]]:
        bad = []
        for i in chunk:
            try:
                pixels[i] = decode(i)
            except DataError as error:
                bad.append((i, error))
        return bad

    threads = os.cpu_count() or 1
    step = max(1, min(16, n // (8 * threads)))  # with a task for each image, threads would mostly wait for each other
    chunks = [range(start, min(start + step, n)) for start in range(0, n, step)]
    with ThreadPoolExecutor(threads) as pool, Progress(n, f"reading {what}") as progress:
        for chunk, bad in zip(chunks, pool.map(read, chunks), strict=True):
            progress.update(len(chunk))
            for i, error in bad:
                decoding.bad_files.add(error)
                good[i] = False
    return pixels, good


def load_image_files(files: Files, names: list[str], labels: Sequence[int] | None, decoding: Decoding) -> ImageSet:
    """An image set of the image files ``names`` in a folder or zip archive."""
    listed = np.array(names)  # one object: in forked workers, reference counting would copy the pages of a list of strings

    def decode(i: int) -> Tensor:
        name = str(listed[i])
        check_start(files, name)
        with files.open(name) as file:
            return read_image(os.path.join(files.source, name), decoding.channels, decoding.size, file, decoding.originals)

    return load_images(len(names), decode, labels, decoding, files.source.name, lambda: files.stamps(names))
