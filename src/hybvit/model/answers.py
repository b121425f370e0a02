"""What a model takes and what it answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.images import Originals, as_pixels, read_image

if TYPE_CHECKING:
    from .hybrid import HybridModel

Picture = Image.Image | NDArray[np.uint8] | str | os.PathLike[str]  # of any size: an image, [H, W] or [H, W, C], or a file
Images = Tensor | Picture | Sequence[Picture | Tensor]  # uint8 [N, C, H, W] of the network's size, or pictures
COVERAGE = 0.95  # of the sets of a calibrated model, unless another is asked for
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


class Classified(NamedTuple):
    """All that a model says of one image.

    Attributes:
        label: number of the most probable class.
        probabilities: of all K classes.
        log_density: higher = more like the training images.
        abstains: whether it is too unsure for an answer at the risk that was asked for, or else ``RISK``; None without a
            calibration that can tell.
        held: numbers of the classes that hold the true one with this coverage; None without a calibration.
        coverage: of ``held``.
    """

    label: int
    probabilities: list[float]
    log_density: float
    abstains: bool | None
    held: list[int] | None
    coverage: float | None

    def record(self, classes: Sequence[str], top: int) -> dict[str, Any]:
        """The fields of `hybvit classify --json` and of /v1/classify, with so many of the classes (docs/command_line.md)."""
        first = sorted(range(len(classes)), key=self.probabilities.__getitem__, reverse=True)[:top]
        return {
            "label": classes[self.label],
            "probabilities": {classes[k]: self.probabilities[k] for k in first},
            "log_density": self.log_density,
            "abstains": self.abstains,
            "set": None if self.held is None else [classes[k] for k in self.held],
            "coverage": self.coverage,
        }


def classify(model: HybridModel, images: Images, risk: float | None = None, coverage: float | None = None) -> list[Classified]:
    """All that a model says of each image.

    Args:
        risk: to abstain above; None takes ``RISK`` for a model whose calibration can vouch for it.
        coverage: of the sets; None takes :data:`COVERAGE` for a calibrated model.

    Errors are those of :meth:`HybridModel.predict` and :meth:`HybridModel.prediction_set`.
    """
    pixels = model.as_pixels(images)
    if model.calibration is not None:
        risk = model.calibration.default_risk if risk is None else risk
        coverage = COVERAGE if coverage is None else coverage
    found = model.predict(pixels, risk)
    unsure: list[bool | None] = [None] * len(pixels) if risk is None else (found.labels < 0).tolist()
    held: list[list[int] | None] = [None] * len(pixels)
    if coverage is not None:
        held = [row.nonzero().flatten().tolist() for row in model.prediction_set(pixels, coverage)]
    labels = found.probabilities.argmax(dim=1)
    parts = (labels.tolist(), found.probabilities.tolist(), found.score.tolist(), unsure, held)
    return [Classified(*one, coverage) for one in zip(*parts, strict=True)]


def pixels_of(images: Images, image_shape: tuple[int, int, int], originals: Originals) -> Tensor:
    """What :meth:`HybridModel.predict` takes -> uint8 [N, C, H, W] of this size.

    Args:
        originals: of how many bits pictures are.

    Raises:
        ValueError: there is no image, or it has another shape or type.
        DataError: a file is missing, or is not an image.
    """
    if isinstance(images, np.ndarray) and images.shape[1:] == image_shape:
        images = torch.from_numpy(np.ascontiguousarray(images))  # as `sample(...).numpy()` has them
    if not isinstance(images, Tensor):
        several: Any = images if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
        each = [picture_pixels(one, image_shape, originals) for one in several]
        images = torch.stack(each) if each else torch.empty(0)
    if not images.numel():
        raise ValueError("images is empty: there is nothing to do")
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != image_shape:
        raise refused(images, image_shape)
    return images


def picture_pixels(picture: Any, image_shape: tuple[int, int, int], originals: Originals) -> Tensor:
    """One of several pictures -> uint8 [C, H, W] of this size."""
    channels, size, _ = image_shape
    if isinstance(picture, (str, os.PathLike)):
        return read_image(picture, channels, size, originals=originals)
    if isinstance(picture, np.ndarray) and is_picture(picture):
        picture = Image.fromarray(picture[..., 0] if picture.shape[2:] == (1,) else picture)
    if isinstance(picture, Image.Image):
        return as_pixels(picture, channels, size, originals)
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
