"""The 15 + 4 common corruptions of images at five severities (Hendrycks & Dietterich, ICLR 2019), made when they are asked for.

The constants are those of the published generator of CIFAR-10-C, Tiny-ImageNet-C and ImageNet-C, by the size of the image. They
are in pixels for blurs, so that one severity is harder on smaller images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigError, DataError
from ..method.seeds import derive_seed
from . import distortions as formulas
from .files import Files, data_errors
from .images import formats
from .own_images import image_names

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8  # pixels a side
SCALES = ((48, "CIFAR-10-C"), (96, "Tiny-ImageNet-C"))  # the largest side, and whose constants; above, ImageNet-C
LARGEST_SCALE = "ImageNet-C"

Constants = Sequence[Any]  # of each severity: a number, or a tuple of the formula's arguments


class Corruption(NamedTuple):
    """A formula and its arguments at each severity, for small, medium and large images (:data:`SCALES`)."""

    formula: Callable[..., np.ndarray]
    small: Constants
    medium: Constants
    large: Constants


COMMON: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        formulas.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1), (0.04, 0.08, 0.12, 0.15, 0.18), (0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot_noise": Corruption(formulas.shot_noise, (500, 250, 100, 75, 50), (250, 100, 50, 30, 15), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(
        formulas.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.01, 0.02, 0.05, 0.08, 0.14), (0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    "defocus_blur": Corruption(
        formulas.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Corruption(
        formulas.glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": Corruption(
        formulas.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Corruption(
        formulas.zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": Corruption(
        formulas.snow,
        (
            ((0.1, 0.2, 1, 0.6), 8, 3, 0.95),
            ((0.1, 0.2, 1, 0.5), 10, 4, 0.9),
            ((0.15, 0.3, 1.75, 0.55), 10, 4, 0.9),
            ((0.25, 0.3, 2.25, 0.6), 12, 6, 0.85),
            ((0.3, 0.3, 1.25, 0.65), 14, 12, 0.8),
        ),
        (
            ((0.1, 0.2, 1, 0.6), 8, 3, 0.8),
            ((0.1, 0.2, 1, 0.5), 10, 4, 0.8),
            ((0.15, 0.3, 1.75, 0.55), 10, 4, 0.7),
            ((0.25, 0.3, 2.25, 0.6), 12, 6, 0.65),
            ((0.3, 0.3, 1.25, 0.65), 14, 12, 0.6),
        ),
        (
            ((0.1, 0.3, 3, 0.5), 10, 4, 0.8),
            ((0.2, 0.3, 2, 0.5), 12, 4, 0.7),
            ((0.55, 0.3, 4, 0.9), 12, 8, 0.7),
            ((0.55, 0.3, 4.5, 0.85), 12, 8, 0.65),
            ((0.55, 0.3, 2.5, 0.85), 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(  # the last number is the scale of the photographs
        formulas.frost,
        ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    ),
    "fog": Corruption(
        formulas.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(
        formulas.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.2, 0.3, 0.4, 0.5)
    ),
    "contrast": Corruption(
        formulas.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), (0.4, 0.3, 0.2, 0.1, 0.05)
    ),
    "elastic_transform": Corruption(
        formulas.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        tuple(  # 244, though these images have 224 pixels a side
            tuple(244 / 224 * value for value in values)
            for values in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    ),
    "pixelate": Corruption(
        formulas.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)
    ),
    "jpeg_compression": Corruption(formulas.jpeg_compression, (80, 65, 58, 50, 40), (65, 58, 50, 40, 25), (25, 18, 15, 10, 7)),
}
EXTRA: dict[str, Corruption] = {
    "speckle_noise": Corruption(
        formulas.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.25, 0.3, 0.35), (0.15, 0.2, 0.35, 0.45, 0.6)
    ),
    "gaussian_blur": Corruption(formulas.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (0.5, 0.75, 1, 1.25, 1.5), (1, 2, 3, 4, 6)),
    "spatter": Corruption(
        formulas.spatter,
        (
            ((0.62, 0.1, 0.7, 0.7), 0.5, "water"),
            ((0.65, 0.1, 0.8, 0.7), 0.5, "water"),
            ((0.65, 0.3, 1, 0.69), 0.5, "water"),
            ((0.65, 0.1, 0.7, 0.69), 0.6, "mud"),
            ((0.65, 0.1, 0.5, 0.68), 0.6, "mud"),
        ),
        (
            ((0.62, 0.1, 0.7, 0.7), 0.6, "water"),
            ((0.65, 0.1, 0.8, 0.7), 0.6, "water"),
            ((0.65, 0.3, 1, 0.69), 0.6, "water"),
            ((0.65, 0.1, 0.7, 0.68), 0.6, "mud"),
            ((0.65, 0.1, 0.5, 0.67), 0.6, "mud"),
        ),
        (
            ((0.65, 0.3, 4, 0.69), 0.6, "water"),
            ((0.65, 0.3, 3, 0.68), 0.6, "water"),
            ((0.65, 0.3, 2, 0.68), 0.5, "water"),
            ((0.65, 0.3, 1, 0.65), 1.5, "mud"),
            ((0.67, 0.4, 1, 0.65), 1.5, "mud"),
        ),
    ),
    "saturate": Corruption(
        formulas.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
}
CORRUPTIONS = COMMON | EXTRA
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "spatter"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}
NUMBERS = {name: number for number, name in enumerate(CORRUPTIONS)}  # of the random streams: never renumber


def check_corruption(name: str) -> None:
    """Raises ConfigError if there is no corruption of this name."""
    if name not in CORRUPTIONS:
        raise ConfigError(f"corruption {name!r} is unknown: choose from {', '.join(CORRUPTIONS)}")


def scale_of(size: int) -> str:
    """Whose constants images of this many pixels a side get."""
    return next((name for largest, name in SCALES if size <= largest), LARGEST_SCALE)


def constants(name: str, severity: int, size: int) -> tuple[Any, ...]:
    """The arguments of a corruption's formula."""
    found = CORRUPTIONS[name]
    rows = {SCALES[0][1]: found.small, SCALES[1][1]: found.medium, LARGEST_SCALE: found.large}
    values = rows[scale_of(size)][severity - 1]
    return values if isinstance(values, tuple) else (values,)


def applicable(channels: int, with_frost: bool) -> tuple[str, ...]:
    """The corruptions that change images of so many channels: frost needs photographs, and a gray image has no saturation."""
    left_out = ({"saturate"} if channels == 1 else set()) | (set() if with_frost else {"frost"})
    return tuple(name for name in CORRUPTIONS if name not in left_out)


def corrupt(
    pixels: Tensor,
    name: str,
    severity: int,
    seed: int = 0,
    *,
    index: Tensor | None = None,
    photos: Sequence[np.ndarray] = (),
) -> Tensor:
    """Corrupt images (Hendrycks & Dietterich 2019) -> uint8 of the same shape.

    An image's random numbers depend on (seed, its index, name, severity) alone, and so not on the batch that it is in.

    Args:
        pixels: uint8 [N, C, H, W] with C = 1 or 3 and H = W of at least 8.
        name: one of :data:`CORRUPTIONS`, whose first 15 are the common ones and whose last four are extra.
        severity: 1 to 5.
        seed: of the random numbers.
        index: int64 [N], the number of each image; 0..N - 1 by default.
        photos: for frost alone, what :func:`frost_photos` reads.

    Raises:
        ConfigError: an argument is not one of these.
    """
    check_corruption(name)
    if severity not in SEVERITIES:
        raise ConfigError(f"severity {severity}: it must be 1, 2, 3, 4 or 5")
    n, channels, size, width = pixels.shape
    if pixels.dtype != torch.uint8 or channels not in (1, 3) or size != width or size < SMALLEST:
        raise ConfigError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}: they must be uint8 [N, C, H, W], C 1 or 3, H = W >= {SMALLEST}"
        )
    arguments = constants(name, severity, size)
    if name == "frost":
        check_photos(photos, size, arguments[-1])
        arguments = (*arguments, tuple(photos))
    numbers = range(n) if index is None else index.tolist()
    corrupted = torch.empty_like(pixels)
    for i, number in enumerate(numbers):
        rng = np.random.default_rng((derive_seed(seed, "corruptions", number), NUMBERS[name], severity))
        image = corrupted_image(pixels[i].permute(1, 2, 0).numpy(), name, arguments, rng)
        corrupted[i] = torch.tensor(image).permute(2, 0, 1)
    return corrupted


def corrupted_image(image: np.ndarray, name: str, arguments: Sequence[Any], rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, C] -> the same; values are cut to integers, not rounded, as in the published images."""
    found = CORRUPTIONS[name].formula(image / 255.0, rng, *arguments)
    return found if found.dtype == np.uint8 else (found.clip(0, 1) * 255).astype(np.uint8)


def frost_photos(folder: str | Path) -> tuple[np.ndarray, ...]:
    """The photographs of frost of a folder or archive, by name: uint8 [H, W, 3] each.

    The published images are made with the first five of the six that come with their generator, which hybvit may not pass on.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    files = Files(Path(folder))
    found = []
    for name in image_names(files):
        with data_errors(Path(folder) / name), files.open(name) as file, Image.open(file, formats=formats()) as image:
            found.append(np.asarray(image.convert("RGB")))
    if not found:
        raise DataError(f"{folder}: no photographs of frost in it")
    return tuple(found)


def check_frost(photos: Sequence[np.ndarray], size: int) -> None:
    """Raises ConfigError if a photograph is too small for the frost of some severity on images of this size."""
    for severity in SEVERITIES:
        check_photos(photos, size, constants("frost", severity, size)[-1])


def check_photos(photos: Sequence[np.ndarray], size: int, scale: float) -> None:
    """Raises ConfigError if there is no photograph of frost, or one is not larger than the image."""
    if not photos:
        raise ConfigError("frost needs photographs of frost, which hybvit may not pass on: give some (frost_photos(FOLDER))")
    for photo in photos:
        if min(round(side * scale) for side in photo.shape[:2]) <= size:
            height, width = photo.shape[:2]
            raise ConfigError(
                f"a photograph of frost has {height} x {width} pixels: it needs more than {size / scale:.0f} a side"
            )
