"""The joint objective L = L_CE + alpha L_simple (Eqs. 22-24) over two mini-batches (Sec. 4.2), and its variants.

Shapes: images [Bc, C, H, W] and x0 [Bd, C, H, W] in [-1, 1]; labels int64 [Bc], or soft labels float [Bc, K] (MixUp);
t int64 in 1..T, 0 for a clean image. All randomness comes from one CPU generator. Everything random except the noise is also
computed on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .diffusion import Diffusion
from .objective_config import Objective, Target, Weighting
from .seeds import normal_like, to_device_async
from .vit import Output

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023


class Batch(NamedTuple):
    """The two mini-batches of one step: ``x0`` to be denoised, ``images`` with ``labels`` to be classified.

    ViT has no ``x0``, GenViT no ``images``. ``x0_labels`` int64 [Bd], -1 where unknown, are set only for a
    class-conditional network, or for one that also classifies noisy images. ``x0_augmented`` are strongly augmented copies of
    ``x0``, with its labels, for the network's own labels.

    ``part`` is (k, n) if these are the rows k, k + n, ... of a larger batch: they get the random numbers that they get there,
    so that the mean of the losses over k is its loss, for a network without batch norm.
    """

    x0: Tensor | None
    images: Tensor | None
    labels: Tensor | None
    x0_labels: Tensor | None = None
    x0_augmented: Tensor | None = None
    part: tuple[int, int] = (0, 1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with all of its tensors changed."""
        x0, images, labels, x0_labels, augmented = (None if tensor is None else change(tensor) for tensor in self[:5])
        return Batch(x0, images, labels, x0_labels, augmented, self.part)

    @property
    def device(self) -> torch.device:
        return next(tensor.device for tensor in self[:5] if tensor is not None)

    def split(self, parts: int) -> list[Batch]:
        """The batch in parts of equally many rows."""
        k, n = self.part
        found = [self.map(lambda tensor, m=m: tensor[m::parts]) for m in range(parts)]  # type: ignore[misc]
        return [part._replace(part=(k + n * m, n * parts)) for m, part in enumerate(found)]


class Losses(NamedTuple):
    """The loss and its terms, all scalars; a term that the objective or the batch does not have is None.

    Attributes:
        total: the loss to minimize.
        ce: cross-entropy of the labeled mini-batch.
        denoising: denoising loss of the other mini-batch.
        noisy_ce: cross-entropy of the noisy images, before its weight ``noisy_labels``: see :func:`noisy_cross_entropy`.
        pseudo_ce: cross-entropy of the strongly augmented copies of the images to denoise, a mean over all of them, to which
            those without a label contribute 0.
        denoising_weight: weight of ``denoising`` in ``total``: alpha.
        energy_gap: JEM only: the mean energy of real images minus that of samples.
    """

    total: Tensor
    ce: Tensor | None = None
    denoising: Tensor | None = None
    noisy_ce: Tensor | None = None
    pseudo_ce: Tensor | None = None
    denoising_weight: Tensor | None = None
    energy_gap: Tensor | None = None


class TwoTaskNetwork(Protocol):
    """The interface that the objective needs. A network for one task only (vit, genvit) implements just that part.

    Arguments with a default are passed only by the options that need them: y int64 [B] in 0..K, where K is "no label", by label
    conditioning; classify_noisy by noisy labels; uncond by guidance. With kind genvit, guidance calls ``denoise_cond_uncond``
    instead. A network with its own objective (kind jem) implements ``loss``.
    """

    def classify(self, x: Tensor) -> Tensor:
        """x [B, C, H, W], clean -> logits [B, K]."""

    def denoise(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t [B, C, H, W] at t int64 [B] -> the predicted target [B, C, H, W]."""

    def denoise_cond_uncond(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional :meth:`denoise`."""

    def joint(
        self,
        images: Tensor,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        classify_noisy: bool = False,
        uncond: bool = False,
    ) -> Output:
        """Both in one pass: the logits of ``images``, with ``classify_noisy`` also those of x_t, and the prediction for x_t."""

    def loss(self, batch: Batch, objective: Objective, generator: torch.Generator | None) -> Losses: ...


def hybrid_loss(
    net: Any,
    diffusion: Diffusion,
    batch: Batch,
    objective: Objective,
    *,
    progress: float = 0.0,
    generator: torch.Generator | None = None,
) -> Losses:
    """The loss of Eqs. 23-24, with both mini-batches in one pass of the network.

    Args:
        net: a :class:`TwoTaskNetwork`, or the part of one that the given mini-batches need.
        progress: completed fraction of the run, in [0, 1].
        generator: a CPU generator for all randomness, in this order: t, eps ~ N(0, I), which labels are dropped.

    Raises:
        ValueError: both mini-batches are missing, or ``labels``, or ``x0_labels`` for ``noisy_labels`` or ``guidance``; or an
            option has an invalid value or is not supported by the network.
    """
    if objective.kind == "jem":
        return net.loss(batch, objective, generator)
    x0, images, labels, x0_labels, x0_augmented, (k, n) = batch
    if (images is None) != (labels is None):
        raise ValueError("`images` and `labels` belong together, and one of them is missing: pass both or neither")
    if x0 is None:  # ViT
        if images is None or labels is None:
            raise ValueError("the batch is empty: it needs `x0` images, labeled `images`, or both")
        ce = F.cross_entropy(net.classify(images), labels, label_smoothing=objective.label_smoothing)
        return Losses(ce, ce)
    t = to_device_async(draw_times(n * len(x0), diffusion.T, generator)[k::n], x0.device)
    noise = normal_like(x0 if n == 1 else x0[:1].expand(n * len(x0), *x0.shape[1:]), generator)[k::n]
    x_t, target = diffusion.q_sample(x0, t, noise), diffusion.target(objective.target, x0, t, noise)
    x0_labels = with_pseudo_labels(net, x0, x0_labels, objective.pseudo_labels)
    cond, null, guided = dict[str, Tensor](), getattr(net, "null_label", None), objective.guidance > 0
    if x0_labels is not None and null is not None:
        cond["y"] = drop_labels(x0_labels, null, objective.label_dropout, generator, (k, n))
    elif guided:
        raise ValueError("guidance needs `x0_labels` and a network with `label_conditioning`")
    if images is None or labels is None:  # GenViT
        prediction, uncond = net.denoise_cond_uncond(x_t, t, **cond) if guided else (net.denoise(x_t, t, **cond), None)
        target = guided_target(target, prediction, uncond, objective.guidance)
        denoising = denoising_loss(diffusion, prediction, target, t, objective)
        return Losses(denoising, denoising=denoising)
    wanted = {"classify_noisy": objective.noisy_labels > 0, "uncond": guided}
    clean = images if x0_augmented is None else torch.cat((images, x0_augmented))
    logits, prediction, uncond = net.joint(clean, x_t, t, **cond, **{name: True for name in wanted if wanted[name]})
    of_images, of_copies, of_noisy = logits.tensor_split((len(images), len(clean)))
    total = ce = F.cross_entropy(of_images, labels, label_smoothing=objective.label_smoothing)
    noisy_ce = pseudo_ce = None
    if objective.noisy_labels:
        noisy_ce = noisy_cross_entropy(diffusion, of_noisy, x0_labels, t, objective.label_smoothing)
        total = total + objective.noisy_labels * noisy_ce
    if x0_augmented is not None:
        total = total + (pseudo_ce := copies_cross_entropy(of_copies, x0_labels))
    target = guided_target(target, prediction, uncond, objective.guidance)
    denoising = denoising_loss(diffusion, prediction, target, t, objective)
    alpha = alpha_at(objective, progress)
    return Losses(total + alpha * denoising, ce, denoising, noisy_ce, pseudo_ce, torch.full_like(denoising, alpha))


def alpha_at(objective: Objective, progress: float) -> float:
    """alpha at ``progress``, the completed fraction of the run in [0, 1]."""
    alpha, end = objective.alpha, objective.alpha_end
    return alpha if end is None else alpha + (end - alpha) * progress


def denoising_loss(diffusion: Diffusion, prediction: Tensor, target: Tensor, t: Tensor, objective: Objective) -> Tensor:
    """Eq. 15 as a mean over all elements. The published runs use L1, Ho et al. L2; Appendix B calls them comparable.

    prediction and target are [Bd, C, H, W] at t int64 [Bd]; :func:`time_weights` gives the weight of each image.
    """
    losses = {"l1": F.l1_loss, "l2": F.mse_loss}
    if objective.norm not in losses:
        raise ValueError(f"norm is {objective.norm!r}: it must be l1 or l2")
    if objective.weighting == "uniform":
        return losses[objective.norm](prediction, target)
    weights = time_weights(diffusion, objective.weighting, objective.target).float().to(t.device)[t]
    return (weights * losses[objective.norm](prediction, target, reduction="none").flatten(1).mean(dim=1)).mean()


def noisy_cross_entropy(
    diffusion: Diffusion, logits: Tensor, labels: Tensor | None, t: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The mean of abar_t CE(p(y | x_t), y): the more noise an image has, the less its label counts.

    logits [Bd, K] of x_t at t int64 [Bd]; labels int64 [Bd], where -1 (unlabeled) contributes 0.
    """
    if labels is None:
        raise ValueError("noisy_labels needs `x0_labels`")
    losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none", ignore_index=-1)
    return (diffusion.at("alpha_bar", t, losses) * losses).mean()


def copies_cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor:
    """The mean over all augmented copies, logits [Bd, K], of CE(p(y | copy), y), where -1 in labels int64 [Bd], an image that
    the network is not sure of, contributes 0 (Sohn et al. 2020, Eq. 4)."""
    if labels is None:
        raise ValueError("`x0_augmented` needs `x0_labels`")
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=-1).mean()


@torch.no_grad()
def with_pseudo_labels(net: Any, x0: Tensor, labels: Tensor | None, confidence: float) -> Tensor | None:
    """Label the unlabeled images by the network itself, where it is confident of the clean image (Lee 2013). A strongly
    augmented copy and the noisy version are then to get the same label (Sohn et al. 2020), and so is a class-conditional
    denoiser.

    x0 [Bd, C, H, W] in [-1, 1], labels int64 [Bd], -1 where unknown -> labels int64 [Bd]; unchanged for a confidence of 0.
    """
    if labels is None or not confidence:
        return labels
    found = net.classify(x0).float().softmax(dim=1).max(dim=1)
    return torch.where((labels < 0) & (found.values >= confidence), found.indices, labels)


def guided_target(target: Tensor, cond: Tensor, uncond: Tensor | None, guidance: float) -> Tensor:
    """The target of a conditional network that learns its guidance, so sampling needs no second pass (Tang et al. 2025).

    target + w (cond - uncond) with w = guidance / (1 + guidance); both predictions [B, C, H, W] are treated as constants.
    Its fixed point is cond = (1 + guidance) E[target | y] - guidance uncond, classifier-free guidance of that strength. For an
    image whose label was dropped, both predictions are equal, so its target is unchanged; as all are without ``uncond``.
    """
    return target if uncond is None else target + guidance / (1 + guidance) * (cond - uncond).detach()


def draw_times(n: int, T: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniformly random t, int64 [n] in 1..T."""
    return torch.randint(1, T + 1, (n,), generator=generator)


def time_weights(diffusion: Diffusion, weighting: Weighting, target: Target) -> Tensor:
    """The weight of an image's denoising loss at each t, float64 [T + 1]: 0 at t = 0, mean 1 over t = 1..T.

    min_snr, min(snr, gamma)/snr (Hang et al. 2023), weights the squared error of eps. For another target it is multiplied by
    (d eps / d prediction)^2, so the weighted loss of a denoiser does not depend on its parametrization (under l2; l1 uses the
    same weights). It becomes min(snr, gamma) for x0, and min(snr, gamma)/(snr + 1) for v. ``uniform`` is 1 for every target,
    as in the paper. The mean is 1 so that alpha is comparable between weightings.
    """
    snr = diffusion.snr[1:]
    if weighting == "uniform":
        weights = torch.ones_like(snr)
    elif weighting == "min_snr":
        weights = snr.clamp(max=MIN_SNR_GAMMA) / snr * diffusion.eps_per_unit(target)[1:] ** 2
    else:
        raise ValueError(f"weighting is {weighting!r}: it must be uniform or min_snr")
    return torch.cat((weights.new_zeros(1), weights / weights.mean()))


def drop_labels(
    labels: Tensor, null: int, probability: float, generator: torch.Generator | None = None, part: tuple[int, int] = (0, 1)
) -> Tensor:
    """Replace each label of int64 [B] by ``null`` ("no label") with this probability, and unknown labels (-1) always; ``part``
    as in :class:`Batch`."""
    k, n = part
    dropped = to_device_async(torch.rand(n * len(labels), generator=generator)[k::n] < probability, labels.device)
    return labels.masked_fill(dropped | (labels < 0), null)
