from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_ood.detector import KNN, EnergyBased
from pytorch_ood.metrics import functional as theirs
from scipy.linalg import hadamard
from scipy.special import ndtr, ndtri
from scipy.stats import combine_pvalues, gaussian_kde
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import average_precision_score, roc_auc_score

from hybvit.method.diffusion import Diffusion
from hybvit.metrics.diffusion_ood import path_statistics, score_curvature
from hybvit.metrics.likelihood import log_density
from hybvit.metrics.ood import (
    aupr,
    aupr_out,
    auroc,
    auroc_interval,
    bootstrap_intervals,
    clustered_auroc_interval,
    density_score,
    fpr_at_95_tpr,
    fused_score,
    gradient_norm_score,
    in_distribution_rank,
    knn_score,
    mahalanobis_score,
    normal_score,
    relative_mahalanobis_score,
)
from hybvit.metrics.selective import max_probability

MEASURES = [auroc, aupr, aupr_out, fpr_at_95_tpr]


def gaussians(d: float, n: int, m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores N(d, 1) inside and N(0, 1) outside."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=g, dtype=torch.float64) + d, torch.randn(m, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("round_to", [None, 1])  # rounding makes ties
def test_the_measures_equal_their_references(round_to):
    inside, outside = gaussians(1.0, 700, 300)
    if round_to is not None:
        inside, outside = inside.round(decimals=round_to), outside.round(decimals=round_to)
    scores = torch.cat((inside, outside))
    labels = torch.cat((torch.ones(700), torch.zeros(300))).long()
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(labels, scores))
    assert aupr(inside, outside) == pytest.approx(average_precision_score(labels, scores))
    assert aupr_out(inside, outside) == pytest.approx(average_precision_score(1 - labels, -scores))
    # pytorch-ood takes outlier scores, labels < 0 outside, and has the outside as positives: its roles swapped are ours.
    assert auroc(inside, outside) == pytest.approx(theirs.auroc(-scores, labels - 1).item())
    assert fpr_at_95_tpr(inside, outside) == pytest.approx(theirs.fpr_at_tpr(scores, -labels, 0.95).item())


def test_two_gaussians_in_closed_form():
    d, n = 1.5, 40_000
    inside, outside = gaussians(d, n, n)
    assert auroc(inside, outside) == pytest.approx(ndtr(d / 2**0.5), abs=0.006)
    # 95 % of inside lie above d + ndtri(0.05); of outside 1 - Phi of that.
    assert fpr_at_95_tpr(inside, outside) == pytest.approx(1 - ndtr(d + ndtri(0.05)), abs=0.015)
    assert auroc(outside, inside) == pytest.approx(ndtr(-d / 2**0.5), abs=0.006)


def test_measures_by_hand():
    inside, outside = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0.5, 0.1])
    assert auroc(inside, outside) == pytest.approx(5 / 6)
    assert aupr(inside, outside) == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert aupr_out(inside, outside) == pytest.approx((1 + 2 / 3) / 2)
    assert fpr_at_95_tpr(inside, outside) == 0.5


def test_the_threshold_keeps_95_percent_of_inside_and_counts_ties_as_kept():
    inside = torch.arange(20, dtype=torch.float64)  # 95 % are the 19 from 1 on
    for outside, expected in (([0.0, 0.5, 0.99], 0.0), ([0.5, 1.0, 1.5, 30.0], 0.75), ([-1.0, 0.0], 0.0)):
        assert fpr_at_95_tpr(inside, torch.tensor(outside, dtype=torch.float64)) == expected
    assert fpr_at_95_tpr(inside[:19], torch.tensor([0.0, 0.5])) == 1.0  # 18 of 19 are too few: the threshold is 0
    assert fpr_at_95_tpr(inside, inside) == 0.95  # a straight curve, of which no point may be left out
    same = torch.zeros(10)
    assert [measure(same, same) for measure in MEASURES] == [0.5, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("measure", [*MEASURES, auroc_interval])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named(measure, value):
    good, bad = torch.arange(4.0), torch.arange(4.0)
    bad[2] = value
    with pytest.raises(ValueError, match=rf"id_scores: score 2 is {value}"):
        measure(bad, good)
    with pytest.raises(ValueError, match=rf"ood_scores: score 2 is {value}"):
        measure(good, bad)
    with pytest.raises(ValueError, match="ood_scores is empty"):
        measure(good, good[:0])


def test_the_interval_is_delong_by_brute_force():
    inside, outside = (part.round(decimals=1) for part in gaussians(1.0, 60, 40))
    pairs = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    variance = pairs.mean(1).var() / 60 + pairs.mean(0).var() / 40
    low, high = auroc_interval(inside, outside)
    assert (low + high) / 2 == pytest.approx(pairs.mean().item())
    assert (high - low) / 2 == pytest.approx(1.96 * variance.item() ** 0.5)
    assert auroc_interval(inside, outside, z=0.0) == pytest.approx((pairs.mean().item(),) * 2)


@pytest.mark.slow
def test_the_interval_holds_the_truth_in_95_percent_of_trials():
    truth, trials = ndtr(1 / 2**0.5), 400
    intervals = [auroc_interval(*gaussians(1.0, 80, 120, seed)) for seed in range(trials)]
    held = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.91 <= held <= 0.985


@pytest.mark.slow
def test_bootstrap_intervals_have_the_spread_of_repeated_trials():
    measures = {"aupr": aupr, "fpr_at_95_tpr": fpr_at_95_tpr}
    spreads = {name: 2 * 1.96 * np.std([f(*gaussians(1.0, 300, 200, s)) for s in range(400)]) for name, f in measures.items()}
    found = [bootstrap_intervals(*gaussians(1.0, 300, 200, seed), seed=0) for seed in range(30)]
    for name, spread in spreads.items():
        assert np.mean([np.diff(bounds[name]).item() for bounds in found]) == pytest.approx(spread, rel=0.15)


def test_bootstrap_intervals_treat_ties_as_the_measures_do(monkeypatch):
    inside, outside = torch.tensor([2.0, 2.0, 1.0, 0.0]), torch.tensor([2.0, 1.0, 1.0, 0.0, 0.0])
    once = lambda self, n, p: np.ones(n, dtype=int)  # noqa: E731  every image once: the sets themselves
    monkeypatch.setattr(np.random, "default_rng", lambda seed: type("Rng", (), {"multinomial": once})())
    bounds = bootstrap_intervals(inside, outside, seed=0, repeats=2)
    assert bounds["aupr"] == pytest.approx((aupr(inside, outside),) * 2)
    assert bounds["fpr_at_95_tpr"] == pytest.approx((fpr_at_95_tpr(inside, outside),) * 2)


def test_the_interval_stays_in_0_to_1_and_needs_two_scores():
    low, high = auroc_interval(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.5, 2.5]))
    assert 0 < low < high == 1
    low, high = auroc_interval(torch.tensor([0.0, 0.5, 2.5]), torch.tensor([1.0, 2.0, 3.0]))
    assert 0 == low < high < 1
    assert auroc_interval(torch.arange(5.0), torch.arange(5.0) - 9) == (1, 1)
    for sets in ((torch.arange(1.0), torch.arange(5.0)), (torch.arange(5.0), torch.arange(1.0))):
        with pytest.raises(ValueError, match="at least two"):
            auroc_interval(*sets)


def chained(n: int, b: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of n images and of the means of images b apart, and the chain of each."""
    inside = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outside = (inside[:-b] + inside[b:]) / 2 - 0.7
    return inside, outside, torch.arange(n) % b, torch.arange(n - b) % b


@pytest.mark.slow
def test_the_interval_of_images_made_of_others_has_their_spread():
    found = [auroc(*chained(400, 50, seed)[:2]) for seed in range(300)]
    spread = 2 * 1.96 * float(np.std(found))
    clustered, delong = [], []
    for seed in range(20):
        sets = chained(400, 50, seed)
        clustered.append(np.diff(clustered_auroc_interval(*sets, seed=0)).item())
        delong.append(np.diff(auroc_interval(*sets[:2])).item())
    assert np.mean(clustered) == pytest.approx(spread, rel=0.12)
    assert abs(np.mean(delong) / spread - 1) > 0.25  # it takes as independent what is not


def test_clusters_of_independent_images_give_delongs_interval():
    inside, outside = gaussians(1.0, 300, 300)
    clusters = torch.arange(300)
    low, high = clustered_auroc_interval(inside, outside, clusters, clusters, seed=0, repeats=4000)
    assert (low, high) == pytest.approx(auroc_interval(inside, outside), abs=0.006)
    assert clustered_auroc_interval(inside, outside, clusters, clusters, 1) == clustered_auroc_interval(
        inside, outside, clusters, clusters, 1
    )
    with pytest.raises(ValueError, match="at least two clusters"):
        clustered_auroc_interval(inside, outside, clusters, 0 * clusters, seed=0)


def test_scores_of_logits():
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(log_density(logits), -EnergyBased.score(logits))
    assert log_density(torch.tensor([[0.0, math.log(3.0)]])).item() == pytest.approx(math.log(4))
    torch.testing.assert_close(max_probability(logits), logits.double().softmax(1).max(1).values)
    assert log_density(logits).dtype == torch.float32
    assert max_probability(logits).dtype == torch.float64
    assert log_density(torch.full((1, 2), 1e4)).item() == pytest.approx(1e4 + math.log(2))


def linear() -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    weight = torch.randn(5, 3 * 4 * 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return weight, lambda x: x.flatten(1) @ weight.T


def test_the_gradient_norm_of_a_linear_model_in_closed_form():
    weight, logits_fn = linear()
    x = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = -(logits_fn(x).softmax(1) @ weight).norm(dim=1)  # d logsumexp/dx = sum of p_k w_k
    torch.testing.assert_close(gradient_norm_score(logits_fn, x), expected)
    with torch.no_grad():
        torch.testing.assert_close(gradient_norm_score(logits_fn, x), expected)
    assert x.grad is None
    assert not x.requires_grad
    assert gradient_norm_score(lambda x: logits_fn(x.double()).bfloat16(), x.float()).dtype == torch.float64


def test_the_gradient_norm_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 32), torch.nn.Tanh(), torch.nn.Linear(32, 5)).double()
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64) * torch.arange(1, 7)[:, None, None, None]
    together = gradient_norm_score(net, x)
    alone = torch.cat([gradient_norm_score(net, x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(gradient_norm_score(net, x.flip(0)), alone.flip(0))
    assert len(set(together.tolist())) == 6
    assert bool((together < 0).all())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_nearest_neighbours_equal_brute_force(k, chunk):
    g = torch.Generator().manual_seed(0)
    train, features = torch.randn(40, 6, generator=g), 3 * torch.randn(20, 6, generator=g)
    train_unit, unit = (f.double() / f.double().norm(dim=1, keepdim=True) for f in (train, features))
    distances = (unit[:, None] - train_unit[None]).square().sum(2).sqrt().sort(dim=1).values
    scores = knn_score(features, train, k, chunk)
    torch.testing.assert_close(scores, -distances[:, k - 1], atol=1e-6, rtol=0)
    reference = KNN(None, k=k).fit_features(train, torch.zeros(40, dtype=torch.int64)).predict_features(features)
    torch.testing.assert_close(scores, -reference.double(), atol=1e-6, rtol=0)


def test_a_training_feature_is_its_own_neighbour_and_lengths_do_not_matter():
    g = torch.Generator().manual_seed(0)
    train = torch.randn(30, 6, generator=g)
    assert knn_score(train, train, 1).abs().max() == 0
    assert knn_score(train, train, 2).max() < -1e-3
    lengths = torch.rand(30, 1, generator=g) + 0.5
    torch.testing.assert_close(knn_score(train * lengths, train, 3), knn_score(train, train * lengths, 3), atol=1e-6, rtol=0)
    assert knn_score(-train[:1], train[:1], 1).item() == pytest.approx(-2)
    assert knn_score(train.bfloat16(), train.bfloat16(), 1).dtype == torch.float64
    for k in (0, 31):
        with pytest.raises(ValueError, match=f"k is {k}"):
            knn_score(train, train, k)


def test_mahalanobis_equals_scikit_learn():
    train, labels = torch.randn(300, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64), torch.arange(300) % 4 * 2
    train, features = train + labels[:, None], 3 * torch.randn(40, 6, dtype=torch.float64)
    means = {int(k): train[labels == k].mean(0) for k in labels.unique()}
    centered = torch.stack([row - means[int(k)] for row, k in zip(train, labels, strict=True)])
    fitted = EmpiricalCovariance(assume_centered=True).fit(centered)
    theirs = np.min([fitted.mahalanobis(features - mean) for mean in means.values()], axis=0)
    np.testing.assert_allclose(-mahalanobis_score(features, train, labels), theirs, rtol=1e-8)
    alone = EmpiricalCovariance().fit(train).mahalanobis(features)
    np.testing.assert_allclose(-normal_score(features, train), alone, rtol=1e-8)
    np.testing.assert_allclose(relative_mahalanobis_score(features, train, labels), alone - theirs, rtol=1e-7)
    flat = torch.cat((train, torch.ones(300, 1)), dim=1)  # a feature that does not vary does not count
    wider = torch.cat((features, torch.full((40, 1), 5.0)), dim=1)
    np.testing.assert_allclose(-mahalanobis_score(wider, flat, labels), theirs, rtol=1e-6)


def test_a_mahalanobis_score_takes_no_more_memory_than_it_is_given(monkeypatch):
    train, labels, features = torch.randn(40, 6), torch.arange(40) % 5, torch.randn(30, 6)
    whole, einsum, sizes = mahalanobis_score(features, train, labels), torch.einsum, list[int]()
    monkeypatch.setattr(
        torch, "einsum", lambda words, apart, *others: (sizes.append(apart.numel()), einsum(words, apart, *others))[1]
    )
    parts = mahalanobis_score(features, train, labels, numbers=70)
    assert max(sizes) == 60  # two rows, with five means of six numbers each
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("dims", [1, 4])
def test_the_density_equals_scipys(dims):
    train = torch.randn(200, dims, dtype=torch.float64) @ torch.randn(dims, dims, dtype=torch.float64) + 2
    values = torch.cat((train[:50], 9 * torch.randn(30, dims, dtype=torch.float64)))
    np.testing.assert_allclose(density_score(values, train, 32), gaussian_kde(train.T).logpdf(values.T), rtol=1e-8)
    flat = torch.cat((train, torch.zeros(200, 1)), dim=1)  # which scipy refuses; only the exponent of M differs
    ranked = density_score(torch.cat((values, torch.ones(80, 1)), dim=1), flat)
    assert ranked.isfinite().all()
    assert np.corrcoef(ranked, density_score(values, train))[0, 1] > 0.99


def test_the_fusion_is_fishers_on_ranks():
    id_scores, scores = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 2.5, 9.0])
    ranks = in_distribution_rank(scores, id_scores)
    assert ranks.tolist() == [1 / 5, 4 / 5, 4 / 5, 1]
    others = torch.tensor([[0.4, 0.2, 1.0, 0.6], [0.1, 0.9, 0.5, 1.0]], dtype=torch.float64)
    for found, of_one in zip(fused_score([ranks, *others]), zip(ranks, *others, strict=True), strict=True):
        assert -2 * found == pytest.approx(combine_pvalues(list(of_one), "fisher").statistic)


def small_denoiser(dtype=torch.float64):
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 16), torch.nn.Unflatten(1, (1, 4, 4))
    ).to(dtype)
    return lambda x_t, t: x_t + 0.3 * net(x_t) * (t / 100)[:, None, None, None]


def test_the_curvature_is_the_exact_trace_on_average():
    """Over the rows of a Hadamard matrix, Hutchinson's estimate is the trace itself."""
    diffusion, eps, t = Diffusion.cosine(100), small_denoiser(), 30
    x, noise = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.randn(1, 4, 4, dtype=torch.float64)
    at = torch.full((3,), t)
    x_t = diffusion.q_sample(x, at, noise.expand_as(x))
    deviation = diffusion.sqrt_one_minus_alpha_bar[t].item()
    squared = eps(x_t, at).flatten(1).square().sum(1) / deviation**2
    found = [
        squared / score_curvature(eps, diffusion, x, t, noise, torch.tensor(row).double().reshape(1, 4, 4)).exp()
        for row in hadamard(16)
    ]
    score = lambda flat: -eps(flat.reshape(1, 1, 4, 4), at[:1]).flatten() / deviation  # noqa: E731
    exact = [-torch.autograd.functional.jacobian(score, row.flatten()).trace() for row in x_t]
    torch.testing.assert_close(torch.stack(found).mean(0), torch.stack(exact).detach())


def test_the_curvature_of_a_gaussian_is_typical_at_0():
    diffusion, t = Diffusion.cosine(100), 40
    deviation, dims = diffusion.sqrt_one_minus_alpha_bar[t].item(), 4096
    exact = lambda x_t, at: deviation * x_t  # the predicted noise where x_0 is N(0, I)  # noqa: E731
    x = torch.cat([spread * torch.randn(20, 1, 64, 64, dtype=torch.float64) for spread in (1.0, 0.5, 2.0)])
    probe = 2.0 * torch.randint(2, (1, 64, 64)) - 1
    found = score_curvature(exact, diffusion, x, t, torch.randn(60, 1, 64, 64, dtype=torch.float64), probe).split(20)
    means = [part.mean().item() for part in found]
    signal = diffusion.alpha_bar[t].item()
    for mean, spread in zip(means, (1.0, 0.5, 2.0), strict=True):
        assert mean == pytest.approx(np.log(signal * spread**2 + 1 - signal), abs=5 * (2 / dims / 20) ** 0.5)


def test_the_path_of_a_gaussian_is_known():
    """With abar = cos^2 a, a step of DDIM for N(0, I) scales x by the cosine of the difference of the angles."""
    diffusion, times = Diffusion.cosine(100), [5, 20, 60, 90]
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    exact = lambda x_t, t: diffusion.at("sqrt_one_minus_alpha_bar", t, x_t) * x_t  # noqa: E731
    angles = diffusion.alpha_bar[times].sqrt().acos()
    scales = angles.diff(prepend=torch.zeros(1, dtype=torch.float64)).cos().cumprod(0) * angles.sin()
    slopes = scales.diff() / (torch.tensor(times, dtype=torch.float64).diff() / 100)
    rows = [[x.flatten(1).pow(p).mean(1) * part.pow(p).mean() for p in (1, 2, 3)] for part in (scales, slopes)]
    wanted = [m.sign() * m.abs().pow(1 / p) for row in rows for p, m in zip((1, 2, 3), row, strict=True)]
    torch.testing.assert_close(path_statistics(exact, diffusion, x, times), torch.stack(wanted, 1))
    with pytest.raises(ValueError, match="increase strictly"):
        path_statistics(exact, diffusion, x, [20, 5])
