"""What is a split: the one place that knows the names of training, validation and test images, in folders, zip archives,
manifests, parquet files and tar shards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Sequence
from typing import Literal

from ..errors import DataError

Split = Literal["train", "validation", "test"]

WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "trainingset", "trainval", "trn"), "train"),
    **dict.fromkeys(("validation", "valid", "validset", "val", "valset", "validationset",
                    "dev", "devset", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tests", "testset", "testingset", "tst", "eval", "evaluation", "evalset"), "test"),
}  # fmt: skip
FILLERS = {
    "seg",
    "set",
    "split",
    "data",
    "dataset",
    "image",
    "images",
    "img",
    "imgs",
    "photos",
    "pictures",
    "files",
    "x",
    "the",
}
KNOWN = "train, test or val"  # for messages


def split_of(name: str, *, anywhere: bool = False) -> Split | None:
    """The split that a name stands for, in any case and usual spelling; None if it is no split, or more than one.

    Args:
        anywhere: whether the word may stand among others, as in the name of a file (``birds-train-0001.tar``). Otherwise only
            numbers and words without meaning of their own may join it: ``seg_train``, ``Test-Images``, ``train2017``.
    """
    words = words_of(name)
    found = [WORDS[word] for word in words if word in WORDS]
    if anywhere and words and words[0] in WORDS:
        return WORDS[words[0]]
    if len(set(found)) != 1 or not (anywhere or all(word in WORDS or word in FILLERS for word in words)):
        return None
    return found[0]


def words_of(name: str) -> list[str]:
    return [word.casefold() for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))]


def splits_of_one_set(names: Sequence[str]) -> bool:
    """Whether the names tell splits from each other; then they are no classes: ``birds_train`` and ``birds_test``, or
    ``train_cat``, ``train_dog``, ``test_cat`` and ``test_dog``."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for name in names:
        split = split_of(name, anywhere=True)
        found.setdefault(split or "", []).append(tuple(word for word in words_of(name) if word not in WORDS))
    return (
        len(found) > 1 and "" not in found and "train" in found and len({tuple(sorted(rest)) for rest in found.values()}) == 1
    )


def by_split(names: Iterable[str], *, anywhere: bool = False) -> dict[Split | None, list[str]]:
    """The names of each split, in the given order; under None those of no split."""
    found: dict[Split | None, list[str]] = {}
    for name in names:
        found.setdefault(split_of(name, anywhere=anywhere), []).append(name)
    return found


def evaluation_split(found: Container[Split | None]) -> Split | None:
    """Where the test images are: among the validation images only if there is no test split."""
    return "test" if "test" in found else "validation" if "validation" in found else None


def train_and_test(names: Iterable[str], where: object) -> tuple[str | None, str | None]:
    """Which of several folders or tables hold the training and the test images; None for what no name stands for.

    Raises:
        DataError: two of them stand for the same split, or there are test images without training images.
    """
    found = by_split(names)
    test = evaluation_split(found)
    chosen: list[str | None] = []
    for split in ("train", test):
        same = found.get(split, []) if split else []
        if len(same) > 1:
            raise DataError(f"{where}: {' and '.join(same)} both look like the {split} split: merge them, or move one away")
        chosen += same or [None]
    if test and not chosen[0]:
        raise DataError(
            f"{where}: {chosen[1]} looks like the {test} split, but none looks like train: rename the training images"
        )
    return chosen[0], chosen[1]


def hash_split(names: Sequence[str], labels: Sequence[int] | None) -> list[bool]:
    """Which images are test images where no split is given: one in five, by a hash of each name.

    So the others stay where they are when a file is added or removed. A class of two or more has at least one test image (that
    of the smallest hash) and one training image (that of the largest). The only image of a class counts as a test image.
    """
    hashes = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names]
    test = [int.from_bytes(value[:8]) < 2**64 // 5 for value in hashes]
    members: dict[int, list[int]] = {}
    for i in range(len(names)):
        members.setdefault(0 if labels is None else labels[i], []).append(i)
    for of_class in members.values():
        of_class.sort(key=lambda i: hashes[i])
        test[of_class[-1]], test[of_class[0]] = False, True
    return test
