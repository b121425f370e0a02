"""Selective classification: how well a score says which answers to trust.

A classifier answers where its score (its confidence) is at least a threshold, and abstains elsewhere. The coverage is the
share of images that it answers, the risk the share of wrong answers among these (Geifman & El-Yaniv 2017). A score is higher
where the classifier is surer. Shapes: scores and ``correct`` [N], logits [N, K]. Everything is computed on the CPU in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .likelihood import log_density

STEPS = 20  # coverages that a threshold is chosen from
ROUNDING = 1e-9  # 0.95 * 20 is 19, whatever its last bit


def max_probability(logits: Tensor) -> Tensor:
    """The largest softmax probability, in 1/K..1 (Hendrycks & Gimpel 2017); logits [N, K] -> float64 [N]."""
    return logits.cpu().double().softmax(dim=1).amax(dim=1)


def max_logit(logits: Tensor) -> Tensor:
    """The largest logit (Hendrycks et al. 2022), float64 [N]."""
    return logits.cpu().double().amax(dim=1)


def negative_entropy(logits: Tensor) -> Tensor:
    """Minus the entropy of the class probabilities, float64 [N] in nats, in -log K..0."""
    log_p = logits.cpu().double().log_softmax(dim=1)
    return (log_p.exp() * log_p).nan_to_num().sum(dim=1)


def negative_energy(logits: Tensor) -> Tensor:
    """The logsumexp of the logits, minus their energy (Liu et al. 2020), float64 [N]."""
    return log_density(logits.cpu().double())


CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {  # logits [N, K] -> float64 [N]
    "max_prob": max_probability,
    "max_logit": max_logit,
    "entropy": negative_entropy,
    "energy": negative_energy,
}


class RiskCoverage(NamedTuple):
    """What each threshold leads to, from the highest to the lowest: one entry for each distinct score.

    Images of equal score are answered together or not at all, so no coverage between two entries can be had.
    """

    coverage: Tensor  # float64 [M], in 0..1, increasing; the last is 1
    risk: Tensor  # float64 [M], in 0..1
    threshold: Tensor  # float64 [M]: answer where the score is at least this


def risk_coverage(scores: Tensor, correct: Tensor) -> RiskCoverage:
    """The risk-coverage curve.

    Args:
        scores: [N], higher where the classifier is surer.
        correct: bool [N], whether its answer is right.

    Raises (like every function of scores here):
        ValueError: there is no image, a score is not finite, or the lengths differ.
    """
    values, sizes, errors = _by_score(scores, correct)
    answered = sizes.cumsum(0)
    return RiskCoverage(answered / len(scores), errors.cumsum(0) / answered, values)


def aurc(scores: Tensor, correct: Tensor) -> float:
    """Area under the risk-coverage curve, in 0..1: the mean risk over all coverages (Geifman et al. 2019). Lower is better.

    It is the integral over the coverages 1/N, 2/N, ..., 1 by trapezoids, divided by 1 - 1/N. Images of equal score count as
    their mean over all orders, so the order of the data does not matter. N is at least 2.
    """
    errors = _errors_in_order(scores, correct)
    return _mean_over_coverages(errors.cumsum(0) / torch.arange(1, len(errors) + 1))


def augrc(scores: Tensor, correct: Tensor) -> float:
    """Area under the generalized risk-coverage curve, in 0..1/2 (Traub et al. 2024). Lower is better.

    The generalized risk is the share of images that are answered, and wrongly. So it does not weigh the few surest answers, on
    which the risk depends at every coverage, more than the others. Integral and ties are those of :func:`aurc`.
    """
    errors = _errors_in_order(scores, correct)
    return _mean_over_coverages(errors.cumsum(0) / len(errors))


def coverage_at_risk(curve: RiskCoverage, risk: float) -> float:
    """The largest coverage at which the risk is at most ``risk``, in 0..1; 0 if there is none."""
    admissible = (curve.risk <= risk + ROUNDING).nonzero().flatten()
    return curve.coverage[admissible[-1]].item() if len(admissible) else 0.0


def risk_at_coverage(curve: RiskCoverage, coverage: float) -> float:
    """The risk at the smallest coverage that is at least ``coverage``, in 0..1."""
    reached = (curve.coverage >= coverage - ROUNDING).nonzero().flatten()
    return curve.risk[reached[0]].item()


def risk_bound(errors: int, n: int, chance: float) -> float:
    """The largest error rate at which at most ``errors`` errors in n answers have a probability of at least ``chance``: the
    upper bound of Clopper & Pearson (1934) at confidence 1 - ``chance``. By bisection, since `hybvit classify` needs it, which
    works without SciPy and its inverse of the incomplete beta function."""
    if errors >= n:
        return 1.0
    k = torch.arange(errors + 1, dtype=torch.float64)
    choices = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)  # log of the binomial coefficients
    low, high = 0.0, 1.0
    for _ in range(52):  # to the last bit of 1
        rate = (low + high) / 2
        likely = (choices + k * math.log(rate) + (n - k) * math.log1p(-rate)).exp().sum().item() >= chance
        low, high = (rate, high) if likely else (low, rate)
    return high


class Threshold(NamedTuple):
    """A threshold with a promise about new images.

    Attributes:
        score: answer where the score is at least this; inf if no threshold keeps the promise.
        bound: the risk that is not exceeded, at the asked confidence.
    """

    score: float
    bound: float


def threshold_for_risk(scores: Tensor, correct: Tensor, risk: float, confidence: float = 0.95) -> Threshold:
    """A threshold at which the risk on new images is at most ``risk``, at this confidence.

    It is the lowest of those that answer 5, 10, ... 100 % of these images whose bound is small enough. Each bound may be wrong
    with a chance of a twentieth of 1 - ``confidence``, so that all hold together. Geifman & El-Yaniv (2017) bisect instead,
    which fails with few images. Without a bound, the risk would exceed the asked one about half of the time.

    Args:
        scores, correct: of images that the classifier was not trained on; new ones must be of the same kind.

    Returns:
        The threshold; where none keeps the promise, inf and the smallest bound that there is.

    Raises:
        ValueError: ``risk`` or ``confidence`` is not between 0 and 1.
    """
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}: it must be between 0 and 1")
    values, sizes, errors = _by_score(scores, correct)
    answered, wrong = sizes.cumsum(0), errors.cumsum(0)
    least = 1.0
    for step in range(STEPS, 0, -1):
        at = int((answered >= len(scores) * step / STEPS - ROUNDING).nonzero()[0])
        bound = risk_bound(round(wrong[at].item()), int(answered[at]), (1 - confidence) / STEPS)
        if bound <= risk:
            return Threshold(values[at].item(), bound)
        least = min(least, bound)
    return Threshold(math.inf, least)


def _by_score(scores: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct scores from high to low, with the number of images and of errors of each, float64 [M]."""
    scores, correct = scores.detach().cpu().double(), correct.cpu()
    if len(scores) < 1 or len(scores) != len(correct):
        raise ValueError(f"{len(scores)} scores of {len(correct)} answers: there must be at least one, and one of each")
    wrong = (~scores.isfinite()).nonzero().flatten()
    if len(wrong):
        raise ValueError(f"score {int(wrong[0])} is {scores[wrong[0]].item()}: scores must be finite")
    values, group = scores.unique(return_inverse=True)
    sizes = torch.bincount(group).double()
    errors = torch.bincount(group, weights=(~correct.bool()).double())
    return values.flip(0), sizes.flip(0), errors.flip(0)


def _errors_in_order(scores: Tensor, correct: Tensor) -> Tensor:
    """The errors float64 [N] from the surest answer on, where answers of equal score share theirs."""
    _, sizes, errors = _by_score(scores, correct)
    if len(scores) < 2:
        raise ValueError("an area needs at least two images")
    return (errors / sizes).repeat_interleave(sizes.long())


def _mean_over_coverages(values: Tensor) -> float:
    return torch.trapezoid(values).item() / (len(values) - 1)
