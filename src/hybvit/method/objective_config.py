"""The settings of the training objective, which :mod:`hybvit.method.objective` computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Norm = Literal["l1", "l2"]
Target = Literal["eps", "x0", "v", "flow"]
Weighting = Literal["uniform", "min_snr"]


@dataclass(frozen=True)
class Objective:
    """The training objective CE + alpha * denoising (Eq. 24) and its options.

    Args:
        kind: vit (cross-entropy only), genvit (denoising only), hybvit (both), or jem (cross-entropy and an energy).
        alpha: weight of the denoising loss (the paper's 1, 10 or 100).
        alpha_end: final value of alpha, which changes linearly over the run; None keeps alpha constant.
        norm: l1 as in the published runs, or l2 as in Ho et al., which the paper calls comparable.
        target: what the pixel read-out predicts: eps, x0, v, or flow, which is eps - x0 (flow matching, with
            ``diffusion.schedule`` flow).
        weighting: weighting of the denoising loss over t, with mean 1: uniform, or min_snr (Hang et al. 2023).
        noisy_labels: weight of the cross-entropy of the noisy images, each classified at its own t and weighted by abar_t. It
            is almost free, since they pass the label read-out (``model.class_depth``) anyway.
        label_smoothing: probability mass spread evenly over all classes.
        label_dropout: fraction of the images to be denoised whose label is dropped, if model.label_conditioning.
        guidance: strength of the classifier-free guidance that a network with model.label_conditioning learns, so that sampling
            needs no second pass for it (Tang et al. 2025); 0.3 is a good start. The guidance of `hybvit sample` is added to it.
        pseudo_labels: probability from which the network's own label of an unlabeled image counts as the label of a strongly
            augmented copy and of its noisy version (FixMatch, Sohn et al. 2020); 0 for none.
    """

    kind: Literal["vit", "genvit", "hybvit", "jem"] = "hybvit"
    alpha: float = 100.0
    alpha_end: float | None = None
    norm: Norm = "l1"
    target: Target = "eps"
    weighting: Weighting = "uniform"
    noisy_labels: float = 0.0
    label_smoothing: float = 0.1
    label_dropout: float = 0.1
    guidance: float = 0.0
    pseudo_labels: float = 0.0
