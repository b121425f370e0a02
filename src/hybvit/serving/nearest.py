"""The most similar of some images that the model drew itself: a model does not bring its training images along."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.image_set import to_x
from ..model import HybridModel
from .drawing import SAMPLER

DRAWN, STEPS, SHOWN = 64, 20, 3


class Drawings(NamedTuple):
    """Images with their labels and unit features.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N], as the model classifies them.
        features: float [N, D], the input of the label read-out at length 1.
    """

    pixels: Tensor
    labels: Tensor
    features: Tensor

    @classmethod
    def of(cls, model: HybridModel) -> Drawings:
        """The first images of seed 0."""
        pixels = model.draw(range(DRAWN), SAMPLER, min(STEPS, model.diffusion.T), seed=0)
        return cls(pixels, model.predict(pixels).labels, unit_features(model, pixels))

    def nearest(self, features: Tensor) -> list[tuple[int, float]]:
        """The most similar images to one with these unit features [1, D]: number and cosine, in descending order."""
        cosines, numbers = (self.features @ features[0]).topk(SHOWN)
        return list(zip(numbers.tolist(), cosines.tolist(), strict=True))


@torch.no_grad()
def unit_features(model: HybridModel, pixels: Tensor) -> Tensor:
    return torch.nn.functional.normalize(model.features(to_x(pixels.to(model.device))).float()).cpu()
