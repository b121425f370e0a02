"""An independent classifier to judge samples: a support vector machine on raw pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST_PRODUCTS = 2e10  # of pixels, over all pairs of images that are compared: about half a minute of one core


def affordable(trained: int, judged: int, pixels: int) -> bool:
    """Whether a fit on ``trained`` images takes at most about half a minute, with predictions for ``judged`` others of this
    many values each."""
    return trained * (trained + judged) * pixels <= MOST_PRODUCTS


class PixelSVM:
    """scikit-learn's SVC (radial kernel, default settings), fitted to uint8 pixels [N, C, H, W] and labels int64 [N]."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        from sklearn.svm import SVC

        self.svm = SVC().fit(self._features(pixels), labels.numpy())

    def predict(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [N, C, H, W] -> the predicted classes, int64 [N]."""
        return torch.from_numpy(self.svm.predict(self._features(pixels)))

    @staticmethod
    def _features(pixels: Tensor) -> np.ndarray:
        return pixels.flatten(1).numpy() / 255.0


def class_shares(labels: Tensor, num_classes: int) -> Tensor:
    """Share of each class among labels int64 [N] -> float64 [K], which sums to 1."""
    return torch.bincount(labels, minlength=num_classes).double() / len(labels)
