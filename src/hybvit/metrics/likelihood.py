"""Likelihood: the variational bound on -log p(x) in bits per dimension (Eqs. 4-8; Ho et al. 2020, Sec. 3.3), and the log
density of the classifier.

Shapes: x0 [B, C, H, W] on the 256 levels of [-1, 1]; a dimension is one of the C * H * W values of an image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..method.diffusion import Diffusion
from ..method.samplers import Denoiser
from ..waiting import part_done

BIN = 1 / 255  # half the distance between two of the 256 levels


def log_density(logits: Tensor) -> Tensor:
    """The paper's log p(x) up to a constant: logsumexp over the classes; logits [B, K] -> [B], of their type and device.

    It is the negative energy of JEM (Grathwohl et al. 2020, Sec. 3), and the energy score of Liu et al. 2020 at temperature 1.
    """
    return logits.logsumexp(dim=1)


def prior_bits(diffusion: Diffusion, x0: Tensor) -> Tensor:
    """KL(q(x_T|x_0) || N(0, I)) per dimension (L_T, Eq. 6), [B] in bits."""
    abar = diffusion.alpha_bar[-1].item()
    kl = 0.5 * (abar * x0.cpu().double() ** 2 - abar - math.log1p(-abar))
    return kl.flatten(1).mean(dim=1) / math.log(2)


def step_bits(denoise: Denoiser, diffusion: Diffusion, x0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
    """The bound's term at time t per dimension, [B] in bits: the KL of Eq. 7 for t > 1, the decoder of Eq. 8 for t = 1.

    The variance is beta~_t ("fixed small"), and at t = 1 that of t = 2. The predicted x_0 is clipped to [-1, 1]. The result is
    float64 on the CPU, on whatever device the denoiser is.

    Args:
        t: one time for all images, or int64 [B] with one for each, in 1..T.
        noise: standard normal, like x0.

    Raises:
        ValueError: T is 1: the variance at t = 1 is that of t = 2.
    """
    at = torch.full((len(x0),), t, device=x0.device) if isinstance(t, int) else t.to(x0.device)
    x_t = diffusion.q_sample(x0, at, noise)
    x0_pred = denoise(x_t, at).clamp(-1, 1).cpu().double()
    x0, at = x0.cpu().double(), at.cpu()
    # The two means differ only in x_0, so x_t cancels; at t = 1 the mean is the predicted x_0 itself.
    weight = _kl_weight(diffusion)[at].reshape(-1, *[1] * (x0.ndim - 1))
    nats = weight * (x0 - x0_pred) ** 2
    last = at == 1
    if bool(last.any()):
        sigma = diffusion.posterior_variance[2].item() ** 0.5
        nats[last] = -discretized_gaussian_log_likelihood(x0[last], x0_pred[last], sigma)
    return nats.flatten(1).mean(dim=1) / math.log(2)


def _kl_weight(diffusion: Diffusion) -> Tensor:
    """The factor of (x_0 - predicted x_0)^2 in the KL of Eq. 7, float64 [T + 1]; 0 at t = 0 and 1, which have none.

    For t > 1 it is (SNR_{t-1} - SNR_t)/2 with SNR = abar/(1 - abar) (Kingma et al. 2021, Eq. 13).
    """
    if diffusion.T < 2:
        raise ValueError("the process has 1 step: the bound needs 2, since the variance at t = 1 is that of t = 2")
    return torch.cat((torch.zeros(2), diffusion.posterior_x0[2:] ** 2 / (2 * diffusion.posterior_variance[2:])))


def discretized_gaussian_log_likelihood(x0: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """log of the mass of N(mean, sigma^2) in the bin of each level of x0, in nats, like x0. The outer bins are infinite."""
    upper = torch.special.log_ndtr((x0.double() - mean.double() + BIN) / sigma)
    lower = torch.special.log_ndtr((x0.double() - mean.double() - BIN) / sigma)
    # log(e^upper - e^lower). The mirrored tails keep it stable where both are near 0.
    mirrored_upper = torch.special.log_ndtr((mean.double() - x0.double() + BIN) / sigma)
    mirrored_lower = torch.special.log_ndtr((mean.double() - x0.double() - BIN) / sigma)
    right = x0 > mean
    top, bottom = torch.where(right, mirrored_upper, upper), torch.where(right, mirrored_lower, lower)
    inner = top + torch.log1p(-(bottom - top).exp().clamp(max=1 - 1e-15))
    inner = torch.where(x0 < -1 + BIN, upper, inner)
    return torch.where(x0 > 1 - BIN, mirrored_upper, inner)


def bound_terms(denoise: Denoiser, diffusion: Diffusion, x0: Tensor, generator: torch.Generator, rows: int = 128) -> Tensor:
    """Every term of the bound with one draw of noise each -> [B, T + 1] in bits per dimension; the bound is the sum of a row.

    Column 0 is the prior, column t the term at time t. It costs T evaluations per image.

    Args:
        generator: CPU generator of the noise, which starts at t = T; the draws do not depend on ``rows``.
        rows: (image, time) pairs in one call of the denoiser; a call has at least all images at one time. A denoiser that
            is conditioned per image, as on labels, needs rows=1: one time, and each image once, per call.
    """
    times = torch.arange(diffusion.T, 0, -1)[:, None].expand(-1, len(x0))
    terms = _terms_at(denoise, diffusion, x0, times, generator, rows)
    return torch.cat((prior_bits(diffusion, x0)[:, None], terms.flip(0).T), dim=1)


def variational_bound(
    denoise: Denoiser, diffusion: Diffusion, x0: Tensor, generator: torch.Generator, rows: int = 128
) -> Tensor:
    """The full bound: prior + all T terms, one draw of noise each -> [B] in bits per dimension.

    It costs T evaluations per image. Arguments: those of :func:`bound_terms`.
    """
    return bound_terms(denoise, diffusion, x0, generator, rows).sum(dim=1)


def sampled_bound(
    denoise: Denoiser, diffusion: Diffusion, x0: Tensor, generator: torch.Generator, draws: int, rows: int = 128
) -> tuple[Tensor, Tensor]:
    """An unbiased estimate of the full bound from a few times -> (bits [B], standard error [B]), per dimension.

    The bits are the sum of :func:`sampled_parts`, which has the method, the arguments and what is raised.
    """
    parts, error = sampled_parts(denoise, diffusion, x0, generator, draws, rows)
    return parts.sum(dim=1), error


def sampled_parts(
    denoise: Denoiser, diffusion: Diffusion, x0: Tensor, generator: torch.Generator, draws: int, rows: int = 128
) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of the bound's parts from a few times -> (parts [B, 3], standard error of their sum [B]).

    Columns: the prior, the decoder (t = 1), and the sum over t = 2..T, in bits per dimension. All are of the same images and
    draws, so they add up.

    The prior is exact, and t = 1 is always evaluated, with two draws of noise. The sum over t = 2..T comes from draws/2 strata
    of equal assumed weight (:func:`_time_shares`) with two times each, drawn for each image independently; each term is divided
    by its probability. Two draws per stratum make the squared standard error unbiased, so average the squares, not the errors.
    It covers the draws of t and noise, not the choice of images. It costs draws + 2 evaluations per image.

    Args:
        generator: CPU generator of times and noise.
        draws: number of times, at least 1; an odd number is rounded up to the next even one.
        rows: as in :func:`bound_terms`.

    Raises:
        ValueError: ``draws`` is below 1.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}: it must be at least 1")
    strata = (draws + 1) // 2
    shares = _time_shares(diffusion)
    uniform = torch.rand((2, strata, len(x0)), generator=generator, dtype=torch.float64)
    place = (torch.arange(strata)[:, None] + uniform) / strata  # uniform in stratum h: h/strata..(h + 1)/strata
    drawn = torch.bucketize(place, shares.cumsum(0)[:-1], right=True)  # 0 is t = 2
    times = torch.cat((torch.ones((2, 1, len(x0)), dtype=torch.int64), drawn + 2), dim=1)  # t = 1 is a stratum of its own
    weight = torch.cat((torch.ones((2, 1, len(x0))), 1 / (strata * shares[drawn])), dim=1)
    terms = _terms_at(denoise, diffusion, x0, times.flatten(0, 1), generator, rows).reshape(times.shape)
    first, second = weight * terms  # two independent estimates of each stratum's sum, [1 + strata, B]
    sums = (first + second) / 2
    parts = torch.stack((prior_bits(diffusion, x0), sums[0], sums[1:].sum(dim=0)), dim=1)
    return parts, ((first - second) ** 2 / 4).sum(dim=0).sqrt()


def _time_shares(diffusion: Diffusion) -> Tensor:
    """The probability of drawing each of t = 2..T, float64 [T - 1], above 0, which sums to 1.

    It is the share of each term in the sum for independent normal pixels of variance 1/4 and an exact denoiser. This assumption
    affects the variance of the estimate, not its expectation.
    """
    abar = diffusion.alpha_bar[2:]
    unknown = 0.25 * (1 - abar) / (0.25 * abar + 1 - abar)  # Var(x_0|x_t)
    terms = _kl_weight(diffusion)[2:] * unknown
    return terms / terms.sum()


def _terms_at(
    denoise: Denoiser, diffusion: Diffusion, x0: Tensor, times: Tensor, generator: torch.Generator, rows: int
) -> Tensor:
    """The terms at times int64 [n, B], a column per image, with independent noise for each -> bits [n, B]."""
    parts = []
    for some in times.split(max(rows // max(len(x0), 1), 1)):
        noise = torch.cat([torch.randn(x0.shape, generator=generator) for _ in some]).to(x0.device, x0.dtype)
        repeated = x0.repeat(len(some), *[1] * (x0.ndim - 1))
        parts.append(step_bits(denoise, diffusion, repeated, some.flatten(), noise).reshape(some.shape))
        part_done(len(some) / len(times))
    return torch.cat(parts)
