"""What a model takes and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor

Images = Tensor | Image.Image | Sequence[Image.Image]  # uint8 [N, C, H, W] of the network's size, or pictures of any size
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
