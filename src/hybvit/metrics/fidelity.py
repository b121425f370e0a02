"""Fidelity: the distance between generated and real images in the features of a fixed network (hybvit.evaluation.extractors).

Features are float [N, D], one row per image; logits are float [N, K]. Everything is computed on the CPU in float64. The Frechet
distance is called FID (Heusel et al. 2017), the kernel distance KID, and the score Inception score only with the published
Inception network. With another network the formulas are the same, but numbers are comparable for that network only.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError

ROWS_AT_ONCE = 4096  # bounds the memory for sums and for distances between images
SUBSET_SIZE = 1000  # for the kernel distance, as in torch-fidelity
LOWEST_LOG_P = -700.0  # e^-700 is still a float64: a class that no image of a split has then counts 0, not 0 * inf


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of features, in a form that can be added across shards or processes.

    The products are those of deviations from each part's own mean, merged by the update of Chan, Golub & LeVeque 1983. Raw sums
    of squares would lose the covariance to cancellation where the mean is much larger than the deviations.

    Args:
        n: number of images.
        total: sum of the features, float64 [D].
        products: sum over the images of (f - mean)(f - mean)^T, float64 [D, D].
    """

    n: int
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """The statistics of features float [N, D]; N may be 0.

        Raises:
            ValueError: the features have another shape, or values that are not finite.
        """
        _check(features=features)
        dim = features.shape[1]
        result = cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))
        for part in features.split(ROWS_AT_ONCE):
            rows = part.detach().cpu().double()
            total = rows.sum(dim=0)
            centered = rows - total / max(len(rows), 1)
            result = result + cls(len(rows), total, centered.T @ centered)
        return result

    def __add__(self, other: Statistics) -> Statistics:
        if self.total.shape != other.total.shape:
            raise ValueError(f"features have {len(self.total)} and {len(other.total)} dimensions: they cannot be added")
        if self.n == 0 or other.n == 0:
            return other if self.n == 0 else self
        n, apart = self.n + other.n, self.mean - other.mean
        between = torch.outer(apart, apart) * (self.n * other.n / n)
        return Statistics(n, self.total + other.total, self.products + other.products + between)

    @property
    def mean(self) -> Tensor:
        """float64 [D]; ValueError without images."""
        if self.n == 0:
            raise ValueError("there is no image: its features have no mean")
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """The unbiased one (n - 1), float64 [D, D]; ValueError with fewer than two images."""
        if self.n < 2:
            raise ValueError(f"{self.n} image(s): a covariance needs at least two")
        return self.products / (self.n - 1)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Frechet distance |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), at least 0 (Heusel et al. 2017, Eq. 6).

    It equals torch-fidelity's ``fid_statistics_to_metric``, which takes the square roots of the eigenvalues of C_a C_b. Here
    the trace is the sum of the singular values of C_a^1/2 C_b^1/2. Symmetric eigenproblems are several times faster. And
    with fewer images than features many eigenvalues are 0, whose rounding errors a square root would magnify.

    It is biased upward by about 1/n: compare only numbers from the same number of images.
    """
    if a.total.shape != b.total.shape:
        raise ValueError(f"features have {len(a.total)} and {len(b.total)} dimensions: there is no distance between them")
    shift = a.mean - b.mean
    covariance_a, covariance_b = a.covariance, b.covariance
    common = torch.linalg.svdvals(_root(covariance_a) @ _root(covariance_b)).sum()
    return max((shift @ shift + covariance_a.trace() + covariance_b.trace() - 2 * common).item(), 0.0)


def frechet_interval(a: Tensor, b: Tensor) -> tuple[float, float]:
    """95 % interval of the Frechet distance of features [N, D] and [M, D] under new draws of as many images, at least 0.

    It comes from the distance's derivative at each image of a, 2 (mean_a - mean_b) f + f^T (I - T) f, where f is the
    deviation from the mean of a and T the optimal map from Gaussian a to Gaussian b; likewise for b. The upward bias of
    finite sets is not corrected: this is the error of "the distance with n images". Do not rely on it where N or M is less
    than several times D, or where the distance is near 0.
    """
    _check(a=a, b=b)
    of_a, of_b = Statistics.of(a), Statistics.of(b)
    distance = frechet_distance(of_a, of_b)
    variance = 0.0
    for features, own, other in ((a, of_a, of_b), (b, of_b, of_a)):
        root, inverse = _root(own.covariance), _inverse_root(own.covariance)
        gradient = torch.eye(len(own.mean), dtype=torch.float64) - inverse @ _root(root @ other.covariance @ root) @ inverse
        influence = []
        for part in features.split(ROWS_AT_ONCE):
            f = part.detach().cpu().double() - own.mean
            influence.append(2 * f @ (own.mean - other.mean) + ((f @ gradient) * f).sum(dim=1))
        variance += torch.cat(influence).var().item() / own.n
    half = 1.96 * math.sqrt(variance)
    return max(distance - half, 0.0), distance + half


def inception_score(logits: Tensor, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Inception score exp(E KL(p(y|x) || p(y))), in 1..K (Salimans et al. 2016) -> its mean and standard deviation over random
    parts of the images.

    This is torch-fidelity's ``isc_features_to_metric``, with its default splits and seed.

    Args:
        logits: float [N, K], with N >= splits.

    Raises:
        ValueError: there are fewer images than splits, or a logit is not finite.
    """
    _check(logits=logits)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits is {splits}: it must be in 1..{len(logits)}, the number of images")
    log_p = logits.detach().cpu().double().log_softmax(dim=1).clamp(min=LOWEST_LOG_P)
    result = _torch_fidelity("metric_isc").isc_features_to_metric(log_p, splits, True, seed)
    return result["inception_score_mean"], result["inception_score_std"]


def kernel_distance(
    a: Tensor, b: Tensor, subsets: int = 100, subset_size: int | None = None, seed: int = 2020
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / D + 1)^3 (Binkowski et al. 2018) -> value and its
    standard error. Being unbiased, it is slightly negative at times where the two sets are alike.

    The value is torch-fidelity's ``kid_features_to_metric``, a mean over random subsets. The subsets overlap, so their
    standard deviation s is not the error of the mean. By the delete-d jackknife (Shao & Wu 1989) it is s (m / (n - m))^1/2
    for subsets of m of the n images of the smaller set. It is too large where the two distributions are the same.

    Args:
        a: features [N, D].
        b: features [M, D].
        subsets: the number of subsets, at least 2.
        subset_size: m, less than N and M. None: 1000, or half of the smaller set if that has no more than 1000 images.
        seed: of the subsets, in 0..2^32 - 1.

    Raises:
        ValueError: ``subset_size`` or ``subsets`` is out of range, or the features do not fit.
    """
    _check(a=a, b=b)
    n = min(len(a), len(b))
    size = subset_size if subset_size is not None else SUBSET_SIZE if n > SUBSET_SIZE else n // 2
    if not 2 <= size < n:
        raise ValueError(f"subset_size is {size}: it must be at least 2 and less than {n}, the images of the smaller set")
    if subsets < 2:
        raise ValueError(f"subsets is {subsets}: a standard error needs at least two")
    result = _torch_fidelity("metric_kid").kid_features_to_metric(
        *(features.detach().cpu().double() for features in (a, b)),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    error = result["kernel_inception_distance_std"] * math.sqrt(subsets / (subsets - 1)) * math.sqrt(size / (n - size))
    return result["kernel_inception_distance_mean"], error


def precision_recall(generated: Tensor, real: Tensor, neighbors: int = 3) -> tuple[float, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), each in 0..1: the share of generated images inside the balls around the
    real ones, and the share of real images inside the balls around the generated ones.

    A ball's radius is the distance from an image to its k-th nearest neighbor in the same set. This is torch-fidelity's
    ``prc_features_to_metric``. Both depend on the number of images: compare only numbers from equal sets.

    Args:
        generated: features [N, D].
        real: features [M, D].
        neighbors: k, less than N and M.

    Raises:
        ValueError: ``neighbors`` is out of range, or the features do not fit.
    """
    _check(generated=generated, real=real)
    n = min(len(generated), len(real))
    if not 1 <= neighbors < n:
        raise ValueError(f"neighbors is {neighbors}: it must be at least 1 and less than {n}, the images of the smaller set")
    result = _torch_fidelity("metric_prc").prc_features_to_metric(
        *(features.detach().cpu().double() for features in (generated, real)),
        prc_neighborhood=neighbors,
        prc_batch_size=ROWS_AT_ONCE,
        save_cpu_ram=True,
        verbose=False,
    )
    return result["precision"], result["recall"]


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _inverse_root(covariance: Tensor) -> Tensor:
    """The inverse of :func:`_root` where the features vary, 0 where they do not."""
    values, vectors = torch.linalg.eigh(covariance)
    varies = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return (vectors * torch.where(varies, values.clamp(min=1e-300).rsqrt(), 0.0)) @ vectors.T


def _check(**inputs: Tensor) -> None:
    widths = set()
    for name, rows in inputs.items():
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(f"{name} has shape {list(rows.shape)}, type {rows.dtype}: it must be float with one row per image")
        if not bool(rows.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
        widths.add(rows.shape[1])
    if len(widths) > 1:
        raise ValueError(f"{' and '.join(inputs)} have different numbers of features: {', '.join(map(str, sorted(widths)))}")


def _torch_fidelity(module: str) -> Any:
    try:
        return importlib.import_module(f"torch_fidelity.{module}")
    except ImportError:
        raise ConfigError("fidelity needs torch-fidelity: pip install torch-fidelity") from None
