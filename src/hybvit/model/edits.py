"""Edited images and what the classifier says of them: the methods of HybridModel that change a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..data.image_set import to_pixels, to_x
from ..errors import ConfigError, DivergedError
from ..method import editing
from ..method.samplers import Denoiser, ImageNoise
from ..waiting import part_done, unwatched
from .answers import Images, Labels, Prediction
from .sampling import counted, image_noise

if TYPE_CHECKING:
    from .hybrid import HybridModel


class Edit(NamedTuple):
    """Edited images, and what the classifier says of them.

    Attributes:
        pixels: uint8 [N, C, H, W], on the CPU.
        before, after: the classifier's answers for the originals and for the edited images; None for a model without classes.
    """

    pixels: Tensor
    before: Prediction | None
    after: Prediction | None


class Counterfactual(NamedTuple):
    """Images changed until the classifier sees another class, on the CPU.

    Attributes:
        pixels: uint8 [N, C, H, W].
        before, after: the classifier's answers for the originals and for the changed images.
        accepted: bool [N], whether p(y|x) of the wanted class reached the confidence, for the result and for shifted copies of
            it; where not, the best attempt is given.
        hold: float [N], how strongly each result was held to its original; infinite where that is the result.
        distance: float [N], the Euclidean distance between original and result, with pixels in 0..1.
    """

    pixels: Tensor
    before: Prediction
    after: Prediction
    accepted: Tensor
    hold: Tensor
    distance: Tensor


def inpaint(
    model: HybridModel,
    images: Images,
    mask: Tensor,
    labels: Labels | None = None,
    steps: int = 20,
    repeats: int = 4,
    seed: int = 0,
    batch_size: int = 128,
) -> Edit:
    """Draw the pixels under a mask anew, to fit the others, which stay as they are. See :func:`.editing.inpaint`.

    Args:
        images: as :meth:`predict` takes them.
        mask: bool [H, W], or [N, H, W] with one for each image; True where pixels are drawn.
        labels: the class of each image, or one for all, for a model with ``label_conditioning``; None: unconditional.
        steps: sampler steps, each taken ``repeats`` times.
        seed: image i is drawn from (seed, i), whatever n and the batch size.

    Raises:
        ValueError: an argument is out of range, or labels are given to a model without ``label_conditioning``.
        ConfigError: the network was not trained to denoise.
    """
    pixels, mask = model.as_pixels(images), torch.as_tensor(mask).cpu()
    if mask.dtype != torch.bool or tuple(mask.shape) not in (model.image_shape[1:], (len(pixels), *model.image_shape[1:])):
        raise ValueError(
            f"mask is {mask.dtype} {list(mask.shape)}: it must be bool {list(model.image_shape[1:])}, or one for each image"
        )
    if steps < 1 or repeats < 1:
        raise ValueError(f"steps is {steps} and repeats {repeats}: both must be at least 1")
    mask = mask.expand(len(pixels), *model.image_shape[1:])[:, None]

    def paint(x: Tensor, rows: slice, denoise: Denoiser, noise: ImageNoise) -> Tensor:
        return editing.inpaint(denoise, model.diffusion, x, mask[rows].to(model.device), noise, steps, repeats)

    edited = _edit(model, pixels, paint, labels, seed, batch_size, (steps - 1) * repeats + 1)
    return edited._replace(pixels=torch.where(mask, edited.pixels, pixels.cpu()))


def vary(
    model: HybridModel,
    images: Images,
    strength: float = 0.6,
    labels: Labels | None = None,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 128,
) -> Edit:
    """Variations of images: noise up to a share ``strength`` of the way to pure noise, and back (SDEdit).

    Args:
        images: as :meth:`predict` takes them; repeat an image for several variations of it.
        strength: in (0, 1]; small values change texture, large ones the object, and 1 forgets the image.
        steps: sampler steps at strength 1.

    The other arguments and all errors are those of :meth:`inpaint`.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}: it must be above 0 and at most 1")
    if steps < 1:
        raise ValueError(f"steps is {steps}: it must be at least 1")

    def change(x: Tensor, rows: slice, denoise: Denoiser, noise: ImageNoise) -> Tensor:
        return editing.vary(denoise, model.diffusion, x, strength, noise, steps)

    return _edit(model, model.as_pixels(images), change, labels, seed, batch_size, math.ceil(strength * steps))


@torch.no_grad()
def interpolate(model: HybridModel, a: Images, b: Images, frames: int = 9, steps: int = 30) -> Edit:
    """Images on the way from a to b, through their own noise. ``pixels`` are [frames, C, H, W]; the first is a and the last
    b, up to the error of inversion, about a gray level. ``before`` are the answers for a and b.

    Args:
        a: one image, as :meth:`predict` takes it; b: another.
        frames: at least 2.
        steps: of the probability flow, of two evaluations each, to the noise and back.

    Raises:
        ValueError: an argument is out of range.
        ConfigError: the network was not trained to denoise.
    """
    ends = torch.cat((model.as_pixels(a), model.as_pixels(b)))
    if len(ends) != 2 or frames < 2 or frames != int(frames):
        raise ValueError(f"images: {len(ends)}, frames: {frames}: interpolation takes two images and at least two frames")
    _must_denoise(model)
    x_a, x_b = to_x(ends.to(model.device))
    x = editing.interpolate(counted(model.predict_x0, 4 * steps), model.diffusion, x_a, x_b, frames, steps)
    return _edited(model, ends, x)


@torch.no_grad()
def counterfactual(
    model: HybridModel,
    images: Images,
    labels: Labels,
    confidence: float = 0.95,
    guidance: float = 4.0,
    pull: float | None = None,
    batch_size: int = 128,
) -> Counterfactual:
    """What would make each image one of the class ``labels``, with little else changed.

    An image is led to its own noise and decoded with the denoiser of the class, held to the image less and less, until the
    classifier accepts (:func:`.editing.counterfactual`) the result and eight shifted copies of it. That is harder to fool than
    the reading of the result alone. It is deterministic. A network that was trained to classify noisy images
    (``noisy_labels``) steers by these readings, which are not asked whether they accept.

    Args:
        images: as :meth:`predict` takes them.
        labels: the wanted class of each image, or one for all, by number or name.
        confidence: the p(y|x) that is accepted, above 0 and below 1, of the logits as trained; the answers that are
            returned are calibrated, if the model is. A network that was trained with smoothed labels is never nearly certain:
            ask it for less.
        guidance: weight of classifier-free guidance, for a network with ``label_conditioning``.
        pull: weight of the classifier's own gradient; None: 50 beside label conditioning and 100 without it.

    Raises:
        ValueError: an argument is out of range.
        ConfigError: the network was not trained both to denoise and to classify.
    """
    pixels = model.as_pixels(images)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: it must be between 0 and 1")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    if pull is None:
        pull = 50.0 if model.takes_labels else 100.0
    if not (math.isfinite(guidance) and math.isfinite(pull)):
        raise ValueError(f"guidance is {guidance} and pull {pull}: both must be finite numbers")
    _must_denoise(model)
    if not model.has_classes:
        raise ConfigError("this model was trained with objective genvit: it has no classifier to ask")
    wanted, search = model.wanted_labels(labels, len(pixels)), editing.Search(confidence=confidence)
    found = [
        _counterfactual(model, to_x(part.to(model.device)), y, search, guidance, pull, len(part) / len(pixels))
        for part, y in zip(pixels.split(batch_size), wanted.split(batch_size), strict=True)
    ]
    edited = _edited(model, pixels, torch.cat([part.x for part in found]))
    assert edited.before is not None
    assert edited.after is not None
    accepted = torch.cat([part.log_p for part in found]).cpu() >= math.log(confidence)
    hold = torch.cat([part.hold for part in found]).cpu()
    distance = (edited.pixels.float() - pixels.cpu().float()).flatten(1).norm(dim=1) / 255
    return Counterfactual(edited.pixels, edited.before, edited.after, accepted, hold, distance)


def _counterfactual(
    model: HybridModel, x0: Tensor, labels: Tensor, search: editing.Search, guidance: float, pull: float, share: float
) -> editing.Counterfactual:
    """One batch, this share of all images; labels int64 [B]."""
    reads_noise, data = model.cfg.objective.noisy_labels > 0, model.cfg.data
    shift = 1 if data.augment == "none" else data.crop_padding  # no farther than in training

    def of_class(logits: Tensor, y: Tensor) -> Tensor:
        return logits.log_softmax(dim=1).gather(1, y[:, None])[:, 0]

    def log_p(x: Tensor, rows: Tensor) -> Tensor:
        """The least of the readings of the image as it will be stored, and of shifted copies of it."""
        views = editing.shifted(to_x(to_pixels(x)), shift)
        return torch.stack([of_class(model.logits(view), labels[rows]) for view in views]).amin(dim=0)

    def steered(rows: Tensor, hold: float) -> Denoiser:
        part_done(share / len(search.holds))
        y = labels[rows]
        denoise = model.conditional(y, guidance) if model.takes_labels else model.predict_x0

        def noisy_log_p(x_t: Tensor, t: Tensor) -> Tensor:
            return of_class(
                model.net.classify(x_t, t) if reads_noise else model.logits(model.predict_x0(x_t, t).clamp(-1, 1)), y
            )

        close = editing.held(denoise, model.diffusion, x0[rows], hold)
        return editing.classifier_guided(close, model.diffusion, noisy_log_p, pull)

    seen = model.logits(x0).argmax(dim=1)
    own = model.conditional(seen, 0.0) if model.takes_labels else model.predict_x0
    return editing.counterfactual(own, steered, log_p, model.diffusion, x0, search)


def _must_denoise(model: HybridModel) -> None:
    if not model.has_denoiser:
        raise ConfigError(f"this model was trained with objective {model.cfg.objective.kind}: it has no denoiser to edit with")


@torch.no_grad()
def _edit(
    model: HybridModel,
    pixels: Tensor,
    work: Callable[[Tensor, slice, Denoiser, ImageNoise], Tensor],
    labels: Labels | None,
    seed: int,
    batch_size: int,
    calls: int,
) -> Edit:
    """Edit images in batches by ``work``: x [B, C, H, W], their rows, a denoiser, which it calls so often, and noise -> x."""
    _must_denoise(model)
    if labels is not None and not model.takes_labels:
        raise ValueError("labels are given, but this model's denoiser was not trained with labels: leave them out")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    wanted = None if labels is None else model.wanted_labels(labels, len(pixels))
    parts = []
    for start in range(0, len(pixels), batch_size):
        rows = slice(start, min(start + batch_size, len(pixels)))
        noise = image_noise(range(rows.start, rows.stop), seed, model.image_shape, model.device, "edits")
        denoise = model.predict_x0 if wanted is None else model.conditional(wanted[rows], 0.0)
        denoise = counted(denoise, calls * len(pixels) / (rows.stop - rows.start))
        parts.append(work(to_x(pixels[rows].to(model.device)), rows, denoise, noise))
    return _edited(model, pixels, torch.cat(parts))


def _edited(model: HybridModel, originals: Tensor, x: Tensor) -> Edit:
    if not bool(x.isfinite().all()):
        raise DivergedError("the edited images are not finite: this model diverged in training; use another checkpoint")
    pixels = to_pixels(x).cpu()
    with unwatched():
        before, after = (model.predict(images) if model.has_classes else None for images in (originals, pixels))
    return Edit(pixels, before, after)
