from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import multiclass_calibration_error

from hybvit.metrics.calibration import (
    SHARE,
    TEMPERATURES,
    ReliabilityTable,
    bootstrap_interval,
    choose_scaling,
    expected_calibration_error,
    fit_temperature,
    fit_vector_scaling,
    interval_around,
    maximum_calibration_error,
    reliability_table,
)


def overconfident(n: int = 2000, temperature: float = 2.0, k: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of which logits/temperature are the true log-probabilities."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, generator=g, dtype=torch.float64) * 3
    return logits, (logits / temperature).softmax(dim=1).multinomial(1, generator=g)[:, 0]


def with_confidence(confidence: list[float], k: int = 2) -> torch.Tensor:
    """Logits of class 0 having these probabilities and the others sharing the rest."""
    p = torch.tensor(confidence, dtype=torch.float64)[:, None]
    return torch.cat((p, ((1 - p) / (k - 1)).expand(-1, k - 1)), dim=1).log()


@pytest.mark.parametrize("bins", [1, 15, 20])
@pytest.mark.parametrize(("norm", "ours"), [("l1", expected_calibration_error), ("max", maximum_calibration_error)])
def test_calibration_errors_equal_torchmetrics(bins, norm, ours):
    logits, labels = overconfident()
    theirs = multiclass_calibration_error(logits, labels, num_classes=10, n_bins=bins, norm=norm)
    assert ours(reliability_table(logits, labels, bins)) == pytest.approx(theirs.item(), abs=1e-6)


def test_the_table_counts_by_hand():
    logits, labels = with_confidence([0.55, 0.6, 0.9, 0.8]), torch.tensor([0, 1, 0, 0])
    table = reliability_table(logits, labels, 4)
    assert table.size.tolist() == [0, 0, 2, 2]
    torch.testing.assert_close(table.confidence[2:], torch.tensor([0.575, 0.85], dtype=torch.float64))
    torch.testing.assert_close(table.accuracy[2:], torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert bool(table.confidence[:2].isnan().all())
    assert bool(table.accuracy[:2].isnan().all())
    assert expected_calibration_error(table) == pytest.approx((0.075 + 0.15) / 2)
    assert maximum_calibration_error(table) == pytest.approx(0.15)


def test_bins_are_closed_on_the_right():
    labels = torch.zeros(1, dtype=torch.int64)
    halves, quarters = torch.zeros(1, 2), torch.zeros(1, 4)  # confidences 1/2 and 1/4, exactly
    assert reliability_table(halves, labels, 2).size.tolist() == [1, 0]
    assert reliability_table(halves, labels, 4).size.tolist() == [0, 1, 0, 0]
    assert reliability_table(quarters, labels, 4).size.tolist() == [1, 0, 0, 0]
    certain = torch.tensor([[1000.0, 0.0]])
    assert reliability_table(certain, labels, 4).size.tolist() == [0, 0, 0, 1]
    assert reliability_table(certain, labels, 1).size.tolist() == [1]


def test_the_errors_weigh_bins_by_their_images_and_skip_the_empty():
    table = ReliabilityTable(
        torch.tensor([30, 0, 10]),
        torch.tensor([0.2, math.nan, 0.9], dtype=torch.float64),
        torch.tensor([0.3, math.nan, 0.5], dtype=torch.float64),
    )
    assert expected_calibration_error(table) == pytest.approx(0.75 * 0.1 + 0.25 * 0.4)
    assert maximum_calibration_error(table) == pytest.approx(0.4)


def test_the_maximum_error_can_leave_out_small_bins():
    values = [[0.3, 0.7, 0.9], [0.9, 0.8, 0.88]]
    table = ReliabilityTable(torch.tensor([2, 30, 400]), *(torch.tensor(row, dtype=torch.float64) for row in values))
    assert maximum_calibration_error(table) == pytest.approx(0.6)  # of two images
    assert maximum_calibration_error(table, 30) == pytest.approx(0.1)
    assert maximum_calibration_error(table, 31) == pytest.approx(0.02)
    assert math.isnan(maximum_calibration_error(table, 401))


@pytest.mark.parametrize("equal_mass", [False, True])
def test_calibrated_is_0_and_certainly_wrong_is_1(equal_mass):
    logits = with_confidence([0.75] * 8 + [0.5] * 4, 3)
    labels = torch.tensor([0] * 6 + [1] * 2 + [0] * 2 + [2] * 2)
    table = reliability_table(logits, labels, 3, equal_mass)
    assert expected_calibration_error(table) == pytest.approx(0, abs=1e-12)
    certain = F.one_hot(torch.zeros(12, dtype=torch.int64), 3) * 1000.0
    table = reliability_table(certain, torch.ones(12, dtype=torch.int64), 3, equal_mass)
    assert expected_calibration_error(table) == maximum_calibration_error(table) == 1


@pytest.mark.parametrize(("n", "bins"), [(2000, 15), (100, 7), (5, 8)])
def test_bins_of_equal_mass_are_a_split_of_the_sorted_images(n, bins):
    logits, labels = (part[:n] for part in overconfident())
    table = reliability_table(logits, labels, bins, equal_mass=True)
    confidence, prediction = logits.softmax(dim=1).max(dim=1)
    order = confidence.argsort()
    groups = [group for group in np.array_split(order.numpy(), bins) if len(group)]
    error = sum(
        len(group) / n * abs((prediction == labels)[group].double().mean() - confidence[group].mean()) for group in groups
    )
    assert table.size.sum() == n
    assert table.size.max() - table.size.min() <= 1
    filled = table.confidence[table.size > 0]
    assert bool((filled.diff() > 0).all())
    if n % bins:  # the larger bins may stand elsewhere than array_split's
        assert expected_calibration_error(table) == pytest.approx(float(error), abs=2 * bins / n)
    else:
        assert expected_calibration_error(table) == pytest.approx(float(error))


def test_bins_of_equal_mass_equal_a_split_where_it_is_even():
    logits, labels = overconfident(1500)
    confidence, prediction = logits.softmax(dim=1).max(dim=1)
    groups = confidence.argsort().reshape(15, 100)
    gaps = ((prediction == labels)[groups].double().mean(1) - confidence[groups].mean(1)).abs()
    table = reliability_table(logits, labels, 15, equal_mass=True)
    assert table.size.tolist() == [100] * 15
    assert expected_calibration_error(table) == pytest.approx(gaps.mean().item())
    assert maximum_calibration_error(table) == pytest.approx(gaps.max().item())


def test_equal_mass_does_not_depend_on_the_order_of_tied_images():
    labels = torch.tensor([0] * 6 + [1] * 4)
    logits = with_confidence([0.9] * 10)
    errors = [
        expected_calibration_error(reliability_table(logits, labels[order], 4, equal_mass=True))
        for order in (torch.arange(10), torch.arange(9, -1, -1), torch.randperm(10, generator=torch.Generator().manual_seed(0)))
    ]
    assert errors == pytest.approx([0.3] * 3)


def test_tables_refuse_what_they_cannot_count():
    logits, labels = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 bins"):
        reliability_table(logits, labels, 0)
    with pytest.raises(ValueError, match="0 images"):
        reliability_table(logits[:0], labels[:0], 5)
    logits[1, 0] = math.nan
    with pytest.raises(ValueError, match="image 1"):
        reliability_table(logits, labels, 5)


def test_the_temperature_minimises_the_nll():
    logits, labels = overconfident()
    best = minimize_scalar(
        lambda log_t: F.cross_entropy(logits / math.exp(log_t), labels).item(), bounds=(-4, 4), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(math.exp(best.x), rel=1e-5)
    assert temperature == pytest.approx(2, rel=0.1)  # what the labels were drawn with


@pytest.mark.parametrize("c", [0.05, 0.5, 3.0, 20.0])
def test_a_factor_on_the_logits_is_a_factor_on_the_temperature(c):
    logits, labels = overconfident(500)
    assert fit_temperature(c * logits, labels) == pytest.approx(c * fit_temperature(logits, labels), rel=1e-6)


def test_the_temperature_of_two_classes_in_closed_form():
    # One logit gap g for all, right in a share s: 1/(1 + e^(-g/T)) = s.
    logits, labels = torch.tensor([[2.5, 0.0]]).repeat(10, 1), torch.tensor([0] * 8 + [1] * 2)
    assert fit_temperature(logits, labels) == pytest.approx(2.5 / math.log(0.8 / 0.2), rel=1e-6)
    assert fit_temperature(logits + 1e6, labels) == pytest.approx(2.5 / math.log(0.8 / 0.2), rel=1e-6)


def test_the_temperature_stops_at_its_bounds():
    logits, _ = overconfident(200)
    assert fit_temperature(logits, logits.argmax(1)) == TEMPERATURES[0]  # separable: the sharper the better
    assert fit_temperature(logits, logits.argmin(1)) == TEMPERATURES[1]  # worse than a constant
    assert fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 1  # no temperature changes anything
    for bad in (logits[:0], logits.index_fill(1, torch.tensor([0]), math.inf)):
        with pytest.raises(ValueError, match="finite"):
            fit_temperature(bad, torch.zeros(len(bad), dtype=torch.int64))


def test_the_bootstrap_of_a_mean_is_its_normal_interval():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(lambda i: values[i].mean().item(), 400, seed=1, repeats=4000)
    half = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean().item() + half, abs=0.1 * half)


def test_the_bootstrap_is_repeatable_and_draws_all_images_with_replacement():
    seen: list[torch.Tensor] = []

    def statistic(index: torch.Tensor) -> float:
        seen.append(index)
        return index.double().mean().item()

    first = bootstrap_interval(statistic, 10, seed=3)
    *seen, everyone = seen
    assert everyone.tolist() == list(range(10))  # for the value that the interval is around
    assert len(seen) == 200
    assert {len(index) for index in seen} == {10}
    assert set(torch.cat(seen).tolist()) == set(range(10))
    assert any(len(set(index.tolist())) < 10 for index in seen)
    assert first == bootstrap_interval(statistic, 10, seed=3)
    assert first != bootstrap_interval(statistic, 10, seed=4)


def test_the_bootstrap_of_the_calibration_error_is_around_it():
    logits, labels = overconfident(1000)
    error = expected_calibration_error(reliability_table(logits, labels))
    low, high = bootstrap_interval(lambda i: expected_calibration_error(reliability_table(logits[i], labels[i])), 1000, seed=0)
    assert low < error < high
    assert high - low < 0.1


def test_intervals_of_the_calibration_error_hold_what_other_images_give_on_average():
    """Plain percentiles hold it in one of eight trials: resampling adds its own bias to that of the error."""

    def calibrated(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(1000, 5, generator=g, dtype=torch.float64)
        return logits, logits.softmax(1).multinomial(1, generator=g)[:, 0]

    def error(logits: torch.Tensor, labels: torch.Tensor) -> float:
        return expected_calibration_error(reliability_table(logits, labels, 50))

    mean = sum(error(*calibrated(seed)) for seed in range(100, 400)) / 300
    held = 0
    for seed in range(30):
        logits, labels = calibrated(seed)
        low, high = bootstrap_interval(lambda i, x=logits, y=labels: error(x[i], y[i]), 1000, seed, 100)
        assert low <= error(logits, labels) <= high
        held += low <= mean <= high
    assert 26 <= held <= 30


def test_an_interval_is_around_its_value_and_within_its_limits():
    assert interval_around(0.5, [0.6, 0.7, 0.8]) == pytest.approx((0.405, 0.595))
    assert interval_around(0.01, [0.0, 0.03, 0.06], SHARE)[0] == 0
    assert interval_around(-0.2, [-0.4, -0.2, 0.0]) == pytest.approx((-0.39, -0.01))
    assert interval_around(0.2, [0.0] * 99 + [9.0])[1] == 0.2  # not even a skewed one leaves out the value


def skewed(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels whose true log-probabilities are a factor and an offset for each class away."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 4, generator=g, dtype=torch.float64)
    true = logits * torch.tensor([0.3, 0.6, 0.9, 1.2]) + torch.tensor([1.0, 0.0, 0.0, -1.0])
    return logits, true.softmax(1).multinomial(1, generator=g)[:, 0]


def test_vector_scaling_without_a_penalty_minimizes_the_nll():
    logits, labels = skewed(400)
    found = fit_vector_scaling(logits, labels, penalty=0)
    scale, bias = found.scale.clone().requires_grad_(), found.bias.clone().requires_grad_()
    loss = F.cross_entropy(logits * scale + bias, labels)
    for gradient in torch.autograd.grad(loss, (scale, bias)):
        assert gradient.abs().max() < 1e-5
    temperature = fit_temperature(logits, labels)
    assert loss < F.cross_entropy(logits / temperature, labels) - 0.05
    torch.testing.assert_close(found.apply(logits), (logits * scale + bias).detach())


def test_the_penalty_of_vector_scaling_pulls_it_to_the_temperature():
    logits, labels = skewed(400)
    temperature = fit_temperature(logits, labels)

    def penalized(scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        away = (temperature * scale - 1).square().sum() + bias.square().sum()
        return F.cross_entropy(logits * scale + bias, labels) + away / (2 * len(labels))

    found = fit_vector_scaling(logits, labels)
    parts = found.scale.clone().requires_grad_(), found.bias.clone().requires_grad_()
    assert all(gradient.abs().max() < 1e-5 for gradient in torch.autograd.grad(penalized(*parts), parts))
    stiff = fit_vector_scaling(logits, labels, penalty=1e9)
    torch.testing.assert_close(stiff.scale, torch.full((4,), 1 / temperature, dtype=torch.float64), rtol=1e-3, atol=0)
    assert stiff.bias.abs().max() < 1e-3
    with pytest.raises(ValueError, match="penalty"):
        fit_vector_scaling(logits, labels, penalty=-1)


def test_the_scaling_is_chosen_by_images_that_it_was_not_fitted_to():
    logits, labels = overconfident(600)
    assert choose_scaling(logits, labels).scaling.temperature == pytest.approx(fit_temperature(logits, labels))
    assert choose_scaling(logits / 2, labels).scaling.kind == "none"  # calibrated as they are
    assert choose_scaling(*skewed(2000)).scaling.kind == "vector"
    assert choose_scaling(*skewed(2000)).scaling.temperature is None
    order = labels.argsort()
    found, other = choose_scaling(logits, labels), choose_scaling(logits[order], labels[order])
    torch.testing.assert_close(other.scaling.scale, found.scaling.scale)
    assert torch.equal(found.unseen, found.scaling.apply(logits))  # a temperature
    logits, labels = skewed(2000)
    found = choose_scaling(logits, labels)
    assert not torch.equal(found.unseen, found.scaling.apply(logits))
    torch.testing.assert_close(found.unseen, found.scaling.apply(logits), rtol=0.3, atol=0.3)


def test_no_scaling_where_none_has_an_optimum_or_images_are_few():
    logits, labels = overconfident(200)
    assert choose_scaling(logits, logits.argmax(1)).scaling.kind == "none"  # the sharper the better
    one_wrong = logits.argmax(1)
    one_wrong[7] = logits[7].argmin()
    assert choose_scaling(logits, one_wrong).scaling.kind == "none"  # four of the five folds would be made arbitrarily sharp
    assert choose_scaling(logits[:3], labels[:3]).scaling.kind == "none"
    assert torch.equal(choose_scaling(logits[:3], labels[:3]).unseen, logits[:3].double())
    assert choose_scaling(logits, labels).unseen.dtype == torch.float64
