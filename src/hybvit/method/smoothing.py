"""Randomized smoothing (Cohen et al. 2019): the classifier that a vote over many noisy copies of an image makes.

Shapes: x float [N, C, H, W] in [-1, 1], K classes. A noise level s is the standard deviation on the [0, 1] scale of pixels, as
in the literature, so it is 2 s in x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .diffusion import Diffusion
from .seeds import generator, normal_like

X_PER_PIXEL = 2.0  # x is in [-1, 1], pixels in [0, 1]
VOTES_PER_PASS = 64  # fixed, so that a vote does not depend on who else is asked; on a CPU about the fastest

NoisyClassifier = Callable[[Tensor], Tensor]  # x + 2 s eps [B, C, H, W], neither clipped nor scaled -> logits [B, K]


class NoiseLevel(NamedTuple):
    """How the network sees images with Gaussian noise of standard deviation s on the [0, 1] scale.

    A diffusion time with exactly this noise would have (1 - abar)/abar = (2 s)^2. There is one between two whole numbers: the
    images are scaled by its sqrt(abar), and the network is given the nearest whole t. The noise itself is drawn with s, not
    with that of t, so no certificate depends on the rounding.

    Attributes:
        t: the time that the network is given, in 1..T.
        scale: sqrt(abar) = 1/sqrt(1 + (2 s)^2), which brings x + 2 s eps to the variance of x_t.
    """

    t: int
    scale: float

    @classmethod
    def of(cls, diffusion: Diffusion, noise: float) -> NoiseLevel:
        """The level of noise s = ``noise``.

        Raises:
            ValueError: it is outside of :func:`noise_range`.
        """
        low, high = noise_range(diffusion)
        if not low <= noise <= high:
            raise ValueError(
                f"noise is {noise:g}: it must be in {low:.4f} to {min(high, 1e4):g} on the [0, 1] scale of pixels, the noise "
                f"of this model's times 1 to {diffusion.T}"
            )
        spread = diffusion.snr[1:].rsqrt()  # of the noise for an image of scale 1; its logarithm is nearly linear in t
        nearest = (spread.log() - torch.tensor(X_PER_PIXEL * noise, dtype=torch.float64).log()).abs().argmin()
        return cls(int(nearest) + 1, (1 + (X_PER_PIXEL * noise) ** 2) ** -0.5)

    def times(self, x: Tensor) -> Tensor:
        """t for each image of x, int64 [N]."""
        return torch.full((len(x),), self.t, device=x.device)


def noise_range(diffusion: Diffusion) -> tuple[float, float]:
    """The noise s of the times 1 and T, on the [0, 1] scale."""
    spread = diffusion.snr[1:].rsqrt() / X_PER_PIXEL
    return spread[0].item(), spread[-1].item()


def noisy_reading(classify: Callable[[Tensor, Tensor], Tensor], level: NoiseLevel) -> NoisyClassifier:
    """The label read-out itself, which was trained on noisy images (``Objective.noisy_labels``).

    Args:
        classify: (x_t, t) -> logits, such as :meth:`HybViT.classify`; only the layers up to the tap run.
    """
    return lambda noisy: classify(level.scale * noisy, level.times(noisy))


def denoised_reading(
    predict_x0: Callable[[Tensor, Tensor], Tensor], logits: Callable[[Tensor], Tensor], level: NoiseLevel
) -> NoisyClassifier:
    """One denoising step, then the classifier of clean images (Carlini et al. 2023)."""
    return lambda noisy: logits(predict_x0(level.scale * noisy, level.times(noisy)).clamp(-1, 1))


@torch.no_grad()
def cast_votes(
    classify: NoisyClassifier,
    x: Tensor,
    noise: float,
    votes: Sequence[int],
    num_classes: int,
    seed: int,
    indices: Sequence[int],
) -> tuple[Tensor, ...]:
    """How often each class is the most probable one under noise: for each number of ``votes`` int64 [N, K], on the CPU.

    The votes of an image depend on (seed, its index) only: it has noise of its own, and passes of its own. They are cast in
    the precision of the weights, float32 as a rule, whatever ``torch.autocast`` surrounds the call. A vote whose logits are
    not finite counts for no class.

    Args:
        noise: s, on the [0, 1] scale; nothing is clipped.
        votes: several independent polls, such as 100 to select a class and 1,000 to certify it.
        indices: a number for each image of x.
    """
    polls = tuple(torch.zeros(len(x), num_classes, dtype=torch.int64) for _ in votes)
    with torch.autocast(x.device.type, enabled=False):
        for row, (image, index) in enumerate(zip(x, indices, strict=True)):
            random = generator(seed, "smoothing", index)
            for poll, total in zip(polls, votes, strict=True):
                for start in range(0, total, VOTES_PER_PASS):
                    copies = image.expand(min(VOTES_PER_PASS, total - start), *image.shape)
                    logits = classify(copies + X_PER_PIXEL * noise * normal_like(copies, random))
                    chosen = logits.argmax(dim=1)[logits.isfinite().all(dim=1)]
                    poll[row] += torch.bincount(chosen, minlength=num_classes).cpu()
    return polls
