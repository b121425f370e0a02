"""The joint objective L = L_CE + alpha L_simple (Eqs. 22-24) over two mini-batches (Sec. 4.2), and what may vary in it.

Shapes: images [Bc, C, H, W] and clean [Bd, C, H, W] in [-1, 1]; labels int64 [Bc], or class shares float [Bc, K] (MixUp);
t int64 in 1..T, 0 for a clean image. Every draw comes from a generator on the CPU, and all but the noise are made there.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .diffusion import Diffusion, Target
from .seeds import moved, normal_like
from .vit import Output

Norm = Literal["l1", "l2", "huber"]
Times = Literal["uniform", "logit_normal"]
Weighting = Literal["uniform", "min_snr", "p2"]
Balance = Literal["fixed", "uncertainty", "gradient_norm"]

HUBER_WIDTH = 0.1  # near the L1 loss of a trained network: large errors count as in L1, small ones lose its kink
MIN_SNR_GAMMA = 5.0  # Hang et al. 2023
P2_K, P2_GAMMA = 1.0, 1.0  # Choi et al. 2022
MAX_GRADIENT_RATIO = 1e4  # between the gradients of the two losses, either way: beyond it one has all but vanished
TINY_NORM = 1e-8  # added to a gradient's norm: where both are zero, as behind a gate that starts closed, the ratio is 1


class Batch(NamedTuple):
    """One step's two mini-batches; which are there decides the model: ViT has no ``clean``, GenViT no ``images``.

    ``clean_labels`` int64 [Bd], -1 where unknown, are there only for a network that is told the class it denoises towards, or
    that labels noisy images too.
    """

    clean: Tensor | None
    images: Tensor | None
    labels: Tensor | None
    clean_labels: Tensor | None = None


class TwoTaskNetwork(Protocol):
    """What the objective asks of a network; one that only classifies or only denoises has just that of it.

    Arguments with a default are passed only by the options that need them: t and t_images [B] in 0..T, the times of
    ``images``, by class noise; y int64 [B] in 0..K, where K is "no label", by label conditioning; label_all by noisy labels;
    untold by guidance, which asks a network that only denoises for ``denoise_with_and_without`` instead.
    """

    def classify(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], clean or at t -> logits [B, K]."""

    def denoise(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t [B, C, H, W] at t int64 [B] -> the predicted target [B, C, H, W]."""

    def denoise_with_and_without(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`denoise` told y, and told nothing."""

    def joint(
        self,
        images: Tensor,
        x_t: Tensor,
        t: Tensor,
        t_images: Tensor | None = None,
        y: Tensor | None = None,
        label_all: bool = False,
        untold: bool = False,
    ) -> Output:
        """Both at once: the logits of ``images``, followed with label_all by those of x_t, and the predicted target of x_t."""


class Losses(NamedTuple):
    """Scalars; a term that the objective or the batch has not is None.

    Attributes:
        total: what is minimised.
        ce: of the labelled mini-batch.
        denoising: of the other one.
        noisy_ce: the cross-entropy of the images being denoised, unweighted: see :func:`noisy_cross_entropy`.
        denoising_weight: what ``denoising`` is multiplied by in ``total`` where the cross-entropy counts 1: alpha, or what the
            balance found.
    """

    total: Tensor
    ce: Tensor | None = None
    denoising: Tensor | None = None
    noisy_ce: Tensor | None = None
    denoising_weight: Tensor | None = None


def hybrid_loss(
    net: TwoTaskNetwork,
    diffusion: Diffusion,
    batch: Batch,
    *,
    alpha: float = 100.0,
    norm: Norm = "l1",
    target: Target = "eps",
    label_smoothing: float = 0.0,
    times: Times = "uniform",
    weighting: Weighting = "uniform",
    balance: Balance = "fixed",
    class_noise: float = 0.0,
    noisy_labels: float = 0.0,
    label_dropout: float = 0.1,
    guidance: float = 0.0,
    generator: torch.Generator | None = None,
    t: Tensor | None = None,
    noise: Tensor | None = None,
) -> Losses:
    """Eqs. 23-24, both mini-batches in one pass of the network.

    Args:
        alpha, balance: weight of the denoising loss (the paper's 1, 10 or 100), and what else balances the two:
            :func:`balanced_sum`. They do nothing with one mini-batch, nor does ``noisy_labels``.
        norm, weighting: see :func:`denoising_loss` and :func:`time_weights`.
        target: what the network predicts of x_t: see :meth:`hybvit.Diffusion.target`.
        label_smoothing: share of every label that is given to all classes alike.
        times: see :func:`draw_times`.
        class_noise: share of T up to which half of the labelled images are noised before they are classified.
        noisy_labels: weight of the cross-entropy of the noisy images against ``clean_labels``: see :func:`noisy_cross_entropy`.
        label_dropout: share of ``clean_labels`` that a network with ``label_conditioning`` is not told.
        guidance: what such a network learns to predict as if it were sampled with: see :func:`guided_target`.
        generator: CPU generator of every draw: t, then eps ~ N(0, I) (:func:`hybvit.seeds.normal_like`), then what the options
            need.
        t, noise: int64 [Bd] and [Bd, C, H, W], to fix the draws instead.

    Raises:
        ValueError: both mini-batches are missing, ``images`` come without ``labels`` (or the other way round), ``noisy_labels``
            or ``guidance`` without ``clean_labels``, or an option has no such value or needs what the network lacks.
    """
    clean, images, labels, clean_labels = batch
    if (images is None) != (labels is None):
        raise ValueError("`images` and `labels` come together: one of them is missing")
    if clean is None:  # ViT
        if images is None or labels is None:
            raise ValueError("the batch is empty: it needs `clean` images, labelled `images`, or both")
        if class_noise:
            logits = net.classify(*lightly_noised(diffusion, images, class_noise, generator))
        else:
            logits = net.classify(images)
        ce = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return Losses(ce, ce)

    if t is None:
        t = moved(draw_times(len(clean), diffusion.T, times, generator), clean.device)
    if noise is None:
        noise = normal_like(clean, generator)
    x_t = diffusion.q_sample(clean, t, noise)
    wanted = diffusion.target(target, clean, t, noise)
    weights = None if weighting == "uniform" else time_weights(diffusion, weighting, target).float().to(t.device)[t]
    asked: dict[str, Any] = {}  # the arguments that the options add
    null = getattr(net, "null_label", None)
    if clean_labels is not None and null is not None:
        asked["y"] = with_dropped(clean_labels, null, label_dropout, generator)
    elif guidance:
        raise ValueError("guidance needs `clean_labels` and a network with `label_conditioning`")
    if images is None or labels is None:  # GenViT
        if guidance:
            prediction, without = net.denoise_with_and_without(x_t, t, **asked)
            wanted = guided_target(wanted, prediction, without, guidance)
        else:
            prediction = net.denoise(x_t, t, **asked)
        denoising = denoising_loss(prediction, wanted, norm, weights)
        return Losses(denoising, denoising=denoising)

    if class_noise:
        images, asked["t_images"] = lightly_noised(diffusion, images, class_noise, generator)
    asked |= {"label_all": True} if noisy_labels else {}
    asked |= {"untold": True} if guidance else {}
    logits, prediction, untold = net.joint(images, x_t, t, **asked)
    if untold is not None:
        wanted = guided_target(wanted, prediction, untold, guidance)
    noisy_ce = None
    if noisy_labels:
        if clean_labels is None:
            raise ValueError("noisy_labels needs `clean_labels`")
        logits, of_noisy = logits[: len(images)], logits[len(images) :]
        noisy_ce = noisy_cross_entropy(diffusion, of_noisy, clean_labels, t, label_smoothing)
    ce = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    denoising = denoising_loss(prediction, wanted, norm, weights)
    labelling = ce if noisy_ce is None else ce + noisy_labels * noisy_ce
    total, weight = balanced_sum(net, labelling, denoising, alpha, balance)
    return Losses(total, ce, denoising, noisy_ce, weight)


def noisy_cross_entropy(
    diffusion: Diffusion, logits: Tensor, labels: Tensor, t: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """mean of abar_t CE(p(y | x_t), y): what is left of the image decides how much its label counts.

    logits [Bd, K] of x_t at t int64 [Bd]; labels int64 [Bd], those of unlabelled images (-1) count 0.
    """
    losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none", ignore_index=-1)
    return (diffusion.at("alpha_bar", t, losses) * losses).mean()


def denoising_loss(prediction: Tensor, target: Tensor, norm: Norm = "l1", weights: Tensor | None = None) -> Tensor:
    """Eq. 15 as a mean over all elements: the published runs use L1, Ho et al. L2 (comparable, says Appendix B).

    Args:
        norm: l1, l2, or huber: L1 with a parabola for its kink. Its slope beyond is that of L1, so alpha keeps its meaning.
        weights: [B], a factor for each image's mean; None for 1.
    """
    if norm not in ("l1", "l2", "huber"):
        raise ValueError(f"norm is {norm!r}: it must be l1, l2 or huber")
    reduction = "mean" if weights is None else "none"
    if norm == "l1":
        loss = F.l1_loss(prediction, target, reduction=reduction)
    elif norm == "l2":
        loss = F.mse_loss(prediction, target, reduction=reduction)
    else:
        loss = F.smooth_l1_loss(prediction, target, reduction=reduction, beta=HUBER_WIDTH)
    return loss if weights is None else (weights * loss.flatten(1).mean(dim=1)).mean()


def guided_target(wanted: Tensor, told: Tensor, untold: Tensor, guidance: float) -> Tensor:
    """What a network that is told the label learns in order to need no second pass when it is sampled (Tang et al. 2025).

    wanted + w (told - untold) with w = guidance / (1 + guidance), where both predictions [B, C, H, W] count as constants.
    It is fulfilled by told = (1 + guidance) E[wanted | y] - guidance untold, classifier-free guidance of that strength. An
    image whose label is dropped has twice the same prediction, so it keeps its target.
    """
    return wanted + guidance / (1 + guidance) * (told - untold).detach()


def draw_times(n: int, T: int, times: Times = "uniform", generator: torch.Generator | None = None) -> Tensor:
    """int64 [n] in 1..T: uniform, or ceil(T u) for u = sigmoid(N(0, 1)), which favours the middle (Esser et al. 2024)."""
    if times == "uniform":
        return torch.randint(1, T + 1, (n,), generator=generator)
    if times != "logit_normal":
        raise ValueError(f"times is {times!r}: it must be uniform or logit_normal")
    u = torch.randn(n, generator=generator, dtype=torch.float64).sigmoid()
    return (T * u).ceil().long().clamp(1, T)


def time_weights(diffusion: Diffusion, weighting: Weighting, target: Target) -> Tensor:
    """The weight of an image's denoising loss at each t, float64 [T + 1]: 0 at t = 0, mean 1 over t = 1..T.

    min_snr, min(snr, gamma)/snr (Hang et al. 2023), and p2, 1/(k + snr)^gamma (Choi et al. 2022), weigh a squared error of
    eps. For another target they are multiplied by the squared error of eps that an error of 1 stands for, so that one and
    the same denoiser is judged alike whatever it predicts (under l2; l1 and huber take the same weights). So min_snr is
    min(snr, gamma) for x0, and min(snr, gamma)/(snr + 1) for v. ``uniform`` is 1 for any target, as in the paper.
    The mean is 1 so that alpha keeps its meaning.
    """
    snr = diffusion.snr[1:]
    if weighting == "uniform":
        weights = torch.ones_like(snr)
    elif weighting == "min_snr":
        weights = snr.clamp(max=MIN_SNR_GAMMA) / snr * diffusion.eps_per_unit(target)[1:] ** 2
    elif weighting == "p2":
        weights = (P2_K + snr) ** -P2_GAMMA * diffusion.eps_per_unit(target)[1:] ** 2
    else:
        raise ValueError(f"weighting is {weighting!r}: it must be uniform, min_snr or p2")
    return torch.cat((weights.new_zeros(1), weights / weights.mean()))


def with_dropped(labels: Tensor, null: int, share: float, generator: torch.Generator | None = None) -> Tensor:
    """labels int64 [B] with ``null`` ("no label") for a random ``share`` of them and for the unknown ones, which are -1."""
    dropped = moved(torch.rand(len(labels), generator=generator) < share, labels.device)
    return labels.masked_fill(dropped | (labels < 0), null)


def lightly_noised(
    diffusion: Diffusion, images: Tensor, bound: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The images and their t int64 [B]: half of them, at random, stay clean (t = 0), the others get t ~ U{1..ceil(bound T)}."""
    n = len(images)
    t = torch.randint(1, math.ceil(bound * diffusion.T) + 1, (n,), generator=generator)
    t[torch.randperm(n, generator=generator)[: n - n // 2]] = 0
    t = moved(t, images.device)
    return diffusion.q_sample(images, t, normal_like(images, generator)), t


def balanced_sum(
    net: TwoTaskNetwork, labelling: Tensor, denoising: Tensor, alpha: float, balance: Balance = "fixed"
) -> tuple[Tensor, Tensor]:
    """Eq. 24, or a sum that finds its own balance -> it, and the weight of ``denoising`` where ``labelling`` counts 1.

    fixed: labelling + alpha denoising.
    uncertainty: exp(-s1) labelling + s1 + exp(-s2) alpha denoising + s2 (Kendall et al. 2018) with s = ``net.log_variances``
        [2], which are learned. They settle where exp(s) is the loss, so alpha decides only where the balance starts.
    gradient_norm: labelling + w denoising with w such that at ``net.last_shared_weight`` the gradient of the second term has
        alpha times the norm of that of the first (the adaptive weight of VQGAN, Esser et al. 2021), between alpha /
        :data:`MAX_GRADIENT_RATIO` and alpha times it; w counts as a constant.

    Raises:
        ValueError: there is no such balance, or the network lacks what it needs.
    """
    if balance not in ("fixed", "uncertainty", "gradient_norm"):
        raise ValueError(f"balance is {balance!r}: it must be fixed, uncertainty or gradient_norm")
    if balance == "fixed":
        return labelling + alpha * denoising, torch.full_like(denoising, alpha)
    needed = "log_variances" if balance == "uncertainty" else "last_shared_weight"
    own: Tensor | None = getattr(net, needed, None)
    if own is None:
        raise ValueError(f"balance is {balance!r}: the network has no {needed}")
    if balance == "uncertainty":
        s_labelling, s_denoising = own
        total = (-s_labelling).exp() * labelling + s_labelling + (-s_denoising).exp() * (alpha * denoising) + s_denoising
        return total, alpha * (s_labelling - s_denoising).detach().exp()
    of_labelling, of_denoising = (
        torch.autograd.grad(loss, own, retain_graph=True)[0].norm() for loss in (labelling, denoising)
    )
    ratio = (of_labelling + TINY_NORM) / (of_denoising + TINY_NORM)
    weight = alpha * ratio.clamp(1 / MAX_GRADIENT_RATIO, MAX_GRADIENT_RATIO)
    return labelling + weight * denoising, weight
