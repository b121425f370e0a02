"""Images that are known by name but not read yet, and what becomes of them: training and test images, and a fingerprint."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..catalog import CATALOG
from ..config import DataConfig
from ..errors import ConfigError, DataError
from .fingerprint import ListedImage, fingerprint, shares_training_images
from .image_set import Dataset, ImageSet, every_fifth
from .splits import hash_split
from .trained_on import Read, by_name, checksum, digests_of, recognize


class Listing(NamedTuple):
    """Images that are known, but not decoded yet.

    Attributes:
        labels: the numbers of their classes; None without classes.
        load: decodes the images at some indices.
        read: the content of the file at an index.
        where: what to call their folder, archive or table.
        keys: what the split depends on, if not on their names.
    """

    images: list[ListedImage]
    labels: list[int] | None
    load: Callable[[Sequence[int]], ImageSet]
    read: Read
    where: object
    keys: Sequence[str] | None = None


def read_splits(
    data: DataConfig, classes: tuple[str, ...], train: Listing, test: Listing | None, trained_on: Tensor | None = None
) -> Dataset:
    """Decode the listed images; without test images, ``data.split`` says which of the others are test images.

    Args:
        data: ``data.fingerprint`` is that of the images that a model was trained on, if this is for its evaluation.
        trained_on: what the model keeps of them (``trained_on.py``), if it does. Then no image that it was trained on is a test
            image, unless these are the very images of its training, which are divided as they were then.

    Raises:
        DataError: the model was trained on all that would be test images.
    """
    if test is not None:
        return _with_test_images(data, classes, train, test, trained_on)
    whole = fingerprint(train.images, [])

    def is_as_trained(kept: str) -> bool:
        return kept == data.fingerprint or (trained_on is None and shares_training_images(data.fingerprint, train.images))

    if data.split == "every_fifth" and is_as_trained(whole):
        return _every_fifth(classes, train, whole)
    if data.split == "hash":
        is_test = hash_split(train.keys or [image.name for image in train.images], train.labels)
        learned, judged = _parted(is_test)
        kept = fingerprint([train.images[i] for i in learned], [train.images[i] for i in judged])
        if is_as_trained(kept):
            known = digests_of(train.images, train.read, learned)
            return Dataset(train.load(learned), train.load(judged), classes, fingerprint=kept, trained_on=known)
    of_training = recognize(trained_on, train.images, train.read) if trained_on is not None else [False] * len(train.images)
    judged, learned = _parted(of_training)
    _refuse_without(judged, train)
    if learned:
        kept = fingerprint([train.images[i] for i in learned], [train.images[i] for i in judged])
        return Dataset(train.load(learned), train.load(judged), classes, fingerprint=kept)
    images = train.load(judged)
    return Dataset(images, images, classes, fingerprint=whole, all_test=True)


def _parted(chosen: Sequence[bool]) -> tuple[list[int], list[int]]:
    """The indices of the images that are not chosen, and of those that are."""
    return [i for i, yes in enumerate(chosen) if not yes], [i for i, yes in enumerate(chosen) if yes]


def _refuse_without(judged: Sequence[int], listing: Listing) -> None:
    if listing.images and not judged:
        raise DataError(
            f"{listing.where}: the model was trained on all of its {len(listing.images):,} images: give test images that it "
            "was not trained on, with --data, or with --data.test_root beside it"
        )


def _with_test_images(
    data: DataConfig, classes: tuple[str, ...], train: Listing, test: Listing, trained_on: Tensor | None
) -> Dataset:
    judged, kept = list(range(len(test.images))), fingerprint(train.images, test.images)
    if trained_on is not None and kept != data.fingerprint:
        judged, known = _parted(recognize(trained_on, test.images, test.read))
        _refuse_without(judged, test)
        if known:
            kept = fingerprint(train.images, [test.images[i] for i in judged])
            print(
                f"warning: {test.where}: the model was trained on {len(known):,} of its {len(test.images):,} test images, such "
                f"as {test.images[known[0]].name}: left out",
                file=sys.stderr,
            )
    everything = range(len(train.images))

    def read(i: int) -> bytes:
        return train.read(i) if i < len(everything) else test.read(i - len(everything))

    digests = digests_of([*train.images, *test.images], read, everything)
    return Dataset(train.load(everything), test.load(judged), classes, fingerprint=kept, trained_on=digests)


def _every_fifth(classes: tuple[str, ...], train: Listing, kept: str) -> Dataset:
    everything = range(len(train.images))
    images = train.load(everything)
    held_out = every_fifth(images)
    learned = (~held_out).nonzero().flatten().tolist() if len(images) == len(everything) else everything  # else some are bad
    known = digests_of(train.images, train.read, learned)
    return Dataset(images.where(~held_out), images.where(held_out), classes, fingerprint=kept, trained_on=known)


def existing_root(data: DataConfig, what: str) -> Path:
    """``data.root``, which must exist; ``what`` describes it in the message."""
    if data.root is None:
        raise ConfigError(f"data.root is not set: give --data {what}")
    root = Path(data.root)
    if not root.exists():
        named = f"; a data set by name is --dataset {root.name}, in training --data.name {root.name}"
        raise DataError(f"{root}: no such folder{' or file' * bool(root.suffix)}{named if root.name in CATALOG else ''}")
    return root


COMPARED = 32  # test images that share the size of a training image, and as many that share its name too
CANDIDATES = 8  # training images that each is compared with


def warn_of_leak(train: Iterable[Path], test: Iterable[Path]) -> bool:
    """Say how many of the files of the test images are those of training images -> whether any is."""
    trained, tested = ({os.path.realpath(path) for path in paths} for paths in (train, test))
    if both := trained & tested:
        print(
            f"warning: {len(both):,} of {len(tested):,} test images are training images too, such as {min(both)}: "
            "remove them from one of the splits, since a model knows them by heart",
            file=sys.stderr,
        )
    return bool(both)


def warn_of_copies(train: Listing, test: Listing) -> None:
    """Say if test images are copies of training images, under any name: all of those whose checksum is known are compared, and
    of the others some that have the size of a training image, first those that have its name too."""
    contents = {(image.size, image.content) for image in train.images if image.content}
    known = [i for i, image in enumerate(test.images) if image.content and contents]
    copies = [i for i in known if (test.images[i].size, test.images[i].content) in contents]
    of_size: dict[int, list[int]] = {}
    for i, image in enumerate(train.images):
        if not image.content:
            of_size.setdefault(image.size, []).append(i)
    names = {by_name(image) for image in train.images}
    alike = [i for i, image in enumerate(test.images) if image.size in of_size and not image.content]
    parts = [[i for i in alike if (by_name(test.images[i]) in names) is named] for named in (True, False)]
    some = [i for part in parts for i in part[:: max(1, -(-len(part) // COMPARED))]]
    copies += [i for i in some if _is_copy(test, i, train, of_size[test.images[i].size])]
    if copies:
        print(
            f"warning: {test.where}: {len(copies):,} of {len(known) + len(some):,} test images that were compared are copies "
            f"of training images, such as {test.images[copies[0]].name}: remove them from one of the splits, since a model "
            "knows them by heart",
            file=sys.stderr,
        )


def _is_copy(test: Listing, i: int, train: Listing, candidates: list[int]) -> bool:
    """Whether a test image has the content of one of the training images of its size."""
    name = by_name(test.images[i])
    some = sorted(candidates, key=lambda k: by_name(train.images[k]) != name)[:CANDIDATES]
    found = checksum(test.read, i)
    return found is not None and any(checksum(train.read, k) == found for k in some)
