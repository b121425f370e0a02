"""Telling in-distribution (ID) images from out-of-distribution (OOD) ones by a score per image.

Convention: a score is higher for ID images. Shapes: id_scores [N], ood_scores [M]; scores are float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from .likelihood import log_density


def auroc(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Share of pairs in which the ID image has the higher score, a tie counting half; in 0..1, chance is 0.5.

    Raises (as all that take two sets of scores):
        ValueError: a set is empty or a score is not finite.
    """
    return float(roc_auc_score(*_labelled(id_scores, ood_scores)))


def auroc_interval(id_scores: Tensor, ood_scores: Tensor, z: float = 1.96) -> tuple[float, float]:
    """95 % normal interval of :func:`auroc`, cut to 0..1, with the variance of DeLong et al. (1988).

    It assumes nothing on the distributions; N and M are at least 2. Where the sets do not overlap the variance is estimated
    as 0, and so is the width: that is no proof of perfection.
    """
    area = auroc(id_scores, ood_scores)
    if min(len(id_scores), len(ood_scores)) < 2:
        raise ValueError("an interval needs at least two scores on either side")
    a, b = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    variance = _share_below(a, b).var(ddof=1) / len(a) + _share_below(b, a).var(ddof=1) / len(b)
    half = z * float(variance) ** 0.5
    return max(area - half, 0.0), min(area + half, 1.0)


def aupr(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Average precision with ID images as positives ("AUPR-in"), in 0..1; chance is N/(N + M)."""
    return float(average_precision_score(*_labelled(id_scores, ood_scores)))


def aupr_out(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Average precision with OOD images as positives, the lowest score first ("AUPR-out"), in 0..1; chance is M/(N + M)."""
    labels, scores = _labelled(id_scores, ood_scores)
    return float(average_precision_score(~labels, -scores))


def fpr_at_95_tpr(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Share of OOD images at or above the highest threshold that keeps at least 95 % of the ID images; in 0..1, best 0."""
    false_positives, true_positives, _ = roc_curve(*_labelled(id_scores, ood_scores), drop_intermediate=False)
    return float(false_positives[np.argmax(true_positives >= 0.95)])


def max_probability(logits: Tensor) -> Tensor:
    """logits [N, K] -> largest softmax probability [N] in 1/K..1 (Hendrycks & Gimpel 2017)."""
    return logits.cpu().double().softmax(dim=1).amax(dim=1)


def gradient_norm_score(logits_fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Minus the L2 norm of d logsumexp(logits(x))/dx of each image ("approximate mass", Grathwohl et al. 2020), [N], at most 0.

    The published code took the gradient of the first image of a batch for all of them; here each image has its own.

    Args:
        logits_fn: [N, C, H, W] -> [N, K], each row a function of its own image only (no batch statistics).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = logits_fn(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        (gradient,) = torch.autograd.grad(log_density(logits).sum(), x)
    return -gradient.flatten(1).cpu().double().norm(dim=1)


def knn_score(features: Tensor, train_features: Tensor, k: int = 50, chunk: int = 256) -> Tensor:
    """Minus the distance to the k-th nearest training feature, all divided by their L2 norm (Sun et al. 2022), [N] in -2..0.

    Args:
        features: float [N, D]; one that is in ``train_features`` counts itself as its nearest.
        train_features: float [M, D] on the same device.
        chunk: how many rows of ``features`` to compare at once; holds chunk * M numbers.

    Raises:
        ValueError: k is not in 1..M.
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k is {k}: it must be in 1..{len(train_features)}, the number of training features")
    dtype = torch.promote_types(features.dtype, torch.float32)
    train = F.normalize(train_features.to(dtype), dim=1)
    scores = []
    for rows in F.normalize(features.to(dtype), dim=1).split(chunk):
        nearest = (rows @ train.T).topk(k, dim=1).indices[:, -1]
        # The distance itself, not sqrt(2 - 2 cos), which loses half the digits where neighbours are close.
        scores.append(-(rows - train[nearest]).cpu().double().norm(dim=1))
    return torch.cat(scores)


def _scores(name: str, scores: Tensor) -> np.ndarray:
    scores = scores.detach().cpu().double()
    if len(scores) == 0:
        raise ValueError(f"{name} is empty: there are no scores to compare")
    wrong = (~scores.isfinite()).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"{name}: score {i} is {scores[i].item()} ({len(wrong)} of {len(scores)} are not finite)")
    return scores.numpy()


def _labelled(id_scores: Tensor, ood_scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(True for ID images, scores), as scikit-learn takes them."""
    a, b = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    return np.arange(len(a) + len(b)) < len(a), np.concatenate((a, b))


def _share_below(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of a, the share of b below it, a tie counting half ("placement")."""
    b = np.sort(b)
    return (np.searchsorted(b, a, side="left") + np.searchsorted(b, a, side="right")) / (2 * len(b))
