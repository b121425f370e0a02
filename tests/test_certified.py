"""Certificates against a library, and against a classifier whose smoothed version is known in closed form."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, norm

import hybvit
from hybvit.config import override
from hybvit.errors import ConfigError, DivergedError
from hybvit.evaluation.certified import SHARES, table_of_shares
from hybvit.evaluation.options import Options
from hybvit.evaluation.suites import run_suites
from hybvit.method.diffusion import Diffusion
from hybvit.method.smoothing import VOTES_PER_PASS, NoiseLevel, cast_votes, denoised_reading, noise_range, noisy_reading
from hybvit.method.vit import HybViT
from hybvit.metrics.certified import (
    certified_at,
    certified_radius,
    certify_votes,
    check_votes,
    clopper_pearson_lower,
    largest_radius,
    least_votes,
)
from hybvit.metrics.robustness import smoothed_pgd
from hybvit.model import HybridModel
from hybvit.presets import preset

from .conftest import DATA
from .test_evaluate import context, quiet

REFERENCE = json.loads((DATA / "certified_reference.json").read_text())
CONFIDENCE, NOISE = 0.999, 0.25


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Numbers


def test_bounds_labels_and_radii_are_those_of_the_adversarial_robustness_toolbox():
    for row in REFERENCE["rows"]:
        hits, votes, confidence = row["hits"], row["votes"], 1 - row["alpha"]
        bound = clopper_pearson_lower(torch.tensor([hits]), votes, confidence)
        assert bound.item() == pytest.approx(row["bound"], abs=1e-9)
        poll = torch.tensor([[votes - hits, hits]])
        found = certify_votes(poll, poll, votes, row["scale"], confidence)
        assert found.labels.item() == row["label"]
        assert found.radius.item() == pytest.approx(row["radius"], abs=1e-6)
    assert {row["label"] for row in REFERENCE["rows"]} == {-1, 0, 1}


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_the_bound_is_the_exact_one_of_scipy(n):
    hits = torch.arange(0, n + 1, max(1, n // 25))
    for confidence in (0.5, 0.95, 0.999):
        exact = [binomtest(k, n, alternative="greater").proportion_ci(confidence).low for k in hits.tolist()]
        assert clopper_pearson_lower(hits, n, confidence).tolist() == pytest.approx(exact, abs=1e-10)


def test_the_radius_is_that_of_the_theorem():
    p = torch.tensor([0.0, 0.3, 0.5, 0.6, 0.9931, 1 - 1e-9], dtype=torch.float64)
    assert certified_radius(p, 0.5).tolist() == pytest.approx([0, 0, 0, *(0.5 * norm.ppf(p[3:]))], abs=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99, 0.999, 0.999999])
def test_the_least_number_of_votes_is_the_first_that_certifies(confidence):
    least = least_votes(confidence)
    assert largest_radius(1.0, least, confidence) > 0
    assert least == 1 or largest_radius(1.0, least - 1, confidence) == 0
    check_votes(least, 1, confidence)
    with pytest.raises(ValueError, match=f"less than {least}"):
        check_votes(least - 1, 1, confidence)


@pytest.mark.parametrize(("votes", "selection", "confidence"), [(1000, 0, 0.999), (1000, 100, 1.0), (1000, 100, 0.4)])
def test_numbers_that_certify_nothing_are_refused(votes, selection, confidence):
    with pytest.raises(ValueError, match=r"selection is 0|confidence is"):
        check_votes(votes, selection, confidence)


def test_the_class_is_selected_by_the_first_poll_alone():
    selection, votes = torch.tensor([[60, 40], [40, 60]]), torch.tensor([[1000, 0], [1000, 0]])
    found = certify_votes(selection, votes, 1000, NOISE, CONFIDENCE)
    assert found.labels.tolist() == [0, -1]
    assert found.radius.tolist() == [pytest.approx(largest_radius(NOISE, 1000, CONFIDENCE)), 0]
    assert found.votes is votes


def test_a_radius_counts_where_it_is_larger_and_the_label_right():
    votes = torch.tensor([[1000, 0]] * 2 + [[520, 480]])
    found = certify_votes(votes, votes, 1000, NOISE, CONFIDENCE)
    labels, end = torch.tensor([0, 1, 0]), largest_radius(NOISE, 1000, CONFIDENCE)
    assert certified_at(found, labels, 0.0).tolist() == [True, False, False]  # the third abstained
    assert certified_at(found, labels, end - 1e-9).tolist() == [True, False, False]
    assert not certified_at(found, labels, end).any()


def test_the_table_of_votes_counts_every_image_once():
    shares = torch.tensor([0, 0.4, 0.5, 0.8, 0.99, 1.0], dtype=torch.float64)
    assert list(table_of_shares(shares).values()) == [2, 1, 1, 0, 0, 2]
    assert len(table_of_shares(shares)) == len(SHARES) - 1


# Noise and times


@pytest.mark.parametrize("diffusion", [Diffusion.cosine(1000), Diffusion.linear(400), Diffusion.flow(50)])
def test_noise_of_a_time_is_given_that_time_and_its_scale(diffusion):
    for t in (1, 2, diffusion.T // 3, diffusion.T // 2):
        abar = diffusion.alpha_bar[t].item()
        level = NoiseLevel.of(diffusion, math.sqrt((1 - abar) / abar) / 2)
        assert level.t == t
        assert level.scale == pytest.approx(math.sqrt(abar), rel=1e-12)


def test_noise_between_two_times_keeps_its_own_scale():
    diffusion = Diffusion.flow(10)
    between = sum(noise_range(diffusion)) / 2
    level = NoiseLevel.of(diffusion, between)
    assert level.scale**2 * (1 + (2 * between) ** 2) == pytest.approx(1)
    assert level.scale != pytest.approx(diffusion.alpha_bar[level.t].sqrt().item(), rel=1e-3)
    spread = (diffusion.snr[1:].rsqrt() / 2 / between).log().abs()
    assert level.t == spread.argmin() + 1


def test_noise_outside_of_the_times_is_refused_with_the_range():
    low, high = noise_range(Diffusion.flow(10))
    assert (low, high) == (pytest.approx(0.05), pytest.approx(5))
    for noise in (0.049, 5.1, math.nan, 0.0, -1.0):
        with pytest.raises(ValueError, match=r"0\.0500 to 5 on the \[0, 1\] scale.*times 1 to 10"):
            NoiseLevel.of(Diffusion.flow(10), noise)


def test_the_readings_hand_the_network_what_it_was_trained_on():
    """Noisy images have the mean and the variance of x_t, and the denoiser's answer is clipped."""
    diffusion, x0 = Diffusion.cosine(1000), torch.full((4000, 1, 2, 2), 0.5)
    level, seen = NoiseLevel.of(diffusion, NOISE), []
    noisy = x0 + 2 * NOISE * torch.randn(x0.shape, generator=generator())

    def classify(x_t, t):
        seen.append((x_t, t))
        return x_t

    noisy_reading(classify, level)(noisy)
    found = denoised_reading(lambda x_t, t: classify(3 * x_t, t), lambda x: x, level)(noisy)
    abar = diffusion.alpha_bar[level.t].item()
    (x_t, t), _ = seen
    assert (t == level.t).all()
    assert x_t.mean().item() == pytest.approx(0.5 * abar**0.5, abs=0.02)
    assert x_t.std().item() == pytest.approx((1 - abar) ** 0.5, rel=0.02)
    assert found.abs().max() == 1


# A linear classifier: its smoothed version is itself, certified up to the plane


class Linear:
    """Two classes separated by the plane w x = 0, and images on both sides."""

    def __init__(self, n: int = 24) -> None:
        self.w = torch.randn(1, 6, 6, generator=generator(1))
        across = torch.linspace(-0.6, 0.6, n)[:, None, None, None]  # distances on the [0, 1] scale
        x = torch.randn(n, 1, 6, 6, generator=generator(2))
        unit = self.w / self.w.norm()
        x = x - (x * unit).sum((1, 2, 3), keepdim=True) * unit
        self.x, self.distance = x + 2 * across * unit, across.flatten()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        score = (x * self.w).flatten(1).sum(dim=1)
        return torch.stack((-score, score), dim=1)

    def certify(self, votes: int, x: torch.Tensor | None = None, seed: int = 0):
        x = self.x if x is None else x
        polls = cast_votes(self, x, NOISE, (100, votes), 2, seed, range(len(x)))
        return certify_votes(*polls, votes, NOISE, CONFIDENCE)


def test_a_linear_classifier_is_certified_up_to_its_plane_and_not_beyond():
    model = Linear()
    found = model.certify(4000)
    certain = found.labels >= 0
    truth = (model.distance > 0).long()
    assert (found.labels[certain] == truth[certain]).all()
    assert (found.radius <= model.distance.abs() + 1e-9).all()
    shares = found.votes.gather(1, truth[:, None])[:, 0] / 4000
    assert (shares - torch.from_numpy(norm.cdf(model.distance.abs() / NOISE))).abs().max() < 0.03
    inner = (model.distance.abs() > 0.1) & (model.distance.abs() < 0.4)
    assert (found.radius[inner] > 0.8 * model.distance.abs()[inner]).all()


def test_an_attack_inside_of_the_certified_radius_breaks_nothing_and_one_beyond_the_plane_does():
    model = Linear()
    found = model.certify(2000)
    certain = (found.labels >= 0).nonzero().flatten()
    x, labels = model.x[certain], found.labels[certain]

    def attacked(radius):
        images = smoothed_pgd(model, x, labels, NOISE, radius, generator(), steps=8, draws=8)
        moved = (images - x).flatten(1).norm(dim=1)
        assert (moved <= 2 * radius + 1e-5).all()
        assert (moved > 1.9 * radius).all()  # it goes as far as it may
        return cast_votes(model, images, NOISE, (2000,), 2, 1, range(len(images)))[0].argmax(dim=1)

    assert (attacked(0.99 * found.radius[certain]) == labels).all()
    assert (attacked(1.2 * model.distance.abs()[certain] + 0.02) != labels).all()


def test_votes_are_independent_of_who_else_is_asked_and_of_autocast():
    model = Linear()
    model.x *= 0.3
    votes = cast_votes(model, model.x, NOISE, (30, 200), 2, 0, range(24))
    some = [3, 17, 5]
    for poll, alone in zip(votes, cast_votes(model, model.x[some], NOISE, (30, 200), 2, 0, some), strict=True):
        assert torch.equal(poll[some], alone)
        assert poll.dtype == torch.int64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast_votes(model, model.x[:5], NOISE, (30, 200), 2, 0, range(5))[1], votes[1][:5])
    assert [poll.sum(dim=1).unique().tolist() for poll in votes] == [[30], [200]]
    assert not torch.equal(cast_votes(model, model.x, NOISE, (30, 200), 2, 1, range(24))[1], votes[1])  # of another seed
    same = cast_votes(model, model.x[:1].expand(2, -1, -1, -1), NOISE, (200,), 2, 0, range(2))[0]
    assert not torch.equal(same[0], same[1])  # an image has noise of its own


def test_the_two_polls_of_an_image_have_noise_of_their_own():
    model = Linear()
    first, second = cast_votes(model, model.x[11:13] * 0, NOISE, (VOTES_PER_PASS, VOTES_PER_PASS), 2, 0, range(2))
    assert not torch.equal(first, second)


def test_autocast_does_not_reach_the_votes():
    seen = []

    def classify(x):
        seen.append((x.flatten(1) @ torch.ones(36, 2)).dtype)
        return torch.zeros(len(x), 2)

    with torch.autocast("cpu", torch.bfloat16):
        cast_votes(classify, torch.zeros(1, 1, 6, 6), NOISE, (3,), 2, 0, [0])
    assert seen == [torch.float32]


# The model


@pytest.fixture(scope="module")
def model() -> HybridModel:
    cfg = override(
        preset("digits"),
        model={"dim": 16, "depth": 2, "heads": 2, "class_depth": 1},
        objective={"noisy_labels": 1.0},
    )
    torch.manual_seed(0)
    return HybridModel(HybViT(cfg.model), cfg, "cpu")


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=generator())


def test_a_model_certifies_images_one_by_one(model, pixels):
    found = model.certify(pixels, noise=0.1, votes=200, selection=20)
    labels, radius, votes = found
    assert labels.shape == radius.shape == (6,)
    assert votes.shape == (6, 10)
    assert (votes.sum(dim=1) == 200).all()
    assert ((labels == -1) == (radius == 0)).all()
    assert all(map(torch.equal, model.certify(pixels[:2], noise=0.1, votes=200, selection=20), (part[:2] for part in found)))
    first = cast_votes(model.noisy_classifier(0.1), hybvit.to_x(pixels[3:4]), 0.1, (20, 200), 10, 0, [3])[1]
    assert torch.equal(first[0], votes[3])
    one = model.certify(Image.fromarray(pixels[0, 0].numpy()), noise=0.1, votes=200, selection=20)
    assert torch.equal(one.votes[0], votes[0])


def test_only_the_layers_up_to_the_tap_run(model, pixels, monkeypatch):
    monkeypatch.setattr(HybViT, "forward_tail", None)
    model.certify(pixels[:1], votes=10, selection=1)


def test_what_cannot_be_certified_is_refused_before_any_vote(model, pixels, monkeypatch):
    with pytest.raises(ValueError, match=r"noise is 1e-05: it must be in 0\.00"):
        model.certify(pixels, noise=1e-5)
    with pytest.raises(ValueError, match=r"votes is 9: at confidence 0.999 no certificate is possible with less than 10"):
        model.certify(pixels, votes=9)
    with pytest.raises(ValueError, match="this model takes uint8"):
        model.certify(pixels.float())
    with pytest.raises(ConfigError, match=r"objective.noisy_labels is 0.*--objective.noisy_labels 1"):
        hybvit.load("digits", "cpu").certify(pixels)
    monkeypatch.setattr(model.net, "classify", lambda x, t=None: torch.full((len(x), 10), torch.nan))
    with pytest.raises(DivergedError, match="not finite"):
        model.certify(pixels[:1], votes=10)


# The suite


FEW = Options(limit=40, certified_images=4, certified_votes=70, certified_noise=(0.1, 0.2), attack_steps=2)


@pytest.mark.slow
def test_the_suite_certifies_what_the_model_does(model, tmp_path):
    ctx = context(model, tmp_path, FEW)
    record = run_suites(ctx, ("certified",), quiet)
    images = ctx.test.subsample(4)
    for noise in FEW.certified_noise:
        own = model.certify(images.in_memory, noise=noise, votes=70)
        for radius in (0.0, 0.25) if noise == 0.2 else (0.0,):  # 70 votes that all agree certify 1.32 times the noise
            metric = record["metrics"][f"certified/noisy_{noise:g}/accuracy_{radius:g}"]
            assert metric["value"] == certified_at(own, images.labels, radius).double().mean().item()
            assert metric["n"] == 4
        assert record["metrics"][f"certified/noisy_{noise:g}/abstained"]["value"] == (own.labels < 0).double().mean().item()
    assert "certified/noisy_0.1/accuracy_0.25" not in record["metrics"]
    assert any(
        "Radii up to 0.13 at noise 0.1, 0.26 at noise 0.2 can be certified" in note for note in record["notes"]["certified"]
    )
    names = {name.split("/")[1] for name in record["metrics"]}
    assert names == {"noisy_0.1", "noisy_0.2", "denoised_0.2", "plain_pgd"}
    assert record["tables"]["certified"]["precision"] == "float32"
    assert sum(record["tables"]["certified"]["share_of_votes"]["noisy_0.1"].values()) == 4
    assert {path.stem for path in (tmp_path / "evaluation" / "certified").glob("*.svg")} == {"curve", "votes"}


@pytest.mark.slow
def test_a_model_without_noisy_labels_is_certified_after_a_denoising_step(tmp_path):
    record = run_suites(context(hybvit.load("digits", "cpu"), tmp_path, FEW), ("certified",), quiet)
    assert {name.split("/")[1] for name in record["metrics"]} == {"denoised_0.1", "denoised_0.2", "plain_pgd"}
    assert any("objective.noisy_labels" in note for note in record["notes"]["certified"])


def test_options_of_the_suite_are_checked_at_once(tmp_path, model):
    with pytest.raises(ConfigError, match=r"certified_votes is 9: at confidence 0.999 .* less than 10"):
        Options(certified_votes=9)
    for noise in ((), (0.1, -1.0), (math.inf,)):
        with pytest.raises(ConfigError, match="certified_noise is"):
            Options(certified_noise=noise)
    with pytest.raises(ConfigError, match="certified_noise is 1e-05"):
        run_suites(context(model, tmp_path, Options(certified_noise=(1e-5,))), ("certified",), quiet)
