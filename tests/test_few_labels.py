"""Few labels: which images keep theirs, and the labels that the network gives to the others."""

from __future__ import annotations

import json

import pytest
import torch

from hybvit import load
from hybvit.config import override, parse
from hybvit.data.batches import NO_LABEL
from hybvit.errors import ConfigError
from hybvit.method.diffusion import Diffusion
from hybvit.method.objective import Batch, hybrid_loss, with_pseudo_labels
from hybvit.method.objective_config import Objective
from hybvit.method.vit import HybViT, ViTConfig
from hybvit.presets import preset

from .conftest import TINY, batches_of, hybvit, opened


def digits(**data):
    return override(preset("digits"), data=data, objective={"noisy_labels": 1.0})


def seen(cfg, steps=200):
    """Every labeled image that the steps see, as bytes with its label, and the labels of the images that they denoise."""
    batches = batches_of(opened(cfg), override(cfg, data={"augment": "none"}))
    labeled, told = set(), []
    for step in range(steps):
        batch = batches(step)
        labeled |= {(image.numpy().tobytes(), int(label)) for image, label in zip(batch.images, batch.labels, strict=True)}
        told.append(batch.x0_labels)
    return labeled, torch.cat(told)


def test_the_same_share_of_each_class_keeps_its_labels():
    cfg = digits(labelled=0.05)
    data = opened(cfg)
    labeled, told = seen(cfg)
    known = torch.tensor([label for _, label in labeled]).bincount(minlength=10)
    sizes = data.train.labels.bincount(minlength=10)
    assert (known - (0.05 * sizes).round()).abs().max() <= 1  # two images of a class may be equal
    assert known.sum() >= (0.05 * sizes).round().sum() - 1
    assert torch.equal(told.unique(), torch.arange(NO_LABEL, 10))
    assert (told >= 0).float().mean() == pytest.approx(0.05, abs=0.01)


def test_which_images_keep_them_follows_the_seed_alone():
    first, _ = seen(digits(labelled=0.02))
    again, _ = seen(override(digits(labelled=0.02), train={"batch_size": 32}), 600)
    other, _ = seen(override(digits(labelled=0.02), train={"seed": 1}))
    assert first == again != other


def test_every_class_keeps_at_least_one():
    labeled, _ = seen(digits(labelled=1e-6))
    assert sorted(label for _, label in labeled) == list(range(10))


def test_all_images_are_denoised_whatever_the_share():
    every, few = (batches_of(opened(cfg), cfg) for cfg in (digits(), digits(labelled=0.02)))
    for step in range(3):
        assert torch.equal(every(step).x0, few(step).x0)


class Fixed:
    """A classifier that reads the class and its logit from the first two pixels."""

    def classify(self, x):
        logits = torch.zeros(len(x), 4)
        return logits.scatter(1, x[:, 0, 0, :1].long(), x[:, 0, 0, 1:2])


def test_an_unlabeled_image_gets_the_label_that_the_network_is_sure_of():
    x = torch.zeros(4, 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor([1.0, 2, 3, 0])
    x[:, 0, 0, 1] = torch.tensor([9.0, 3, 9, 9])  # e^3 / (e^3 + 3) = 0.870
    labels = torch.tensor([NO_LABEL, NO_LABEL, 0, NO_LABEL])
    assert with_pseudo_labels(Fixed(), x, labels, 0.95).tolist() == [1, NO_LABEL, 0, 0]
    assert with_pseudo_labels(Fixed(), x, labels, 0.87).tolist() == [1, 2, 0, 0]


def test_the_loss_takes_those_labels_as_if_they_were_given():
    torch.manual_seed(0)
    net = HybViT(ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=4, dim=16, depth=2, heads=2)).double()
    x, images, labels = torch.rand(6, 1, 8, 8).double(), torch.rand(2, 1, 8, 8).double(), torch.tensor([0, 1])
    own = net.classify(x).argmax(1)

    def loss(x0_labels, **changes):
        objective = Objective(noisy_labels=1.0, **changes)
        batch = Batch(x, images, labels, x0_labels)
        return hybrid_loss(net, Diffusion.cosine(10), batch, objective, generator=torch.Generator().manual_seed(1)).total

    unknown = torch.full((6,), NO_LABEL)
    assert torch.equal(loss(unknown, pseudo_labels=0.2), loss(own))  # of four classes, the most probable has more than 0.25
    assert torch.equal(loss(unknown, pseudo_labels=0.9999), loss(unknown))
    assert not torch.equal(loss(own), loss(unknown))


def test_a_strongly_augmented_copy_is_to_get_the_label_of_its_plain_image():
    """FixMatch: the mean over all copies of the cross-entropy with the network's own label, 0 where it is not sure."""
    torch.manual_seed(0)
    net = HybViT(ViTConfig(image_size=8, patch_size=4, channels=1, num_classes=4, dim=16, depth=2, heads=2)).double()
    x, copies, images = (torch.rand(n, 1, 8, 8).double() * 2 - 1 for n in (6, 6, 2))
    labels, unknown = torch.tensor([0, 1]), torch.full((6,), NO_LABEL)
    sure, own = net.classify(x).softmax(1).max(1)
    confidence = sure.sort().values[3].item()  # three of the six are labeled

    def losses(copies, pseudo_labels):
        objective = Objective(pseudo_labels=pseudo_labels)
        batch = Batch(x, images, labels, unknown, copies)
        return hybrid_loss(net, Diffusion.cosine(10), batch, objective, generator=torch.Generator().manual_seed(1))

    with_copies, plain = losses(copies, confidence), losses(None, confidence)
    wrong = -net.classify(copies).log_softmax(1)[torch.arange(6), own]
    torch.testing.assert_close(with_copies.pseudo_ce, wrong[sure >= confidence].sum() / 6)
    torch.testing.assert_close(with_copies.total - plain.total, with_copies.pseudo_ce)
    assert with_copies.ce == plain.ce
    assert losses(copies, 0.9999).pseudo_ce == 0


def test_the_copies_are_the_images_that_are_denoised_strongly_augmented():
    plain = digits(labelled=0.05, augment="strong", erasing=0.0, mixing=0.0, crop_padding=0)
    cfg = override(plain, objective={"pseudo_labels": 0.9})
    batches = batches_of(opened(cfg), cfg)
    batch, again = batches(3), batches(3)
    assert batch.x0_augmented.shape == batch.x0.shape
    assert torch.equal(batch.x0_augmented, again.x0_augmented)
    differs = (batch.x0_augmented != batch.x0).flatten(1).any(1).float().mean()
    assert 0.5 < differs <= 1
    without = batches_of(opened(plain), plain)(3)
    assert without.x0_augmented is None
    assert torch.equal(without.x0, batch.x0)
    assert torch.equal(without.images, batch.images)  # labeled images are augmented as without copies


def test_a_copy_is_augmented_in_another_way_than_the_same_image_with_its_label():
    cfg = override(digits(augment="strong", erasing=0.0, mixing=0.0), objective={"pseudo_labels": 0.9})
    data = opened(cfg)
    batch = batches_of(data, override(cfg, train={"batch_size": len(data.train)}))(0)  # an epoch: all images in both
    copies = {image.numpy().tobytes() for image in batch.x0_augmented}
    assert sum(image.numpy().tobytes() in copies for image in batch.images) < 0.2 * len(batch.images)


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match=r"data\.labelled is 0"):
        parse(["--data.labelled=0"], preset("digits"))
    with pytest.raises(ConfigError, match=r"data\.labelled is 1\.5"):
        parse(["--data.labelled=1.5"], preset("digits"))
    with pytest.raises(ConfigError, match=r"objective\.pseudo_labels is 0\.9, and data\.augment weak: set it to strong"):
        parse(["--objective.pseudo_labels=0.9"], preset("digits"))
    with pytest.raises(ConfigError, match=r"pseudo_labels is 0\.95: with objective\.label_smoothing 0\.1 .* surer than 0\.91"):
        parse(["--objective.pseudo_labels=0.95", "--data.augment=strong"], preset("digits"))


def test_a_run_with_few_labels_is_a_run_like_any(tmp_path):
    words = ["train", "digits", *TINY, "--data.labelled=0.05", "--data.augment=strong", "--objective.pseudo_labels=0.2"]
    assert hybvit(*words, "--train.steps=10", "--out", tmp_path / "run").returncode == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    cfg = load(tmp_path / "run").cfg
    assert (cfg.data.labelled, cfg.objective.pseudo_labels) == (0.05, 0.2)
