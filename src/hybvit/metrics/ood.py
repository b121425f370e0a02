"""Out-of-distribution (OOD) detection: scores that separate in-distribution (ID) images from OOD ones, and how well they do.

Convention: a score is higher for ID images. Shapes: id_scores [N], ood_scores [M]. Scores are computed in float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import SHARE, bootstrap_interval, interval_around
from .likelihood import log_density

EXACT = "donot_use_mm_for_euclid_dist"  # the quick way of torch.cdist loses half the digits of small distances


def auroc(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Area under the ROC curve: the share of pairs in which the ID image has the higher score, in 0..1; chance is 0.5.

    A tie counts half.

    Raises (like every function of two sets of scores):
        ValueError: a set is empty or a score is not finite.
    """
    from sklearn.metrics import roc_auc_score  # here and below: it takes two seconds to import

    return float(roc_auc_score(*_labels_and_scores(id_scores, ood_scores)))


def auroc_interval(id_scores: Tensor, ood_scores: Tensor, z: float = 1.96) -> tuple[float, float]:
    """95 % normal interval of :func:`auroc`, clipped to 0..1, with the variance of DeLong et al. (1988).

    It assumes nothing about the distributions; N and M are at least 2. Where the sets do not overlap the estimated variance
    is 0, and so is the width of the interval: that does not prove perfect separation.
    """
    area = auroc(id_scores, ood_scores)
    if min(len(id_scores), len(ood_scores)) < 2:
        raise ValueError("an interval needs at least two scores on either side")
    a, b = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    variance = _share_below(a, b).var(ddof=1) / len(a) + _share_below(b, a).var(ddof=1) / len(b)
    half = z * float(variance) ** 0.5
    return max(area - half, 0.0), min(area + half, 1.0)


def clustered_auroc_interval(
    id_scores: Tensor, ood_scores: Tensor, id_clusters: Tensor, ood_clusters: Tensor, seed: int, repeats: int = 1000
) -> tuple[float, float]:
    """95 % bootstrap interval of :func:`auroc` where OOD images are made of ID images.

    DeLong's variance takes all images as independent. Here whole clusters are drawn with replacement, with all their ID and OOD
    images, so that whatever depends on each other stays together.

    Args:
        id_clusters: int64 [N], the cluster of each ID image, from 0.
        ood_clusters: int64 [M]; an image's sources are all in its own cluster.
        seed: of the resampling.

    Raises:
        ValueError: the images of a set are all in one cluster, a set is empty or a score is not finite.
    """
    a, b = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    n = int(max(id_clusters.max(), ood_clusters.max())) + 1
    sizes = [np.bincount(clusters.numpy(), minlength=n) for clusters in (id_clusters, ood_clusters)]
    if min(np.count_nonzero(counts) for counts in sizes) < 2:
        raise ValueError("an interval needs at least two clusters of images on either side")
    won = np.zeros((n, n))  # (c, d): pairs of an ID image of c and an OOD image of d in which the ID image scores higher
    for d in sizes[1].nonzero()[0]:
        below = _share_below(a, b[ood_clusters.numpy() == d]) * sizes[1][d]
        won[:, d] = np.bincount(id_clusters.numpy(), weights=below, minlength=n)

    def area(drawn: Tensor) -> float:
        times = np.bincount(drawn.numpy(), minlength=n)
        pairs = (times @ sizes[0]) * (times @ sizes[1])
        return float(times @ won @ times) / max(float(pairs), 1.0)  # hardly ever no pair is drawn

    return bootstrap_interval(area, n, seed, repeats, SHARE)


def aupr(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Average precision with ID images as positives ("AUPR-in"), in 0..1; chance is N/(N + M)."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_labels_and_scores(id_scores, ood_scores)))


def aupr_out(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Average precision with OOD images as positives, the lowest score first ("AUPR-out"), in 0..1; chance is M/(N + M)."""
    from sklearn.metrics import average_precision_score

    labels, scores = _labels_and_scores(id_scores, ood_scores)
    return float(average_precision_score(~labels, -scores))


def fpr_at_95_tpr(id_scores: Tensor, ood_scores: Tensor) -> float:
    """False positive rate at 95 % true positive rate: the share of OOD images at or above the highest threshold that at least
    95 % of the ID images reach; in 0..1, best 0."""
    from sklearn.metrics import roc_curve

    false_positives, true_positives, _ = roc_curve(*_labels_and_scores(id_scores, ood_scores), drop_intermediate=False)
    return float(false_positives[np.argmax(true_positives >= 0.95)])


def bootstrap_intervals(id_scores: Tensor, ood_scores: Tensor, seed: int, repeats: int = 200) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of :func:`aupr` and :func:`fpr_at_95_tpr`, under these names.

    Both sets are drawn anew, with replacement and at their sizes, since the threshold of the rate depends on ID images.
    """
    labels, scores = _labels_and_scores(id_scores, ood_scores)
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last = np.append(scores[1:] != scores[:-1], True)  # of those with the same score: a threshold takes all of them
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"aupr": [], "fpr_at_95_tpr": []}
    for _ in range(repeats):
        id_counts, ood_counts = (rng.multinomial(n, np.full(n, 1 / n)) for n in (len(id_scores), len(ood_scores)))
        accepted = np.zeros((2, len(scores)))
        accepted[0, ~labels], accepted[1, labels] = ood_counts, id_counts
        false, true = accepted.cumsum(axis=1)[:, last]
        precision = true / np.maximum(false + true, 1)
        found["aupr"].append(float(np.diff(true, prepend=0) @ precision / len(id_scores)))
        found["fpr_at_95_tpr"].append(float(false[np.argmax(true >= 0.95 * len(id_scores))] / len(ood_scores)))
    values = {"aupr": aupr(id_scores, ood_scores), "fpr_at_95_tpr": fpr_at_95_tpr(id_scores, ood_scores)}
    return {name: interval_around(values[name], resampled, SHARE) for name, resampled in found.items()}


def gradient_norm_score(logits_fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The negative L2 norm of the gradient of log p(x) in x ("approximate mass", Grathwohl et al. 2020), float64 [N].

    Each image has its own gradient. The published code took that of the first image of a batch for all of them.

    Args:
        logits_fn: [N, C, H, W] -> [N, K]; each row depends on its own image only (no batch statistics).
        x: float [N, C, H, W].
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = logits_fn(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        (gradient,) = torch.autograd.grad(log_density(logits).sum(), x)
    return -gradient.flatten(1).cpu().double().norm(dim=1)


def knn_score(features: Tensor, train_features: Tensor, k: int = 50, chunk: int = 256) -> Tensor:
    """The negative distance to the k-th nearest training feature (Sun et al. 2022), float64 [N] in -2..0.

    All features are divided by their L2 norm first.

    Args:
        features: float [N, D]; one that is in ``train_features`` too is its own nearest neighbor.
        train_features: float [M, D] on the same device.
        chunk: rows of ``features`` that are compared at once, which takes chunk * M numbers of memory.

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
        # The distance itself, not sqrt(2 - 2 cos), which loses half the digits where neighbors are close.
        scores.append(-(rows - train[nearest]).cpu().double().norm(dim=1))
    return torch.cat(scores)


def mahalanobis_score(features: Tensor, train_features: Tensor, train_labels: Tensor, numbers: int = 2**24) -> Tensor:
    """Minus the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018), float64 [N].

    One covariance is shared by all classes: that of the training features around the mean of their own class. Directions in
    which they do not vary do not count (pseudo-inverse).

    Args:
        features: float [N, D].
        train_features: float [M, D].
        train_labels: int64 [M]; classes without an image are left out.
        numbers: of memory; as many rows of ``features`` are compared with the K means at once as have no more than K * D each.
    """
    train, classes = train_features.cpu().double(), train_labels.cpu().unique()
    means = torch.stack([train[train_labels.cpu() == k].mean(dim=0) for k in classes])
    centered = train - means[torch.searchsorted(classes, train_labels.cpu())]
    precision = torch.linalg.pinv(centered.T @ centered / len(train), hermitian=True)
    scores = []
    for rows in features.cpu().double().split(max(numbers // means.numel(), 1)):
        apart = rows[:, None] - means
        scores.append(-torch.einsum("nkd,de,nke->nk", apart, precision, apart).amin(dim=1))
    return torch.cat(scores)


def normal_score(values: Tensor, train_values: Tensor) -> Tensor:
    """Minus the squared Mahalanobis distance to the mean of the training values, float64 [N].

    It is their log density under one normal distribution, up to a constant and a factor.
    """
    return mahalanobis_score(values, train_values, torch.zeros(len(train_values), dtype=torch.int64))


def relative_mahalanobis_score(features: Tensor, train_features: Tensor, train_labels: Tensor) -> Tensor:
    """:func:`mahalanobis_score` less :func:`normal_score` (Ren et al. 2021), float64 [N].

    Directions that tell no class from the rest cancel. The arguments are those of :func:`mahalanobis_score`.
    """
    return mahalanobis_score(features, train_features, train_labels) - normal_score(features, train_features)


def density_score(values: Tensor, train_values: Tensor, chunk: int = 1024) -> Tensor:
    """The log density of statistics [N, S] under a kernel density estimate from training images' [M, S]; float64 [N].

    The kernel is normal with the covariance of the training values times Scott's M^(-2/(S + 4)). Directions in which they do
    not vary do not count; scipy's gaussian_kde refuses them.

    Raises:
        ValueError: M is below 2.
    """
    train = train_values.cpu().double()
    m, dims = train.shape
    if m < 2:
        raise ValueError(f"{m} training values: a density needs at least two")
    variances, axes = torch.linalg.eigh(train.T.cov().reshape(dims, dims))
    kept = variances > 1e-12 * variances.amax().clamp_min(torch.finfo(torch.float64).tiny)
    deviations = variances[kept].sqrt() * m ** (-1 / (dims + 4))
    known = (train - train.mean(dim=0)) @ axes[:, kept] / deviations
    constant = math.log(m) + 0.5 * int(kept.sum()) * math.log(2 * math.pi) + deviations.log().sum()
    found = []
    for rows in values.cpu().double().split(chunk):
        apart = torch.cdist((rows - train.mean(dim=0)) @ axes[:, kept] / deviations, known, compute_mode=EXACT)
        found.append((-apart.square() / 2).logsumexp(dim=1) - constant)
    return torch.cat(found)


def in_distribution_rank(scores: Tensor, id_scores: Tensor) -> Tensor:
    """The share of ID scores [M] that are at most as high, (1 + count)/(1 + M), float64 [N] in 1/(1 + M)..1.

    It is the p-value of "this image is in-distribution" (conformal; Bates et al. 2023) where the ID images were used neither
    for the network nor for the score.
    """
    known = np.sort(_scores("id_scores", id_scores))
    counts = np.searchsorted(known, scores.detach().cpu().double().numpy(), side="right")
    return torch.from_numpy((1 + counts) / (1 + len(known)))


def fused_score(ranks: Sequence[Tensor]) -> Tensor:
    """Fisher's combination of in-distribution ranks: the sum of their logs, float64 [N], at most 0.

    A single score that finds an image far out is enough, and two that find it somewhat unusual count together. There is nothing
    to be fitted.
    """
    return torch.stack([rank.log() for rank in ranks]).sum(dim=0)


def _scores(name: str, scores: Tensor) -> np.ndarray:
    scores = scores.detach().cpu().double()
    if len(scores) == 0:
        raise ValueError(f"{name} is empty: there are no scores to compare")
    wrong = (~scores.isfinite()).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"{name}: score {i} is {scores[i].item()} ({len(wrong)} of {len(scores)} are not finite)")
    return scores.numpy()


def _labels_and_scores(id_scores: Tensor, ood_scores: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(True for ID images, scores), as scikit-learn takes them."""
    a, b = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    return np.arange(len(a) + len(b)) < len(a), np.concatenate((a, b))


def _share_below(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of a, the share of b below it, a tie counting half ("placement")."""
    b = np.sort(b)
    return (np.searchsorted(b, a, side="left") + np.searchsorted(b, a, side="right")) / (2 * len(b))
