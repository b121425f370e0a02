"""Data sets of the Hugging Face hub, parquet files, and folders of them: tables with a column of images."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError
from ..storage import read_bytes
from .cells import LABELS, PATHS, check_classes, checked_classes, class_name, says_split, text_of
from .files import is_hidden, refuse_special
from .fingerprint import ListedImage
from .image_set import Dataset, Decoding, ImageSet, load_images
from .images import read_image
from .listing import Listing, read_splits, warn_of_copies
from .splits import KNOWN, by_split, evaluation_split, split_of, train_and_test

NO_IMAGE: dict[str, Any] = {"bytes": None, "path": None}  # an empty cell


def huggingface(data: DataConfig, decoding: Decoding, trained_on: Tensor | None = None) -> Dataset:
    """A data set from the Hugging Face hub (hf://OWNER/NAME), a parquet file, or a folder of them (train*.parquet,
    test*.parquet)."""
    if data.root is None:
        raise ConfigError("data.root is not set: give --data hf://OWNER/NAME, a parquet file or a folder of them")
    splits = load_huggingface(data.root)
    name, other = next(iter(splits)), None  # a data set with a single split is divided in two
    if len(splits) > 1:
        chosen, other = train_and_test(splits, data.root)
        if chosen is None:
            raise DataError(f"{data.root}: none of its splits {', '.join(splits)} is named train")
        name = chosen
    train, test = splits[name], None if other is None else splits[other]
    if data.test_root is not None:
        elsewhere = load_huggingface(data.test_root)
        split = evaluation_split(found := by_split(elsewhere))
        test = elsewhere[found[split][0] if split else next(iter(elsewhere))]
    image_column, label_column = columns(train, data.root)
    if label_column is not None and test is not None and label_column not in test.features:
        raise DataError(f"{data.test_root or data.root}: its test images have no column {label_column}, unlike the others")
    for column in filter(says_split, train.features if test is None else ()):
        print(
            f"warning: {data.root}: the column {column!r} is not read: the names of its files say the splits of a table",
            file=sys.stderr,
        )
    names = train.features[label_column].names if hasattr(train.features.get(label_column), "names") else None
    if label_column and names is None:
        names = checked_classes(label_texts(train[label_column], data.root), data.root)
    classes = tuple(names or ())
    check_classes(classes, data.root, "names of classes")
    divided = test is None and data.split == "hash"

    def listed(table: Any) -> Listing:
        return list_table(table, image_column, label_column, classes, str(data.root), decoding, divided)

    if test is None:
        return read_splits(data, classes, listed(train), None, trained_on)
    of_train, of_test = listed(train), listed(test)
    warn_of_copies(of_train, of_test)
    return read_splits(data, classes, of_train, of_test, trained_on)


def stored_images(raw: Any, image_column: str) -> list[ListedImage]:
    """The images of a table. Those that it stores are known by their contents, since their rows say nothing and their paths are
    not reliable, the others by their paths."""
    import pyarrow.compute as pc

    column, found = raw.select_columns([image_column]).with_format("arrow")[:][image_column], list[ListedImage]()
    for chunk in column.chunks:
        paths = pc.struct_field(chunk, "path").to_pylist()
        for path, value in zip(paths, pc.struct_field(chunk, "bytes"), strict=True):
            content = value.as_buffer()  # not a copy
            name = path or str(len(found))
            found.append(ListedImage(name, 0) if content is None else ListedImage(name, len(content), "", zlib.crc32(content)))
    return found


def image_digests(raw: Any, image_column: str) -> list[str]:
    """The paths of a table's images, or digests of those that are stored in it: such images have no reliable name."""
    entries = (row[image_column] or NO_IMAGE for row in raw.select_columns([image_column]))
    return [entry["path"] or "" if entry["bytes"] is None else hashlib.sha256(entry["bytes"]).hexdigest() for entry in entries]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Let the library datasets log nothing, and draw its progress only on a terminal: what is wrong, our own errors say."""
    import datasets

    level, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    if not hidden and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def load_huggingface(root: str) -> dict[str, Any]:
    """Split -> table, with undecoded images."""
    try:
        import datasets
    except ImportError:
        raise ConfigError("Hugging Face data sets need the package datasets: pip install 'hybvit[stream]'") from None
    path = Path(root)
    refuse_special(path)
    try:
        if path.exists():
            found = parquet_files(path) if path.is_dir() else [path]
            if not found:
                raise DataError(f"{path}: contains no .parquet file")
            parts = parquet_splits(path, found)
            for files in parts.values():
                check_features(files)
            with quietly():  # one by one: together they would get the features of the first
                load = datasets.load_dataset
                return {split: load("parquet", data_files={split: files}, split=split) for split, files in parts.items()}
        with quietly():
            return dict(datasets.load_dataset(root.removeprefix("hf://").removeprefix("datasets/")))
    except DataError:
        raise
    except Exception as error:  # the library passes on the exceptions of its back ends
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{root}: not readable as a Hugging Face data set ({reason})") from None


def parquet_files(root: Path) -> list[Path]:
    """All parquet files below a folder, except hidden ones.

    Raises:
        DataError: they are those of several configurations, as the hub stores them: CONFIGURATION/SPLIT/0000.parquet.
    """
    found = [path for path in sorted(root.glob("**/*.parquet")) if not is_hidden(path.relative_to(root).as_posix())]
    above = {
        path.parent.parent if path.parent != root and split_of(path.parent.name) else path.parent
        for path in found
        if any(split_of(name, anywhere=True) for name in (path.stem, *([] if path.parent == root else [path.parent.name])))
    }
    if len(above) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in sorted(above)[:4])
        raise DataError(f"{root}: holds several data sets, each with splits of its own ({names}): give the folder of one")
    return found


def parquet_splits(root: Path, found: list[Path]) -> dict[str, list[str]]:
    """Split -> files. A file's name or that of its folder says the split; if none does, all files are "train"."""
    files: dict[str, list[str]] = {}
    for file in found:
        names = [file.stem, *(part.name for part in file.parents if part != root and part.is_relative_to(root))]
        split = next((split for name in names if (split := split_of(name, anywhere=True))), None)
        files.setdefault(split or "", []).append(str(file))
    if "" in files and len(files) > 1:
        raise DataError(f"{files[''][0]}: neither its name nor its folder says {KNOWN}, unlike those of other files")
    return files if "" not in files else {"train": files[""]}


def check_features(files: list[str]) -> None:
    """Raise DataError if the files of a split do not name their classes alike: the numbers of one would be read by the names of
    another."""
    import pyarrow.parquet as pq

    first, *others = ((pq.read_schema(file).metadata or {}).get(b"huggingface", b"") for file in files)
    for file, other in zip(files[1:], others, strict=True):
        if other != first:
            raise DataError(
                f"{file}: its columns or the names of its classes differ from those of {files[0]}: write them alike"
            )


def columns(table: Any, root: str) -> tuple[str, str | None]:
    """The names of the image column, and of the label column or None: those named like such columns (``cells.PATHS`` and
    ``LABELS``) come first, then the only one of its type.

    Raises:
        DataError: there is no image column, or there are several of one kind, and their names do not tell them apart.
    """
    import datasets

    features = table.features
    images = [
        name
        for name, kind in features.items()
        if isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)
    ]
    image = only_column(images, images, PATHS, f"{root}: several columns of images", "image")
    if image is None:
        raise DataError(f"{root}: no column of images among {', '.join(features)}")
    typed = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return image, only_column(typed, list(features), LABELS, f"{root}: several columns of classes", "label")


def only_column(typed: list[str], named: list[str], names: Sequence[str], what: str, cure: str) -> str | None:
    """The first of the ``named`` columns that has one of the ``names``, in any case; else the only one of the ``typed``.

    Raises:
        DataError: there are several, and none is named so.
    """
    for wanted in names:
        if same := [name for name in named if name.strip().casefold() == wanted]:
            return same[0]
    if len(typed) > 1:
        raise DataError(f"{what}, {', '.join(typed[:4])}: name the one that is meant {cure}")
    return typed[0] if typed else None


def label_texts(values: Iterable[object], root: str) -> list[str]:
    """The labels of a column; a missing one is an error, unless all are."""
    texts = []
    for i, value in enumerate(values):
        try:
            text = text_of(value)
        except ValueError as error:
            raise DataError(f"{root}, image {i}: label: {error}") from None
        if text is None:
            raise DataError(f"{root}, image {i}: has no label: leave out the images without label, or the column")
        texts.append(class_name(text))
    return texts


def as_labels(table: Any, label_column: str | None, classes: Sequence[str], root: str) -> list[int] | None:
    """The labels of a table as numbers of classes; None without a column of labels."""
    if label_column is None:
        return None
    texts = label_texts(table[label_column], root)
    own = getattr(table.features[label_column], "names", None)  # the names that this table gives its numbers
    if own is not None:
        numbers = [int(text) for text in texts]
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(own):
            raise DataError(f"{root}: labels from {min(numbers)} to {max(numbers)}: they must be in 0..{len(own) - 1}")
        texts = [own[k] for k in numbers]
    number = {name: k for k, name in enumerate(classes)}
    try:
        return [number[text] for text in texts]
    except KeyError as error:
        raise DataError(f"{root}: class {error} has no training image") from None


def list_table(
    table: Any,
    image_column: str,
    label_column: str | None,
    classes: Sequence[str],
    where: str,
    decoding: Decoding,
    divided: bool,
) -> Listing:
    """The images of a table, decoded from its image column. If it is to be ``divided``, their contents are the keys."""
    import datasets

    whole = len(table) > 0  # the library cannot cast a table without rows
    raw = table.cast_column(image_column, datasets.Image(decode=False)) if whole else table
    labels = as_labels(table, label_column, classes, where) if whole or label_column is None else []

    def load(index: Sequence[int]) -> ImageSet:
        def decode(i: int) -> Tensor:
            entry = raw[index[i]][image_column] or NO_IMAGE
            if entry["bytes"] is None and not entry["path"]:
                raise DataError(f"{where}, image {index[i]}: the cell is empty")
            name = f"{where}, image {index[i]}" if entry["bytes"] is not None else entry["path"]
            file = None if entry["bytes"] is None else io.BytesIO(entry["bytes"])
            return read_image(name, decoding.channels, decoding.size, file, decoding.originals)

        return load_images(len(index), decode, labels and [labels[i] for i in index], decoding, Path(where).name)

    images = stored_images(raw, image_column) if whole else []
    if labels is not None:
        images = [image._replace(class_name=classes[label]) for image, label in zip(images, labels, strict=True)]

    def read(i: int) -> bytes:
        entry = raw[i][image_column] or NO_IMAGE
        return read_bytes(Path(entry["path"] or ""), limit=None) if entry["bytes"] is None else entry["bytes"]

    return Listing(images, labels, load, read, where, image_digests(raw, image_column) if divided else None)
