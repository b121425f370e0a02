from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy.special import betaincinv
from scipy.stats import entropy

from hybvit.metrics.selective import (
    CONFIDENCES,
    augrc,
    aurc,
    coverage_at_risk,
    negative_entropy,
    risk_at_coverage,
    risk_bound,
    risk_coverage,
    threshold_for_risk,
)

from .conftest import DATA


@pytest.fixture(scope="module")
def reference():
    record = json.loads((DATA / "doubt_references.json").read_text())
    logits, labels = torch.tensor(record["logits"], dtype=torch.float64), torch.tensor(record["labels"])
    return record["selective"], CONFIDENCES["max_prob"](logits), logits.argmax(1) == labels


def test_the_areas_equal_torch_uncertaintys(reference):
    theirs, scores, correct = reference
    assert aurc(scores, correct) == pytest.approx(theirs["aurc"], abs=1e-6)
    assert augrc(scores, correct) == pytest.approx(theirs["augrc"], abs=1e-6)


def test_the_points_of_the_curve_equal_torch_uncertaintys(reference):
    theirs, scores, correct = reference
    curve = risk_coverage(scores, correct)
    compared = 0
    for name, value in theirs.items():
        what, _, level = name.rpartition("_")
        if what == "coverage_at_risk":
            assert coverage_at_risk(curve, float(level)) == pytest.approx(value, abs=1e-6)
        elif what == "risk_at_coverage":
            assert risk_at_coverage(curve, float(level)) == pytest.approx(value, abs=1e-6)
        compared += what in ("coverage_at_risk", "risk_at_coverage")
    assert compared == 6


def test_the_curve_by_hand():
    scores, correct = torch.tensor([0.9, 0.5, 0.8, 0.6]), torch.tensor([True, False, False, True])
    curve = risk_coverage(scores, correct)
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.5])
    assert coverage_at_risk(curve, 0.4) == 0.75
    assert coverage_at_risk(curve, 0) == 0.25
    assert risk_at_coverage(curve, 0.7) == pytest.approx(1 / 3)
    assert aurc(scores, correct) == pytest.approx((0 / 2 + 1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert augrc(scores, correct) == pytest.approx((0 / 2 + 1 / 4 + 1 / 4 + 2 / 8) / 3)


def test_images_of_equal_score_are_answered_together():
    scores, correct = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, True])
    curve = risk_coverage(scores, correct)
    assert curve.coverage.tolist() == [0.75, 1]
    assert curve.risk.tolist() == pytest.approx([1 / 3, 1 / 4])
    assert coverage_at_risk(curve, 0.1) == 0  # although two of the three are right
    assert risk_at_coverage(curve, 0.5) == pytest.approx(1 / 3)


@pytest.mark.parametrize("area", [aurc, augrc])
def test_an_area_with_ties_is_the_mean_over_all_orders_of_the_tied(area):
    scores = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    correct = torch.tensor([True, False, True, True, False])
    orders = list(itertools.permutations((1, 2, 3)))
    broken = [area(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), correct[[0, *order, 4]]) for order in orders]
    assert area(scores, correct) == pytest.approx(sum(broken) / len(orders))
    assert area(scores.flip(0), correct.flip(0)) == pytest.approx(area(scores, correct))


def test_no_errors_and_only_errors():
    scores = torch.rand(50)
    assert aurc(scores, torch.ones(50, dtype=torch.bool)) == augrc(scores, torch.ones(50, dtype=torch.bool)) == 0
    assert aurc(scores, torch.zeros(50, dtype=torch.bool)) == 1
    assert coverage_at_risk(risk_coverage(scores, torch.zeros(50, dtype=torch.bool)), 0.5) == 0
    for bad in (torch.tensor([math.nan, 1]), torch.tensor([])):
        with pytest.raises(ValueError, match="score"):
            risk_coverage(bad, torch.ones(len(bad), dtype=torch.bool))
    with pytest.raises(ValueError, match="2 scores of 3 answers"):
        risk_coverage(torch.ones(2), torch.ones(3, dtype=torch.bool))


def test_every_confidence_is_higher_for_the_surer_of_two():
    sure, unsure = torch.tensor([[9.0, 0.0, -9.0]]), torch.tensor([[1.0, 0.9, 0.8]])
    for name, score in CONFIDENCES.items():
        assert score(sure) > score(unsure), name
    p = unsure.double().softmax(1)
    assert CONFIDENCES["entropy"](unsure).item() == pytest.approx((p * p.log()).sum().item())
    assert CONFIDENCES["entropy"](torch.tensor([[1000.0, -1000.0]])).item() == 0
    assert CONFIDENCES["energy"](unsure).item() == pytest.approx(unsure.double().exp().sum().log().item())
    assert CONFIDENCES["max_logit"](unsure).item() == 1


def test_the_entropy_equals_scipys():
    logits = torch.randn(50, 7, dtype=torch.float64) * 3
    np.testing.assert_allclose(-negative_entropy(logits), entropy(logits.softmax(1), axis=1), rtol=1e-12)
    assert negative_entropy(torch.tensor([[0.0, -torch.inf]])) == 0  # 0 log 0 is 0


def test_the_bound_is_that_of_clopper_and_pearson():
    assert risk_bound(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    for errors, n, chance in ((0, 1, 1e-30), (1, 2, 0.5), (17, 185, 0.0025), (400, 5000, 0.0025), (20, 50_000, 1e-6)):
        assert risk_bound(errors, n, chance) == pytest.approx(betaincinv(errors + 1, n - errors, 1 - chance), rel=1e-9)
    for errors, n in ((3, 40), (7, 7), (0, 1)):
        p = risk_bound(errors, n, 0.05)
        chance = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(errors + 1))
        assert chance == pytest.approx(1.0 if errors == n else 0.05)


@pytest.mark.slow
def test_a_promised_risk_is_kept_in_at_least_95_of_100_cases():
    g = torch.Generator().manual_seed(0)
    broken, answered = 0, 0.0
    for _ in range(200):
        confidence = 0.5 + 0.5 * torch.rand(2000, generator=g, dtype=torch.float64)
        correct = torch.rand(2000, generator=g) < confidence  # the risk above c is (1 - c)/2
        found = threshold_for_risk(confidence, correct, 0.1)
        broken += (1 - found.score) / 2 > 0.1
        answered += float((confidence >= found.score).double().mean()) / 200
        assert (found.bound <= 0.1) == math.isfinite(found.score)
    assert broken <= 10
    assert 0.2 < answered < 0.4  # of the 40 % that could be


def test_a_risk_that_too_few_images_cannot_promise_has_no_threshold():
    scores, correct = torch.linspace(0, 1, 60), torch.ones(60, dtype=torch.bool)
    bound = risk_bound(0, 60, 0.05 / 20)
    assert threshold_for_risk(scores, correct, 0.01) == (math.inf, pytest.approx(bound))
    assert threshold_for_risk(scores, correct, bound + 1e-6).score == 0  # all are answered
    for risk, confidence in ((0, 0.95), (1.5, 0.95), (0.1, 1)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            threshold_for_risk(scores, correct, risk, confidence)
