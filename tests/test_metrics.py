from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import log_loss, recall_score, top_k_accuracy_score

from hybvit.metrics.classification import (
    brier,
    confusion_matrix,
    mean_interval,
    nll,
    per_class_accuracy,
    topk_accuracy,
    wilson_interval,
)
from hybvit.metrics.judge import PixelSVM, affordable, class_shares
from hybvit.presets import preset

from .conftest import opened


def scores() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(500, 10, generator=g), torch.randint(10, (500,), generator=g)


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy_equals_scikit_learn(k):
    logits, labels = scores()
    assert topk_accuracy(logits, labels, k) == pytest.approx(top_k_accuracy_score(labels, logits, k=k, labels=range(10)))


def test_an_image_whose_logits_are_nan_is_wrong():
    logits, labels = torch.full((4, 3), torch.nan), torch.tensor([0, 0, 1, 2])
    assert topk_accuracy(logits, labels) == topk_accuracy(logits, labels, 3) == 0
    logits[1] = torch.tensor([1.0, 0, 0])
    assert topk_accuracy(logits, labels) == 0.25


def test_confusion_matrix_equals_scikit_learn():
    logits, labels = scores()
    ours = confusion_matrix(logits.argmax(1), labels, 10)
    assert ours.tolist() == sklearn_confusion(labels, logits.argmax(1)).tolist()


def test_wilson_interval_against_a_published_example():
    low, high = wilson_interval(81 / 263, 263)  # Newcombe 1998, Table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize("n", [1, 7, 64, 256, 364, 10_000])
def test_no_wilson_interval_leaves_0_to_1(n):
    for hits in {0, 1, n // 2, n - 1, n}:
        low, high = wilson_interval(hits / n, n)
        assert 0 <= low <= hits / n <= high <= 1
    assert wilson_interval(0.0, 0) == (0, 1)
    assert wilson_interval(0.0, n)[0] == 0
    assert wilson_interval(1.0, n)[1] == 1


def test_nll_equals_scikit_learn_and_is_per_image():
    logits, labels = scores()
    losses = nll(logits, labels)
    assert losses.shape == (500,)
    assert losses.dtype == torch.float64
    probabilities = logits.double().softmax(1)
    assert losses.mean().item() == pytest.approx(log_loss(labels, probabilities, labels=range(10)))
    torch.testing.assert_close(losses, -probabilities[torch.arange(500), labels].log())
    assert nll(torch.tensor([[0.0, 1000.0]]), torch.tensor([0])).item() == 1000  # no probability underflows


def test_brier_is_the_distance_to_the_one_hot_label():
    logits, labels = scores()
    values = brier(logits, labels)
    onehot = torch.zeros(500, 10, dtype=torch.float64)
    onehot[torch.arange(500), labels] = 1
    torch.testing.assert_close(values, ((logits.double().softmax(1) - onehot) ** 2).sum(1))
    assert brier(torch.tensor([[100.0, 0.0, 0.0]] * 2), torch.tensor([0, 1])).tolist() == pytest.approx([0, 2])
    assert brier(torch.zeros(1, 4), torch.tensor([2])).item() == pytest.approx(0.75)


def test_brier_of_two_classes_is_twice_scikit_learns():
    from sklearn.metrics import brier_score_loss

    logits, labels = scores()
    logits, labels = logits[:, :2], labels % 2
    ours = brier(logits, labels).mean().item()
    assert ours == pytest.approx(2 * brier_score_loss(labels, logits.double().softmax(1)[:, 1]))


def test_per_class_accuracy_is_recall_and_nan_for_an_absent_class():
    logits, labels = scores()
    recall = recall_score(labels, logits.argmax(1), average=None)
    assert per_class_accuracy(confusion_matrix(logits.argmax(1), labels, 10)).tolist() == pytest.approx(recall.tolist())
    shares = per_class_accuracy(torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 6]]))
    assert shares[[0, 2]].tolist() == [0.75, 0.75]
    assert bool(shares[1].isnan())


def test_the_interval_of_a_mean():
    low, high = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 1.96 * math.sqrt(5 / 3) / 2  # the sample's variance is 5/3
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half))
    low, high = mean_interval(torch.tensor([1.0, 3.0]), z=1.0)
    assert (low, high) == pytest.approx((1, 3))
    assert all(math.isnan(end) for end in mean_interval(torch.tensor([1.0])))
    assert mean_interval(torch.tensor([0.1, 1.5]))[0] == 0  # of values that cannot be negative
    assert mean_interval(torch.tensor([-0.1, 1.5]))[0] < 0


def test_class_shares():
    assert class_shares(torch.tensor([0, 0, 2, 2]), 4).tolist() == [0.5, 0, 0.5, 0]


def test_the_judge_takes_no_more_than_a_minute():
    assert affordable(1433, 364 + 5000, 8 * 8)
    assert affordable(120, 40 + 5000, 3 * 32 * 32)
    assert not affordable(60_000, 10_000 + 5000, 28 * 28)
    assert not affordable(9000, 10_000 + 2000, 3 * 32 * 32)  # 5 minutes for the fit alone, and as long for its answers


def test_the_judge_of_the_digits_is_98_percent_accurate_itself():
    data = opened(preset("digits"))
    assert sum(len(part) for part in (data.train, data.held_out, data.test)) == len(load_digits().target)
    judge = PixelSVM(data.train.pixels, data.train.labels)
    assert (judge.predict(data.test.pixels) == data.test.labels).double().mean() >= 0.98
