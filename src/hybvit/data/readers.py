"""One reader per named data set: (path of the files, split, decoding) -> the images at their native size and channels."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..catalog import CATALOG, DEBIAN, IDX_FILES, has_classes, plain
from ..errors import DataError
from .files import Files, as_text, check_md5, data_errors, field, read_idx, read_mat, read_members, read_npz, read_text
from .image_set import Decoding, ImageSet, every_fifth, load_image_files
from .images import size_of
from .own_images import below_split, image_names, list_files, without_wrapping
from .pickles import unpickle
from .splits import by_split, evaluation_split


def parts_of(name: str, source: Path, split: str) -> list[Path]:
    """The files that a split of a set is read from, those of labels last, beside or below what was found (also in an archive);
    not the image files."""
    beside, train = source.parent, split == "train"
    below: list[str] = []
    if name in ("mnist", "fashion_mnist"):
        pair = IDX_FILES[:2] if train else IDX_FILES[2:]
        packed = [beside / f"{file}.gz" for file in pair]
        return [path.with_suffix("") if not path.exists() and path.with_suffix("").exists() else path for path in packed]
    if name in ("svhn", "imagenet", "celeba"):
        other = {"svhn": f"{split}_32x32.mat", "imagenet": "train" if train else "val", "celeba": "list_eval_partition.txt"}
        return [beside / other[name]]
    if name in ("cifar10", "cifar100"):
        ten = name == "cifar10"
        batches = [split] if not ten else [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
        words = "batches.meta.txt" if ten else "fine_label_names.txt"
        binary = "-bin" in source.name or (source / words).is_file()
        meta = words if binary else "batches.meta" if ten else "meta"
        below = [meta, *(f"{batch}.bin" if binary else batch for batch in batches)]
    elif name == "stl10":
        below = ["unlabeled_X.bin"] if split == "unlabelled" else [f"{split}_X.bin", f"{split}_y.bin"]
    elif name == "tiny_imagenet":
        below = ["words.txt", "wnids.txt", "val/val_annotations.txt"]
    elif name == "imagenet32":
        zipped, npz = source.suffix == ".zip", source.name.endswith(("npz", "npz.zip"))
        source = source.with_name(source.name.replace("_val", "_train")) if zipped and train else source if zipped else beside
        below = [f"train_data_batch_{i}" for i in range(1, 11)] if train else ["val_data"]
        below = [f"{batch}.npz" if npz else batch for batch in below]
    return [source / file for file in below]


def missing_files(name: str, source: Path) -> list[Path]:
    """Which files of the training and test images are not there, although others are; archives are not looked into."""
    splits = ("train", "test") if is_as_distributed(name, source) else ()
    paths = [path for split in splits for path in parts_of(name, source, split)]
    files = dict.fromkeys(path.parent if path.parent.suffix == ".zip" else path for path in paths)
    return [file for file in files if not file.exists() and not (source.is_file() and file.is_relative_to(source))]


def digits(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """scikit-learn's 1,797 digits. There is no published split: every fifth image of each class, in file order and starting
    with the first, is a test image."""
    images = all_digits()
    held_out = every_fifth(images)
    return images.where(held_out if split == "test" else ~held_out)


@cache  # scikit-learn has them as text, which takes a tenth of a second to read
def all_digits() -> ImageSet:
    from sklearn.datasets import load_digits

    raw = load_digits()  # values 0..16
    pixels = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    return ImageSet(pixels, torch.from_numpy(raw.target).long())


def idx(name: str) -> Callable[[Path, str, Decoding], ImageSet]:
    def read(source: Path, split: str, decoding: Decoding) -> ImageSet:
        folder, published = source.parent, CATALOG[name]
        arrays, files = [], parts_of(name, source, split)
        for path in files:
            if not path.is_file():
                raise DataError(f"{path.with_suffix('')}: missing, and so is {path.name}")
            if not folder.is_relative_to(DEBIAN):  # Debian recompresses the same content, so its .gz has another checksum
                check_md5(path, published.md5.get(path.name))
            arrays.append(read_idx(path, limit=4 * published.splits[split] * 28 * 28))
        images, labels = arrays
        if images.ndim != 3 or images.shape[1:] != (published.size, published.size) or labels.shape != images.shape[:1]:
            raise DataError(
                f"{folder}: {split} images {list(images.shape)}, labels {list(labels.shape)}: not {published.title}"
            )
        check_count(name, split, len(images), files[0])
        return ImageSet(torch.from_numpy(images)[:, None], label_row(labels, len(images), files[1], name))

    return read


def cifar(name: str) -> Callable[[Path, str, Decoding], ImageSet]:
    """The version of pickles, or the binary one: a byte per label (of CIFAR-100 a coarse and a fine one), then the image."""
    ten = name == "cifar10"
    key, names = ("labels", "label_names") if ten else ("fine_labels", "fine_label_names")
    label_bytes = 1 if ten else 2

    def read(source: Path, split: str, decoding: Decoding) -> ImageSet:
        check_md5_of_archive(name, source)
        meta, *batches = parts_of(name, source, split)
        binary = meta.suffix == ".txt"
        members = read_members(source, [path.name for path in (meta, *batches)], limit_of(name, split, len(batches)))
        raw = members[meta.name]
        found = raw.split() if binary else field(unpickle(raw, meta), names, meta)
        if not isinstance(found, (list, tuple)) or not same_text(found, CATALOG[name].classes):
            raise DataError(f"{meta}: its class names differ from those of {CATALOG[name].title}")
        pixels, labels = [], []
        for batch, path in enumerate(batches):
            raw = members[path.name]
            if binary:
                rows = rows_of_bytes(raw, label_bytes + 3 * 32 * 32, path)
                data, row = rows[:, label_bytes:], rows[:, label_bytes - 1]
            else:
                content = unpickle(raw, path)
                data, row = field(content, "data", path), field(content, key, path)
            pixels.append(rows_of_planes(data, path))
            check_count(name, split, len(pixels[-1]), path, batch, len(batches))
            labels.append(label_row(row, len(pixels[-1]), path, name))
        return ImageSet(torch.cat(pixels), torch.cat(labels))

    return read


def same_text(found: Sequence[object], expected: Sequence[str]) -> bool:
    return len(found) == len(expected) and all(as_text(word) == name for word, name in zip(found, expected, strict=True))


def check_md5_of_archive(name: str, source: Path) -> None:
    if source.is_file():
        check_md5(source, CATALOG[name].md5.get(source.name))


def rows_of_bytes(raw: bytes, size: int, path: Path) -> np.ndarray:
    """uint8 [N, size]."""
    if len(raw) % size:
        raise DataError(f"{path}: {len(raw):,} bytes are not a whole number of images of {size:,} bytes: cut short")
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, size)


def rows_of_planes(data: object, path: Path, size: int = 32) -> Tensor:
    """Whole numbers 0..255 [N, 3 * size * size], a red, a green and a blue plane per row -> uint8 [N, 3, size, size]."""
    array = whole_numbers(data, "images", path)
    if array.ndim != 2 or array.shape[1] != 3 * size * size:
        raise DataError(f"{path}: its images are {array.dtype} {list(array.shape)}, not uint8 [N, {3 * size * size}]")
    if array.size and array.dtype != np.uint8 and not 0 <= array.min() <= array.max() <= 255:
        raise DataError(f"{path}: the values of its images are {array.min()} to {array.max()}, not 0 to 255")
    return torch.from_numpy(np.require(array, np.uint8, ["C", "W"])).reshape(-1, 3, size, size)


def label_row(values: object, n: int, path: Path, name: str, first: int = 0) -> Tensor:
    """The labels of n images, counted from ``first`` in the file -> int64 [n] in 0..K-1."""
    labels, last = whole_numbers(values, "labels", path), first + CATALOG[name].num_classes - 1
    if labels.shape != (n,):
        raise DataError(f"{path}: {list(labels.shape)} labels for {n} images")
    if n and not first <= labels.min() <= labels.max() <= last:
        raise DataError(f"{path}: labels from {labels.min()} to {labels.max()}: they must be in {first}..{last}")
    return torch.from_numpy(labels.astype(np.int64) - first)


def share(name: str, split: str, batch: int, batches: int) -> int:
    """How many images of a split a file holds."""
    total = CATALOG[name].splits[split]
    return total // batches + (total % batches if batch == batches - 1 else 0)


def limit_of(name: str, split: str, batches: int = 1) -> int:
    """The most bytes of a file of 32 x 32 images: ten a number, as a pickle of integers of 64 bits takes, and a MiB."""
    return 10 * share(name, split, batches - 1, batches) * (3 * 32 * 32 + 8) + (1 << 20)


def check_count(name: str, split: str, got: int, path: Path, batch: int = 0, batches: int = 1) -> None:
    """Raises DataError if a file does not hold its share of a split: batches are equal, and the last has the remainder too."""
    expected = share(name, split, batch, batches)
    if got != expected:
        what = "this file" if batches > 1 else f"the {split} split"
        raise DataError(f"{path}: {got:,} images where {what} of {CATALOG[name].title} has {expected:,}: download it again")


def whole_numbers(values: object, what: str, path: Path) -> np.ndarray:
    """An array, or lists in lists, of integers."""
    if not isinstance(values, (np.ndarray, list, tuple)):
        raise DataError(f"{path}: its {what} are a {type(values).__name__}, not an array or a list")
    if not isinstance(values, np.ndarray):
        check_leaves(values, what, path)  # numpy makes arrays of anything, some of them far larger than the lists
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        raise DataError(f"{path}: its {what} are lists of unequal lengths, not an array") from None
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: its {what} are {array.dtype} {list(array.shape)}, not whole numbers")
    return array


def check_leaves(values: Sequence[Any], what: str, path: Path) -> None:
    """Raises DataError if there is anything but numbers in a list, or in the lists or rows in it."""
    nested = all(isinstance(row, (list, tuple)) or (isinstance(row, np.ndarray) and row.ndim == 1) for row in values)
    for leaf in itertools.chain.from_iterable(values) if nested else values:
        if not isinstance(leaf, (int, float, np.number)):
            raise DataError(f"{path}: its {what} are lists with a {type(leaf).__name__} in them, not whole numbers")


def svhn(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """MATLAB files with X [32, 32, 3, N] and y [N, 1] in 1..10, where 10 is the digit 0."""
    (path,) = parts_of("svhn", source, split)
    check_md5(path, CATALOG["svhn"].md5.get(path.name))
    content = read_mat(path, ("X", "y"), limit_of("svhn", split))
    pixels, labels = np.asarray(field(content, "X", path)), np.asarray(field(content, "y", path)).reshape(-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: its images are {pixels.dtype} {list(pixels.shape)}, not uint8 [32, 32, 3, N]")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    check_count("svhn", split, len(images), path)
    return ImageSet(images, (label_row(labels, len(images), path, "svhn", 1) + 1) % 10)


def stl10(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """Raw bytes, image after image: three planes of 96 x 96 in column order; labels are bytes in 1..10."""
    check_md5_of_archive("stl10", source)
    images, *labels = parts_of("stl10", source, split)
    limit = 2 * 3 * 96 * 96 * CATALOG["stl10"].splits[split]
    members = read_members(source, [path.name for path in (images, *labels)], limit)
    rows = rows_of_bytes(members[images.name], 3 * 96 * 96, images)
    check_count("stl10", split, len(rows), images)
    pixels = torch.from_numpy(rows.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2).copy())
    if not labels:
        return ImageSet(pixels)
    row = np.frombuffer(members[labels[0].name], dtype=np.uint8)
    return ImageSet(pixels, label_row(row, len(pixels), labels[0], "stl10", 1))


def tiny_imagenet(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """tiny-imagenet-200/ as a folder or zip, labels in the order of the sorted WordNet ids. The test split is the published
    validation split, because the labels of the official test images are not published."""
    check_md5_of_archive("tiny_imagenet", source)
    files = Files(source)
    top = "tiny-imagenet-200/" if source.suffix == ".zip" else ""
    ids = _tiny_imagenet_ids(files, top)
    names = [name for name in files.names() if name.endswith(".JPEG")]
    if split == "unlabelled":
        return load_image_files(files, [name for name in names if name.startswith(f"{top}test/images/")], None, decoding)
    if split == "train":
        chosen = [name for name in names if name.startswith(f"{top}train/")]
        of_image = [name.removeprefix(f"{top}train/").split("/")[0] for name in chosen]
    else:
        rows = [line.split("\t") for line in files.text(f"{top}val/val_annotations.txt").splitlines() if line.strip()]
        if any(len(row) < 2 for row in rows):
            raise DataError(f"{source / top / 'val/val_annotations.txt'}: a line without a class")
        chosen, of_image = [f"{top}val/images/{row[0]}" for row in rows], [row[1] for row in rows]
    unknown = set(of_image) - set(ids)
    if unknown:
        raise DataError(f"{source}: class {sorted(unknown)[0]!r} is not in wnids.txt")
    return load_image_files(files, chosen, [ids[wnid] for wnid in of_image], decoding)


def _tiny_imagenet_ids(files: Files, top: str) -> dict[str, int]:
    return {wnid: k for k, wnid in enumerate(sorted(files.text(f"{top}wnids.txt").split()))}


def imagenet32(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """npz or pickled batches, as files or in the zip archives; labels are 1..1000 in the order of map_clsloc.txt."""
    pixels, labels, batches = [], [], parts_of("imagenet32", source, split)
    for batch, path in enumerate(batches):
        raw = read_members(path.parent, [path.name], limit_of("imagenet32", split, len(batches)))[path.name]
        numbers = share("imagenet32", split, batch, len(batches)) * 3 * 32 * 32
        content = read_npz(raw, path, ("data", "labels"), numbers) if path.suffix == ".npz" else unpickle(raw, path)
        pixels.append(rows_of_planes(field(content, "data", path), path))
        check_count("imagenet32", split, len(pixels[-1]), path, batch, len(batches))
        labels.append(label_row(field(content, "labels", path), len(pixels[-1]), path, "imagenet32", 1))
    return ImageSet(torch.cat(pixels), torch.cat(labels))


def imagenet(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """train/ and val/ with one folder per WordNet id; labels are in the order of the sorted ids."""
    ids = {wnid: k for k, wnid in enumerate(Files(source).folders())}
    (folder,) = parts_of("imagenet", source, split)
    if not folder.is_dir():
        raise DataError(f"{folder}: missing")
    files = Files(folder)
    names = [name for name in files.names() if name.endswith(".JPEG")]
    unsorted = next((name for name in names if "/" not in name), None)
    if unsorted is not None:
        raise DataError(f"{folder / unsorted}: not in a class folder; sort the images into one folder per WordNet id")
    unknown = sorted({name.split("/")[0] for name in names} - set(ids))
    if unknown:
        raise DataError(f"{folder / unknown[0]}: no class folder of this name in {source}")
    return load_image_files(files, names, [ids[name.split("/")[0]] for name in names], decoding)


def celeba(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """The aligned images as a folder or zip, with list_eval_partition.txt in the same folder. There are no classes.

    A part of the set is often passed on without that list: every tenth image is then a test image.
    """
    check_md5_of_archive("celeba", source)
    (partition,) = parts_of("celeba", source, split)
    whole = sum(CATALOG["celeba"].splits.values())
    if not partition.exists() and len(faces := sorted(image_names(Files(source)))) < whole:
        say_once(f"warning: {partition}: missing, so every tenth of {len(faces):,} images is a test image")
        return load_image_files(Files(source), tenth(faces, split), None, decoding)
    check_md5(partition, CATALOG["celeba"].md5[partition.name])
    code = {"train": "0", "validation": "1", "test": "2"}[split]
    rows = [line.split() for line in Files(source.parent).text(partition.name).splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise DataError(f"{partition}: a line does not consist of an image name and a split number")
    chosen = [row[0] for row in rows if row[1] == code]
    files = Files(source)
    paths = {name.rsplit("/", 1)[-1]: name for name in files.names()}
    missing = next((name for name in chosen if name not in paths), None)
    if missing is not None:
        raise DataError(f"{source / missing}: missing, although {partition.name} lists it")
    return load_image_files(files, [paths[name] for name in chosen], None, decoding)


def celeba_hq(source: Path, split: str, decoding: Decoding) -> ImageSet:
    """30,000 numbered images in a folder or zip. There is no published split: every tenth image is a test image."""
    files = Files(source)
    numbered = {name: "".join(filter(str.isdigit, Path(name).stem)) for name in image_names(files)}
    faces = [name for name, number in numbered.items() if number and "mask" not in name.replace("CelebAMask-HQ", "").lower()]
    faces.sort(key=lambda name: int(numbered[name]))
    total = sum(CATALOG["celeba_hq"].splits.values())
    if len(faces) != total:
        raise DataError(f"{source}: {len(faces):,} images, but {CATALOG['celeba_hq'].title} has {total:,}")
    return load_image_files(files, tenth(faces, split), None, decoding)


@cache
def say_once(line: str) -> None:
    print(line, file=sys.stderr)


def tenth(names: list[str], split: str) -> list[str]:
    """Every tenth as test images, the others for training."""
    return names[::10] if split == "test" else [name for i, name in enumerate(names) if i % 10]


READERS: dict[str, Callable[[Path, str, Decoding], ImageSet]] = {
    "digits": digits,
    "mnist": idx("mnist"),
    "fashion_mnist": idx("fashion_mnist"),
    "cifar10": cifar("cifar10"),
    "cifar100": cifar("cifar100"),
    "svhn": svhn,
    "stl10": stl10,
    "tiny_imagenet": tiny_imagenet,
    "imagenet32": imagenet32,
    "imagenet": imagenet,
    "celeba": celeba,
    "celeba_hq": celeba_hq,
}


def read(name: str, source: Path, split: str, decoding: Decoding) -> ImageSet:
    """A split of a named set at its native size and channels, from its own files or from class folders.

    Raises:
        DataError: its files are missing or damaged; whatever they make a reader raise becomes one.
    """
    if is_as_distributed(name, source):
        with data_errors(source):
            return READERS[name](source, split, decoding)
    info = CATALOG[name]
    part = class_folders(name, source).get(split)
    if part is None or info.size is None:
        raise DataError(f"{source}: its class folders hold no {split} images; give {info.needs}")
    published = [plain(label) for label in info.classes]
    folders = sorted(part.folders(), key=lambda folder: published.index(plain(folder)))
    native = decoding._replace(channels=info.channels, size=info.size, memory=sys.maxsize)  # an array, as in the other forms
    listed = list_files(part, tuple(folders), native)
    return listed.load(range(len(listed.images)))


def is_as_distributed(name: str, source: Path) -> bool:
    """Whether ``source`` is what :data:`READERS` read; another place holds class folders."""
    files = CATALOG[name].files
    return not files or source.name in {Path(file).name for file in files} or lies_in_renamed_folder(name, source)


def lies_in_renamed_folder(name: str, folder: Path) -> bool:
    """Whether a folder of any name holds the files that are published in one, such as data_batch_1: half of them or more."""
    paths = {path for split in ("train", "test") for path in parts_of(name, folder, split) if path.is_relative_to(folder)}
    return bool(paths) and 2 * sum(path.is_file() for path in paths) >= len(paths)


def class_folders(name: str, source: Path) -> dict[str, Files]:
    """Split -> class folders, if ``source`` is a folder or a zip archive that holds train and test images of a named set as
    files, in one folder per published class name; else empty."""
    info = CATALOG[name]
    if not info.classes or not (source.is_dir() or source.suffix.lower() == ".zip"):
        return {}
    files = without_wrapping(Files(source))
    found = by_split(files.folders())
    of_split = {"train": found.get("train", []), "test": found.get(evaluation_split(found) or "test", [])}
    parts = {split: below_split(files, tops[0]) for split, tops in of_split.items() if len(tops) == 1}
    complete = len(parts) == 2 and all(has_classes(info, part.folders()) for part in parts.values())
    return parts if complete else {}


def images_in_class_folders(name: str, source: Path) -> dict[str, int]:
    """Split -> number of images, if ``source`` has class folders of a named set and images of its size; else empty."""
    parts = class_folders(name, source)
    listed = {split: image_names(part) for split, part in parts.items()}
    fitting = (None, (CATALOG[name].size,) * 2)
    if not all(found and size_of(parts[split], found[0]) in fitting for split, found in listed.items()):
        return {}
    return {split: len(found) for split, found in listed.items()}


def lies_in_class_folders(name: str, source: Path) -> bool:
    """Whether class folders hold as many images as the named set, of its size. Fewer or larger ones are the user's own."""
    found = images_in_class_folders(name, source)
    return bool(found) and all(count == CATALOG[name].splits[split] for split, count in found.items())


def class_names(name: str, source: Path) -> tuple[str, ...]:
    """The class names in label order: from the catalog if it lists them, else from the files."""
    info = CATALOG[name]
    if info.classes or not info.num_classes:
        return info.classes
    if name == "tiny_imagenet":
        files, top = Files(source), "tiny-imagenet-200/" if source.suffix == ".zip" else ""
        words = dict(line.split("\t", 1) for line in files.text(f"{top}words.txt").splitlines() if "\t" in line)
        return tuple(readable_name(wnid, words) for wnid in _tiny_imagenet_ids(files, top))
    if name == "imagenet":
        mapping = source.parent / "LOC_synset_mapping.txt"
        lines = read_lines(mapping) if mapping.is_file() else []
        words = dict(line.split(" ", 1) for line in lines if " " in line)
        return tuple(readable_name(wnid, words) for wnid in Files(source).folders())
    mapping = source.parent / "map_clsloc.txt"  # "n02119789 1 kit_fox"
    if mapping.is_file():
        with data_errors(mapping):
            rows = [line.split() for line in read_lines(mapping) if line.strip()]
            if sorted(int(row[1]) for row in rows) != list(range(1, 1001)):
                raise DataError(f"{mapping}: does not number the classes from 1 to 1000")
            return tuple(f"{row[2]} ({row[0]})" for row in sorted(rows, key=lambda row: int(row[1])))
    return tuple(str(k) for k in range(1, 1001))


def read_lines(path: Path) -> list[str]:
    return read_text(path).splitlines()


def readable_name(wnid: str, words: dict[str, str]) -> str:
    """The first synonym followed by the WordNet id, because two classes may share a word (crane, maillot)."""
    return f"{words[wnid].split(',')[0].strip()} ({wnid})" if wnid in words else wnid
