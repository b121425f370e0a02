"""Samplers: plain functions that take any denoiser and yield x_t.

Each takes ``(denoise, diffusion, x, times)`` and yields x at times[1], times[2], ..., the last of which is x_0:

    denoise(x_t, t) -> x_0     D(x_t, t) of Karras et al. 2022: x_t [B, C, H, W], t int64 [B]; a few lines adapt any model
                               (:meth:`hybvit.Diffusion.to_x0` converts other targets). In their terms, x = x_t/sqrt(abar_t)
                               and sigma = sqrt((1 - abar_t)/abar_t)
    x                          [B, C, H, W], the initial value at times[0], usually N(0, I)
    times                      int64 [n + 1], strictly decreasing from <= T to 0 (see :func:`timesteps`)
    clip                       clip the predicted x_0 to [-1, 1] at every step, as the paper does

A stochastic sampler also takes ``noise``, a function without arguments that returns standard normal noise [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .diffusion import Diffusion

Denoiser = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]
Spacing = Literal["trailing", "leading", "karras"]

KARRAS_SIGMA_MAX, KARRAS_RHO = 80.0, 7.0  # Karras et al. 2022, Table 1


class ImageNoise:
    """Standard normal noise with one generator per image, so image i does not depend on the rest of its batch.

    Args:
        seeds: one integer per image; the same seed gives the same image at any batch size.
        shape: (C, H, W) of an image.
        device: device of the returned noise. It is always generated on the CPU, so it is the same on every device.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


def timesteps(diffusion: Diffusion, steps: int, spacing: Spacing = "trailing") -> Tensor:
    """The times of a sampler: int64, strictly decreasing; ``steps`` of them, followed by 0.

    ``trailing`` starts at T and takes equal steps; ``leading`` takes steps of floor(T / steps), the last one at 1, and so
    starts below T, where x_t may be far from noise: at 501 for 2 or for 501 of 1,000 steps (both spacings as in diffusers);
    ``karras`` is equidistant in sigma^(1/7), sigma = sqrt((1 - abar)/abar) <= 80 (Karras et al. 2022, Eq. 5), rounded to
    whole steps. Times that round to the same step are merged, so there may be fewer than ``steps``.

    Raises:
        ValueError: ``steps`` is not in 1..T, or the spacing is unknown.
    """
    T = diffusion.T
    if not 1 <= steps <= T:
        raise ValueError(f"steps is {steps}: it must be in 1..{T}, the number of diffusion steps")
    i = torch.arange(steps, dtype=torch.float64)
    if spacing == "trailing":
        times = (T - i * (T / steps)).round().long()
    elif spacing == "leading":
        times = 1 + (T // steps) * torch.arange(steps - 1, -1, -1)
    elif spacing == "karras":
        sigma = ((1 - diffusion.alpha_bar[1:]) / diffusion.alpha_bar[1:]).sqrt()
        low, high = sigma[0] ** (1 / KARRAS_RHO), sigma[-1].clamp(max=KARRAS_SIGMA_MAX) ** (1 / KARRAS_RHO)
        targets = (high + i / max(steps - 1, 1) * (low - high)) ** KARRAS_RHO
        nearest = (sigma.log()[None] - targets.log()[:, None]).abs().argmin(dim=1)
        times = torch.unique(1 + nearest).flip(0)
    else:
        raise ValueError(f"spacing is {spacing!r}: it must be trailing, leading or karras")
    return torch.cat((times, times.new_zeros(1)))


def ddpm(
    denoise: Denoiser, diffusion: Diffusion, x: Tensor, times: Tensor, noise: Noise, clip: bool = True
) -> Iterator[Tensor]:
    """Ancestral sampling (Ho et al. 2020, Alg. 2): x_s ~ q(x_s|x_t, x_0) at the predicted x_0, variance beta~ (Eq. 13)."""
    visited = Diffusion(diffusion.alpha_bar[times.flip(0).cpu()])  # the same process, restricted to these times
    for i, t in zip(range(visited.T, 0, -1), times.tolist()[:-1], strict=True):
        x0, _ = predict_x0_eps(denoise, diffusion, x, t, clip)
        mean, variance = visited.posterior(x0, x, torch.full((len(x),), i, device=x.device))
        x = mean + variance.sqrt() * noise() if i > 1 else mean
        yield x


def ddim(
    denoise: Denoiser,
    diffusion: Diffusion,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    clip: bool = True,
    eta: float = 0.0,
) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, Eq. 12): deterministic for eta = 0; eta = 1 has the mean and variance of the posterior.

    Raises:
        ValueError: eta > 0 without ``noise``.
    """
    if eta > 0 and noise is None:
        raise ValueError("ddim with eta > 0 is stochastic: pass `noise`")
    for t, s in pairwise(times.tolist()):
        abar_t, abar_s = diffusion.alpha_bar[t].item(), diffusion.alpha_bar[s].item()
        x0, eps = predict_x0_eps(denoise, diffusion, x, t, clip)
        variance = eta**2 * (1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)
        x = abar_s**0.5 * x0 + max(1 - abar_s - variance, 0.0) ** 0.5 * eps
        if variance > 0 and noise is not None:
            x = x + variance**0.5 * noise()
        yield x


def dpmpp_2m(denoise: Denoiser, diffusion: Diffusion, x: Tensor, times: Tensor, clip: bool = True) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2): second order with one evaluation per step; the last step is first order."""
    x0_previous = h_previous = None
    for t, s in pairwise(times.tolist()):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _signal_and_noise(diffusion, t), _signal_and_noise(diffusion, s)
        x0, _ = predict_x0_eps(denoise, diffusion, x, t, clip)
        if s == 0:
            x = x0
        else:
            h = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
            d = x0
            if x0_previous is not None and h_previous is not None:
                d = x0 + (h / (2 * h_previous)).item() * (x0 - x0_previous)
            x = (sigma_s / sigma_t).item() * x - (alpha_s * torch.expm1(-h)).item() * d
            x0_previous, h_previous = x0, h
        yield x


def heun(denoise: Denoiser, diffusion: Diffusion, x: Tensor, times: Tensor, clip: bool = True) -> Iterator[Tensor]:
    """Heun's method (Karras et al. 2022, Alg. 1) for d(x/alpha)/d(sigma/alpha) = eps; n steps cost 2 n - 1 evaluations.

    Use it with ``karras`` times: at t = T, sigma/alpha can exceed 10^4, which is too large a step for a polynomial method.
    """
    for t, s in pairwise(times.tolist()):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _signal_and_noise(diffusion, t), _signal_and_noise(diffusion, s)
        x0, eps = predict_x0_eps(denoise, diffusion, x, t, clip)
        euler = alpha_s.item() * x0 + sigma_s.item() * eps
        if s == 0:
            x = euler
        else:
            _, eps_s = predict_x0_eps(denoise, diffusion, euler, s, clip)
            step = (sigma_s / alpha_s - sigma_t / alpha_t) * alpha_s
            x = euler + (step / 2).item() * (eps_s - eps)
        yield x


def predict_x0_eps(denoise: Denoiser, diffusion: Diffusion, x: Tensor, t: int, clip: bool) -> tuple[Tensor, Tensor]:
    """The predicted x_0 at time t, and the corresponding eps."""
    at = torch.full((len(x),), t, device=x.device)
    x0 = denoise(x, at)
    x0 = x0.clamp(-1, 1) if clip else x0
    return x0, diffusion.predict_eps(x, at, x0)


def _signal_and_noise(diffusion: Diffusion, t: int) -> tuple[Tensor, Tensor]:
    """(sqrt(abar_t), sqrt(1 - abar_t)) in float64."""
    return diffusion.sqrt_alpha_bar[t], diffusion.sqrt_one_minus_alpha_bar[t]


class Sampler(NamedTuple):
    """A sampler by name: the function, the spacing that suits it, and whether it takes ``noise``."""

    function: Callable[..., Iterator[Tensor]]
    spacing: Spacing = "trailing"
    stochastic: bool = False


SAMPLERS = {
    "ddpm": Sampler(ddpm, stochastic=True),
    "ddim": Sampler(ddim),
    "dpmpp_2m": Sampler(dpmpp_2m),
    "heun": Sampler(heun, spacing="karras"),
}


def run_sampler(
    name: str, denoise: Denoiser, diffusion: Diffusion, noise: Noise, steps: int, spacing: Spacing | None = None
) -> Iterator[Tensor]:
    """Run the sampler ``name`` from pure noise; yields x_t after each step, x_0 last.

    Raises:
        ValueError: the name is unknown or ``steps`` is out of range.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler is {name!r}: it must be one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    times = timesteps(diffusion, steps, spacing or sampler.spacing)
    return sampler.function(denoise, diffusion, noise(), times, **({"noise": noise} if sampler.stochastic else {}))
