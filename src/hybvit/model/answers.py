"""What a model takes and what it answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.images import as_pixels, read_image

Picture = Image.Image | NDArray[np.uint8] | str | os.PathLike[str]  # of any size: an image, [H, W] or [H, W, C], or a file
Images = Tensor | Picture | Sequence[Picture | Tensor]  # uint8 [N, C, H, W] of the network's size, or pictures
CHANNELS = (1, 3, 4)  # of a picture in numpy: gray, RGB, RGBA
Labels = Sequence[int | str] | Tensor | int | str  # of N images: one for each, or one for all, by number or name


class Prediction(NamedTuple):
    """The answers for N images, on the CPU.

    Attributes:
        labels: int64 [N], the most probable classes; -1 where the model abstains.
        probabilities: float [N, K], in 0..1; calibrated if the model is.
        score: float [N], the log density; higher = more in-distribution.
    """

    labels: Tensor
    probabilities: Tensor
    score: Tensor


def pixels_of(images: Images, image_shape: tuple[int, int, int]) -> Tensor:
    """What :meth:`HybridModel.predict` takes -> uint8 [N, C, H, W] of this size.

    Raises:
        ValueError: there is no image, or it has another shape or type.
        DataError: a file is missing, or is not an image.
    """
    if isinstance(images, np.ndarray) and images.shape[1:] == image_shape:
        images = torch.from_numpy(np.ascontiguousarray(images))  # as `sample(...).numpy()` has them
    if not isinstance(images, Tensor):
        several: Any = images if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
        images = torch.stack([picture_pixels(one, image_shape) for one in several]) if len(several) else torch.empty(0)
    if not images.numel():
        raise ValueError("images is empty: there is nothing to do")
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != image_shape:
        raise refused(images, image_shape)
    return images


def picture_pixels(picture: Any, image_shape: tuple[int, int, int]) -> Tensor:
    """One of several pictures -> uint8 [C, H, W] of this size."""
    channels, size, _ = image_shape
    if isinstance(picture, (str, os.PathLike)):
        return read_image(picture, channels, size)
    if isinstance(picture, np.ndarray) and is_picture(picture):
        picture = Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
    if isinstance(picture, Image.Image):
        return as_pixels(picture, channels, size)
    if not isinstance(picture, Tensor) or picture.dtype != torch.uint8 or tuple(picture.shape) != image_shape:
        raise refused(picture, image_shape)
    return picture


def is_picture(array: NDArray[Any]) -> bool:
    """Whether an array is one picture; [N, H, W] could be many, and is neither."""
    return array.dtype == np.uint8 and array.size > 0 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS))


def refused(given: Any, image_shape: tuple[int, int, int]) -> ValueError:
    is_array = isinstance(given, (Tensor, np.ndarray))
    found = f"{given.dtype} {list(given.shape)}" if is_array else f"of type {type(given).__name__}"
    return ValueError(
        f"images are {found}: this model takes uint8 [N, {', '.join(map(str, image_shape))}], or pictures of any size, one "
        "or a list of them: PIL images, paths, or uint8 arrays [H, W] or [H, W, 3]"
    )
