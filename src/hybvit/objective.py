"""The joint objective L = L_CE + alpha L_simple (Eqs. 22-24) over two mini-batches (Sec. 4.2).

Shapes: images [Bc, C, H, W] and clean [Bd, C, H, W] in [-1, 1]; labels int64 [Bc], or class shares float [Bc, K] (MixUp).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .diffusion import Diffusion, Target
from .vit import Output

Norm = Literal["l1", "l2"]


class Batch(NamedTuple):
    """One step's two mini-batches; which are there decides the model: ViT has no ``clean``, GenViT no ``images``."""

    clean: Tensor | None
    images: Tensor | None
    labels: Tensor | None


class Network(Protocol):
    """What the objective asks of a network; one that only classifies or only denoises has just that of it."""

    def classify(self, x: Tensor) -> Tensor:
        """Clean x [B, C, H, W] -> logits [B, K]."""

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, H, W] at t int64 [B] -> the predicted target [B, C, H, W]."""

    def joint(self, images: Tensor, x_t: Tensor, t: Tensor) -> Output:
        """Both at once: the logits of ``images`` and the predicted target of ``x_t``."""


class Losses(NamedTuple):
    """Scalars; a term whose mini-batch is missing is None. ``total`` is what is minimised."""

    total: Tensor
    ce: Tensor | None
    denoising: Tensor | None


def denoising_loss(prediction: Tensor, target: Tensor, norm: Norm = "l1") -> Tensor:
    """Eq. 15 as a mean over all elements: the published runs use L1, Ho et al. L2 (comparable, says Appendix B)."""
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm is {norm!r}: it must be l1 or l2")
    return F.l1_loss(prediction, target) if norm == "l1" else F.mse_loss(prediction, target)


def hybrid_loss(
    net: Network,
    diffusion: Diffusion,
    batch: Batch,
    *,
    alpha: float = 100.0,
    norm: Norm = "l1",
    target: Target = "eps",
    label_smoothing: float = 0.0,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
) -> Losses:
    """Eqs. 23-24, both mini-batches in one pass of the network.

    Args:
        alpha: weight of the denoising loss (the paper's 1, 10 or 100).
        generator: CPU generator for t ~ U{1..T} and eps ~ N(0, I); the same draws reach every device.
        t, noise: int64 [Bd] and [Bd, C, H, W], to fix the draws instead.

    Raises:
        ValueError: both mini-batches are missing, or ``images`` come without ``labels``.
    """
    clean, images, labels = batch
    if (images is None) != (labels is None):
        raise ValueError("`images` and `labels` come together: one of them is missing")
    if clean is None:  # ViT
        if images is None or labels is None:
            raise ValueError("the batch is empty: it needs `clean` images, labelled `images`, or both")
        ce = F.cross_entropy(net.classify(images), labels, label_smoothing=label_smoothing)
        return Losses(ce, ce, None)

    if t is None:
        t = torch.randint(1, diffusion.T + 1, (len(clean),), generator=generator).to(clean.device)
    if noise is None:
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype).to(clean.device)
    x_t = diffusion.q_sample(clean, t, noise)
    wanted = diffusion.target(target, clean, t, noise)
    if images is None or labels is None:  # GenViT
        denoising = denoising_loss(net.denoise(x_t, t), wanted, norm)
        return Losses(denoising, None, denoising)

    logits, prediction = net.joint(images, x_t, t)
    ce = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    denoising = denoising_loss(prediction, wanted, norm)
    return Losses(ce + alpha * denoising, ce, denoising)
