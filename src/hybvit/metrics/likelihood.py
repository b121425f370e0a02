"""The variational bound on -log p(x), in bits per dimension (Eqs. 4-8; Ho et al. 2020, Sec. 3.3).

Shapes: x0 [B, C, H, W] on the 256 levels of [-1, 1]; a dimension is one of the C * H * W values of an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..diffusion import Diffusion
from ..samplers import Denoiser, predict

BIN = 1 / 255  # half the distance between two of the 256 levels


def prior_bits(diffusion: Diffusion, x0: Tensor) -> Tensor:
    """KL(q(x_T|x_0) || N(0, I)) per dimension (L_T, Eq. 6), [B] in bits."""
    abar = diffusion.alpha_bar[-1].item()
    kl = 0.5 * (abar * x0.cpu().double() ** 2 - abar - math.log1p(-abar))
    return kl.flatten(1).mean(dim=1) / math.log(2)


def step_bits(denoise: Denoiser, diffusion: Diffusion, x0: Tensor, t: int, noise: Tensor) -> Tensor:
    """The bound's term at time t per dimension, [B] in bits: the KL of Eq. 7 for t > 1, the decoder of Eq. 8 for t = 1.

    On the CPU in float64, whatever the denoiser's device.

    The variance is beta~_t ("fixed small"), at t = 1 that of t = 2; the predicted x_0 is clipped to [-1, 1].
    """
    at = torch.full((len(x0),), t, device=x0.device)
    x_t = diffusion.q_sample(x0, at, noise)
    mean, _ = diffusion.posterior(predict(denoise, diffusion, x_t, t, clip=True)[0], x_t, at)
    variance = diffusion.posterior_variance[max(t, 2)].item()
    if t > 1:
        true_mean, _ = diffusion.posterior(x0, x_t, at)
        nats = (true_mean - mean).cpu().double() ** 2 / (2 * variance)
    else:
        nats = -discretised_gaussian_log_likelihood(x0.cpu(), mean.cpu(), variance**0.5)
    return nats.flatten(1).mean(dim=1) / math.log(2)


def discretised_gaussian_log_likelihood(x0: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """log of N(mean, sigma^2)'s mass in the bin of each level of x0; the outer bins reach to infinity. Same shape, nats."""
    upper = torch.special.log_ndtr((x0.double() - mean.double() + BIN) / sigma)
    lower = torch.special.log_ndtr((x0.double() - mean.double() - BIN) / sigma)
    # log(e^upper - e^lower), stable where both are near 0 by using the mirrored tails.
    mirrored_upper = torch.special.log_ndtr((mean.double() - x0.double() + BIN) / sigma)
    mirrored_lower = torch.special.log_ndtr((mean.double() - x0.double() - BIN) / sigma)
    right = x0 > mean
    top, bottom = torch.where(right, mirrored_upper, upper), torch.where(right, mirrored_lower, lower)
    inner = top + torch.log1p(-(bottom - top).exp().clamp(max=1 - 1e-15))
    inner = torch.where(x0 < -1 + BIN, upper, inner)
    return torch.where(x0 > 1 - BIN, mirrored_upper, inner)


def variational_bound(denoise: Denoiser, diffusion: Diffusion, x0: Tensor, generator: torch.Generator) -> Tensor:
    """The full bound: prior + all T terms, one draw of noise each -> [B] in bits per dimension. Costs T evaluations."""
    bits = prior_bits(diffusion, x0)
    for t in range(diffusion.T, 0, -1):
        noise = torch.randn(x0.shape, generator=generator).to(x0.device, x0.dtype)
        bits = bits + step_bits(denoise, diffusion, x0, t, noise)
    return bits
