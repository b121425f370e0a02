"""Images that are known by name but not read yet, and what becomes of them: training and test images, and a fingerprint."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..config import DataConfig
from ..errors import ConfigError, DataError
from .fingerprint import ListedImage, fingerprint, shares_training_images
from .image_set import Dataset, ImageSet, every_fifth
from .splits import hash_split


class Listing(NamedTuple):
    """Images that are known, but not read yet.

    Attributes:
        labels: the numbers of their classes; None without classes.
        load: reads the images at some indices.
        keys: what the split depends on, if not on their names.
    """

    images: list[ListedImage]
    labels: list[int] | None
    load: Callable[[Sequence[int]], ImageSet]
    keys: Sequence[str] | None = None


def read_splits(data: DataConfig, classes: tuple[str, ...], train: Listing, test: Listing | None) -> Dataset:
    """Read the listed images; without test images, ``data.split`` says which of the others are test images.

    All are, if the model that ``data.fingerprint`` belongs to was trained on none of them.
    """
    everything = range(len(train.images))
    if test is not None:
        kept = fingerprint(train.images, test.images)
        return Dataset(train.load(everything), test.load(range(len(test.images))), classes, fingerprint=kept)
    kept = fingerprint(train.images, [])
    if data.split == "none" or not shares_training_images(data.fingerprint, train.images):
        images = train.load(everything)
        return Dataset(images, images, classes, fingerprint=kept, all_test=True)
    if data.split == "every_fifth":
        images = train.load(everything)
        held_out = every_fifth(images)
        return Dataset(images.where(~held_out), images.where(held_out), classes, fingerprint=kept)
    is_test = hash_split(train.keys or [image.name for image in train.images], train.labels)
    learned, judged = ([i for i in everything if is_test[i] is chosen] for chosen in (False, True))
    kept = fingerprint([train.images[i] for i in learned], [train.images[i] for i in judged])
    return Dataset(train.load(learned), train.load(judged), classes, fingerprint=kept)


def existing_root(data: DataConfig, what: str) -> Path:
    """``data.root``, which must exist; ``what`` describes it in the message."""
    if data.root is None:
        raise ConfigError(f"data.root is not set: give --data {what}")
    root = Path(data.root)
    if not root.exists():
        raise DataError(f"{root}: no such folder" + ("" if root.suffix == "" else " or file"))
    return root


def warn_of_leak(train: Iterable[Path], test: Iterable[Path]) -> None:
    """Say how many of the files of the test images are those of training images."""
    trained, tested = ({os.path.realpath(path) for path in paths} for paths in (train, test))
    if both := trained & tested:
        print(
            f"warning: {len(both):,} of {len(tested):,} test images are training images too, such as {min(both)}: "
            "remove them from one of the splits, since a model knows them by heart",
            file=sys.stderr,
        )
