from __future__ import annotations

import math

import pytest
import torch

from hybvit.diffusion import Diffusion
from hybvit.metrics.likelihood import BIN, discretised_gaussian_log_likelihood, prior_bits, step_bits, variational_bound

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def test_the_decoder_is_a_distribution_over_the_256_levels():
    for mean, sigma in ((0.0, 0.3), (0.7, 0.01), (-1.0, 0.005), (0.99, 0.1), (0.2, 2e-3)):
        log_p = discretised_gaussian_log_likelihood(LEVELS, torch.full_like(LEVELS, mean), sigma)
        assert abs(log_p.exp().sum() - 1) < 1e-9
        assert bool(log_p.isfinite().all())


def test_the_decoder_is_the_integral_over_a_bin():
    normal = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.2)
    x = LEVELS[[100, 128, 140]]
    expected = (normal.cdf(x + BIN) - normal.cdf(x - BIN)).log()
    torch.testing.assert_close(discretised_gaussian_log_likelihood(x, torch.full_like(x, 0.1), 0.2), expected)


def test_the_prior_is_the_kl_to_a_standard_normal():
    diffusion = Diffusion(torch.tensor([1.0, 0.5, 0.2]))
    x0 = torch.full((1, 1, 2, 2), 0.6, dtype=torch.float64)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.2**0.5 * 0.6, 0.8**0.5), torch.distributions.Normal(0.0, 1.0)
    )
    assert abs(prior_bits(diffusion, x0).item() * math.log(2) - kl.item()) < 1e-6


def test_a_step_is_the_kl_of_two_gaussians():
    diffusion, t = Diffusion.cosine(50), 20
    g = torch.Generator().manual_seed(0)
    x0, noise = (
        torch.rand(3, 1, 4, 4, generator=g, dtype=torch.float64) - 0.5,
        torch.randn(3, 1, 4, 4, generator=g, dtype=torch.float64),
    )
    at = torch.full((3,), t)
    x_t = diffusion.q_sample(x0, at, noise)
    off = diffusion.predict_eps(x_t, at, x0 * 0.5)  # a denoiser that believes in half the image
    true, model = diffusion.posterior(x0, x_t, at), diffusion.posterior(x0 * 0.5, x_t, at)
    p, q = (torch.distributions.Normal(m, v.sqrt().expand_as(m)) for m, v in (true, model))
    expected = torch.distributions.kl_divergence(p, q).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(step_bits(lambda x, t: off, diffusion, x0, t, noise), expected)


@pytest.mark.parametrize("T", [10, 40, 160])
def test_the_bound_of_a_gaussian_is_its_closed_form_and_above_the_entropy(T):
    """Data: independent pixels, N(0, std^2) on the levels; with the exact denoiser the expected terms are known:
    a_t^2 Var(x_0|x_t)/(2 beta~_t) for t > 1 (a_t the coefficient of x_0 in mu~_t), a Gaussian's -log density at t = 1."""
    g, std = torch.Generator().manual_seed(0), 0.2
    x0 = ((torch.randn(256, 1, 8, 8, generator=g, dtype=torch.float64) * std + 1) * 127.5).round() / 127.5 - 1
    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2) - math.log2(2 * BIN)
    diffusion = Diffusion.cosine(T)

    def denoise(x_t, t):
        abar = diffusion.alpha_bar[t][:, None, None, None]
        return (1 - abar).sqrt() * x_t / (abar * std**2 + 1 - abar)

    abar = diffusion.alpha_bar
    unknown = std**2 * (1 - abar) / (abar * std**2 + 1 - abar)  # Var(x_0|x_t)
    terms = diffusion.posterior_x0**2 * unknown / (2 * diffusion.posterior_variance)
    variance = diffusion.posterior_variance[2]
    decoder = 0.5 * (2 * math.pi * variance).log() + unknown[1] / (2 * variance) - math.log(2 * BIN)
    expected = prior_bits(diffusion, x0).mean() + (terms[2:].sum() + decoder) / math.log(2)
    bound = variational_bound(denoise, diffusion, x0, torch.Generator().manual_seed(1)).mean()
    assert bound > entropy
    assert abs(bound - expected) < 0.02
