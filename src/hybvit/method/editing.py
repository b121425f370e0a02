"""Editing images with a denoiser: inpainting, variations, interpolation and counterfactuals.

Denoisers are those of :mod:`.samplers`, D(x_t, t) -> x_0, and ``x`` is float [B, C, H, W] in [-1, 1]. Deterministic edits go
through the probability-flow ODE (Song et al. 2021, score-based models, Eq. 13). In the angle phi = arctan(sigma/alpha), with
alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t), it reads

    x_t = cos(phi) x_0 + sin(phi) eps,    d x / d phi = v = cos(phi) eps - sin(phi) x_0

(Salimans & Ho 2022, App. D), which is well conditioned at all t, so that one rule leads from an image to its noise and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .diffusion import Diffusion
from .samplers import Denoiser, Noise, dpmpp_2m, predict_x0_eps, timesteps

LogProbability = Callable[[Tensor, Tensor], Tensor]  # x_t, t -> log p(y|x_t), [B]


def angles(diffusion: Diffusion) -> Tensor:
    """phi_t = arctan(sigma_t/alpha_t), float64 [T + 1], from 0 to nearly pi/2."""
    return torch.atan2(diffusion.sqrt_one_minus_alpha_bar, diffusion.sqrt_alpha_bar)


def flow_times(diffusion: Diffusion, steps: int) -> list[int]:
    """``steps`` + 1 times from 1 to T, equidistant in the angle and rounded to whole steps; equal ones are merged.

    Raises:
        ValueError: ``steps`` is not in 1..T - 1.
    """
    if not 1 <= steps < diffusion.T:
        raise ValueError(f"steps is {steps}: it must be in 1..{diffusion.T - 1}, below the number of diffusion steps")
    phi = angles(diffusion)[1:]
    wanted = torch.linspace(phi[0].item(), phi[-1].item(), steps + 1, dtype=torch.float64)
    return torch.unique(1 + (phi[None] - wanted[:, None]).abs().argmin(dim=1)).tolist()


def flow(denoise: Denoiser, diffusion: Diffusion, x: Tensor, times: Sequence[int]) -> Iterator[Tensor]:
    """Follow the probability flow from x at times[0]; yields x at times[1], times[2], ...

    Heun's method in the angle: second order, two evaluations per step. A first-order method (DDIM) at 20 steps loses the image
    on the way to its noise and back. The times may rise (to the noise) or fall (to the image), and are at least 1.
    """
    phi = angles(diffusion)
    for t, s in pairwise(times):
        step = (phi[s] - phi[t]).item()
        v = _velocity(denoise, diffusion, x, t)
        euler = math.cos(step) * x + math.sin(step) * v
        x = x + step / 2 * (v + _velocity(denoise, diffusion, euler, s))
        yield x


def _velocity(denoise: Denoiser, diffusion: Diffusion, x: Tensor, t: int) -> Tensor:
    x0, eps = predict_x0_eps(denoise, diffusion, x, t, clip=False)
    return diffusion.velocity(x0, torch.full((len(x),), t, device=x.device), eps)


def invert(denoise: Denoiser, diffusion: Diffusion, x0: Tensor, times: Sequence[int]) -> list[Tensor]:
    """The images' own noise: x at each of the rising ``times``, the first of which is 1, where the noise is set to 0."""
    x = diffusion.sqrt_alpha_bar[1].item() * x0
    return [x, *flow(denoise, diffusion, x, times)]


def decode(denoise: Denoiser, diffusion: Diffusion, x_t: Tensor, times: Sequence[int]) -> Tensor:
    """The images of x_t at times[-1], [B, C, H, W], the inverse of :func:`invert` for the same denoiser and ``times``."""
    x = x_t
    for x in flow(denoise, diffusion, x_t, times[::-1]):
        pass
    return x / diffusion.sqrt_alpha_bar[1].item()


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Spherical interpolation from a (weight 0) to b (weight 1), image by image; weight [B] (Shoemake 1985)."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = (flat_a * flat_b).sum(dim=1) / (flat_a.norm(dim=1) * flat_b.norm(dim=1)).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).acos()
    nearly_equal = angle.sin().abs() < 1e-4
    safe = torch.where(nearly_equal, torch.ones_like(angle), angle)
    of_a = torch.where(nearly_equal, 1 - weight, ((1 - weight) * safe).sin() / safe.sin())
    of_b = torch.where(nearly_equal, weight, (weight * safe).sin() / safe.sin())
    shape = (-1, *[1] * (a.ndim - 1))
    return of_a.reshape(shape) * a + of_b.reshape(shape) * b


def interpolate(denoise: Denoiser, diffusion: Diffusion, a: Tensor, b: Tensor, frames: int, steps: int) -> Tensor:
    """Images from a to b, each [C, H, W]: both are led to their own noise, which is interpolated and decoded
    (Song et al. 2021, DDIM, Sec. 5.3) -> [frames, C, H, W]; the first and the last reproduce a and b."""
    times = flow_times(diffusion, steps)
    noise_a, noise_b = invert(denoise, diffusion, torch.stack((a, b)), times)[-1]
    weight = torch.linspace(0, 1, frames, device=a.device)
    mixed = slerp(noise_a.expand(frames, *a.shape), noise_b.expand(frames, *b.shape), weight)
    return decode(denoise, diffusion, mixed, times)


def vary(denoise: Denoiser, diffusion: Diffusion, x0: Tensor, strength: float, noise: Noise, steps: int) -> Tensor:
    """Variations of x0 (SDEdit, Meng et al. 2022): noise up to t = strength T, then a sampler -> [B, C, H, W].

    Args:
        strength: in (0, 1]; 1 keeps next to nothing of the image.
        steps: of a whole run from T; a part of it takes its share of them.
    """
    start = max(1, round(strength * diffusion.T))
    count = min(start, max(1, math.ceil(strength * steps)))
    times = torch.linspace(start, 0, count + 1, dtype=torch.float64).round().long()
    x = noisy = diffusion.q_sample(x0, torch.full((len(x0),), start, device=x0.device), noise())
    for x in dpmpp_2m(denoise, diffusion, noisy, times):
        pass
    return x


def inpaint(
    denoise: Denoiser, diffusion: Diffusion, x0: Tensor, mask: Tensor, noise: Noise, steps: int, repeats: int
) -> Tensor:
    """Draw the pixels under the mask to fit the known ones -> [B, C, H, W], equal to x0 where the mask is False.

    At every step the known pixels of the predicted x_0 are replaced by the true ones (DDNM, Wang et al. 2023), and the step is
    taken ``repeats`` times, with noise added back in between, so that the two parts come to agree (RePaint, Lugmayr et al.
    2022).

    Args:
        mask: bool [B, 1, H, W], True where pixels are drawn.
        steps, repeats: the cost is (steps - 1) repeats + 1 evaluations.
    """
    x = noise()
    for t, s in pairwise(timesteps(diffusion, steps).tolist()):
        abar_t, abar_s = diffusion.alpha_bar[t].item(), diffusion.alpha_bar[s].item()
        forget = abar_t / abar_s  # q(x_t|x_s) = N(sqrt(forget) x_s, 1 - forget)
        variance = (1 - abar_s) / (1 - abar_t) * (1 - forget)
        for repeat in range(repeats if s else 1):
            if repeat:
                x = forget**0.5 * x + (1 - forget) ** 0.5 * noise()
            drawn, _ = predict_x0_eps(denoise, diffusion, x, t, clip=True)
            drawn = torch.where(mask, drawn, x0)
            eps = diffusion.predict_eps(x, torch.full((len(x),), t, device=x.device), drawn)
            x = abar_s**0.5 * drawn + max(1 - abar_s - variance, 0.0) ** 0.5 * eps
            if s:
                x = x + variance**0.5 * noise()
    return torch.where(mask, x, x0)


def classifier_guided(denoise: Denoiser, diffusion: Diffusion, log_p: LogProbability, weight: float) -> Denoiser:
    """D(x_t, t) + weight sigma^2/alpha grad_{x_t} log p(y|x_t), clipped to [-1, 1] (Dhariwal & Nichol 2021, Alg. 2, as x_0).

    The gradient vanishes where the classifier is certain of y, so that this guidance, unlike a classifier-free one, stops when
    it has reached its aim.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_p(x, t).sum(), x)
        signal, noise = (diffusion.at(name, t, x_t) for name in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
        return (denoise(x_t, t) + weight * noise**2 / signal * gradient).clamp(-1, 1)

    return guided


def held(denoise: Denoiser, diffusion: Diffusion, x0: Tensor, hold: float) -> Denoiser:
    """Draw the predicted x_0 to the image x0 by a share hold sigma^2/(hold sigma^2 + 1), which falls to 0 with the noise.

    It is the mean of a Gaussian of variance sigma^2, what is not yet known of x_0 at t, times one of variance 1/hold around the
    image (as in PiGDM, Song et al. 2023, without its Jacobian): coarse structure is kept and details are free to fit.
    """

    def closer(x_t: Tensor, t: Tensor) -> Tensor:
        predicted = denoise(x_t, t)
        weight = hold * diffusion.at("sqrt_one_minus_alpha_bar", t, x_t) ** 2
        return predicted + weight / (weight + 1) * (x0 - predicted)

    return closer


def shifted(x: Tensor, by: int) -> list[Tensor]:
    """x, and x shifted by ``by`` pixels in the eight directions, with black (-1) where nothing is known."""
    height, width = x.shape[-2:]
    padded = torch.nn.functional.pad(x, (by, by, by, by), value=-1.0)
    starts = (0, by, 2 * by) if by else (0,)
    return [padded[..., top : top + height, left : left + width] for top in starts for left in starts]


class Counterfactual(NamedTuple):
    """The smallest accepted change of each of N images.

    Attributes:
        x: float [N, C, H, W]; where nothing was accepted, the attempt with the highest probability.
        log_p: float [N], log p(y|x) of the wanted class.
        hold: float [N], how strongly the result was held to the image; infinite where the image itself is the result.
    """

    x: Tensor
    log_p: Tensor
    hold: Tensor


class Search(NamedTuple):
    """Settings of :func:`counterfactual`.

    Attributes:
        holds: what is tried in turn, falling: 1 over the squared distance per pixel, in [-1, 1], that is thought likely.
        strength: in (0, 1], how far along the flow to pure noise the image is led; what remains there is kept.
        steps: of the flow from 1 to T, two evaluations each.
        confidence: p(y|x) at which the search stops, above 0 and below 1.
    """

    holds: tuple[float, ...] = (4.0, 2.2, 1.5, 1.0, 0.7, 0.4, 0.1)
    strength: float = 0.9
    steps: int = 10
    confidence: float = 0.95


def counterfactual(
    own: Denoiser,
    steered: Callable[[Tensor, float], Denoiser],
    log_p: LogProbability,
    diffusion: Diffusion,
    x0: Tensor,
    search: Search,
) -> Counterfactual:
    """What would make each image another class, with little else changed.

    An image is led to its own noise by ``own``, and decoded with a denoiser that is steered to the wanted class and held to the
    image, less and less, until the classifier accepts. The own noise alone would give back the image.

    Args:
        steered: rows int64 [M] of the batch, and a hold -> the denoiser for them.
        log_p: x float [M, C, H, W] and their rows int64 [M] -> log p of the wanted class, [M].
    """
    times = flow_times(diffusion, search.steps)
    times = times[: 1 + max(1, round(search.strength * (len(times) - 1)))]
    noise = invert(own, diffusion, x0, times)[-1]
    log_ps = log_p(x0, torch.arange(len(x0), device=x0.device))
    found = Counterfactual(x0.clone(), log_ps, torch.full_like(log_ps, math.inf))
    for hold in search.holds:
        rows = (found.log_p < math.log(search.confidence)).nonzero().flatten()
        if not len(rows):
            break
        x = decode(steered(rows, hold), diffusion, noise[rows], times).clamp(-1, 1)
        value = log_p(x, rows)
        better = value > found.log_p[rows]
        rows, x, value = rows[better], x[better], value[better]
        found.x[rows], found.log_p[rows], found.hold[rows] = x, value, hold
    return found
