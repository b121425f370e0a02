"""Your own images: a folder or zip with a sub-folder per class, a flat one, a CSV or JSONL manifest, a Hugging Face data set.

Without a published split, every fifth image of a class, from the first, is a test image; ``data.test_root`` names others.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError
from .files import Files, naming
from .image_set import Dataset, Decoding, ImageSet, every_fifth, picture_files, pictures
from .images import read_image, readable_suffixes

TEST_NAMES = ("test", "val", "validation")


def with_test_images(images: ImageSet, test: ImageSet | None, classes: tuple[str, ...]) -> Dataset:
    """A data set of training and test images; without the latter, every fifth image of a class is one."""
    if test is not None:
        return Dataset(images, test, classes)
    held_out = every_fifth(images)
    return Dataset(images.where(~held_out), images.where(held_out), classes)


def root_of(data: DataConfig, what: str) -> Path:
    if data.root is None:
        raise ConfigError(f"data.root is not set: give --data {what}")
    root = Path(data.root)
    if not root.exists():
        raise DataError(f"{root}: no such folder" + ("" if root.suffix == "" else " or file"))
    return root


def picture_names(files: Files) -> list[str]:
    """Everything whose suffix is that of an image format, but for hidden files."""
    suffixes = readable_suffixes()
    names = (name for name in files.names() if Path(name).suffix.lower() in suffixes)
    return [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]


# a folder


def folder(data: DataConfig, decoding: Decoding) -> Dataset:
    """DIR/train/CLASS/* and DIR/test/CLASS/* (or val/); without these, DIR/CLASS/* or, unlabelled, DIR/*. A zip serves too."""
    files = Files(root_of(data, "DIR, a folder with one sub-folder of images per class"))
    if files.source.suffix == ".zip" and len(files.folders()) == 1 and files.inside(files.folders()[0]).folders():
        files = files.inside(files.folders()[0])  # a zipped folder
    tops, test = files.folders(), None
    if data.test_root is not None:
        if not Path(data.test_root).exists():
            raise DataError(f"{data.test_root}: no such folder")
        test = Files(Path(data.test_root))
    elif "train" in tops:
        test = next((files.inside(name) for name in TEST_NAMES if name in tops), None)
        files = files.inside("train") if test is not None or tops == ["train"] else files
    classes = class_folders(files)
    images = read_classes(files, classes, decoding)
    if test is None:
        return with_test_images(images, None, classes)
    extra = sorted(set(class_folders(test)) - set(classes))
    if extra:
        raise DataError(
            f"{test.source / test.below}: class folder {extra[0]!r} has no counterpart in {files.source / files.below}"
        )
    return Dataset(images, read_classes(test, classes, decoding), classes)


def class_folders(files: Files) -> tuple[str, ...]:
    """Names of the class sub-folders; none where the pictures lie directly in the folder."""
    folders, where = files.folders(), files.source / files.below
    loose = [name for name in picture_names(files) if "/" not in name]
    if loose and folders:
        raise DataError(
            f"{where / loose[0]}: lies beside the class folders ({folders[0]} ...): put every image into one, or none"
        )
    if not loose and not folders:
        raise DataError(f"{where}: no class sub-folders and no images in it")
    return tuple(folders)


def read_classes(files: Files, classes: tuple[str, ...], decoding: Decoding) -> ImageSet:
    names = picture_names(files)
    if not names:
        raise DataError(f"{files.source / files.below}: no image files in its class folders")
    loose = next((name for name in names if classes and "/" not in name), None)
    if loose is not None:
        raise DataError(f"{files.source / files.below / loose}: lies in no class folder")
    label_of = {name: k for k, name in enumerate(classes)}
    labels = [label_of[name.split("/")[0]] for name in names] if classes else None
    return picture_files(files, names, labels, decoding)


# a manifest

PATH_COLUMNS, LABEL_COLUMNS = ("path", "file", "filename", "image"), ("label", "class")


def manifest(data: DataConfig, decoding: Decoding) -> Dataset:
    """A CSV file with a header, or a JSON object per line: ``path`` (relative to the manifest), ``label``, maybe ``split``."""
    root = root_of(data, "FILE.csv or FILE.jsonl")
    rows = read_manifest(root)
    if data.test_root is not None:
        test_root = Path(data.test_root)
        test = read_manifest(test_root)
        parts = [(root, rows), (test_root, test)]
    elif any("split" in row for row in rows):
        test = [row for row in rows if row.get("split") in TEST_NAMES]
        train = [row for row in rows if row.get("split") == "train"]
        if len(test) + len(train) < len(rows):
            other = next(row for row in rows if row not in test and row not in train)
            raise DataError(f"{root}: split {other.get('split')!r} of {other['path']}: it must be train, test or val")
        parts = [(root, train), (root, test)]
    else:
        parts = [(root, rows)]
    classes = label_names([row["label"] for row in parts[0][1] if "label" in row])
    sets = []
    for source, part in parts:
        unknown = next((row for row in part if classes and row["label"] not in classes), None)
        if unknown is not None:
            raise DataError(f"{source}: class {unknown['label']!r} of {unknown['path']} has no training image")
        number = {name: k for k, name in enumerate(classes)}
        labels = [number[row["label"]] for row in part] if classes else None
        names = [row["path"] for row in part]
        sets.append(pictures(len(names), decoder(source.parent, names, decoding), labels, decoding, source.name))
    return with_test_images(sets[0], sets[1] if len(sets) > 1 else None, classes)


def decoder(folder: Path, names: list[str], decoding: Decoding) -> Callable[[int], Tensor]:
    return lambda i: read_image(folder / names[i], decoding.channels, decoding.size)


def label_names(labels: list[str]) -> tuple[str, ...]:
    """The different labels, whole numbers by value and others by name."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(set(labels), key=(lambda label: (int(label), label)) if numbers else None))


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Rows with ``path``, and with ``label`` in all or in none.

    Raises:
        DataError: the file cannot be read, or a row is wrong; its line is named.
    """
    with naming(path):
        text = path.read_text(encoding="utf-8-sig")
    raw: list[tuple[int, dict[str, Any]]] = []
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text))
        if not set(PATH_COLUMNS) & set(reader.fieldnames or ()):
            raise DataError(f"{path}: its first line names no column {', '.join(PATH_COLUMNS)}")
        raw = [(reader.line_num, row) for row in reader]
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}, line {number}: not a JSON object")
                raw.append((number, row))
    rows = []
    for number, row in raw:
        entry = {key: str(value) for key, value in row.items() if key and value not in (None, "")}
        name = next((entry[key] for key in PATH_COLUMNS if key in entry), None)
        if name is None:
            raise DataError(f"{path}, line {number}: names no image (in a column {', '.join(PATH_COLUMNS)})")
        label = next((entry[key] for key in LABEL_COLUMNS if key in entry), None)
        split = {"split": entry["split"]} if "split" in entry else {}
        rows.append({"path": name, **split} | ({} if label is None else {"label": label}))
        if ("label" in rows[-1]) != ("label" in rows[0]):
            raise DataError(f"{path}, line {number}: " + ("has a label, others have none" if label else "has no label"))
    if not rows:
        raise DataError(f"{path}: names no image")
    return rows


# Hugging Face


def huggingface(data: DataConfig, decoding: Decoding) -> Dataset:
    """A data set of the Hugging Face hub by OWNER/NAME; or parquet files, one or a folder (train*.parquet, test*.parquet)."""
    if data.root is None:
        raise ConfigError("data.root is not set: give --data hf://OWNER/NAME, a parquet file or a folder of them")
    splits = load_huggingface(data.root)
    if data.test_root is not None:
        splits["test"] = next(iter(load_huggingface(data.test_root).values()))
    name = next(name for name in ("train", *splits) if name in splits)  # a set with one split is cut into two
    train = splits[name]
    test = next((splits[other] for other in TEST_NAMES if other in splits and other != name), None)
    image_column, label_column = columns(train, data.root)
    names = train.features[label_column].names if hasattr(train.features.get(label_column), "names") else None
    if label_column and names is None:
        names = label_names([str(value) for value in train[label_column]])
    classes = tuple(names or ())
    sets = [as_image_set(part, image_column, label_column, classes, data.root, decoding) for part in (train, test) if part]
    return with_test_images(sets[0], sets[1] if len(sets) > 1 else None, classes)


def load_huggingface(root: str) -> dict[str, Any]:
    """Split -> table, images not decoded."""
    try:
        import datasets
    except ImportError:
        raise ConfigError("Hugging Face data sets need the package datasets: pip install 'hybvit[stream]'") from None
    path = Path(root)
    try:
        if path.exists():
            found = sorted(path.glob("**/*.parquet")) if path.is_dir() else [path]
            if not found:
                raise DataError(f"{path}: no .parquet file in it")
            return dict(datasets.load_dataset("parquet", data_files=parquet_splits(path, found)))
        return dict(datasets.load_dataset(root.removeprefix("hf://").removeprefix("datasets/")))
    except DataError:
        raise
    except Exception as error:  # the library raises whatever its back ends do
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{root}: not readable as a Hugging Face data set ({reason})") from None


def parquet_splits(root: Path, found: list[Path]) -> dict[str, list[str]]:
    """Split -> files, by what a file's name begins with or the folder that it lies in; all are one split where none says so."""
    files: dict[str, list[str]] = {}
    for file in found:
        words = [file.stem, *(part.name for part in file.parents if part != root and part.is_relative_to(root))]
        split = next((match[1] for word in words if (match := re.match(r"(train|test|validation|val)(?![a-z])", word))), "")
        files.setdefault(split, []).append(str(file))
    if "" in files and len(files) > 1:
        raise DataError(f"{files[''][0]}: neither its name nor its folder says train, test or val, as those of others do")
    return files if "" not in files else {"train": files[""]}


def columns(table: Any, root: str) -> tuple[str, str | None]:
    """The image column, and the label column if there is one."""
    import datasets

    images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    images += [name for name, kind in table.features.items() if isinstance(kind, dict) and "bytes" in kind]
    if not images:
        raise DataError(f"{root}: no column of images among {', '.join(table.features)}")
    labels = [name for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    labels += [name for name in LABEL_COLUMNS if name in table.features]
    return images[0], labels[0] if labels else None


def as_image_set(
    table: Any, image_column: str, label_column: str | None, classes: Sequence[str], root: str, decoding: Decoding
) -> ImageSet:
    import datasets

    raw = table.cast_column(image_column, datasets.Image(decode=False))
    labels = None
    if label_column:
        values = table[label_column]
        named = not hasattr(table.features[label_column], "names")
        number = {name: k for k, name in enumerate(classes)}
        try:
            labels = [number[str(value)] for value in values] if named else [int(value) for value in values]
        except KeyError as error:
            raise DataError(f"{root}: class {error} has no training image") from None
        if labels and not 0 <= min(labels) <= max(labels) < len(classes):
            raise DataError(f"{root}: labels from {min(labels)} to {max(labels)} for {len(classes)} classes")

    def decode(i: int) -> Tensor:
        entry = raw[i][image_column]
        name = f"{root}, image {i}" if entry["bytes"] is not None else entry["path"]
        file = None if entry["bytes"] is None else io.BytesIO(entry["bytes"])
        return read_image(name, decoding.channels, decoding.size, file)

    return pictures(len(raw), decode, labels, decoding, Path(root).name)


READERS: dict[str, Callable[[DataConfig, Decoding], Dataset]] = {
    "folder": folder,
    "manifest": manifest,
    "huggingface": huggingface,
}
