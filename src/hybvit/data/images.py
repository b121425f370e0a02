"""Image files: read any format, convert to a given size and number of channels, write grids."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as resampled
from torchvision.transforms.v2.functional import rgb_to_grayscale

from ..errors import ConfigError, DataError
from ..storage import atomic_write, make_folder

MODES = {1: "L", 3: "RGB"}
MAX_IMAGE_PIXELS = 64_000_000  # larger images are rejected before they are decoded


def fit(pixels: Tensor, size: int, resize: bool = False) -> Tensor:
    """Change the size of square images uint8 [N, C, H, H]: by padding with black, as the published code does for 28 -> 32, or
    with ``resize`` by bicubic resampling.

    Raises:
        ValueError: the images are larger than ``size``, and ``resize`` is false.
    """
    native = pixels.shape[-1]
    if native == size:
        return pixels
    if resize:
        return torch.cat([resampled(part, [size, size], InterpolationMode.BICUBIC) for part in pixels.split(1024)])
    if native > size:
        raise ValueError(f"{native} x {native} images do not fit into {size} x {size} without resizing")
    left, right = (size - native) // 2, size - native - (size - native) // 2
    return torch.nn.functional.pad(pixels, (left, right, left, right))


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Grayscale to color by repetition, color to grayscale by luminance (ITU-R 601); uint8 [N, C, H, W]."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    return rgb_to_grayscale(pixels)


def as_pixels(image: Image.Image, channels: int, size: int) -> Tensor:
    """Any PIL image -> uint8 [channels, size, size]: EXIF orientation applied, short side resized to ``size``, center crop."""
    if channels not in MODES:
        raise DataError(f"images can be read with 1 or 3 channels, not model.channels = {channels}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # PIL would clip 16-bit values at 255 instead of scaling them
        values = np.array(image.convert("F"))
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"values from {values.min():g} to {values.max():g}: convert it to 8 or 16 bits per channel")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError("32-bit float values have no standard range: convert it to 8 or 16 bits per channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = ImageOps.fit(image.convert(MODES[channels]), (size, size), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(size, size, channels).permute(2, 0, 1)


def read_image(path: str | os.PathLike[str], channels: int, size: int, file: BinaryIO | None = None) -> Tensor:
    """An image file of any format that Pillow reads -> uint8 [channels, size, size].

    Args:
        file: its content, if it is not a file on disk; ``path`` is then only used in messages.

    Raises:
        DataError: the file is missing, is not an image, is cut short, or is too large to be decoded safely.
    """
    try:
        with Image.open(path if file is None else file) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise DataError(f"{image.width} x {image.height} is more than {MAX_IMAGE_PIXELS:,} pixels: reduce its size")
            return as_pixels(image, channels, size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, not an image; name the files in it, as in {path}/*.png") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise DataError(f"{path}: not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: damaged image ({error})") from None


def readable_suffixes() -> set[str]:
    """Suffixes of the image formats that Pillow decodes without other programs."""
    excluded = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}  # documents, videos and formats without a decoder
    return {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in excluded}


def check_image_suffix(path: Path) -> None:
    """Raises ConfigError if the suffix is not an image format that can be written."""
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"{path}: {path.suffix or 'no suffix'} is not an image format; use .png")


def grid(pixels: Tensor, columns: int | None = None, scale: int = 1, gap: int = 2) -> Image.Image:
    """uint8 [N, C, H, W] -> one image with all of them in raster order, each enlarged ``scale`` times without smoothing."""
    n, c, h, w = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.full((c, rows * (h * scale + gap) + gap, columns * (w * scale + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)):
        top, left = gap + (i // columns) * (h * scale + gap), gap + (i % columns) * (w * scale + gap)
        sheet[:, top : top + h * scale, left : left + w * scale] = image
    array = sheet.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if c == 1 else array)


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image file atomically.

    Raises:
        ConfigError: the suffix is not an image format.
        DataError: the folder is not writable.
    """
    check_image_suffix(path)
    make_folder(path.parent)
    with atomic_write(path) as temporary:
        image.save(temporary, Image.registered_extensions()[path.suffix.lower()])
