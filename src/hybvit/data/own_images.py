"""The user's own images: a folder or zip (a subfolder per class, or flat), a CSV or JSONL manifest, a Hugging Face data set.

Without a given split, a hash of its name makes one image in five a test image; ``data.test_root`` overrides this.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError
from .cells import is_line, natural_order, read_table, text_of
from .files import Files, is_hidden, refuse_special
from .image_set import Dataset, Decoding, ImageSet, every_fifth, load_image_files, load_images
from .images import read_image, readable_suffixes
from .splits import KNOWN, by_split, evaluation_split, hash_split, split_of, train_and_test


def divided(
    names: Sequence[str], labels: Sequence[int] | None, rule: str, load: Callable[[list[int]], ImageSet]
) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a set that comes without a split, by ``data.split``.

    Args:
        names: of the images; their order does not matter to the hash.
        load: reads the images at these indices.
    """
    everything = list(range(len(names)))
    if rule == "every_fifth":
        images = load(everything)
        held_out = every_fifth(images)
        return images.where(~held_out), images.where(held_out)
    test = hash_split(names, labels)
    return load([i for i in everything if not test[i]]), load([i for i in everything if test[i]])


def existing_root(data: DataConfig, what: str) -> Path:
    """``data.root``, which must exist; ``what`` describes it in the message."""
    if data.root is None:
        raise ConfigError(f"data.root is not set: give --data {what}")
    root = Path(data.root)
    if not root.exists():
        raise DataError(f"{root}: no such folder" + ("" if root.suffix == "" else " or file"))
    return root


def image_names(files: Files) -> list[str]:
    """All files with the suffix of an image format, except hidden ones."""
    suffixes = readable_suffixes()
    names = (name for name in files.names() if Path(name).suffix.lower() in suffixes)
    return [name for name in names if not is_hidden(name)]


# what is left out, and why
SIDE_FILES = {  # what is expected beside images, and not worth a word
    "", ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".log", ".db", ".ini",
    ".py", ".ipynb",
}  # fmt: skip
NEEDS = {".heic": " needs pillow-heif", ".heif": " needs pillow-heif", ".avif": " needs a Pillow with AVIF"}


def left_out(files: Files, read: int) -> str | None:
    """Which files beside the ``read`` images cannot be read, by suffix; None if there are only :data:`SIDE_FILES`.

    For example "12 of 24 files left out: .heic (12) needs pillow-heif".
    """
    expected = readable_suffixes() | (SIDE_FILES if read else SIDE_FILES - {""})
    others = Counter(Path(name).suffix.lower() for name in files.names() if not is_hidden(name))
    others = Counter({suffix: n for suffix, n in others.items() if suffix not in expected})
    if not others:
        return None
    listed = ", ".join(f"{suffix or 'no suffix'} ({n:,}){NEEDS.get(suffix, '')}" for suffix, n in sorted(others.items()))
    return f"{others.total():,} of {read + others.total():,} files left out: {listed}"


# a folder


def folder(data: DataConfig, decoding: Decoding) -> Dataset:
    """A folder or zip: DIR/train/CLASS/* and DIR/test/CLASS/* (or val/), else DIR/CLASS/*, or DIR/* without labels."""
    files = without_wrapping(Files(existing_root(data, "DIR, a folder with one subfolder of images per class")))
    files, test = split_folders(files)
    if data.test_root is not None:
        if not Path(data.test_root).exists():
            raise DataError(f"{data.test_root}: no such folder")
        test = without_wrapping(Files(Path(data.test_root)))
        found = by_split(test.folders())
        split = evaluation_split(found)
        if split is not None and found[split][0] not in files.folders():
            test = test.subfolder(found[split][0])
    classes = class_folders(files)
    names, labels = list_classes(files, classes)
    if test is None:
        return Dataset(*divided(names, labels, data.split, partial(_load_files, files, names, labels, decoding)), classes)
    extra = sorted(set(class_folders(test)) - set(classes))
    if extra:
        raise DataError(f"{test.where}: class folder {extra[0]!r} has no counterpart in {files.where}")
    images = load_image_files(files, names, labels, decoding)
    return Dataset(images, load_image_files(test, *list_classes(test, classes), decoding), classes)


def without_wrapping(files: Files) -> Files:
    """Below a single folder around the class folders of a zip archive, or around train/ and test/."""
    while len(tops := files.folders()) == 1 and split_of(tops[0]) is None:
        below = files.subfolder(tops[0])
        wrapped = below.folders() if files.zipped else [name for name in below.folders() if split_of(name)]
        if not wrapped or any("/" not in name for name in image_names(files)):
            break
        files = below
    return files


def split_folders(files: Files) -> tuple[Files, Files | None]:
    """The training images, and the test images if they have a folder of their own.

    Folders that are named like splits are classes if they hold images but no class folders, beside other folders that do.

    Raises:
        DataError: some folders are named like splits, and others are not.
    """
    names = image_names(files)
    tops = [top for top in files.folders() if not names or any(name.startswith(f"{top}/") for name in names)]
    splits = {top: split for top in tops if (split := split_of(top)) is not None}
    others = [top for top in tops if top not in splits]
    divided = "train" in splits.values() and len(set(splits.values())) > 1
    nested = any(name.count("/") > 1 and name.split("/")[0] in splits for name in names)
    if not splits or (others and not divided and not nested):
        return files, None
    if others and not divided:
        raise DataError(
            f"{files.where}: {next(iter(splits))} is named like a split, but not {' and '.join(others[:3])}: name them "
            "train and test, or give the folder that holds the class folders"
        )
    train, test = train_and_test(tops, files.where)
    left_out = [top for top in tops if top not in (train, test)]
    if left_out:
        print(f"warning: {files.where}: left out: {', '.join(left_out)} (only {train} and {test} are used)", file=sys.stderr)
    assert train is not None
    return _below(files, train), None if test is None else _below(files, test)


def _below(files: Files, top: str) -> Files:
    """The files of a split; some archives hold them in a folder of the same name once more (seg_train/seg_train/CLASS)."""
    files = files.subfolder(top)
    while len(tops := files.folders()) == 1 and split_of(tops[0]) == split_of(top):
        files = files.subfolder(tops[0])
    return files


def class_folders(files: Files) -> tuple[str, ...]:
    """Names of the class subfolders; empty if the images are directly in the folder."""
    folders, where = files.folders(), files.where
    loose = [name for name in image_names(files) if "/" not in name]
    if loose and folders:
        raise DataError(
            f"{where / loose[0]}: not in a class folder ({folders[0]} ...): put either all images into class folders, or none"
        )
    if not loose and not folders:
        raise DataError(f"{where}: contains no class subfolders and no images{_because(files)}")
    return checked_names(folders, where)


def checked_names(folders: list[str], where: Path) -> tuple[str, ...]:
    """The names of class folders in natural order.

    Raises:
        DataError: a name is not one line of UTF-8 text.
    """
    for name in folders:
        if not is_line(name):
            raise DataError(f"{where}: the name of the class folder {name!r} is not one line of UTF-8 text: rename it")
    return natural_order(folders)


def list_classes(files: Files, classes: tuple[str, ...]) -> tuple[list[str], list[int] | None]:
    """The image files in class folders, and their labels; no labels without classes."""
    names = image_names(files)
    if not names:
        raise DataError(f"{files.where}: no image files in its class folders{_because(files)}")
    if skipped := left_out(files, len(names)):
        print(f"warning: {files.where}: {skipped}", file=sys.stderr)
    loose = next((name for name in names if classes and "/" not in name), None)
    if loose is not None:
        raise DataError(f"{files.where / loose}: not in a class folder: move it into one")
    label_of = {name: k for k, name in enumerate(classes)}
    labels = [label_of[name.split("/")[0]] for name in names] if classes else None
    return names, labels


def _load_files(files: Files, names: list[str], labels: list[int] | None, decoding: Decoding, index: list[int]) -> ImageSet:
    return load_image_files(files, [names[i] for i in index], None if labels is None else [labels[i] for i in index], decoding)


def _because(files: Files) -> str:
    skipped = left_out(files, 0)
    return f" ({skipped})" if skipped else ""


# a manifest

PATH_COLUMNS, LABEL_COLUMNS = ("path", "file", "filename", "image"), ("label", "class")


def manifest(data: DataConfig, decoding: Decoding) -> Dataset:
    """A CSV file with a header, or one JSON object per line: ``path`` (relative to the manifest), and optionally ``label`` and
    ``split``."""
    root = existing_root(data, "FILE.csv or FILE.jsonl")
    rows = read_manifest(root)
    if data.test_root is not None:
        test_root = Path(data.test_root)
        test = read_manifest(test_root)
        parts = [(root, rows), (test_root, test)]
    elif any("split" in row for row in rows):
        parts = [(root, part) for part in split_rows(root, rows)]
    else:
        parts = [(root, rows)]
    classes = natural_order([row["label"] for row in parts[0][1] if "label" in row])
    sets = []
    for source, part in parts:
        unknown = next((row for row in part if classes and row["label"] not in classes), None)
        if unknown is not None:
            raise DataError(f"{source}: class {unknown['label']!r} of {unknown['path']} has no training image")
        if len(parts) > 1:
            sets.append(_load_rows(source, part, classes, decoding, list(range(len(part)))))
        else:
            labels = _row_labels(part, classes)
            sets += divided(
                [row["path"] for row in part], labels, data.split, partial(_load_rows, source, part, classes, decoding)
            )
    return Dataset(sets[0], sets[1], classes)


def _row_labels(rows: list[dict[str, str]], classes: tuple[str, ...]) -> list[int] | None:
    number = {name: k for k, name in enumerate(classes)}
    return [number[row["label"]] for row in rows] if classes else None


def _load_rows(
    source: Path, rows: list[dict[str, str]], classes: tuple[str, ...], decoding: Decoding, index: list[int]
) -> ImageSet:
    chosen = [rows[i] for i in index]
    names = [row["path"] for row in chosen]
    return load_images(len(names), decoder(source.parent, names, decoding), _row_labels(chosen, classes), decoding, source.name)


def split_rows(path: Path, rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """The training rows, and the test rows if there are any."""
    found = by_split(dict.fromkeys(row.get("split", "") for row in rows))
    if None in found:
        other = next(row for row in rows if split_of(row.get("split", "")) is None)
        raise DataError(f"{path}: the split of {other['path']} is {other.get('split')!r}: it must be {KNOWN}")
    if "train" not in found:
        raise DataError(f"{path}: no row has the split train")
    test = evaluation_split(found)
    return [[row for row in rows if split_of(row["split"]) == split] for split in ("train", test) if split]


def decoder(folder: Path, names: list[str], decoding: Decoding) -> Callable[[int], Tensor]:
    return lambda i: read_image(folder / names[i], decoding.channels, decoding.size, wide=decoding.wide)


def read_manifest(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest. Each has ``path``; either all or none have ``label``.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names its line.
    """
    rows: list[dict[str, str]] = []
    for number, entry in read_table(path):
        name = next((entry[key] for key in PATH_COLUMNS if key in entry), None)
        if name is None:
            raise DataError(
                f"{path}, line {number}: no image path (in a column {', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]})"
            )
        label = next((entry[key] for key in LABEL_COLUMNS if key in entry), None)
        if "\\" in name and not (path.parent / name).exists():
            name = name.replace("\\", "/")  # written on Windows
        split = {"split": entry["split"]} if "split" in entry else {}
        rows.append({"path": name, **split} | ({} if label is None else {"label": label}))
        if ("label" in rows[-1]) != ("label" in rows[0]):
            found = "has a label, but earlier lines have none" if label else "has no label, but earlier lines have one"
            raise DataError(
                f"{path}, line {number}: {found}: label all images, or none (an empty cell, None and NaN are no label)"
            )
    if not rows:
        raise DataError(f"{path}: lists no images")
    return rows


# Hugging Face

NO_IMAGE: dict[str, Any] = {"bytes": None, "path": None}  # an empty cell


def huggingface(data: DataConfig, decoding: Decoding) -> Dataset:
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
    names = train.features[label_column].names if hasattr(train.features.get(label_column), "names") else None
    if label_column and names is None:
        names = natural_order(label_texts(train[label_column], data.root))
    classes = tuple(names or ())
    columns_and_classes = (image_column, label_column, classes, data.root, decoding)
    if test is not None:
        return Dataset(as_image_set(train, *columns_and_classes), as_image_set(test, *columns_and_classes), classes)
    labels = as_labels(train, label_column, classes, data.root)
    names = image_digests(train, image_column) if data.split == "hash" else [""] * len(train)
    load = partial(_load_table, train, columns_and_classes)
    return Dataset(*divided(names, labels, data.split, load), classes)


def _load_table(table: Any, columns_and_classes: Any, index: list[int]) -> ImageSet:
    return as_image_set(table.select(index), *columns_and_classes)


def image_digests(table: Any, image_column: str) -> list[str]:
    """The paths of a table's images, or digests of those that are stored in it: such images have no reliable name."""
    import datasets

    raw = table.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    entries = (row[image_column] or NO_IMAGE for row in raw)
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
            found = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
            if not found:
                raise DataError(f"{path}: contains no .parquet file")
            with quietly():
                return dict(datasets.load_dataset("parquet", data_files=parquet_splits(path, found)))
        with quietly():
            return dict(datasets.load_dataset(root.removeprefix("hf://").removeprefix("datasets/")))
    except DataError:
        raise
    except Exception as error:  # the library passes on the exceptions of its back ends
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{root}: not readable as a Hugging Face data set ({reason})") from None


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


def columns(table: Any, root: str) -> tuple[str, str | None]:
    """The names of the image column, and of the label column or None."""
    import datasets

    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    images += [name for name, kind in table.features.items() if isinstance(kind, dict) and "bytes" in kind]
    if not images:
        raise DataError(f"{root}: no column of images among {', '.join(table.features)}")
    labels = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    labels += [name for name in LABEL_COLUMNS if name in table.features]
    return images[0], labels[0] if labels else None


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
        texts.append(text)
    return texts


def as_labels(table: Any, label_column: str | None, classes: Sequence[str], root: str) -> list[int] | None:
    """The labels of a table as numbers of classes; None without a column of labels."""
    if label_column is None:
        return None
    texts = label_texts(table[label_column], root)
    number = {name: k for k, name in enumerate(classes)}
    try:
        named = hasattr(table.features[label_column], "names")
        labels = [int(text) for text in texts] if named else [number[text] for text in texts]
    except KeyError as error:
        raise DataError(f"{root}: class {error} has no training image") from None
    if labels and not 0 <= min(labels) <= max(labels) < len(classes):
        raise DataError(f"{root}: labels from {min(labels)} to {max(labels)}: they must be in 0..{len(classes) - 1}")
    return labels


def as_image_set(
    table: Any, image_column: str, label_column: str | None, classes: Sequence[str], root: str, decoding: Decoding
) -> ImageSet:
    import datasets

    whole = len(table) > 0  # the library cannot cast a table without rows
    raw = table.cast_column(image_column, datasets.Image(decode=False)) if whole else table
    labels = as_labels(table, label_column, classes, root) if whole or label_column is None else []

    def decode(i: int) -> Tensor:
        entry = raw[i][image_column] or NO_IMAGE
        if entry["bytes"] is None and not entry["path"]:
            raise DataError(f"{root}, image {i}: the cell is empty")
        name = f"{root}, image {i}" if entry["bytes"] is not None else entry["path"]
        file = None if entry["bytes"] is None else io.BytesIO(entry["bytes"])
        return read_image(name, decoding.channels, decoding.size, file, decoding.wide)

    return load_images(len(raw), decode, labels, decoding, Path(root).name)


READERS: dict[str, Callable[[DataConfig, Decoding], Dataset]] = {
    "folder": folder,
    "manifest": manifest,
    "huggingface": huggingface,
}
