from __future__ import annotations

import math

import pytest
import torch

from hybvit.method.diffusion import Diffusion
from hybvit.method.samplers import SAMPLERS, ImageNoise, ddim, ddpm, dpmpp_2m, heun, run_sampler, timesteps

COSINE = Diffusion.cosine(1000)
MEAN, STD = 0.3, 0.5


def gaussian_denoiser(diffusion: Diffusion):
    """Exact for data ~ N(MEAN, STD^2): E[x_0|x_t] = mean + alpha std^2 (x_t - alpha mean)/(alpha^2 std^2 + sigma^2)."""

    def denoise(x_t, t):
        abar = diffusion.alpha_bar[t][:, None, None, None]
        return MEAN + abar.sqrt() * STD**2 * (x_t - abar.sqrt() * MEAN) / (abar * STD**2 + 1 - abar)

    return denoise


def exact_flow(diffusion: Diffusion, x: torch.Tensor, start: int) -> torch.Tensor:
    """Where the probability-flow ODE carries x from time ``start`` to 0: standardized values do not change."""
    abar = diffusion.alpha_bar[start]
    return MEAN + STD * (x - abar.sqrt() * MEAN) / (abar * STD**2 + 1 - abar).sqrt()


def last(iterator):
    for x in iterator:
        pass
    return x


def noise_like(x: torch.Tensor, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(x.shape, generator=g, dtype=x.dtype)


def start(b: int = 4) -> torch.Tensor:
    return torch.randn(b, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def wavy(x_t, t):
    """A denoiser without closed form, for comparing implementations; some predictions are outside [-1, 1]."""
    return 1.3 * torch.tanh(x_t * 0.7 + torch.cos(t.to(x_t.dtype) / 300)[:, None, None, None])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_ddim_equals_diffusers(spacing, steps, schedule):
    from diffusers import DDIMScheduler

    diffusion = getattr(Diffusion, schedule)(1000)
    theirs = DDIMScheduler(
        trained_betas=diffusion.beta[1:].numpy(),
        timestep_spacing=spacing,
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type="sample",
    )
    theirs.set_timesteps(steps)
    x = start().float()
    expected = x
    for t in theirs.timesteps:
        x0 = wavy(expected, (t + 1).expand(len(x)))
        expected = theirs.step(x0, t, expected, use_clipped_model_output=True).prev_sample
    ours = last(ddim(wavy, diffusion, x, timesteps(diffusion, steps, spacing)))
    assert (ours - expected).abs().max() < 1e-5


def test_stochastic_ddim_on_all_steps_has_the_posterior_mean_and_variance():
    x, times = start(), timesteps(COSINE, 1000)
    for k in (0, 1, 500, 998, 999):
        t = int(times[k])
        at = torch.full((len(x),), t)
        x0 = wavy(x, at)
        mean, variance = COSINE.posterior(x0, x, at)
        pair = times[k : k + 2]
        got_mean = last(ddim(wavy, COSINE, x, pair, lambda: torch.zeros_like(x), clip=False, eta=1.0))
        got_one = last(ddim(wavy, COSINE, x, pair, lambda: torch.ones_like(x), clip=False, eta=1.0))
        torch.testing.assert_close(got_mean, mean, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(got_one - got_mean, variance.sqrt().expand_as(x), rtol=1e-5, atol=1e-9)


def test_ddpm_equals_stochastic_ddim():
    for steps in (7, 1000):
        x, times = start(), timesteps(COSINE, steps)
        ancestral = last(ddpm(wavy, COSINE, x, times, noise_like(x)))
        stochastic = last(ddim(wavy, COSINE, x, times, noise_like(x), eta=1.0))
        torch.testing.assert_close(ancestral, stochastic, rtol=1e-6, atol=1e-8)


def test_ancestral_sampling_reaches_the_data_distribution():
    x = torch.randn(20_000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = last(ddpm(gaussian_denoiser(COSINE), COSINE, x, timesteps(COSINE, 200), noise_like(x), clip=False))
    assert abs(x0.mean() - MEAN) < 4 * STD / math.sqrt(20_000) + 0.005
    assert abs(x0.std() - STD) < 0.015


@pytest.mark.parametrize(
    ("sampler", "spacing", "schedule", "order"),
    [(ddim, "trailing", "linear", 1), (dpmpp_2m, "trailing", "linear", 2), (heun, "karras", "linear", 2)],
)
def test_convergence_order_on_an_exactly_solvable_flow(sampler, spacing, schedule, order):
    diffusion = Diffusion.linear(20_000)  # fine enough that rounding times to whole steps does not matter
    x, errors = start(), []
    for steps in (20, 40, 80):
        times = timesteps(diffusion, steps, spacing)
        x0 = last(sampler(gaussian_denoiser(diffusion), diffusion, x, times, clip=False))
        errors.append((x0 - exact_flow(diffusion, x, int(times[0]))).abs().max().item())
    measured = math.log2(errors[0] / errors[2]) / 2
    assert order - 0.35 < measured < order + 0.8, errors


def test_second_order_beats_first_at_20_steps():
    x, errors = start(), {}
    for name, sampler in (("ddim", ddim), ("dpmpp_2m", dpmpp_2m)):
        x0 = last(sampler(gaussian_denoiser(COSINE), COSINE, x, timesteps(COSINE, 20), clip=False))
        errors[name] = (x0 - exact_flow(COSINE, x, 1000)).abs().max().item()
    assert errors["dpmpp_2m"] < errors["ddim"] / 4
    assert errors["dpmpp_2m"] < 0.02


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_stay_in_range_and_end_at_x0(name):
    noise = ImageNoise(range(3), (1, 4, 4))
    states = list(run_sampler(name, wavy, COSINE, noise, 12))
    assert len(states) == 12
    assert states[-1].abs().max() <= 1
    assert bool(states[-1].isfinite().all())


def test_timesteps():
    assert timesteps(COSINE, 1000).tolist() == list(range(1000, -1, -1))
    assert timesteps(COSINE, 4).tolist() == [1000, 750, 500, 250, 0]
    assert timesteps(COSINE, 4, "leading").tolist() == [751, 501, 251, 1, 0]
    karras = timesteps(COSINE, 18, "karras")
    assert karras[-1] == 0
    assert karras[-2] == 1
    assert bool((karras.diff() < 0).all())
    assert 990 < karras[0] < 1000  # sigma = 80
    assert timesteps(COSINE, 1).tolist() == [1000, 0]
    for bad in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            timesteps(COSINE, bad)
    with pytest.raises(ValueError, match="spacing"):
        timesteps(COSINE, 4, "linspace")  # type: ignore[arg-type]


def test_noise_of_an_image_does_not_depend_on_its_batch():
    together = ImageNoise([5, 6, 7], (1, 4, 4))
    alone = ImageNoise([6], (1, 4, 4))
    for _ in range(3):
        assert torch.equal(together()[1:2], alone())
    assert not torch.equal(ImageNoise([5], (1, 4, 4))(), ImageNoise([6], (1, 4, 4))())


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="noise"):
        last(ddim(wavy, COSINE, start(), timesteps(COSINE, 5), eta=1.0))
    with pytest.raises(ValueError, match="sampler"):
        run_sampler("euler", wavy, COSINE, ImageNoise([0], (1, 4, 4)), 5)
