"""The paper's claims about its tables, as comparisons that a reproduction can test."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from .tables import Measured


class Claim(NamedTuple):
    """``left`` compared with ``right`` in one column of a table.

    Args:
        statement: the paper's claim.
        column: column of the table.
        left, right: presets.
        relation: ``higher``, ``lower``, ``close`` (within ``margin``, in the column's unit), ``alike`` (within that fraction
            of each other), ``ratio`` (left / right, no verdict), or ``diverges`` (of left only).
        group: group of the rows, where a table has several.
    """

    statement: str
    column: str
    left: str
    right: str
    relation: Literal["higher", "lower", "close", "alike", "ratio", "diverges"]
    margin: float = 0.0
    group: str = ""


class Verdict(NamedTuple):
    """The two figures and the outcome: holds, does not hold, too close to call, or a ratio."""

    left: Measured
    right: Measured
    outcome: str


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "table1": (
        Claim("HybViT's accuracy is within a point of ViT's", "accuracy", "cifar10", "cifar10_vit", "close", 1.0),
        Claim("ViT's accuracy is within a point of WRN's", "accuracy", "cifar10_vit", "cifar10_wrn28_10", "close", 1.0),
        Claim("HybViT classifies better than JEM", "accuracy", "cifar10", "cifar10_jem", "higher"),
        Claim("HybViT classifies better than JEM++", "accuracy", "cifar10", "cifar10_jempp", "higher"),
        Claim("GenViT's samples are better than HybViT's", "fid", "cifar10_genvit", "cifar10", "lower"),
        Claim("HybViT's samples are better than JEM's", "fid", "cifar10", "cifar10_jem", "lower"),
        Claim("HybViT's samples are better than JEM++'s", "fid", "cifar10", "cifar10_jempp", "lower"),
        Claim("the U-Net's samples are better than GenViT's", "fid", "cifar10_ddpm", "cifar10_genvit", "lower"),
        Claim("JEM diverges easily", "", "cifar10_jem", "cifar10_jem", "diverges"),
        Claim("JEM++ diverges easily", "", "cifar10_jempp", "cifar10_jempp", "diverges"),
    ),
    "table3": (
        Claim("ViT's log p(x) detects SVHN better than JEM's", "auroc_svhn", "cifar10_vit", "cifar10_jem", "higher"),
        Claim("HybViT's log p(x) detects SVHN better than JEM's", "auroc_svhn", "cifar10", "cifar10_jem", "higher"),
        Claim(
            "ViT's log p(x) detects interpolations better than JEM's",
            "auroc_interpolation",
            "cifar10_vit",
            "cifar10_jem",
            "higher",
        ),
        Claim("HybViT's log p(x) detects SVHN about as well as ViT's", "auroc_svhn", "cifar10", "cifar10_vit", "close", 0.02),
    ),
    "table4": (Claim("HybViT's bound is close to GenViT's", "bits_per_dim", "cifar10", "cifar10_genvit", "alike", 0.05),),
    "figure6": (
        Claim("WRN is better calibrated than ViT", "ece", "cifar10_wrn28_10", "cifar10_vit", "lower"),
        Claim("WRN is better calibrated than HybViT", "ece", "cifar10_wrn28_10", "cifar10", "lower"),
    ),
    "figure12": (
        Claim("strong augmentation improves ViT's calibration", "ece", "cifar10_vit", "cifar10_vit_weak", "lower"),
        Claim("strong augmentation improves HybViT's calibration", "ece", "cifar10", "cifar10_weak", "lower"),
    ),
    "table5": (
        Claim("five times the training improves ViT's accuracy", "accuracy", "cifar10_vit", "cifar10_vit_epochs100", "higher"),
        Claim("five times the training improves HybViT's accuracy", "accuracy", "cifar10", "cifar10_epochs100", "higher"),
        Claim(
            "five times the training improves GenViT's samples", "fid", "cifar10_genvit", "cifar10_genvit_epochs100", "lower"
        ),
        Claim("five times the training improves HybViT's samples", "fid", "cifar10", "cifar10_epochs100", "lower"),
    ),
    "table6": (
        Claim("alpha 10 classifies better than alpha 100", "accuracy", "cifar10_alpha10", "cifar10", "higher"),
        Claim("alpha 10 gives better samples than alpha 1", "fid", "cifar10_alpha10", "cifar10_alpha1", "lower"),
        Claim("alpha 100 gives better samples than alpha 10", "fid", "cifar10", "cifar10_alpha10", "lower"),
        Claim("half the heads classify about as well", "accuracy", "cifar10_heads6", "cifar10", "close", 1.0),
        Claim("half the heads give worse samples", "fid", "cifar10", "cifar10_heads6", "lower"),
        Claim("a deeper network classifies better", "accuracy", "cifar10_depth12", "cifar10_depth6", "higher"),
        Claim("a deeper network gives better samples", "fid", "cifar10_depth12", "cifar10_depth6", "lower"),
        Claim("a wider network classifies better", "accuracy", "cifar10_dim768", "cifar10_dim192", "higher"),
        Claim("a wider HybViT gives better samples", "fid", "cifar10_dim768", "cifar10_dim192", "lower"),
        Claim("a wider GenViT gives better samples", "fid", "cifar10_genvit_dim768", "cifar10_genvit_dim192", "lower"),
    ),
    "table7": (
        Claim("smaller patches classify better", "accuracy", "stl10_short_patch4", "stl10_short_patch12", "higher"),
        Claim("the largest patches give far worse samples", "fid", "stl10_short_patch8", "stl10_short_patch12", "lower"),
        Claim("the two smallest patches give like samples", "fid", "stl10_short_patch4", "stl10_short_patch8", "alike", 0.05),
    ),
    "table8": (
        Claim("time per epoch, HybViT over GenViT", "minutes_per_epoch", "cifar10", "cifar10_genvit", "ratio"),
        Claim("time per epoch, HybViT over ViT", "minutes_per_epoch", "cifar10", "cifar10_vit", "ratio"),
        Claim("time per epoch, JEM (K = 20) over HybViT", "minutes_per_epoch", "cifar10_jem", "cifar10", "ratio"),
        Claim("time per epoch, JEM++ (K = 10) over HybViT", "minutes_per_epoch", "cifar10_jempp_k10", "cifar10", "ratio"),
    ),
    "table10": (
        Claim("strong augmentation improves ViT's accuracy", "accuracy", "cifar10_vit", "cifar10_vit_weak", "higher"),
        Claim("strong augmentation improves HybViT's accuracy", "accuracy", "cifar10", "cifar10_weak", "higher"),
        Claim("weak augmentation gives slightly better samples", "fid", "cifar10_weak", "cifar10", "lower"),
    ),
    "table12": (
        Claim(
            "weak augmentation makes HybViT more robust, 4/255",
            "pgd_linf_4",
            "cifar10_weak",
            "cifar10",
            "higher",
            group="L-inf",
        ),
        Claim(
            "weak augmentation makes HybViT more robust, 100/255", "pgd_l2_100", "cifar10_weak", "cifar10", "higher", group="L2"
        ),
        Claim("HybViT is about as robust as ViT, 4/255", "pgd_linf_4", "cifar10", "cifar10_vit", "close", 2.0, "L-inf"),
        Claim("ViT is more robust than WRN, 4/255", "pgd_linf_4", "cifar10_vit", "cifar10_wrn28_10", "higher", group="L-inf"),
        Claim("HybViT is more robust than WRN, 4/255", "pgd_linf_4", "cifar10", "cifar10_wrn28_10", "higher", group="L-inf"),
    ),
}


def verdict(claim: Claim, left: Measured | None, right: Measured | None) -> Verdict | None:
    """Whether a claim holds by more than the 95 % interval of the difference; None if either figure is missing."""
    if left is None or right is None:
        return None
    if claim.relation == "ratio":
        return Verdict(left, right, f"{left.value / right.value:.2f} times")
    if claim.column in ("fid", "inception_score") and None not in (left.metric, right.metric) and left.metric != right.metric:
        return Verdict(left, right, "not judged: of different numbers of samples")
    gap = left.value - right.value
    doubt = math.hypot(towards(left, -gap), towards(right, gap))
    if claim.relation in ("close", "alike"):
        margin = claim.margin * (abs(right.value) if claim.relation == "alike" else 1)
        if abs(gap) < margin:  # what is in doubt is whether they are farther apart
            doubt = math.hypot(towards(left, gap), towards(right, -gap))
        if abs(abs(gap) - margin) <= doubt:
            return Verdict(left, right, "too close to call")
        return Verdict(left, right, "holds" if abs(gap) <= margin else "does not hold")
    sign = 1 if claim.relation == "higher" else -1
    return Verdict(left, right, "too close to call" if abs(gap) <= doubt else "holds" if sign * gap > 0 else "does not hold")


def towards(figure: Measured, direction: float) -> float:
    """The half-width of the interval on the side above the figure for a positive direction, else on the side below."""
    if figure.low is None or figure.high is None:
        return 0.0
    return max(figure.high - figure.value if direction > 0 else figure.value - figure.low, 0.0)
