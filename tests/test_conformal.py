from __future__ import annotations

import json
import math

import pytest
import torch

from hybvit.metrics.conformal import (
    METHODS,
    conformal_quantile,
    covered,
    nonconformity,
    prediction_sets,
    ranked,
)

from .conftest import DATA


@pytest.fixture(scope="module")
def reference():
    return json.loads((DATA / "doubt_references.json").read_text())


def halves(record):
    logits, labels = torch.tensor(record["logits"], dtype=torch.float64), torch.tensor(record["labels"])
    n = len(labels) // 2
    return ranked(logits[:n]).of(labels[:n]), ranked(logits[n:])


def as_sets(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[digit == "1" for digit in row] for row in rows])


def test_thresholds_and_sets_equal_torchcps(reference):
    calibrating, judged = halves(reference)
    assert {entry["method"] for entry in reference["torchcp"]} == set(METHODS)
    for entry in reference["torchcp"]:
        quantile = conformal_quantile(nonconformity(calibrating, entry["method"]), entry["coverage"])
        assert quantile == pytest.approx(math.inf if entry["quantile"] is None else entry["quantile"], abs=1e-6)
        sets = prediction_sets(nonconformity(judged, entry["method"]), quantile)
        assert torch.equal(sets, as_sets(entry["sets"])), entry["method"]


def test_sets_of_thr_equal_mapies(reference):
    calibrating, judged = halves(reference)
    for coverage, rows in reference["mapie_lac"].items():
        quantile = conformal_quantile(nonconformity(calibrating, "thr"), float(coverage))
        sets = prediction_sets(nonconformity(judged, "thr"), quantile)
        theirs = as_sets(rows)
        extra = int((theirs != sets).sum())
        # Its quantile is one order statistic too high for some n (MAPIE, pull request 973): never a smaller set.
        assert bool((theirs | ~sets).all())
        assert extra <= 2, coverage


@pytest.mark.parametrize("method", ["aps", "raps"])
def test_scores_with_random_numbers_equal_torchcps(reference, method):
    calibrating, _ = halves(reference)
    theirs = reference["torchcp_random"]
    u = torch.tensor(theirs["u"], dtype=torch.float64)
    found = nonconformity(calibrating, method, 1 - u)  # they subtract what we add
    torch.testing.assert_close(found, torch.tensor(theirs[method], dtype=torch.float64), rtol=0, atol=1e-6)


def test_scores_by_hand():
    found = ranked(torch.tensor([[0.2, 0.5, 0.3]]).log())
    assert found.rank.tolist() == [[3, 1, 2]]
    assert nonconformity(found, "thr")[0].tolist() == pytest.approx([0.8, 0.5, 0.7])
    assert nonconformity(found, "aps")[0].tolist() == pytest.approx([1.0, 0.5, 0.8])
    assert nonconformity(found, "aps", 0.5)[0].tolist() == pytest.approx([0.9, 0.25, 0.65])
    assert nonconformity(found, "raps")[0].tolist() == pytest.approx([1.2, 0.5, 0.9])
    one = found.of(torch.tensor([2]))
    assert (one.own.item(), one.above.item(), one.rank.item()) == (pytest.approx(0.3), pytest.approx(0.5), 2)


def test_equal_probabilities_have_an_order_that_does_not_change():
    found = ranked(torch.zeros(2, 4))
    assert found.rank.tolist() == [[1, 2, 3, 4]] * 2
    assert nonconformity(found, "aps")[0].tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_quantile_is_picked_by_its_rank():
    scores = torch.arange(1, 20, dtype=torch.float64)  # n = 19
    for coverage, k in ((0.5, 10), (0.8, 16), (0.9, 18), (0.95, 19), (0.05, 1)):
        assert conformal_quantile(scores[torch.randperm(19)], coverage) == k, coverage
    assert conformal_quantile(scores, 0.96) == math.inf
    for n in range(5, 200):
        for coverage in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
            k = -(-(n + 1) * round(100 * coverage) // 100)  # in whole numbers: where (n + 1) coverage is whole, so is k
            expected = k if k <= n else math.inf
            assert conformal_quantile(torch.arange(1, n + 1), coverage) == expected, (n, coverage)
    with pytest.raises(ValueError, match="coverage is 1"):
        conformal_quantile(scores, 1.0)
    with pytest.raises(ValueError, match="not a number"):
        conformal_quantile(torch.tensor([1.0, math.nan]), 0.5)


def test_too_few_images_for_a_coverage_give_all_classes():
    logits = torch.randn(8, 5)
    for method in METHODS:
        scores = nonconformity(ranked(logits), method)
        quantile = conformal_quantile(scores[:, 0], 0.95)  # of 8: 9 * 0.95 > 8
        assert bool(prediction_sets(scores, quantile).all())


def coverage_over_repeats(method: str, n: int, coverage: float, u_mine: bool, u_theirs: bool, repeats: int = 3000) -> float:
    """The mean coverage of one new image, over calibrations by n images each, of a classifier of 4 classes."""
    g = torch.Generator().manual_seed(1)
    logits = 1.5 * torch.randn(repeats, n + 1, 4, generator=g, dtype=torch.float64)
    labels = (0.6 * logits).softmax(2).flatten(0, 1).multinomial(1, generator=g)[:, 0]  # it is too sure: coverage must not care
    u = torch.rand(repeats, n + 1, generator=g, dtype=torch.float64)
    found = ranked(logits.flatten(0, 1)).of(labels)
    plain, random = (
        nonconformity(found, method, draws).reshape(repeats, n + 1)
        for draws in (1.0, u.flatten())  # type: ignore[arg-type]
    )
    mine, theirs = (random if u_mine else plain)[:, :n], (random if u_theirs else plain)[:, n]
    return sum(float(score) <= conformal_quantile(row, coverage) for row, score in zip(mine, theirs, strict=True)) / repeats


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "coverage"), [(6, 0.8), (10, 0.9), (4, 0.75)])
def test_the_coverage_of_few_calibration_images_has_its_correction(method, n, coverage):
    """A fault that MAPIE had (issues 451 and 452): without the correction for finite n the coverage is too small."""
    exact = math.ceil((n + 1) * coverage) / (n + 1)
    found = coverage_over_repeats(method, n, coverage, u_mine=True, u_theirs=True)
    error = 3.5 * (exact * (1 - exact) / 3000) ** 0.5
    assert found == pytest.approx(exact, abs=error)
    uncorrected = math.ceil(n * coverage) / (n + 1)
    assert abs(found - uncorrected) > error  # so the fault would be found


@pytest.mark.slow
def test_the_coverage_of_cumulated_scores_is_the_chosen_one():
    """Another fault that MAPIE had (issue 236): random numbers when calibrating only, which changed the coverage."""
    n, coverage = 39, 0.5
    for both in (True, False):
        found = coverage_over_repeats("aps", n, coverage, both, both)
        assert found == pytest.approx(coverage, abs=3.5 * (0.25 / 3000) ** 0.5), both
    assert coverage_over_repeats("aps", n, coverage, u_mine=True, u_theirs=False) < coverage - 0.1
    assert coverage_over_repeats("aps", n, coverage, u_mine=False, u_theirs=True) > coverage + 0.1


def test_sets_are_counted_by_image():
    sets = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    found = covered(sets, torch.tensor([0, 2, 1]))
    assert found.hits.tolist() == [True, False, False]
    assert found.sizes.tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="not a number"):
        ranked(torch.tensor([[math.nan, 1.0]]))
