"""Certificates of randomized smoothing (Cohen et al. 2019): from votes to labels that no small change of the image alters.

Shapes: N images, K classes; votes int64 [N, K]. Radii are L2 norms of the whole image on the [0, 1] scale of pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ABSTAINED = -1


class Certificates(NamedTuple):
    """What is certain about the smoothed classifier of N images.

    Attributes:
        labels: int64 [N], the label, or -1 where the votes do not settle it (abstained).
        radius: float64 [N], on the [0, 1] scale: no image that is closer in L2 gets another label from the smoothed classifier,
            except with probability 1 - confidence. 0 where it abstained.
        votes: int64 [N, K], the votes that the certificate rests on.
    """

    labels: Tensor
    radius: Tensor
    votes: Tensor


def clopper_pearson_lower(hits: Tensor, n: int, confidence: float) -> Tensor:
    """One-sided lower confidence bound of a probability, float64 like ``hits`` (Clopper & Pearson 1934): 0 where hits = 0.

    Args:
        hits: int64, the successes in n independent trials.
        confidence: probability that the bound is not above the true value, in (0, 1).
    """
    from scipy.special import betaincinv

    # k = 0 has no beta distribution; its bound is 0.
    bound = betaincinv(hits.clamp(min=1).double().numpy(), (n - hits + 1).double().numpy(), 1 - confidence)
    return torch.where(hits > 0, torch.from_numpy(bound), torch.zeros((), dtype=torch.float64))


def certified_radius(p: Tensor, noise: float) -> Tensor:
    """s Phi^-1(p) for a lower bound p of the top class's probability (Cohen et al. 2019, Theorem 1), float64; 0 for p <= 1/2.

    It takes 1 - p as the bound of the second class.
    """
    return (noise * torch.special.ndtri(p.double())).clamp(min=0)


def least_votes(confidence: float) -> int:
    """The smallest number of votes that certifies anything if all of them agree: (1 - confidence)^(1/n) > 1/2."""
    return math.floor(math.log(1 - confidence) / math.log(0.5)) + 1


def largest_radius(noise: float, votes: int, confidence: float) -> float:
    """The radius of an image on which all votes agree: no certificate of so many votes is larger."""
    unanimous = clopper_pearson_lower(torch.tensor([votes]), votes, confidence)
    return certified_radius(unanimous, noise).item()


def check_votes(votes: int, selection: int, confidence: float) -> None:
    """Raise ValueError where no certificate is possible with these numbers."""
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}: it must be in 0.5 to 1, and below 1; 0.999 is usual")
    if selection < 1:
        raise ValueError(f"selection is {selection}: at least 1 vote selects the class to certify; 100 is usual")
    if votes < least_votes(confidence):
        raise ValueError(
            f"votes is {votes}: at confidence {confidence:g} no certificate is possible with less than "
            f"{least_votes(confidence)}, and 1000 or more are usual"
        )


def certify_votes(selection: Tensor, votes: Tensor, total: int, noise: float, confidence: float) -> Certificates:
    """Certificates from two independent polls (Cohen et al. 2019, CERTIFY).

    The first selects the class, the second bounds its probability: one poll for both would favor classes that were lucky.

    Args:
        selection: int64 [N, K].
        votes: int64 [N, K], of ``total`` votes for each image.
    """
    chosen = selection.argmax(dim=1)
    bound = clopper_pearson_lower(votes.gather(1, chosen[:, None])[:, 0], total, confidence)
    sure = bound > 0.5
    return Certificates(chosen.where(sure, ABSTAINED), certified_radius(bound, noise).where(sure, 0.0), votes)


def certified_at(certificates: Certificates, labels: Tensor, radius: float) -> Tensor:
    """bool [N]: whether the certified label is the true one, and every image within ``radius`` has it too.

    A certificate holds inside of its radius, so one of exactly ``radius`` does not count.
    """
    return (certificates.labels == labels) & (certificates.radius > radius)
