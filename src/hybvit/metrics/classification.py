"""Classification metrics. Shapes: logits [N, K], labels and predictions int64 [N]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def topk_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of images whose label is among the k largest logits, in 0..1; a k above K counts as K. An image with
    a NaN among its logits counts as wrong."""
    found = (logits.topk(min(k, logits.shape[1]), dim=1).indices == labels[:, None]).any(dim=1)
    return (found & ~logits.isnan().any(dim=1)).double().mean().item()


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """int64 [K, K]: entry (i, j) is the number of images of class i that were predicted as class j."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Share of each class's images that were predicted correctly, float64 [K] in 0..1; nan for a class without images.

    Args:
        confusion: int64 [K, K] of :func:`confusion_matrix`.
    """
    return confusion.diagonal().double() / confusion.sum(dim=1)


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood -log p(label) of each image, float64 [N] in nats, at least 0; on the CPU."""
    return F.cross_entropy(logits.cpu().double(), labels.cpu(), reduction="none")


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Brier score of each image: the sum over the classes of (p - one-hot)^2 (Brier 1950), float64 [N] in 0..2; on the CPU."""
    probabilities = logits.cpu().double().softmax(dim=1)
    return (probabilities - F.one_hot(labels.cpu(), logits.shape[1])).square().sum(dim=1)


def wilson_interval(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson interval of a share observed in n trials (Wilson 1927), in 0..1; all of it for n = 0."""
    if n == 0:
        return 0.0, 1.0
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # At 0 and n of n an end is the share itself, which rounding would miss, or leave 0..1.
    return max(min(center - half, share), 0.0), min(max(center + half, share), 1.0)


def mean_interval(values: Tensor, z: float = 1.96) -> tuple[float, float]:
    """95 % normal interval of the mean of independent values [N]: mean -+ z s/sqrt(N), not below 0 where no value is. Both ends
    are nan where N < 2."""
    if len(values) < 2:
        return float("nan"), float("nan")  # one value has no standard deviation
    values = values.cpu().double()
    half, mean = z * values.std().item() / len(values) ** 0.5, values.mean().item()
    return mean - half if values.min() < 0 else max(mean - half, 0.0), mean + half
