"""Calibration: how well a classifier's confidence matches its accuracy.

Shapes: logits [N, K], labels int64 [N]. Everything is computed on the CPU in float64.

Confidence is the largest softmax probability, in 1/K..1 (top-1 calibration, Guo et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .classification import nll

FOLDS = 5  # of the cross-validation that chooses between scalings
UNLIMITED, SHARE = (-math.inf, math.inf), (0.0, 1.0)  # limits of an interval; SHARE: of a share, or an error of shares
TEMPERATURES = (0.01, 100.0)  # the range that fit_temperature searches


class ReliabilityTable(NamedTuple):
    """One entry per bin, from low to high confidence."""

    size: Tensor  # int64 [bins], the number of images
    confidence: Tensor  # float64 [bins], the mean of the bin; nan where it is empty
    accuracy: Tensor  # float64 [bins], in 0..1; nan where it is empty


def reliability_table(logits: Tensor, labels: Tensor, bins: int = 15, equal_mass: bool = False) -> ReliabilityTable:
    """Mean confidence and accuracy of the images in each confidence bin.

    Args:
        bins: the number of bins; bin i of 0..bins - 1 is (i/bins, (i + 1)/bins] (Guo et al. 2017). torchmetrics closes its bins
            on the other side and adds one for a confidence of exactly 1; this matters only for values on an edge.
        equal_mass: use bins of equal size instead, N/bins images each up to rounding (adaptive, Nguyen & O'Connor 2015).

    Raises:
        ValueError: ``bins`` is not positive, there is no image, or a logit is NaN.
    """
    if bins < 1 or len(logits) < 1:
        raise ValueError(f"{bins} bins for {len(logits)} images: both must be at least 1")
    confidence, prediction = logits.detach().cpu().double().softmax(dim=1).max(dim=1)
    if bool(confidence.isnan().any()):
        raise ValueError(f"the logits of image {int(confidence.isnan().nonzero()[0])} give no probabilities")
    correct = (prediction == labels.cpu()).double()
    if equal_mass:
        # Images of equal confidence share their accuracy: otherwise their order would decide which bin gets the errors.
        _, group = confidence.unique(return_inverse=True)
        correct = (torch.bincount(group, weights=correct) / torch.bincount(group))[group]
        index = torch.empty(len(confidence), dtype=torch.int64)
        index[confidence.argsort()] = torch.arange(len(confidence)) * bins // len(confidence)
    else:
        index = torch.bucketize(confidence, torch.arange(1, bins, dtype=torch.float64) / bins)
    size = torch.bincount(index, minlength=bins)
    of_bin = (torch.bincount(index, weights=values, minlength=bins) / size for values in (confidence, correct))
    return ReliabilityTable(size, *of_bin)


def expected_calibration_error(table: ReliabilityTable) -> float:
    """Expected calibration error (ECE): |accuracy - confidence| of the bins, weighted by their size; in 0..1.

    On a table with ``equal_mass`` it is the adaptive ECE.
    """
    return ((table.accuracy - table.confidence).abs().nan_to_num() * table.size).sum().item() / int(table.size.sum())


def maximum_calibration_error(table: ReliabilityTable, least: int = 1) -> float:
    """Maximum calibration error (MCE): the largest |accuracy - confidence| of a bin, in 0..1; nan if no bin counts.

    Args:
        least: bins with fewer images do not count. With 1, as it is usually defined, a bin of a handful of images decides:
            the share of m images has a standard error of up to 0.5/sqrt(m), whatever the calibration.
    """
    gaps = (table.accuracy - table.confidence).abs()[table.size >= max(least, 1)]
    return gaps.max().item() if len(gaps) else math.nan


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T > 0 that minimizes the mean NLL of logits/T (Guo et al. 2017), to a relative error of about 1e-8.

    T > 1 means that the classifier is overconfident. The NLL is convex in 1/T, so T is the only zero of its slope. T is limited
    to 0.01..100: it is 0.01 where every label has the largest logit (separable), and 100 where the logits are no better than a
    constant. Fit it on other images than those that it is evaluated on.

    Raises:
        ValueError: there is no image or a logit is not finite.
    """
    from scipy.optimize import brentq

    logits, labels = logits.detach().cpu().double(), labels.cpu()
    if len(logits) < 1 or not bool(logits.isfinite().all()):
        raise ValueError("a temperature is fitted to at least one image, with finite logits")
    logits = logits - logits.amax(dim=1, keepdim=True)  # softmax is invariant to this, and it keeps rounding errors small
    of_label = logits.gather(1, labels[:, None]).mean()

    def slope(log_t: float) -> float:
        """The derivative of the mean NLL in 1/T, which increases with 1/T."""
        return (((logits / math.exp(log_t)).softmax(dim=1) * logits).sum(dim=1).mean() - of_label).item()

    low, high = map(math.log, TEMPERATURES)
    # For separable logits the slope at the end is 0 up to rounding. So it is for equal logits, for which any T is as good.
    rounding = 1e-12 * logits.abs().max().item()
    if slope(low) <= rounding:
        return TEMPERATURES[0] if slope(high) < -rounding else 1.0
    if slope(high) >= -rounding:
        return TEMPERATURES[1]
    return math.exp(brentq(slope, low, high, xtol=1e-9))


class Scaling(NamedTuple):
    """A change of the logits, logits * scale + bias, that calibrates their probabilities.

    Attributes:
        kind: none (the logits as they are), temperature (one factor for all classes) or vector (a factor and an offset for
            each).
        scale, bias: float64 [K].
    """

    kind: Literal["none", "temperature", "vector"]
    scale: Tensor
    bias: Tensor

    def apply(self, logits: Tensor) -> Tensor:
        """logits [N, K] -> float64 [N, K], on the CPU."""
        return logits.detach().cpu().double() * self.scale + self.bias

    @property
    def temperature(self) -> float | None:
        """The divisor of the logits, where it is one for all classes."""
        return None if self.kind == "vector" else 1 / self.scale[0].item()


def temperature_scaling(logits: Tensor, temperature: float) -> Scaling:
    scale = torch.full((logits.shape[1],), 1 / temperature, dtype=torch.float64)
    return Scaling("none" if temperature == 1 else "temperature", scale, torch.zeros_like(scale))


def fit_vector_scaling(logits: Tensor, labels: Tensor, penalty: float = 1.0) -> Scaling:
    """Vector scaling (Guo et al. 2017): a factor and an offset for each class that minimize the mean NLL.

    Without a penalty they have no finite optimum where classes can be separated, and follow the noise of rare classes. So a
    squared distance from temperature scaling is added, penalty/2N * sum((T scale - 1)^2 + bias^2): a normal prior of standard
    deviation 1 at penalty 1. It matters less, the more images there are.

    Raises:
        ValueError: there is no image or a logit is not finite; or ``penalty`` is negative.
    """
    from scipy.optimize import minimize

    if penalty < 0:
        raise ValueError(f"penalty is {penalty}: it must not be negative")
    temperature = fit_temperature(logits, labels)
    logits, labels = logits.detach().cpu().double() / temperature, labels.cpu()
    n, k = logits.shape
    onehot = torch.nn.functional.one_hot(labels, k).double()
    start = np.concatenate((np.ones(k), np.zeros(k)))

    def loss_and_slope(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        factor, bias = torch.from_numpy(parameters).split(k)
        log_p = (logits * factor + bias).log_softmax(dim=1)
        error = (log_p.exp() - onehot) / n
        away = torch.from_numpy(parameters - start)
        value = -(log_p * onehot).sum() / n + penalty / (2 * n) * away.square().sum()
        slope = torch.cat(((error * logits).sum(dim=0), error.sum(dim=0))) + penalty / n * away
        return value.item(), slope.numpy()

    best = minimize(loss_and_slope, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9})
    factor, bias = torch.from_numpy(best.x).split(k)
    return Scaling("vector", factor / temperature, bias.clone())


class Chosen(NamedTuple):
    """The scaling that :func:`choose_scaling` chose by some images, and what it makes of them.

    Attributes:
        scaling: fitted to all of them.
        unseen: float64 [N, K], their logits as if it had not been fitted to them. By vector scaling each is scaled by a fit
            without a fifth of the images, itself among them. A temperature, one number, is not bent by single images.
    """

    scaling: Scaling
    unseen: Tensor


def choose_scaling(logits: Tensor, labels: Tensor) -> Chosen:
    """None, temperature or vector scaling, whichever is better on images that it was not fitted to.

    Each is fitted on four fifths of the images and judged by its NLL on the others, for each random fifth in turn. A scaling
    with more parameters is taken only if the mean of its gain, image by image, is larger than its standard error. Where all
    predictions are right no scaling has a finite optimum, and none is taken.

    Args:
        logits, labels: of images that the network was not trained on.
    """
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    none = temperature_scaling(logits, 1.0)
    if len(logits) < FOLDS or bool((logits.argmax(dim=1) == labels).all()):
        return Chosen(none, logits)
    fits: tuple[Callable[[Tensor, Tensor], Scaling], ...] = (
        lambda z, y: none,
        lambda z, y: temperature_scaling(z, fit_temperature(z, y)),
        fit_vector_scaling,
    )
    # At random, not as many images of each class in each fold: then the others would tell a little of an image's own label.
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    here = [fold == i for i in range(FOLDS)]
    fitted = [[fit(logits[~part], labels[~part]) for part in here] for fit in fits]

    def unseen(kind: int) -> Tensor:
        scaled = torch.empty_like(logits)
        for part, scaling in zip(here, fitted[kind], strict=True):
            scaled[part] = scaling.apply(logits[part])
        return scaled

    losses, best = [nll(unseen(kind), labels) for kind in range(len(fits))], 0
    for i in range(1, len(fits)):
        gain = losses[best] - losses[i]
        if gain.mean() > gain.std() / len(gain) ** 0.5:
            best = i
    chosen = fits[best](logits, labels)
    return Chosen(chosen, unseen(best) if chosen.kind == "vector" else chosen.apply(logits))


def bootstrap_interval(
    statistic: Callable[[Tensor], float], n: int, seed: int, repeats: int = 200, limits: tuple[float, float] = UNLIMITED
) -> tuple[float, float]:
    """95 % bootstrap interval (Efron 1979) of a statistic of n images, around its value.

    Args:
        statistic: takes int64 [n], the indices in 0..n - 1 of the images drawn with replacement, e.g.
            ``lambda i: expected_calibration_error(reliability_table(logits[i], labels[i]))``.
        seed: of the resampling; the same seed gives the same interval.
        repeats: the number of resamples.
        limits: the least and the largest value that the statistic can have.
    """
    generator = torch.Generator().manual_seed(seed)
    values = [statistic(torch.randint(n, (n,), generator=generator)) for _ in range(repeats)]
    return interval_around(statistic(torch.arange(n)), values, limits)


def interval_around(value: float, resampled: Sequence[float], limits: tuple[float, float] = UNLIMITED) -> tuple[float, float]:
    """The 95 % percentile interval of resampled values, moved by their bias: their mean becomes the value.

    The calibration error of n images is larger than that of infinitely many, since images scatter within a bin, and that of
    resampled images is larger once more. So plain percentiles can lie above the value. Moved, they say how much the error of
    other n images of the same kind would differ, not what it is without this bias.
    """
    low, high = np.quantile(resampled, (0.025, 0.975)) + (value - np.mean(resampled))
    return min(max(float(low), limits[0]), value), max(min(float(high), limits[1]), value)
