"""Data sets by name, each wholly in memory as uint8, with a fixed split.

digits          scikit-learn's 1,797 grey 8x8 digits. Test: of each class every fifth image in file order, from the first.
fashion_mnist   70,000 grey 28x28 images; the published split of 60,000 and 10,000.
folder          DIR/train/CLASS/* and DIR/test/CLASS/* (or val/); without these, DIR/CLASS/*, split like digits by file name.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import Config, override
from ..errors import ConfigError, DataError
from .images import MODES, fit, read_image, readable_suffixes


class ImageSet(NamedTuple):
    """pixels uint8 [N, C, H, W], labels int64 [N] in 0..K-1."""

    pixels: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]


def open_dataset(cfg: Config) -> Dataset:
    """Read the configured data set at the model's size and channels.

    Raises:
        ConfigError: the model's channels or size do not fit the data.
        DataError: a file is missing or corrupt; the message names it.
    """
    data = READERS[cfg.data.name](cfg)
    channels, native = data.train.pixels.shape[1:3]
    if channels != cfg.model.channels:
        raise ConfigError(f"model.channels is {cfg.model.channels}, but {cfg.data.name} has {channels}: set it to {channels}")
    if native > cfg.model.image_size:
        raise ConfigError(f"model.image_size is {cfg.model.image_size}, but {cfg.data.name} has {native} x {native} images")
    for split, images in (("training", data.train), ("test", data.test)):
        if len(images.labels) == 0:
            raise DataError(f"{cfg.data.root or cfg.data.name}: the {split} split holds no image")
    for name, count in zip(data.classes, data.train.labels.bincount(minlength=len(data.classes)).tolist(), strict=True):
        if count == 0:
            raise DataError(f"{cfg.data.root or cfg.data.name}: class {name!r} has no training image (each needs at least two)")
    train, test = (ImageSet(fit(part.pixels, cfg.model.image_size), part.labels) for part in (data.train, data.test))
    return Dataset(train, test, data.classes)


def located(cfg: Config, root: str) -> Config:
    """What ``--data DIR`` means: the named data set's own files if DIR holds them (or is to receive them), else a folder of
    images in class sub-folders."""
    images = Path(root).is_dir() and any(_image_files(entry) for entry in Path(root).iterdir() if entry.is_dir())
    name = "folder" if cfg.data.name in ("digits", "folder") or images else cfg.data.name
    return override(cfg, data={"root": root, "name": name})


def every_fifth(labels: Tensor) -> Tensor:
    """bool [N]: of each class its first, sixth, eleventh ... image. The split rule where none is published."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        held_out[(labels == label).nonzero().flatten()[::5]] = True
    return held_out


def split_every_fifth(images: ImageSet, classes: tuple[str, ...]) -> Dataset:
    held_out = every_fifth(images.labels)
    train, test = (ImageSet(images.pixels[part], images.labels[part]) for part in (~held_out, held_out))
    return Dataset(train, test, classes)


def digits(cfg: Config) -> Dataset:
    from sklearn.datasets import load_digits

    if cfg.data.root is not None:
        raise ConfigError(f"data.root is {cfg.data.root}, but the digits come with scikit-learn: leave it out")
    raw = load_digits()  # values 0..16
    pixels = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    return split_every_fifth(ImageSet(pixels, torch.from_numpy(raw.target).long()), tuple("0123456789"))


FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def fashion_mnist(cfg: Config) -> Dataset:
    """IDX files, gzipped or not, in ``data.root``, ``data.root``/FashionMNIST/raw or Debian's folder; else a download."""
    root = Path(cfg.data.root) if cfg.data.root else cache_folder()
    candidates = [root, root / "FashionMNIST" / "raw"] + ([] if cfg.data.root else [DEBIAN_FASHION_MNIST])
    folder = next((f for f in candidates if _idx_file(f, "train-images-idx3-ubyte")), None)
    if folder is None:
        if cfg.data.root and not root.is_dir():
            raise DataError(f"{root}: no such folder")
        folder = _download_fashion_mnist(root)
    parts = []
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        images = read_idx(_require(folder, f"{prefix}-images-idx3-ubyte"))
        labels = read_idx(_require(folder, f"{prefix}-labels-idx1-ubyte"))
        if images.shape != (count, 28, 28) or labels.shape != (count,):
            raise DataError(
                f"{folder}: {prefix} has shape {list(images.shape)}, labels {list(labels.shape)}: not Fashion-MNIST"
            )
        parts.append(ImageSet(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()))
    return Dataset(parts[0], parts[1], FASHION_MNIST_CLASSES)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/hybvit or ~/.cache/hybvit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybvit"


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes (LeCun's format), gzipped or not.

    Raises:
        DataError: the file is cut short, damaged, or not in this format.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise DataError(f"{path}: damaged file ({error})") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])
    if body.size != int(np.prod(shape)):
        raise DataError(f"{path}: {body.size:,} bytes of data where its header says {int(np.prod(shape)):,}: cut short")
    return body.reshape(shape).copy()


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _require(folder: Path, name: str) -> Path:
    path = _idx_file(folder, name)
    if path is None:
        raise DataError(f"{folder / name}: missing (nor is there {name}.gz)")
    return path


def _download_fashion_mnist(root: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"fashion_mnist: not in {root}, and the download failed ({reason}); "
            "install Debian's dataset-fashion-mnist or give --data DIR with the four IDX files"
        ) from None
    return root / "FashionMNIST" / "raw"


def folder(cfg: Config) -> Dataset:
    if cfg.data.root is None:
        raise ConfigError("data.root is not set: give --data DIR, a folder with one sub-folder of images per class")
    if cfg.model.channels not in MODES:
        raise ConfigError(f"model.channels is {cfg.model.channels}: images from files have 1 (grey) or 3 (colour)")
    root = Path(cfg.data.root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if (root / "train").is_dir() and held_out is not None:
        classes = _class_folders(root / "train")
        extra = set(_class_folders(held_out)) - set(classes)
        if extra:
            raise DataError(f"{held_out}: class folder {sorted(extra)[0]!r} has no counterpart in {root / 'train'}")
        return Dataset(_read_classes(root / "train", classes, cfg), _read_classes(held_out, classes, cfg), classes)
    classes = _class_folders(root)
    return split_every_fifth(_read_classes(root, classes, cfg), classes)


def _class_folders(root: Path) -> tuple[str, ...]:
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not classes:
        raise DataError(f"{root}: no class sub-folders; it should hold one folder of images per class")
    return classes


def _image_files(folder: Path) -> list[Path]:
    """All files below a folder whose suffix is that of an image format, by name."""
    return sorted(path for path in folder.glob("**/*") if path.suffix.lower() in readable_suffixes() and path.is_file())


def _read_classes(root: Path, classes: tuple[str, ...], cfg: Config) -> ImageSet:
    pixels, labels = [], []
    for label, name in enumerate(classes):
        for path in _image_files(root / name):
            pixels.append(read_image(path, cfg.model.channels, cfg.model.image_size))
            labels.append(label)
    if not pixels:
        raise DataError(f"{root}: no image files in its class folders")
    return ImageSet(torch.stack(pixels), torch.tensor(labels))


READERS: dict[str, Callable[[Config], Dataset]] = {"digits": digits, "fashion_mnist": fashion_mnist, "folder": folder}
