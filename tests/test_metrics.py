from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import top_k_accuracy_score

from hybvit.config import preset
from hybvit.data.datasets import open_dataset
from hybvit.metrics.classification import confusion_matrix, topk_accuracy, wilson_interval
from hybvit.metrics.judge import PixelSVM, class_shares


def scores() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(500, 10, generator=g), torch.randint(10, (500,), generator=g)


@pytest.mark.parametrize("k", [1, 5])
def test_accuracy_equals_scikit_learn(k):
    logits, labels = scores()
    assert topk_accuracy(logits, labels, k) == pytest.approx(top_k_accuracy_score(labels, logits, k=k, labels=range(10)))


def test_confusion_matrix_equals_scikit_learn():
    logits, labels = scores()
    ours = confusion_matrix(logits.argmax(1), labels, 10)
    assert ours.tolist() == sklearn_confusion(labels, logits.argmax(1)).tolist()


def test_wilson_interval_against_a_published_example():
    low, high = wilson_interval(81 / 263, 263)  # Newcombe 1998, Table I
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_class_shares():
    assert class_shares(torch.tensor([0, 0, 2, 2]), 4).tolist() == [0.5, 0, 0.5, 0]


def test_the_judge_of_the_digits_is_98_percent_accurate_itself():
    data = open_dataset(preset("digits"))
    assert len(data.train.labels) + len(data.test.labels) == len(load_digits().target)
    judge = PixelSVM(data.train.pixels, data.train.labels)
    assert (judge.predict(data.test.pixels) == data.test.labels).double().mean() >= 0.98
