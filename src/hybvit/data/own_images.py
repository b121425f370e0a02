"""The user's own images: a folder or zip (a subfolder per class, or flat), a CSV or JSONL manifest, a Hugging Face data set.

Without a given split, a hash of its name makes one image in five a test image; ``data.test_root`` overrides this.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..config import DataConfig
from ..errors import DataError
from ..storage import read_bytes
from .cells import LABELS, PATHS, SPLIT, checked_classes, class_name, read_table, says_split
from .files import Files, crc32, is_hidden, size_of
from .fingerprint import ListedImage, listed
from .huggingface import huggingface
from .image_set import Dataset, Decoding, ImageSet, load_image_files, load_images
from .images import read_image, readable_suffixes
from .listing import Listing, existing_root, read_splits, warn_of_copies, warn_of_leak
from .splits import KNOWN, Split, by_split, evaluation_split, split_of, splits_of_one_set, train_and_test


def image_names(files: Files) -> list[str]:
    """All image files, except hidden ones: by the suffix of an image format, and with a suffix that is unknown, or none, by the
    first bytes."""
    suffixes, other = readable_suffixes(), SIDE_FILES - {""}

    def is_image(name: str) -> bool:
        if name[name.rfind(".") :].lower() in suffixes:  # nearly all
            return True
        suffix = os.path.splitext(name)[1].lower()
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
    others = Counter(os.path.splitext(name)[1].lower() for name in files.names() if name not in taken and not is_hidden(name))
    others = Counter({suffix: n for suffix, n in others.items() if suffix not in expected})
    if not others:
        return None
    listed = ", ".join(f"{suffix or 'no suffix'} ({n:,}){NEEDS.get(suffix, '')}" for suffix, n in sorted(others.items()))
    return f"{others.total():,} of {len(read) + others.total():,} files left out: {listed}"


# a folder


def folder(data: DataConfig, decoding: Decoding, trained_on: Tensor | None = None) -> Dataset:
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
    warn_of_table(files, classes)
    train = list_files(files, classes, decoding)
    if test is None:
        return read_splits(data, classes, train, None, trained_on)
    extra = sorted(set(class_folders(test)) - set(classes))
    if extra:
        raise DataError(f"{test.where}: class folder {extra[0]!r} has no counterpart in {files.where}")
    of_test = list_files(test, classes, decoding)
    paths = ([part.where / image.name for image in listed.images] for part, listed in ((files, train), (test, of_test)))
    if not warn_of_leak(*paths):
        warn_of_copies(train, of_test)
    return read_splits(data, classes, train, of_test, trained_on)


def warn_of_table(files: Files, classes: tuple[str, ...]) -> None:
    """Say that there is a table, where the folders tell no classes apart."""
    tables = [name for name in files.names() if "/" not in name and name.lower().endswith((".csv", ".jsonl"))]
    if len(classes) < 2 and tables:
        found = f"a single class folder, {classes[0]!r}," if classes else "no class folders"
        print(
            f"warning: {files.where}: {found} beside {tables[0]}: if that table names the classes, give --data "
            f"{files.where / tables[0]}",
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
    if not splits and splits_of_one_set(tops):
        raise DataError(
            f"{files.where}: {', '.join(tops[:4])} look like the splits of one set: name them train and test, each with a "
            "folder per class"
        )
    if not splits:
        warn_of_equal_folders(files, tops, names)
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


def warn_of_equal_folders(files: Files, tops: list[str], names: list[str]) -> None:
    """Say that the folders may be splits of another name, or folds, where all of them hold the same folders."""
    below: dict[str, set[str]] = {}
    for name in names:
        if name.count("/") > 1:
            below.setdefault(name.split("/")[0], set()).add(name.split("/")[1])
    first = next(iter(below.values()), set())
    if len(first) > 1 and len(below) == len(tops) > 1 and all(found == first for found in below.values()):
        print(
            f"warning: {files.where}: {', '.join(tops[:4])} are taken for classes, but hold the same folders "
            f"({', '.join(sorted(first)[:4])}): if they are splits or folds, put their images into train and test",
            file=sys.stderr,
        )


def below_split(files: Files, top: str) -> Files:
    """The files of a split; some archives hold them in a folder of the same name once more (seg_train/seg_train/CLASS)."""
    files = files.subfolder(top)
    while len(tops := files.folders()) == 1 and split_of(tops[0]) == split_of(top):
        files = files.subfolder(tops[0])
    return files


def class_folders(files: Files) -> tuple[str, ...]:
    """Names of the class subfolders; empty if the images are directly in the folder.

    Raises:
        DataError: images lie beside class folders, or some below a class folder are in a folder of test images.
    """
    folders, where, names = files.folders(), files.where, image_names(files)
    if below := split_below(names):
        raise DataError(
            f"{where}: {below[0]} lies below the class folder {below[0].split('/')[0]}, named like a split, beside {below[1]}: "
            "put the splits above the classes (train/CLASS and test/CLASS), or rename it if it is none"
        )
    loose = [name for name in names if "/" not in name]
    if loose and folders:
        raise DataError(
            f"{where / loose[0]}: not in a class folder ({folders[0]} ...): put either all images into class folders, or none"
        )
    if not loose and not folders:
        raise DataError(f"{where}: contains no class subfolders and no images{_because(files)}")
    return checked_classes(folders, where, "names of class folders")


def split_below(names: list[str]) -> tuple[str, str] | None:
    """A folder of test images below a class folder, and the folder of an image that is in no such folder; None if there is
    none: then all images of the classes are of one split."""
    judged, other = None, None
    for name in names:
        top, *inner = name.split("/")[:-1] or [""]
        found = next((k for k, part in enumerate(inner) if split_of(part) in ("test", "validation")), None)
        if found is not None:
            judged = judged or "/".join([top, *inner[: found + 1]])
        elif top:
            other = other or "/".join([top, *inner])
    return (judged, other) if judged and other else None


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

    def as_listed(name: str) -> ListedImage:
        return listed(name, files.size(name), lambda: files.checksum(name))

    return Listing(list(map(as_listed, names)), labels, load, lambda i: files.open(names[i]).read(), files.where)


def _because(files: Files) -> str:
    skipped = left_out(files, ())
    return f" ({skipped})" if skipped else ""


# a manifest


def manifest(data: DataConfig, decoding: Decoding, trained_on: Tensor | None = None) -> Dataset:
    """A CSV file with a header, or one JSON object per line: ``path`` (relative to the manifest), and optionally ``label`` and
    ``split``."""
    root = existing_root(data, "FILE.csv or FILE.jsonl")
    learned, judged = split_rows(root, read_manifest(root), to_judge=data.split == "none")
    parts = [(root, learned)] if judged is None else [(root, learned), (root, judged)]
    if data.test_root is not None:
        test_root = Path(data.test_root)
        parts = [(root, learned), (test_root, test_rows(test_root, read_manifest(test_root)))]
    classes = checked_classes((row["label"] for row in parts[0][1] if "label" in row), root)
    if len(parts) == 1:
        warn_of_split_folders(root, learned)
        return read_splits(data, classes, list_rows(root, learned, classes, decoding), None, trained_on)
    train, test = (list_rows(*part, classes, decoding) for part in parts)
    if not warn_of_leak(*([source.parent / row["path"] for row in rows] for source, rows in parts)):
        warn_of_copies(train, test)
    return read_splits(data, classes, train, test, trained_on)


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
        of_classes, stamps = labels and [labels[i] for i in index], Files(source.parent).stamps
        return load_images(len(names), decode, of_classes, decoding, source.name, lambda: stamps(names))

    def as_listed(row: dict[str, str], name: str) -> ListedImage:
        path = source.parent / row["path"]
        return listed(name, size_of(path), lambda: crc32(path), row.get("label", ""))

    def read(i: int) -> bytes:
        return read_bytes(source.parent / rows[i]["path"], limit=None)

    return Listing(list(map(as_listed, rows, names_of([row["path"] for row in rows]))), labels, load, read, source)


def names_of(paths: list[str]) -> list[str]:
    """Paths in a manifest as names that stay the same when the images move: without detours (./a//x.png is a/x.png), and
    absolute ones below the folder that they share."""
    names = [os.path.normpath(path) for path in paths]
    absolute = [os.path.dirname(name) for name in names if os.path.isabs(name)]
    shared = os.path.commonpath(absolute) if absolute else ""
    return [os.path.relpath(name, shared) if os.path.isabs(name) else name for name in names]


Rows = list[dict[str, str]]


def rows_by_split(path: Path, rows: Rows) -> Mapping[Split | None, Rows]:
    """The rows of each split; all are under None if no row has one.

    Raises:
        DataError: the cell of a row names no split, or it has none, unlike others.
    """
    found: dict[Split | None, Rows] = {}
    for row in rows:
        found.setdefault(split_of(row.get("split", "")), []).append(row)
    if None in found and any("split" in row for row in rows):
        other = found[None][0]
        raise DataError(f"{path}: the split of {other['path']} is {other.get('split')!r}: it must be {KNOWN}")
    return found


def split_rows(path: Path, rows: Rows, to_judge: bool = False) -> tuple[Rows, Rows | None]:
    """The training rows, and the test rows if there are any; all are training rows if none has a split.

    Args:
        to_judge: whether test rows alone are enough, which are then given as the first.
    """
    found = rows_by_split(path, rows)
    if None in found:
        return rows, None
    if "train" not in found:
        if to_judge and (alone := evaluation_split(found)):
            return found[alone], None
        raise DataError(f"{path}: no row has the split train")
    test = evaluation_split(found)
    return found["train"], found[test] if test else None


def test_rows(path: Path, rows: Rows) -> Rows:
    """The test rows of a manifest that is given for them: all, if none has a split."""
    found = rows_by_split(path, rows)
    if None in found:
        return rows
    if (test := evaluation_split(found)) is None:
        raise DataError(f"{path}: no row has the split test or val, but it is to name the test images")
    return found[test]


def warn_of_split_folders(path: Path, rows: Rows) -> None:
    """Say that the images lie in folders of splits, which nothing in the table mentions."""
    found = {split for row in rows for folder in row["path"].split("/")[:-1] if (split := split_of(folder))}
    if "train" in found and len(found) > 1:
        print(
            f"warning: {path}: its images lie in folders named like splits, but no column is named split: one in five is a "
            f"test image, wherever it lies; to divide them by their folders, add that column, with {KNOWN} in its cells",
            file=sys.stderr,
        )


def decoder(folder: Path, names: list[str], decoding: Decoding) -> Callable[[int], Tensor]:
    return lambda i: read_image(folder / names[i], decoding.channels, decoding.size, originals=decoding.originals)


def read_manifest(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest. Each has ``path``; either all or none have ``label``.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names its line.
    """
    table, rows = read_table(path), list[dict[str, str]]()
    seen: dict[str, tuple[str | None, int]] = {}  # file -> its class, and the line that says so
    listed: dict[tuple[str, str], int] = {}  # file and split -> line
    again, doubtful = list[str](), list[str]()
    for number, entry in table.rows:
        name = next((entry[key] for key in PATHS if key in entry), None)
        if name is None:
            raise DataError(f"{path}, line {number}: no image path (in a column {', '.join(PATHS[:-1])} or {PATHS[-1]})")
        if "://" in name:
            raise DataError(f"{path}, line {number}: {name[:80]} is an address: download the image, and name the file")
        label = next((class_name(entry[key]) for key in LABELS if key in entry), None)
        if "\\" in name and not (path.parent / name).exists():
            name = name.replace("\\", "/")  # written on Windows
        if rows and (label is not None) != ("label" in rows[0]):
            found = "has a label, but earlier lines have none" if label else "has no label, but earlier lines have one"
            raise DataError(
                f"{path}, line {number}: {found}: label all images, or none (an empty cell, None, NaN and NA are no label)"
            )
        split, place = entry.get(SPLIT, ""), os.path.abspath(path.parent / name)
        first, line = seen.setdefault(place, (label, number))
        if first != label:
            doubtful.append(f"line {number}: {name} has the class {label!r}, but {first!r} in line {line}")
        elif (line := listed.setdefault((place, split), number)) != number:
            again.append(f"line {number}: {name} is listed in line {line} too")
            continue
        rows.append({"path": name} | ({"split": split} if split else {}) | ({} if label is None else {"label": label}))
    if not rows:
        raise DataError(f"{path}: lists no images")
    warn_of_lines(path, doubtful, "one of them is wrong")
    warn_of_lines(path, again, "it counts once")
    warn_of_columns(path, table.others, rows)
    return rows


def warn_of_lines(path: Path, found: list[str], outcome: str) -> None:
    if found:
        others = f" (and {len(found) - 1:,} more such lines)" if len(found) > 1 else ""
        print(f"warning: {path}, {found[0]}{others}: {outcome}", file=sys.stderr)


def warn_of_columns(path: Path, others: list[str], rows: list[dict[str, str]]) -> None:
    """Say which columns a user may believe to be read."""
    for name in filter(says_split, [] if any("split" in row for row in rows) else others):
        print(
            f"warning: {path}: the column {name!r} is not read: to say which images are test images, name it split, with "
            f"{KNOWN} in its cells",
            file=sys.stderr,
        )
    if others and not any("label" in row for row in rows):
        print(
            f"warning: {path}: the images have no labels: no column is named {', '.join(LABELS[:-1])} or {LABELS[-1]} (others: "
            f"{', '.join(others[:8])})",
            file=sys.stderr,
        )


READERS: dict[str, Callable[[DataConfig, Decoding, Tensor | None], Dataset]] = {
    "folder": folder,
    "manifest": manifest,
    "huggingface": huggingface,
}
