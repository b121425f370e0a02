"""Conformal prediction: sets of classes that hold the true one with a chosen probability (Vovk et al. 2005).

Images that the network was not trained on say how large the score of a true class gets. A set holds all classes whose score is
not larger. If new images are drawn like those, the true class is in the set with the chosen probability at least, whatever the
network is worth: a bad one has large sets. Shapes: probabilities and sets [N, K], labels int64 [N], quantities of calibration
images [n]. Everything is computed on the CPU in float64.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from .selective import ROUNDING

Method = Literal["thr", "aps", "raps"]
METHODS: tuple[Method, ...] = ("thr", "aps", "raps")
PENALTY, FREE_RANKS = 0.1, 1  # of raps: added for each rank after the first


class Ranked(NamedTuple):
    """What the scores of classes are made of; [N, K] for all classes of images, or [n] for one class of each."""

    own: Tensor  # float64, the probability of the class
    above: Tensor  # float64, the sum of those of the classes ranked above it
    rank: Tensor  # int64, from 1 for the most probable; the first of equally probable classes ranks above the others

    def of(self, labels: Tensor) -> Ranked:
        """That of one class of each image, [N]."""
        return Ranked(*(part.gather(1, labels.cpu()[:, None])[:, 0] for part in self))


def ranked(logits: Tensor) -> Ranked:
    """The classes of each image by their probabilities, from logits [N, K].

    Raises:
        ValueError: a logit is NaN.
    """
    probabilities = logits.detach().cpu().double().softmax(dim=1)
    if bool(probabilities.isnan().any()):
        raise ValueError("a logit is not a number: it gives no probabilities")
    ordered, classes = probabilities.sort(dim=1, descending=True, stable=True)
    place = classes.argsort(dim=1)
    above = ordered.cumsum(1) - ordered
    return Ranked(probabilities, above.gather(1, place), place + 1)


def nonconformity(found: Ranked, method: Method, u: Tensor | float = 1.0) -> Tensor:
    """How badly a class fits an image, float64 of the shape of ``found``; larger fits worse.

    thr (or LAC) is 1 - p (Sadinle et al. 2019): the smallest sets on average. aps is the probability of the classes ranked
    above, plus u p (Romano et al. 2020): larger sets for difficult images, smaller for easy ones. raps adds 0.1 for each rank
    after the first, which shortens the tail of aps (Angelopoulos et al. 2021).

    Args:
        u: for aps and raps: uniform in 0..1 for each image ([n], or [N, 1] for all classes), which gives exactly the coverage;
            1 takes p as a whole, which needs no random numbers and covers a little more. Calibrate and predict in the same
            way: with one of each the coverage is not the chosen one.
    """
    if method == "thr":
        return 1 - found.own
    score = found.above + u * found.own
    return score if method == "aps" else score + PENALTY * (found.rank - FREE_RANKS).clamp(min=0)


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """The k-th smallest of n calibration scores, k = ceil((n + 1) coverage); inf where k > n: then only the set of all classes
    has that coverage.

    It is the quantile ceil((n + 1) coverage)/n, with the correction for finite n, without which the coverage is too small. It
    is picked by its rank: interpolating or rounding functions for quantiles may be off by one.

    Args:
        scores: [n], of the true classes of images that the network was not trained on.

    Raises:
        ValueError: ``coverage`` is not between 0 and 1, or a score is NaN.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}: it must be between 0 and 1")
    scores = scores.cpu().double()
    if bool(scores.isnan().any()):
        raise ValueError("a calibration score is not a number")
    k = math.ceil((len(scores) + 1) * coverage - ROUNDING)
    return scores.kthvalue(k).values.item() if k <= len(scores) else math.inf


def prediction_sets(scores: Tensor, quantile: float) -> Tensor:
    """The classes [N, K] whose score is at most the quantile, as bool [N, K]. A set may be empty where the coverage is lower
    than the accuracy: no class fits as well as that share of the calibration images' true ones."""
    return scores <= quantile


class Covered(NamedTuple):
    """What sets are worth.

    Attributes:
        hits: bool [N], whether the true class is in the set; its mean is the coverage.
        sizes: int64 [N], the number of classes in the set.
    """

    hits: Tensor
    sizes: Tensor


def covered(sets: Tensor, labels: Tensor) -> Covered:
    return Covered(sets.gather(1, labels.cpu()[:, None])[:, 0], sets.sum(dim=1))
