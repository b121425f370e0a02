from __future__ import annotations

import pytest
import torch

from hybvit.method.diffusion import SCHEDULES, Diffusion


@pytest.fixture(params=["cosine", "linear", "flow"])
def diffusion(request) -> Diffusion:
    return getattr(Diffusion, request.param)(1000)


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=g, dtype=torch.float64)
    return x0, noise, torch.tensor([1, 2, 300, 700, 999])


def test_golden_schedule_and_posterior(golden):
    diffusion = Diffusion.cosine(1000)
    assert (diffusion.beta[1:] - golden["betas"]).abs().max() < 1e-7
    assert (diffusion.alpha_bar[1:] - golden["alphas_cumprod"]).abs().max() < 1e-7
    x_t = diffusion.q_sample(golden["x"], golden["t"] + 1, golden["noise"])
    assert (x_t - golden["x_t"]).abs().max() < 1e-6
    x0 = diffusion.predict_x0(x_t, golden["t"] + 1, golden["eps"]).clamp(-1, 1)  # the file's mean is the model's
    mean, variance = diffusion.posterior(x0, x_t, golden["t"] + 1)
    assert (mean - golden["posterior_mean"]).abs().max() < 1e-5
    inner = golden["t"] > 0  # at its t = 0 the variance is 0, and the file's logarithm that of 1e-20
    torch.testing.assert_close(variance.log()[inner], golden["posterior_logvar"][inner], rtol=1e-5, atol=1e-5)


def test_schedule_is_a_probability_path(diffusion):
    assert diffusion.alpha_bar.shape == (1001,)
    assert diffusion.beta.max() <= 0.999 + 1e-12


def test_cosine_is_its_formula_where_it_is_not_clipped():
    u = torch.tensor(0.4, dtype=torch.float64)
    f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2 / torch.cos(torch.tensor(0.008 / 1.008) * torch.pi / 2) ** 2
    assert abs(Diffusion.cosine(1000).alpha_bar[400] - f) < 1e-6


def test_linear_runs_from_1e_4_to_2e_2():
    beta = Diffusion.linear(1000).beta
    assert abs(beta[1] - 1e-4) < 1e-12
    assert abs(beta[1000] - 2e-2) < 1e-12
    assert abs(Diffusion.linear(500).beta[1] - 2e-4) < 1e-12


def test_conversions_invert_each_other(diffusion):
    x0, noise, t = draw()
    x_t = diffusion.q_sample(x0, t, noise)
    torch.testing.assert_close(diffusion.predict_x0(x_t, t, noise), x0)
    torch.testing.assert_close(diffusion.predict_eps(x_t, t, x0), noise)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
def test_every_target_converts_to_the_noise_at_every_step(diffusion, kind):
    t = torch.arange(1, 1001)
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 1000, 1, 2, 2, generator=g, dtype=torch.float64)
    x_t = diffusion.q_sample(x0, t, noise)
    target = diffusion.target(kind, x0, t, noise)
    torch.testing.assert_close(diffusion.to_eps(kind, target, x_t, t), noise, rtol=1e-7, atol=1e-7)
    off = diffusion.to_eps(kind, target + 0.5, x_t, t) - noise  # to_eps is affine in the prediction
    slope = diffusion.eps_per_unit(kind)[t][:, None, None, None]
    torch.testing.assert_close(off.abs(), (0.5 * slope).expand_as(off), rtol=1e-6, atol=1e-7)


def test_flow_is_the_straight_line_scaled_to_unit_variance():
    diffusion, (x0, noise, t) = Diffusion.flow(1000), draw()
    u = (t / 1001).double()[:, None, None, None]
    line, length = (1 - u) * x0 + u * noise, ((1 - u) ** 2 + u**2).sqrt()
    torch.testing.assert_close(diffusion.q_sample(x0, t, noise) * length, line)
    torch.testing.assert_close(line + (1 - u) * diffusion.target("flow", x0, t, noise), noise)  # eps - x0 leads on to eps,
    torch.testing.assert_close(line - u * diffusion.target("flow", x0, t, noise), x0)  # and back to x0
    torch.testing.assert_close(Diffusion.flow(3).alpha_bar, torch.tensor([1, 0.9, 0.5, 0.1], dtype=torch.float64))
    assert SCHEDULES["flow"](7).T == 7


def test_snr_is_signal_over_noise():
    torch.testing.assert_close(Diffusion.flow(3).snr[1:], torch.tensor([9, 1, 1 / 9], dtype=torch.float64))


def test_velocity_is_orthogonal_to_x_t(diffusion):
    """With abar = cos^2(phi), v is x_t turned by 90 degrees in the plane of x_0 and eps."""
    x0, _, t = draw()
    unit = torch.zeros_like(x0)
    unit[..., 0, 0] = 1
    other = unit.roll(1, -1)
    x_t, v = diffusion.q_sample(unit, t, other), diffusion.velocity(unit, t, other)
    torch.testing.assert_close((x_t * v).flatten(1).sum(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(v.square().flatten(1).sum(1), torch.full((5,), 3.0, dtype=torch.float64))


def test_posterior_is_the_product_of_two_gaussians(diffusion):
    """Bayes: q(x_{t-1}|x_t, x_0) is proportional to q(x_t|x_{t-1}) q(x_{t-1}|x_0), both Gaussian in x_{t-1}."""
    x0, noise, t = draw()
    t = t.clamp(min=2)
    x_t = diffusion.q_sample(x0, t, noise)
    before, now = diffusion.alpha_bar[t - 1][:, None, None, None], diffusion.alpha_bar[t][:, None, None, None]
    alpha, beta = now / before, 1 - now / before
    precision = 1 / (1 - before) + alpha / beta
    expected = (before.sqrt() * x0 / (1 - before) + alpha.sqrt() * x_t / beta) / precision
    mean, variance = diffusion.posterior(x0, x_t, t)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(variance, 1 / precision)


def test_posterior_mean_is_equation_14(diffusion):
    x0, noise, t = draw()
    x_t = diffusion.q_sample(x0, t, noise)
    beta, abar = diffusion.beta[t][:, None, None, None], diffusion.alpha_bar[t][:, None, None, None]
    eq14 = (x_t - beta / (1 - abar).sqrt() * noise) / (1 - beta).sqrt()
    torch.testing.assert_close(diffusion.posterior(x0, x_t, t)[0], eq14, rtol=1e-6, atol=1e-8)


def test_the_last_step_yields_x0(diffusion):
    x0, noise, _ = draw()
    one = torch.ones(5, dtype=torch.int64)
    mean, variance = diffusion.posterior(x0, diffusion.q_sample(x0, one, noise), one)
    torch.testing.assert_close(mean, x0)
    assert bool((variance == 0).all())


def test_half_precision_images_get_full_precision_coefficients():
    x0, noise, t = (v.bfloat16() if v.is_floating_point() else v for v in draw())
    assert Diffusion.cosine().q_sample(x0, t, noise).dtype == torch.float32


@pytest.mark.parametrize("broken", [[0.9, 0.5], [1.0, 1.0], [1.0, 0.5, 0.6], [1.0, 0.0], [1.0]])
def test_broken_schedules_are_refused(broken):
    with pytest.raises(ValueError, match="alpha_bar"):
        Diffusion(torch.tensor(broken))


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
def test_to_x0_and_to_eps_undo_each_target(kind, schedule):
    diffusion = getattr(Diffusion, schedule)(1000)
    g = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 1, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1, 300, 999, 1000])
    x_t, target = diffusion.q_sample(x0, t, noise), diffusion.target(kind, x0, t, noise)
    torch.testing.assert_close(diffusion.to_x0(kind, target, x_t, t), x0)
    torch.testing.assert_close(diffusion.to_eps(kind, target, x_t, t), noise)


def test_x0_from_v_is_exact_to_rounding_even_at_T():
    """The conversion through eps would divide by sqrt(abar_T) = 5e-5."""
    diffusion, g = Diffusion.cosine(1000), torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(64, 1, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.full((64,), 1000)
    x_t, v = diffusion.q_sample(x0, t, noise), diffusion.velocity(x0, t, noise)
    direct = diffusion.to_x0("v", v.float(), x_t.float(), t)
    by_eps = diffusion.predict_x0(x_t.float(), t, diffusion.to_eps("v", v.float(), x_t.float(), t))
    assert (direct - x0).abs().max() < 1e-6
    assert (by_eps - x0).abs().max() > 1e-4
