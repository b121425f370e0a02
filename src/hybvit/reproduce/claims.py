"""What the paper says of its tables, as comparisons that a reproduction can be asked about."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from .tables import Measured


class Claim(NamedTuple):
    """``left`` compared with ``right`` in one column of a table.

    Args:
        words: what the paper says.
        column: of the table.
        left, right: presets.
        relation: ``higher``, ``lower``, ``close`` (within ``margin``, in the column's unit), or ``ratio`` (left / right).
        group: of the rows, where a table has several.
    """

    words: str
    column: str
    left: str
    right: str
    relation: Literal["higher", "lower", "close", "ratio"]
    margin: float = 0.0
    group: str = ""


class Verdict(NamedTuple):
    """The two figures, and what they say: holds, does not hold, too close to call, or a ratio."""

    left: Measured
    right: Measured
    outcome: str


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "table1": (
        Claim("HybViT labels within a point of ViT", "accuracy", "cifar10", "cifar10_vit", "close", 1.0),
        Claim("ViT labels within a point of WRN", "accuracy", "cifar10_vit", "cifar10_wrn28_10", "close", 1.0),
        Claim("HybViT labels better than JEM", "accuracy", "cifar10", "cifar10_jem", "higher"),
        Claim("HybViT labels better than JEM++", "accuracy", "cifar10", "cifar10_jempp", "higher"),
        Claim("GenViT's samples are better than HybViT's", "fid", "cifar10_genvit", "cifar10", "lower"),
        Claim("HybViT's samples are better than JEM's", "fid", "cifar10", "cifar10_jem", "lower"),
        Claim("HybViT's samples are better than JEM++'s", "fid", "cifar10", "cifar10_jempp", "lower"),
        Claim("the U-Net's samples are better than GenViT's", "fid", "cifar10_ddpm", "cifar10_genvit", "lower"),
    ),
    "table3": (
        Claim("ViT's log p(x) knows SVHN better than JEM's", "auroc_svhn", "cifar10_vit", "cifar10_jem", "higher"),
        Claim("HybViT's log p(x) knows SVHN better than JEM's", "auroc_svhn", "cifar10", "cifar10_jem", "higher"),
        Claim("ViT's knows interpolations better than JEM's", "auroc_interpolation", "cifar10_vit", "cifar10_jem", "higher"),
        Claim("HybViT's knows SVHN as well as ViT's", "auroc_svhn", "cifar10", "cifar10_vit", "close", 0.02),
    ),
    "table4": (Claim("HybViT's bound is close to GenViT's", "bits_per_dim", "cifar10", "cifar10_genvit", "close", 0.2),),
    "table5": (
        Claim("five times the training labels better (ViT)", "accuracy", "cifar10_vit", "cifar10_vit_epochs100", "higher"),
        Claim("five times the training labels better (HybViT)", "accuracy", "cifar10", "cifar10_epochs100", "higher"),
        Claim("five times the training samples better (GenViT)", "fid", "cifar10_genvit", "cifar10_genvit_epochs100", "lower"),
        Claim("five times the training samples better (HybViT)", "fid", "cifar10", "cifar10_epochs100", "lower"),
    ),
    "table6": (
        Claim("alpha 10 labels better than alpha 100", "accuracy", "cifar10_alpha10", "cifar10", "higher"),
        Claim("alpha 10 samples better than alpha 1", "fid", "cifar10_alpha10", "cifar10_alpha1", "lower"),
        Claim("alpha 100 samples better than alpha 10", "fid", "cifar10", "cifar10_alpha10", "lower"),
        Claim("half the heads label as well", "accuracy", "cifar10_heads6", "cifar10", "close", 1.0),
        Claim("half the heads sample worse", "fid", "cifar10", "cifar10_heads6", "lower"),
        Claim("deeper labels better", "accuracy", "cifar10_depth12", "cifar10_depth6", "higher"),
        Claim("deeper samples better", "fid", "cifar10_depth12", "cifar10_depth6", "lower"),
        Claim("wider labels better", "accuracy", "cifar10_dim768", "cifar10_dim192", "higher"),
        Claim("wider samples better (HybViT)", "fid", "cifar10_dim768", "cifar10_dim192", "lower"),
        Claim("wider samples better (GenViT)", "fid", "cifar10_genvit_dim768", "cifar10_genvit_dim192", "lower"),
    ),
    "table7": (
        Claim("smaller patches label better", "accuracy", "stl10_short_patch4", "stl10_short_patch12", "higher"),
        Claim("the largest patch samples far worse", "fid", "stl10_short_patch8", "stl10_short_patch12", "lower"),
        Claim("the smallest patch samples no better", "fid", "stl10_short_patch4", "stl10_short_patch8", "close", 1.0),
    ),
    "table8": (
        Claim("HybViT takes longer than GenViT by", "minutes_per_epoch", "cifar10", "cifar10_genvit", "ratio"),
        Claim("HybViT takes longer than ViT by", "minutes_per_epoch", "cifar10", "cifar10_vit", "ratio"),
        Claim("JEM (K = 20) takes longer than HybViT by", "minutes_per_epoch", "cifar10_jem", "cifar10", "ratio"),
        Claim("JEM++ (K = 10) takes longer than HybViT by", "minutes_per_epoch", "cifar10_jempp_k10", "cifar10", "ratio"),
    ),
    "table10": (
        Claim("strong augmentation labels better (ViT)", "accuracy", "cifar10_vit", "cifar10_vit_weak", "higher"),
        Claim("strong augmentation labels better (HybViT)", "accuracy", "cifar10", "cifar10_weak", "higher"),
        Claim("weak augmentation samples a little better", "fid", "cifar10_weak", "cifar10", "lower"),
    ),
    "table12": (
        Claim(
            "weak augmentation makes HybViT sturdier, 4/255", "pgd_linf_4", "cifar10_weak", "cifar10", "higher", group="L-inf"
        ),
        Claim(
            "weak augmentation makes HybViT sturdier, 100/255", "pgd_l2_100", "cifar10_weak", "cifar10", "higher", group="L2"
        ),
        Claim("HybViT stands 4/255 as well as ViT", "pgd_linf_4", "cifar10", "cifar10_vit", "close", 2.0, "L-inf"),
        Claim("ViT is sturdier than WRN, 4/255", "pgd_linf_4", "cifar10_vit", "cifar10_wrn28_10", "higher", group="L-inf"),
        Claim("HybViT is sturdier than WRN, 4/255", "pgd_linf_4", "cifar10", "cifar10_wrn28_10", "higher", group="L-inf"),
    ),
}


def verdict(claim: Claim, left: Measured | None, right: Measured | None) -> Verdict | None:
    """Whether it holds by more than the 95 % interval of the difference; None where one of the two figures is not there."""
    if left is None or right is None:
        return None
    if claim.relation == "ratio":
        return Verdict(left, right, f"{left.value / right.value:.2f} times")
    gap, doubt = left.value - right.value, math.hypot(half_width(left), half_width(right))
    if claim.relation == "close":
        if abs(abs(gap) - claim.margin) <= doubt:
            return Verdict(left, right, "too close to call")
        return Verdict(left, right, "holds" if abs(gap) <= claim.margin else "does not hold")
    gap = gap if claim.relation == "higher" else -gap
    return Verdict(left, right, "too close to call" if abs(gap) <= doubt else "holds" if gap > 0 else "does not hold")


def half_width(figure: Measured) -> float:
    return 0.0 if figure.low is None or figure.high is None else (figure.high - figure.low) / 2
