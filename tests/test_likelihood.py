from __future__ import annotations

import math

import pytest
import torch

from hybvit.method.diffusion import Diffusion
from hybvit.metrics.likelihood import (
    BIN,
    _time_shares,
    bound_terms,
    discretized_gaussian_log_likelihood,
    prior_bits,
    sampled_bound,
    sampled_parts,
    step_bits,
    variational_bound,
)

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def test_the_decoder_is_a_distribution_over_the_256_levels():
    for mean, sigma in ((0.0, 0.3), (0.7, 0.01), (-1.0, 0.005), (0.99, 0.1), (0.2, 2e-3)):
        log_p = discretized_gaussian_log_likelihood(LEVELS, torch.full_like(LEVELS, mean), sigma)
        assert abs(log_p.exp().sum() - 1) < 1e-9
        assert bool(log_p.isfinite().all())


def test_the_decoder_is_the_integral_over_a_bin():
    normal = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.2)
    x = LEVELS[[100, 128, 140]]
    expected = (normal.cdf(x + BIN) - normal.cdf(x - BIN)).log()
    torch.testing.assert_close(discretized_gaussian_log_likelihood(x, torch.full_like(x, 0.1), 0.2), expected)


def test_a_process_of_one_step_has_no_bound():
    x0, g = torch.zeros(1, 1, 2, 2), torch.Generator()
    for bound in (bound_terms, variational_bound, lambda *arguments: sampled_bound(*arguments, draws=1)):
        with pytest.raises(ValueError, match="the process has 1 step: the bound needs 2"):
            bound(lambda x, t: x, Diffusion.cosine(1), x0, g)


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
    true, model = diffusion.posterior(x0, x_t, at), diffusion.posterior(x0 * 0.5, x_t, at)
    p, q = (torch.distributions.Normal(m, v.sqrt().expand_as(m)) for m, v in (true, model))
    expected = torch.distributions.kl_divergence(p, q).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(step_bits(lambda x, t: x0 * 0.5, diffusion, x0, t, noise), expected)


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
        return abar.sqrt() * std**2 * x_t / (abar * std**2 + 1 - abar)

    abar = diffusion.alpha_bar
    unknown = std**2 * (1 - abar) / (abar * std**2 + 1 - abar)  # Var(x_0|x_t)
    terms = diffusion.posterior_x0**2 * unknown / (2 * diffusion.posterior_variance)
    variance = diffusion.posterior_variance[2]
    decoder = 0.5 * (2 * math.pi * variance).log() + unknown[1] / (2 * variance) - math.log(2 * BIN)
    expected = prior_bits(diffusion, x0).mean() + (terms[2:].sum() + decoder) / math.log(2)
    bound = variational_bound(denoise, diffusion, x0, torch.Generator().manual_seed(1)).mean()
    assert bound > entropy
    assert abs(bound - expected) < 0.02


def images(b: int, seed: int = 0) -> torch.Tensor:
    """Random images on the levels, each with its own contrast."""
    g = torch.Generator().manual_seed(seed)
    contrast = torch.linspace(0.1, 0.6, b, dtype=torch.float64)[:, None, None, None]
    x = torch.randn(b, 1, 4, 4, generator=g, dtype=torch.float64) * contrast
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def wavy(diffusion: Diffusion):
    """A denoiser without closed form, and not a good one."""

    def denoise(x_t, t):
        eps = torch.tanh(x_t * 0.7 + torch.cos(t.to(x_t.dtype) / 30)[:, None, None, None])
        return diffusion.predict_x0(x_t, t, eps)

    return denoise


def test_a_step_at_mixed_times_is_each_image_at_its_own():
    diffusion, x0 = Diffusion.cosine(50), images(5)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times = [1, 50, 2, 1, 17]
    seen: list[list[int]] = []

    def denoise(x_t, t):
        seen.append(t.tolist())
        return wavy(diffusion)(x_t, t)

    together = step_bits(denoise, diffusion, x0, torch.tensor(times), noise)
    assert seen == [times]
    alone = [step_bits(wavy(diffusion), diffusion, x0[i : i + 1], t, noise[i : i + 1]) for i, t in enumerate(times)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_step_is_the_kl_at_every_time_and_the_decoder_at_1():
    """Against the definition: two posteriors of one variance for t > 1, the decoder around the predicted x_0 for t = 1."""
    diffusion, x0 = Diffusion.cosine(12), images(3)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in range(1, 13):
        at = torch.full((3,), t)
        x_t = diffusion.q_sample(x0, at, noise)
        x0_pred = wavy(diffusion)(x_t, at).clamp(-1, 1)
        true, model = diffusion.posterior(x0, x_t, at)[0], diffusion.posterior(x0_pred, x_t, at)[0]
        if t > 1:
            nats = (true - model) ** 2 / (2 * diffusion.posterior_variance[t])
        else:
            nats = -discretized_gaussian_log_likelihood(x0, model, diffusion.posterior_variance[2].item() ** 0.5)
        expected = nats.flatten(1).mean(1) / math.log(2)
        torch.testing.assert_close(step_bits(wavy(diffusion), diffusion, x0, t, noise), expected)


@pytest.mark.parametrize("rows", [1, 4, 7, 128])
def test_the_terms_are_the_prior_and_each_step_whatever_goes_in_one_call(rows):
    diffusion, x0, g = Diffusion.cosine(20), images(3), torch.Generator().manual_seed(5)
    expected = torch.zeros(3, 21, dtype=torch.float64)
    expected[:, 0] = prior_bits(diffusion, x0)
    for t in range(20, 0, -1):
        noise = torch.randn(x0.shape, generator=g).double()
        expected[:, t] = step_bits(wavy(diffusion), diffusion, x0, t, noise)
    calls: list[int] = []

    def denoise(x_t, t):
        assert len(x_t) == len(t)
        calls.append(len(t))
        return wavy(diffusion)(x_t, t)

    terms = bound_terms(denoise, diffusion, x0, torch.Generator().manual_seed(5), rows=rows)
    torch.testing.assert_close(terms, expected)
    times_a_call = {1: 1, 4: 1, 7: 2, 128: 20}[rows]
    assert len(calls) == 20 // times_a_call
    assert set(calls) == {3 * times_a_call}
    calls.clear()
    bound = variational_bound(denoise, diffusion, x0, torch.Generator().manual_seed(5), rows=rows)
    assert len(calls) == 20 // times_a_call
    torch.testing.assert_close(bound, expected.sum(1))


def test_terms_take_images_in_float32():
    diffusion, x0 = Diffusion.cosine(20), images(3)
    terms = [bound_terms(wavy(diffusion), diffusion, x, torch.Generator().manual_seed(5)) for x in (x0, x0.float())]
    assert terms[1].dtype == torch.float64
    torch.testing.assert_close(terms[1], terms[0], rtol=1e-3, atol=1e-5)


def exact_for(diffusion: Diffusion, std: float):
    def denoise(x_t, t):
        abar = diffusion.alpha_bar[t][:, None, None, None]
        return abar.sqrt() * std**2 * x_t / (abar * std**2 + 1 - abar)

    return denoise


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("T", [2, 3, 5, 20, 320])
def test_no_bound_of_gaussian_data_is_below_their_entropy(T, schedule):
    g, std = torch.Generator().manual_seed(0), 0.2
    x0 = ((torch.randn(64, 1, 8, 8, generator=g, dtype=torch.float64) * std + 1) * 127.5).round() / 127.5 - 1
    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2) - math.log2(2 * BIN)
    diffusion = getattr(Diffusion, schedule)(T)
    denoise = exact_for(diffusion, std)
    assert variational_bound(denoise, diffusion, x0, torch.Generator().manual_seed(1), rows=1024).mean() > entropy
    bits, _ = sampled_bound(denoise, diffusion, x0, torch.Generator().manual_seed(1), 8, rows=1024)
    assert bits.mean() > entropy


def test_times_are_looked_at_by_their_share_of_a_gaussians_bound():
    """The closed form of the terms as in the first Gaussian test, for variance 1/4."""
    for diffusion in (Diffusion.cosine(50), Diffusion.linear(50), Diffusion.cosine(1000), Diffusion.cosine(2)):
        abar = diffusion.alpha_bar
        unknown = 0.25 * (1 - abar) / (abar * 0.25 + 1 - abar)
        terms = (diffusion.posterior_x0**2 * unknown / (2 * diffusion.posterior_variance))[2:]
        torch.testing.assert_close(_time_shares(diffusion), terms / terms.sum())
        assert bool((_time_shares(diffusion) > 0).all())


@pytest.mark.parametrize("denoiser", ["exact", "wavy"])
@pytest.mark.parametrize("draws", [2, 8, 30])
def test_the_sampled_bound_is_unbiased_and_knows_its_error(draws, denoiser):
    """One image repeated: rows are drawn independently, so they are so many trials."""
    diffusion, n = Diffusion(Diffusion.cosine(80).alpha_bar[:21]), 3000  # ends early, so that the prior counts
    denoise = exact_for(diffusion, 0.4) if denoiser == "exact" else wavy(diffusion)
    x0 = images(3)[1:2].expand(n, -1, -1, -1)
    bits, error = sampled_bound(denoise, diffusion, x0, torch.Generator().manual_seed(2), draws, rows=4 * n)
    full = variational_bound(denoise, diffusion, x0, torch.Generator().manual_seed(3), rows=4 * n)
    tolerance = 4 * math.sqrt((bits.var() + full.var()).item() / n)
    assert tolerance < 0.5 * prior_bits(diffusion, x0[:1]).item()
    assert tolerance < 0.05 * full.mean()
    assert abs(bits.mean() - full.mean()) < tolerance
    assert error.square().mean().sqrt().item() == pytest.approx(bits.std().item(), rel=0.15)


@pytest.mark.parametrize("draws", [2, 8])
def test_the_parts_of_the_sampled_bound_add_up_and_are_unbiased(draws):
    diffusion, n = Diffusion(Diffusion.cosine(80).alpha_bar[:21]), 3000
    denoise, x0 = wavy(diffusion), images(3)[1:2].expand(n, -1, -1, -1)
    parts, error = sampled_parts(denoise, diffusion, x0, torch.Generator().manual_seed(2), draws, rows=4 * n)
    bits, same = sampled_bound(denoise, diffusion, x0, torch.Generator().manual_seed(2), draws, rows=4 * n)
    torch.testing.assert_close(parts.sum(dim=1), bits)
    torch.testing.assert_close(error, same)
    terms = bound_terms(denoise, diffusion, x0, torch.Generator().manual_seed(3), rows=4 * n)
    full = torch.stack((terms[:, 0], terms[:, 1], terms[:, 2:].sum(dim=1)), dim=1)
    torch.testing.assert_close(parts[:, 0], full[:, 0])
    for column in (1, 2):
        tolerance = 4 * math.sqrt((parts[:, column].var() + full[:, column].var()).item() / n)
        assert abs(parts[:, column].mean() - full[:, column].mean()) < tolerance < 0.1 * full[:, column].mean()


def test_more_draws_err_less_and_strata_help():
    diffusion, n = Diffusion.cosine(40), 1000
    x0 = images(3)[1:2].expand(n, -1, -1, -1)
    spread = {
        draws: sampled_bound(exact_for(diffusion, 0.4), diffusion, x0, torch.Generator().manual_seed(2), draws, 4 * n)[0].std()
        for draws in (2, 16)
    }
    assert spread[16] < 0.6 * spread[2]  # sqrt(1/8) of the times' part, while the decoder's noise stays


def test_the_sampled_bound_evaluates_t_1_always_and_each_stratum_twice():
    diffusion, x0 = Diffusion.cosine(1000), images(4)
    seen: list[torch.Tensor] = []

    def denoise(x_t, t):
        seen.append(t)
        return wavy(diffusion)(x_t, t)

    for draws in (6, 5):  # odd counts as the next even one
        seen.clear()
        sampled_bound(denoise, diffusion, x0, torch.Generator().manual_seed(0), draws, rows=8)
        assert {len(t) for t in seen} == {8}  # two times of four images in one call
        times = torch.cat(seen).reshape(2, 4, 4)  # pair, [t = 1 and 3 strata], image
        assert bool((times[:, 0] == 1).all())
        assert bool((times[:, 1:] >= 2).all())
        edges = _time_shares(diffusion).cumsum(0)
        for stratum in range(3):
            inside = times[:, 1 + stratum]
            assert bool((edges[inside - 2] > stratum / 3).all())  # where its share ends
            assert bool(((edges - _time_shares(diffusion))[inside - 2] < (stratum + 1) / 3).all())  # and where it begins
        assert len(times[:, 1:].unique()) > 12  # images and pairs differ
    with pytest.raises(ValueError, match="draws is 0"):
        sampled_bound(wavy(diffusion), diffusion, x0, torch.Generator(), 0)


@pytest.mark.parametrize("draws", [2, 6])
def test_times_are_drawn_as_often_as_their_shares_say(draws):
    diffusion, n = Diffusion.cosine(12), 10_000
    counts = torch.zeros(13)

    def denoise(x_t, t):
        counts.add_(torch.bincount(t, minlength=13))
        return x_t

    sampled_bound(denoise, diffusion, torch.zeros(n, 1, 1, 1), torch.Generator().manual_seed(0), draws, rows=8 * n)
    shares = _time_shares(diffusion)
    assert counts[:2].tolist() == [0, 2 * n]
    spread = (shares * (1 - shares) / (draws * n)).sqrt()
    assert bool(((counts[2:] / (draws * n) - shares).abs() < 4.5 * spread).all())


def test_the_sampled_bound_of_two_steps_has_no_times_to_draw():
    diffusion, x0 = Diffusion.cosine(2), images(2).repeat_interleave(2000, dim=0)
    bits, error = sampled_bound(wavy(diffusion), diffusion, x0, torch.Generator().manual_seed(0), 2, rows=20_000)
    full = variational_bound(wavy(diffusion), diffusion, x0, torch.Generator().manual_seed(1), rows=20_000)
    for i in range(2):
        rows = slice(2000 * i, 2000 * (i + 1))
        tolerance = 4 * math.sqrt((bits[rows].var() + full[rows].var()).item() / 2000)
        assert abs(bits[rows].mean() - full[rows].mean()) < tolerance
        assert error[rows].square().mean().sqrt().item() == pytest.approx(bits[rows].std().item(), rel=0.15)
