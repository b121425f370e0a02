"""Two readings of an image by its denoiser: the diffusion classifier, and the label read-out after one denoising step.

The diffusion classifier takes the class whose conditional denoising error is least (Li et al. 2023; Chen et al. 2024). Minus
the error, summed over times, is a bound on log p(x|y), so with equal priors its softmax is p(y|x) by Bayes' rule. All classes
get the same times and noise, since the differences between them are far smaller than the spread over noise.

Shapes: x float [B, C, H, W] in [-1, 1]; K classes; S times, of all rounds together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .diffusion import Diffusion

DENOISED_AT, DENOISED_DRAWS = 0.2, 4  # chosen on training images (docs/readings.md), like all of these

LabelDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


class Round(NamedTuple):
    """A round of the evaluation.

    Attributes:
        times: as fractions of T.
        classes: how many of the classes take part, those with the least error so far.
    """

    times: tuple[float, ...]
    classes: int


TIMES = (0.5, 0.6, 0.65, 0.7, 0.8)
ROUNDS = (Round(TIMES, 0), Round(5 * TIMES, 3))


class DiffusionClassifier(NamedTuple):
    """The diffusion classifier as a function of images and noise. Differentiable in both.

    Attributes:
        denoise: (x_t [B, C, H, W], t int64 [B], y int64 [B, M]) -> the predicted x_0 for each label [B, M, C, H, W].
        diffusion: the process that it was trained for.
        num_classes: K.
        rounds: of adaptive elimination; the first has all K classes, whatever its ``classes`` is.
        scale: what the mean weighted error is multiplied by to give -log p(x|y); the number of values of an image, if each has
            an error of its own.
    """

    denoise: LabelDenoiser
    diffusion: Diffusion
    num_classes: int
    rounds: Sequence[Round]
    scale: float

    @property
    def times(self) -> list[int]:
        """The time of each of the S evaluations."""
        shares = [share for part in self.rounds for share in part.times]
        return [time_at(self.diffusion, share) for share in shares]

    def draw_noise(self, image_shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """[S, C, H, W], one draw of noise for each time; ``generator`` is a CPU generator."""
        return torch.randn(len(self.times), *image_shape, generator=generator)

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """The logits, [B, K]: log p(x|y) up to a constant of the image.

        A class that a round leaves out keeps the mean distance to the best one that it had then. So its logit is finite, and
        the logits are those of the plain computation if every round has all classes.

        Args:
            noise: [S, C, H, W], the same for all images and classes.
        """
        left = torch.arange(self.num_classes, device=x.device).expand(len(x), -1)
        total = torch.zeros(left.shape, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        behind, done, times = total, 0, self.times
        for k, part in enumerate(self.rounds):
            if k and part.classes < left.shape[1]:
                place = total.detach().topk(part.classes, largest=False).indices
                left, total = left.gather(1, place), total.gather(1, place)
            for _ in part.times:
                total = total + self.errors(x, times[done], noise[done].to(x), left)
                done += 1
            behind = behind.scatter(1, left, (total - total.amin(dim=1, keepdim=True)) / done)
        return -self.scale * (behind + total.amin(dim=1, keepdim=True) / done)

    def errors(self, x: Tensor, t: int, noise: Tensor, y: Tensor) -> Tensor:
        """The weighted mean squared error of x_0 at time t for the labels y int64 [B, M] -> [B, M].

        The weight is sqrt(abar_t)/(1 - abar_t), whatever the network was trained to predict: half-way, in the logarithm,
        between the error of v (1/(1 - abar_t)) and that of eps (abar_t/(1 - abar_t)). Where a gradient is asked for, what is
        inside the network is computed again in the backward pass rather than kept.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            return checkpoint(self._errors, x, t, noise, y, use_reentrant=False)
        return self._errors(x, t, noise, y)

    def _errors(self, x: Tensor, t: int, noise: Tensor, y: Tensor) -> Tensor:
        at = torch.full((len(x),), t, device=x.device)
        x0 = self.denoise(self.diffusion.q_sample(x, at, noise.expand_as(x)), at, y)
        squared = (x0 - x[:, None]).square().flatten(2).mean(dim=2)
        abar = float(self.diffusion.alpha_bar[t])
        return squared * (abar**0.5 / (1 - abar))


class DenoisedReading(NamedTuple):
    """The label read-out after one denoising step: noise is added and removed, and what is left is classified.

    It is the denoised smoothing of Carlini et al. 2023 without its votes. Differentiable in images and noise.

    Attributes:
        predict_x0: (x_t [B, C, H, W], t int64 [B]) -> the predicted x_0.
        classify: x [B, C, H, W] -> logits [B, K].
        diffusion: the process that ``predict_x0`` was trained for.
        share: the time of the step, as a fraction of T.
        draws: of noise, over which the probabilities are averaged.
    """

    predict_x0: Callable[[Tensor, Tensor], Tensor]
    classify: Callable[[Tensor], Tensor]
    diffusion: Diffusion
    share: float
    draws: int

    def draw_noise(self, image_shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """[draws, C, H, W]; ``generator`` is a CPU generator."""
        return torch.randn(self.draws, *image_shape, generator=generator)

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """The log of the mean probabilities, [B, K].

        Args:
            noise: [draws, C, H, W], the same for all images.
        """
        logits = torch.stack([self.classify(self.denoised(x, draw.to(x))) for draw in noise])
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(noise))

    def denoised(self, x: Tensor, noise: Tensor) -> Tensor:
        """x with this noise added and removed in one step, clipped to [-1, 1]."""
        at = torch.full((len(x),), time_at(self.diffusion, self.share), device=x.device)
        return self.predict_x0(self.diffusion.q_sample(x, at, noise.expand_as(x)), at).clamp(-1, 1)


def time_at(diffusion: Diffusion, share: float) -> int:
    """The time at a fraction of T, in 1..T."""
    return min(max(1, round(share * diffusion.T)), diffusion.T)
