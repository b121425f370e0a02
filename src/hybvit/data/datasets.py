"""Open any data set with :func:`open_dataset`; named data sets are located, downloaded and verified here.

``catalog`` lists the facts about the named data sets and ``readers`` reads their files; ``own_images`` and ``shards`` read the
user's own images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..catalog import CATALOG, DEBIAN, DatasetInfo
from ..config import DataConfig
from ..data import own_images, shards
from ..errors import ConfigError, DataError
from ..storage import cache_folder
from .files import data_errors
from .image_set import BadFiles, Dataset, Decoding, ImageSet, reorder_classes, select_per_class
from .images import MODES, Originals, fit, with_channels
from .readers import (
    class_names,
    images_in_class_folders,
    is_as_distributed,
    lies_in_class_folders,
    lies_in_renamed_folder,
    parts_of,
    read,
)

INTERPOLATION_BATCH = 100  # test batch size for the interpolations of Tables 3 and 11


def open_dataset(
    data: DataConfig,
    image_shape: tuple[int, int, int],
    num_classes: int = 0,
    *,
    labeled: bool = False,
    trained_on: Tensor | None = None,
) -> Dataset:
    """Open a data set for a model.

    Args:
        image_shape: (C, H, W) of the images that the model takes; H = W.
        num_classes: number of classes of the model. Only shards without a classes.txt use it; with 0 they have no labels.
        labeled: whether the images must have labels.
        trained_on: what a model keeps of the images that it was trained on (``HybridModel.trained_on``), to evaluate it: none
            of them is a test image then.

    Raises:
        ConfigError: the data do not fit the model's channels or size, or required labels are missing.
        DataError: a file is missing or corrupt; the message names it.
    """
    channels, size, _ = image_shape
    if channels not in MODES:
        raise ConfigError(f"model.channels is {channels}: it must be 1 (grayscale) or 3 (color)")
    originals = Originals(data.bits)
    decoding = Decoding(channels, size, BadFiles(data.max_bad_files), int(data.memory_gib * 2**30), originals)
    if data.name in CATALOG:
        found = _named(data, decoding)
    elif data.name == "shards":
        if data.held_out:
            raise ConfigError(f"data.held_out is {data.held_out}: a stream of shards cannot be divided: give --data.held_out 0")
        found = shards.open_shards(data, decoding, num_classes)
    else:
        with data_errors(Path(data.root or ".")):  # whatever the files make a reader raise
            found = own_images.READERS[data.name](data, decoding, trained_on)
    _check(found, data.root or data.name, labeled)
    originals.warn(data.root or data.name, size)
    found = reorder_classes(found, data.classes)
    return _hold_out(found, data.held_out) if data.held_out else found


def _hold_out(data: Dataset, part: float) -> Dataset:
    """Hold out every n-th training image of each class, n = 1 / ``part``; at least one if the class has two or more."""
    every = round(1 / part)
    if not 0.9 < every * part < 1.1:
        print(
            f"warning: data.held_out is {part:g}: every {every}{'nd' if every == 2 else 'rd' if every == 3 else 'th'} image of "
            f"a class is held out, {1 / every:.0%} of them",
            file=sys.stderr,
        )
    chosen = select_per_class(data.train, lambda members: members[min(every, max(len(members), 2)) - 1 :: every])
    return replace(data, train=data.train.where(~chosen), held_out=data.train.where(chosen))


def _named(data: DataConfig, decoding: Decoding) -> Dataset:
    info = CATALOG[data.name]
    if info.channels != decoding.channels:
        raise ConfigError(
            f"model.channels is {decoding.channels}, but {data.name} has {info.channels}: set it to {info.channels}"
        )
    if info.size is not None and info.size > decoding.size and not data.resize:
        raise ConfigError(
            f"model.image_size is {decoding.size}, but {data.name} has {info.size} x {info.size} images: "
            f"set it to {info.size}, or --data.resize true"
        )
    if data.unlabelled and "unlabelled" not in info.splits:
        raise ConfigError(f"data.unlabelled is true, but {data.name} has no unlabeled images")
    if data.root is not None and not info.files:
        raise ConfigError(f"data.root is {data.root}, but {data.name} ships with scikit-learn: leave it out")
    if data.test_root is not None:
        raise ConfigError(f"data.test_root is {data.test_root}, but {data.name} has its own test images: leave it out")
    source = find(data.name, data.root) or download(data.name, data.root)
    train, test = (_read_split(data.name, split, source, decoding, data.resize) for split in ("train", "test"))
    unlabelled = _read_split(data.name, "unlabelled", source, decoding, data.resize) if data.unlabelled else None
    with data_errors(source):
        names = class_names(data.name, source)
    return Dataset(train, test, names, unlabelled)


def read_split(name: str, split: str, root: str | None, decoding: Decoding, resize: bool) -> ImageSet:
    """One split of a named data set, at the size and channels of ``decoding``.

    Raises:
        DataError: its files are missing or damaged, or do not hold the data set that they are named after.
    """
    return _read_split(name, split, find(name, root) or download(name, root), decoding, resize)


def _read_split(name: str, split: str, source: Path, decoding: Decoding, resize: bool) -> ImageSet:
    """:func:`read_split` of a data set that was found: to find one in class folders takes as long as to list its images."""
    info = CATALOG[name]
    images = read(name, source, split, decoding)
    _check_published(info, name, split, source, images, decoding.bad_files)
    if isinstance(images.pixels, Tensor):
        pixels = fit(with_channels(images.pixels, decoding.channels), decoding.size, resize)
        images = ImageSet(pixels, images.labels)
    return images


def out_of_distribution(name: str, root: str | None, test: ImageSet, decoding: Decoding) -> ImageSet:
    """The test images of another data set, resized to the size of ``decoding``.

    ``interpolation`` is not a data set: its images are the means of images at the same position in consecutive test batches
    (Tables 3 and 11).

    Raises:
        DataError: its files are missing or damaged, or ``test`` is too small to interpolate.
    """
    if name != "interpolation":
        return read_split(name, "test", root, decoding, resize=True)
    batch = min(INTERPOLATION_BATCH, len(test) // 2)
    if batch == 0:
        raise DataError("interpolation: at least two test images are needed")
    index = torch.arange(len(test) - batch)
    first, second = test.take(index)[0], test.take(index + batch)[0]
    return ImageSet(((first.int() + second.int() + 1) // 2).to(torch.uint8))


def find(name: str, root: str | None = None) -> Path | None:
    """The path of a data set's files: in ``root`` (a folder, or the archive itself) if given, else in the default places. It is
    a place itself where the set lies in class folders, or in a folder of another name.

    Returns None if they are not found, and an empty path for scikit-learn's digits, which have no file of their own.

    Raises:
        DataError: ``root`` does not exist.
    """
    info = CATALOG[name]
    if not info.files:
        return Path()
    places = places_of(name, root)
    if not places[0].exists() and root is not None:
        raise DataError(f"{root}: no such folder")
    candidates = [place / file for place in places for file in info.files]
    if root is not None and any(Path(file).name == places[0].name for file in info.files):
        candidates.append(places[0])
    found = next((path for path in candidates if path.is_file() or (path.is_dir() and any(path.iterdir()))), None)
    kinds = (lies_in_renamed_folder, lies_in_class_folders)
    return found or next((place for kind in kinds for place in places if kind(name, place)), None)


def places_of(name: str, root: str | None) -> list[Path]:
    """Where a named set is looked for: in ``root`` if given, else in the default places."""
    if root is not None:
        return [Path(root), Path(root) / name]
    return [cache_folder() / name, cache_folder(), DEBIAN / name.replace("_", "-")]


def another_number(name: str, root: str | None) -> str | None:
    """What class folders of a named set hold, in words, if they hold another number of images than it has."""
    info = CATALOG[name]
    for place in places_of(name, root):
        if found := images_in_class_folders(name, place):
            counts = " and ".join(f"{count:,} {split}" for split, count in found.items())
            published = " and ".join(f"{info.splits[split]:,}" for split in found)
            return f"{place}: {counts} images in the classes of {info.title}, which has {published}"
    return None


def download_hint(name: str) -> str:
    """One line that says where to get the files and where to put them."""
    info = CATALOG[name]
    return f"put {info.needs} into {cache_folder() / name} (or give --data DIR); from {info.source}"


def foreign_files(name: str, folder: Path) -> list[str]:
    """What is in a folder that no download would have left there: such a folder is not downloaded to."""
    sets = [CATALOG[name], *(info for info in CATALOG.values() if info.download)]
    own = {Path(file).parts[0] for info in sets for file in (*info.files, *info.md5)}
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in own and not entry.name.startswith("."))


def download(name: str, root: str | None) -> Path:
    """Download a data set through torchvision, which verifies its checksum -> the path of its files.

    Raises:
        DataError: it cannot be downloaded automatically, or the download failed.
    """
    info, folder = CATALOG[name], Path(root) if root else cache_folder() / name
    if not info.download:
        raise DataError(f"{name}: not found in {folder}, and hybvit cannot download it: {download_hint(name)}")
    if (foreign := foreign_files(name, folder)) and root:
        raise DataError(f"{folder}: holds {foreign[0]}, but not {name}: download it to an empty folder; {download_hint(name)}")
    import torchvision.datasets as tv
    from torchvision.datasets.utils import download_url

    downloads: dict[str, Callable[[], object]] = {
        "mnist": lambda: tv.MNIST(str(folder), download=True),
        "fashion_mnist": lambda: tv.FashionMNIST(str(folder), download=True),
        "cifar10": lambda: tv.CIFAR10(str(folder), download=True),
        "cifar100": lambda: tv.CIFAR100(str(folder), download=True),
        "svhn": lambda: [tv.SVHN(str(folder), split, download=True) for split in ("train", "test")],
        "stl10": lambda: tv.STL10(str(folder), download=True),
        "tiny_imagenet": lambda: download_url(info.source, str(folder), md5=info.md5["tiny-imagenet-200.zip"]),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        downloads[name]()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: not in {folder}, and the download failed ({reason}): {download_hint(name)}") from None
    found = find(name, str(folder))
    if found is None:
        raise DataError(f"{name}: the download left none of {', '.join(info.files)} in {folder}")
    return found


def _check_published(info: DatasetInfo, name: str, split: str, source: Path, images: ImageSet, bad: BadFiles) -> None:
    if is_as_distributed(name, source) and len(parts := parts_of(name, source, split)) in (1, 2):
        source = parts[-1]
    if not source.exists():  # CelebA without its list of splits, which may be a part of it
        return
    expected, got = info.splits[split], len(images)
    if not expected - bad.count <= got <= expected:
        hint = "; for a subset of it, use --data.name folder" if name == "imagenet" else ""
        raise DataError(f"{source}: {got:,} images where the {split} split of {info.title} has {expected:,}{hint}")
    if images.labels is None:
        return
    if len(images) and not 0 <= int(images.labels.min()) <= int(images.labels.max()) < info.num_classes:
        raise DataError(f"{source}: its labels are not in 0..{info.num_classes - 1}; download the data set again")
    if split not in info.balance or bad.count:
        return
    cure = "download the data set again" if is_as_distributed(name, source) else "for other images, use --data.name folder"
    balance = info.balance[split]
    published = [balance] * info.num_classes if isinstance(balance, int) else list(balance)
    counts = images.labels.bincount(minlength=info.num_classes).tolist()
    if counts != published:
        k = next((k for k, (a, b) in enumerate(zip(counts, published, strict=False)) if a != b), len(published))
        raise DataError(
            f"{source}: label {k} occurs {counts[k]:,} times in the {split} split, which is not its number in {info.title}; "
            f"{cure}"
        )


def _check(data: Dataset, where: str, labeled: bool) -> None:
    for split, images in (("training", data.train), ("test", data.test)):
        if len(images) == 0:
            cure = "name test images with --data.test_root" if split == "test" else "each class needs at least two, one to test"
            raise DataError(f"{where}: the {split} split has no images: {cure}")
    labels = data.train.labels
    if labels is None:
        if labeled and not isinstance(data.train.pixels, shards.Shards):
            raise ConfigError(f"{where}: its images have no labels: train on them with --objective genvit")
        return
    for name, count in zip(data.classes, labels.bincount(minlength=len(data.classes)).tolist(), strict=True):
        if count == 0:
            raise DataError(f"{where}: class {name!r} has no training image: each class needs at least two images")
