"""The user's own images: a folder or zip (a subfolder per class, or flat), a CSV or JSONL manifest, a Hugging Face data set.

Without a given split, a hash of its name makes one image in five a test image; ``data.test_root`` overrides this.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError
from .cells import is_line, natural_order, read_table, text_of
from .files import Files, is_hidden, refuse_special, size_of
from .fingerprint import ListedImage, fingerprint, shares_training_images
from .image_set import Dataset, Decoding, ImageSet, every_fifth, load_image_files, load_images
from .images import read_image, readable_suffixes
from .splits import KNOWN, by_split, evaluation_split, hash_split, split_of, train_and_test


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


def image_names(files: Files) -> list[str]:
    """All image files, except hidden ones: by the suffix of an image format, and with a suffix that is unknown, or none, by the
    first bytes."""
    suffixes, other = readable_suffixes(), SIDE_FILES - {""}

    def is_image(name: str) -> bool:
        suffix = Path(name).suffix.lower()
        if suffix in suffixes or suffix in other:
            return suffix in suffixes
        start = files.start(name)
        return bool(STARTS.match(start) or (not suffix and TIFF.match(start)))

    return [name for name in files.names() if not is_hidden(name) and is_image(name)]


# first bytes of image formats, long enough that no text begins with them
STARTS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\0{4}|....ftypavif|\0\0\0\x0cjP  |qoif", re.DOTALL
)
TIFF = re.compile(rb"II\*\0|MM\0\*")  # raw photographs begin like it too, but those have a suffix

# what is left out, and why
SIDE_FILES = {  # what is expected beside images, and not worth a word
    "", ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".log", ".db", ".ini",
    ".py", ".ipynb",
}  # fmt: skip
NEEDS = {".heic": " needs pillow-heif", ".heif": " needs pillow-heif", ".avif": " needs a Pillow with AVIF"}


def left_out(files: Files, read: Collection[str]) -> str | None:
    """Which files beside the images that are ``read`` cannot be read, by suffix; None if there are only :data:`SIDE_FILES`.

    For example "12 of 24 files left out: .heic (12) needs pillow-heif".
    """
    expected = readable_suffixes() | (SIDE_FILES if read else SIDE_FILES - {""})
    taken = set(read)
    others = Counter(Path(name).suffix.lower() for name in files.names() if name not in taken and not is_hidden(name))
    others = Counter({suffix: n for suffix, n in others.items() if suffix not in expected})
    if not others:
        return None
    listed = ", ".join(f"{suffix or 'no suffix'} ({n:,}){NEEDS.get(suffix, '')}" for suffix, n in sorted(others.items()))
    return f"{others.total():,} of {len(read) + others.total():,} files left out: {listed}"


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
    train = list_files(files, classes, decoding)
    if test is None:
        return read_splits(data, classes, train, None)
    extra = sorted(set(class_folders(test)) - set(classes))
    if extra:
        raise DataError(f"{test.where}: class folder {extra[0]!r} has no counterpart in {files.where}")
    of_test = list_files(test, classes, decoding)
    warn_of_leak(*([part.where / image.name for image in listed.images] for part, listed in ((files, train), (test, of_test))))
    return read_splits(data, classes, train, of_test)


def warn_of_leak(train: Iterable[Path], test: Iterable[Path]) -> None:
    """Say how many of the files of the test images are those of training images."""
    trained, tested = ({os.path.abspath(path) for path in paths} for paths in (train, test))
    if both := trained & tested:
        print(
            f"warning: {len(both):,} of {len(tested):,} test images are training images too, such as {min(both)}: "
            "remove them from one of the splits, since a model knows them by heart",
            file=sys.stderr,
        )


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
    return below_split(files, train), None if test is None else below_split(files, test)


def below_split(files: Files, top: str) -> Files:
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


def list_files(files: Files, classes: tuple[str, ...], decoding: Decoding) -> Listing:
    """The image files in class folders; no labels without classes."""
    names = image_names(files)
    if not names:
        raise DataError(f"{files.where}: no image files in its class folders{_because(files)}")
    if skipped := left_out(files, names):
        print(f"warning: {files.where}: {skipped}", file=sys.stderr)
    loose = next((name for name in names if classes and "/" not in name), None)
    if loose is not None:
        raise DataError(f"{files.where / loose}: not in a class folder: move it into one")
    label_of = {name: k for k, name in enumerate(classes)}
    labels = [label_of[name.split("/")[0]] for name in names] if classes else None

    def load(index: Sequence[int]) -> ImageSet:
        return load_image_files(files, [names[i] for i in index], labels and [labels[i] for i in index], decoding)

    return Listing([ListedImage(name, files.size(name)) for name in names], labels, load)


def _because(files: Files) -> str:
    skipped = left_out(files, ())
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
    if len(parts) > 1:
        warn_of_leak(*([source.parent / row["path"] for row in part] for source, part in parts))
    return read_splits(data, classes, *(list_rows(*part, classes, decoding) for part in parts), *[None] * (2 - len(parts)))


def list_rows(source: Path, rows: list[dict[str, str]], classes: tuple[str, ...], decoding: Decoding) -> Listing:
    """The images in rows of a manifest."""
    number = {name: k for k, name in enumerate(classes)}
    unknown = next((row for row in rows if classes and row["label"] not in number), None)
    if unknown is not None:
        raise DataError(f"{source}: class {unknown['label']!r} of {unknown['path']} has no training image")
    labels = [number[row["label"]] for row in rows] if classes else None

    def load(index: Sequence[int]) -> ImageSet:
        names = [rows[i]["path"] for i in index]
        decode = decoder(source.parent, names, decoding)
        return load_images(len(names), decode, labels and [labels[i] for i in index], decoding, source.name)

    images = [ListedImage(row["path"], size_of(source.parent / row["path"]), row.get("label", "")) for row in rows]
    return Listing(images, labels, load)


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
    return lambda i: read_image(folder / names[i], decoding.channels, decoding.size, originals=decoding.originals)


def read_manifest(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest. Each has ``path``; either all or none have ``label``.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names its line.
    """
    rows: list[dict[str, str]] = []
    seen: dict[str, tuple[str | None, int]] = {}  # file -> its class, and the line that says so
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
        first, line = seen.setdefault(os.path.abspath(path.parent / name), (label, number))
        if first != label:
            raise DataError(
                f"{path}, line {number}: {name} has the class {label!r}, but {first!r} in line {line}: remove one of them"
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
    divided = test is None and data.split == "hash"

    def listed(table: Any) -> Listing:
        return list_table(table, image_column, label_column, classes, str(data.root), decoding, divided)

    return read_splits(data, classes, listed(train), None if test is None else listed(test))


def stored_images(raw: Any, image_column: str) -> list[ListedImage]:
    """The images of a table by their paths, or else their rows, with the sizes of those that it stores."""
    import pyarrow.compute as pc

    column = raw.select_columns([image_column]).with_format("arrow")[:][image_column]
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes")), 0).to_pylist()
    paths = pc.struct_field(column, "path").to_pylist()
    return [ListedImage(path or str(row), size) for row, (path, size) in enumerate(zip(paths, sizes, strict=True))]


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
    return Listing(images, labels, load, image_digests(raw, image_column) if divided else None)


READERS: dict[str, Callable[[DataConfig, Decoding], Dataset]] = {
    "folder": folder,
    "manifest": manifest,
    "huggingface": huggingface,
}
