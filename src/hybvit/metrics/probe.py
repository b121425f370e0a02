"""What is in the features of a network, by two simple classifiers on top of them, both of scikit-learn.

Shapes: features float [n, D] of images with labels int64 [n], and others [m, D] whose classes are predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBORS = 20  # as in DINO (Caron et al. 2021)
ITERATIONS = 1000


def linear_probe(features: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Predictions int64 [m] of a logistic regression on standardized features, with scikit-learn's default penalty.

    Raises:
        ValueError: the labels are all the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS)).fit(features.numpy(), labels.numpy())
    return torch.from_numpy(fitted.predict(others.numpy()))


def nearest_neighbors(features: Tensor, labels: Tensor, others: Tensor, k: int = NEIGHBORS) -> Tensor:
    """Predictions int64 [m] by the majority of the k nearest neighbors in cosine distance, or of all where there are fewer."""
    from sklearn.neighbors import KNeighborsClassifier

    fitted = KNeighborsClassifier(min(k, len(features)), metric="cosine").fit(features.numpy(), labels.numpy())
    return torch.from_numpy(fitted.predict(others.numpy()))
