from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hybvit.catalog import CATALOG
from hybvit.config import Config, DataConfig, override
from hybvit.data.batches import Order, policy_of, random_batch
from hybvit.data.image_set import Dataset, ImageSet, to_pixels
from hybvit.data.loader import batches_of_steps, resolve_workers
from hybvit.distributed import naming_lost_processes
from hybvit.errors import ConfigError, Interrupted
from hybvit.method.objective import Batch
from hybvit.method.vit import ViTConfig
from hybvit.presets import preset

from .conftest import batches_of, opened
from .forked import Forked


def colors(n: int = 60, classes: int = 5, size: int = 8, unlabelled: int = 0) -> Dataset:
    make = lambda count, seed: torch.randint(  # noqa: E731
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    train, test = (ImageSet(make(n, seed), torch.arange(n) % classes) for seed in (0, 1))
    extra = ImageSet(make(unlabelled, 2)) if unlabelled else None
    return Dataset(train, test, tuple(map(str, range(classes))), extra)


def config(augment: str = "strong", batch_size: int = 16, **data) -> Config:
    model = ViTConfig(image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=5)
    cfg = Config(model=model, data=DataConfig(augment=augment, flip=True, repeats=3, crop_padding=1, **data))
    return override(cfg, train={"batch_size": batch_size})


def same(a: Batch, b: Batch) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a[:5], b[:5], strict=True))


def test_an_epoch_is_a_permutation_and_order_does_not_depend_on_how_it_is_read():
    order = Order(10, 0, "order of clean images")
    first = order.at(torch.arange(10))
    assert sorted(first[:, 1].tolist()) == list(range(10))
    assert first[:, 0].tolist() == [0] * 10
    assert not torch.equal(first[:, 1], order.at(torch.arange(10, 20))[:, 1])
    whole = Order(10, 0, "order of clean images").at(torch.arange(70))
    pieces = torch.cat([Order(10, 0, "order of clean images").at(torch.arange(s, s + 7)) for s in range(0, 70, 7)])
    assert torch.equal(pieces, whole)
    assert torch.equal(order.at(torch.arange(1, 70, 3)), whole[1::3])
    assert not torch.equal(whole[:10], Order(10, 1, "order of clean images").at(torch.arange(10)))
    assert not torch.equal(whole[:10], Order(10, 0, "order of labeled images").at(torch.arange(10)))


def test_repeats_show_each_image_three_times_in_an_epoch():
    taken = Order(5, 0, "order of labeled images", repeats=3).at(torch.arange(15))
    assert taken[:, 1].bincount().tolist() == [3] * 5
    assert taken[:, 2].tolist() == [0, 1, 2] * 5


@pytest.mark.parametrize(("kind", "present"), [("vit", (0, 1, 1, 0)), ("genvit", (1, 0, 0, 0)), ("hybvit", (1, 1, 1, 0))])
def test_the_objective_decides_the_mini_batches(kind, present):
    cfg = override(preset("digits"), objective={"kind": kind})
    batch = batches_of(opened(cfg), cfg)(3)
    assert tuple(int(part is not None) for part in batch[:4]) == present


def test_a_batch_is_a_function_of_seed_and_step():
    cfg = override(preset("digits"), data={"augment": "weak"})
    data = opened(cfg)
    forward, direct = batches_of(data, cfg), batches_of(data, cfg)
    for step in range(30):
        late = forward(step)
    assert same(late, direct(29))
    other = batches_of(data, override(cfg, train={"seed": 1}))(29)
    assert not torch.equal(late.images, other.images)


def test_clean_images_are_never_augmented():
    cfg = override(preset("digits"), data={"augment": "weak"})
    data = opened(cfg)
    known = {image.numpy().tobytes() for image in data.train.pixels}
    batch = batches_of(data, cfg)(0)
    assert all(image.numpy().tobytes() in known for image in to_pixels(batch.x0))
    assert not all(image.numpy().tobytes() in known for image in to_pixels(batch.images))


def test_unlabeled_images_are_in_the_denoising_mini_batch_only():
    data, cfg = colors(unlabelled=40), config("none")
    known = {image.numpy().tobytes(): i for i, image in enumerate([*data.train.pixels, *data.unlabelled.pixels])}
    batches, seen = batches_of(data, cfg), []
    for step in range(25):  # four epochs of 100
        batch = batches(step)
        seen += [known[image.numpy().tobytes()] for image in to_pixels(batch.x0)]
        assert all(known[image.numpy().tobytes()] < 60 for image in to_pixels(batch.images))
    assert sorted(seen) == sorted([*range(100)] * 4)


def test_clean_flips_mirror_and_do_nothing_else():
    data, plain, flipped = colors(), config("none"), config("none", clean_flip=True)
    a, b = batches_of(data, plain)(0).x0, batches_of(data, flipped)(0).x0
    mirrored = [torch.equal(y, x.flip(2)) for x, y in zip(a, b, strict=True)]
    assert all(m or torch.equal(x, y) for m, x, y in zip(mirrored, a, b, strict=True))
    assert 3 < sum(mirrored) < 13


def test_strong_augmentation_mixes_half_of_the_batches():
    batches = batches_of(colors(), config())
    mixed = [batches(step).labels.ndim == 2 for step in range(100)]
    assert 30 < sum(mixed) < 70
    assert not any(batches_of(colors(), config(mixing=0.0))(step).labels.ndim == 2 for step in range(20))


def test_augmentation_does_not_depend_on_the_batch_size():
    data = colors()
    small = batches_of(data, config(batch_size=8, mixing=0.0))
    large = batches_of(data, config(batch_size=16, mixing=0.0))(2)
    halves = [small(4), small(5)]
    assert torch.equal(torch.cat([part.images for part in halves]), large.images)
    assert torch.equal(torch.cat([part.x0 for part in halves]), large.x0)


def test_a_loader_that_the_system_killed_is_said(monkeypatch):
    def killed(self, step):
        os.kill(os.getpid(), signal.SIGKILL)

    cfg = preset("digits")
    batches = batches_of(opened(cfg), cfg)
    monkeypatch.setattr(type(batches), "__call__", killed)
    said = "^runs/a: a process that loads images (is killed by signal: Killed|exited unexpectedly): fewer --data.workers"
    with pytest.raises(Interrupted, match=said), naming_lost_processes("runs/a"):
        list(batches_of_steps(batches, 0, 3, 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    data, cfg = colors(), config()
    here = list(batches_of_steps(batches_of(data, cfg), 3, 15, 0))
    there = list(batches_of_steps(batches_of(data, cfg), 3, 15, workers))
    assert len(there) == 12
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def share(rank: int, workers: int, file: Path) -> None:
    """In a process of its own: its share of the batches."""
    batches = batches_of(colors(), config(), rank, 2)
    torch.save([list(batch) for batch in batches_of_steps(batches, 0, 12, workers)], file)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_the_batches_of_one(tmp_path, workers):
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    running = [Forked(share, rank, workers, file) for rank, file in enumerate(files)]
    assert [process.wait(60) for process in running] == [0, 0]
    parts = [torch.load(file, weights_only=True) for file in files]
    alone, mixed = batches_of(colors(), config()), 0
    for step in range(12):
        for whole, first, second in zip(alone(step)[:3], parts[0][step], parts[1][step], strict=False):
            assert torch.equal(whole[0::2], first)
            assert torch.equal(whole[1::2], second)
        mixed += alone(step).labels.ndim == 2
    assert 0 < mixed < 12


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(
        ConfigError, match=r"2 processes cannot share a mini-batch of 10 images equally, in pairs .*_size to multiples of 4"
    ):
        batches_of(colors(), config(batch_size=10), 0, 2)
    with pytest.raises(
        ConfigError, match=r"a mini-batch of 6 images equally, in pairs .*train\.labelled_batch_size to mult.* 4"
    ):
        batches_of(colors(), override(config(), train={"labelled_batch_size": 6}), 0, 2)
    batches_of(colors(), override(config(), train={"batch_size": 10, "labelled_batch_size": 12}), 0, 2)  # none is mixed of ten
    batches_of(colors(), config(batch_size=10, mixing=0.0), 0, 2)
    with pytest.raises(ConfigError, match=r"a mini-batch of 9 images equally: .* to multiples of 2"):
        batches_of(colors(), config(batch_size=9, mixing=0.0), 0, 2)


def test_the_two_mini_batches_may_differ_in_size_and_each_keeps_its_own_order():
    data, cfg = colors(), config(mixing=0.0)
    equal, unequal = batches_of(data, cfg), batches_of(data, override(cfg, train={"labelled_batch_size": 4}))
    parts = [unequal(step) for step in range(8)]
    assert [(len(part.x0), len(part.images), len(part.labels)) for part in parts] == [(16, 4, 4)] * 8
    for name in ("images", "labels"):  # the augmentation too is that of the image in its epoch
        assert torch.equal(
            torch.cat([getattr(part, name) for part in parts]), torch.cat([getattr(equal(s), name) for s in (0, 1)])
        )
    assert torch.equal(parts[1].x0, equal(1).x0)
    shared = [batches_of(data, override(cfg, train={"labelled_batch_size": 4}), rank, 2)(3) for rank in range(2)]
    for rank, part in enumerate(shared):
        assert torch.equal(part.x0, parts[3].x0[rank::2])
        assert torch.equal(part.images, parts[3].images[rank::2])


def conditioned(cfg: Config) -> Config:
    return override(cfg, model={"depth": 2, "class_depth": 1, "label_conditioning": True})


def test_a_conditional_network_gets_the_labels_of_the_denoising_images():
    data, cfg = colors(unlabelled=40), config("none")
    label_of = {image.numpy().tobytes(): int(y) for image, y in zip(data.train.pixels, data.train.labels, strict=True)}
    batches, plain, missing = batches_of(data, conditioned(cfg)), batches_of(data, cfg), 0
    for step in range(10):
        batch = batches(step)
        assert batch.x0_labels.dtype == torch.int64
        assert batch.x0_labels.tolist() == [label_of.get(image.numpy().tobytes(), -1) for image in to_pixels(batch.x0)]
        assert same(batch._replace(x0_labels=None), plain(step))
        missing += int((batch.x0_labels == -1).sum())
    assert 30 < missing < 100
    alone = batches_of(
        Dataset(ImageSet(data.train.pixels), data.test, ()), override(conditioned(cfg), objective={"kind": "genvit"})
    )
    assert alone(0).x0_labels.tolist() == [-1] * 16
    assert batches_of(data, override(conditioned(cfg), objective={"kind": "vit"}))(0).x0_labels is None
    noisy = override(cfg, objective={"noisy_labels": 0.5})
    assert same(batches_of(data, noisy)(3), batches_of(data, conditioned(cfg))(3))
    assert batches_of(data, override(noisy, objective={"kind": "genvit"}))(3).x0_labels is None


@pytest.mark.parametrize("kind", ["vit", "genvit", "hybvit"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_random_batch_has_the_shapes_of_a_real_one(kind, device):
    own = {"pseudo_labels": 0.9, "kind": kind} if kind == "hybvit" else {"kind": kind}
    cfg = override(conditioned(config(mixing=0.0, augment="strong")), objective=own, train={"labelled_batch_size": 6})
    made, real = random_batch(cfg, device), batches_of(colors(), cfg)(0)
    form = lambda batch: [part if part is None else (part.shape, part.dtype) for part in batch[:5]]  # noqa: E731
    assert (made.x0_augmented is not None) == (kind == "hybvit")
    assert form(made) == form(real)


def test_no_workers_for_a_cpu_and_some_for_a_gpu():
    assert resolve_workers(None, torch.device("cpu")) == 0
    assert resolve_workers(None, torch.device("cuda")) >= 1
    assert resolve_workers(3, torch.device("cpu")) == 3


def test_the_policy_is_that_of_the_data_set():
    assert policy_of(preset("cifar100").data) == "cifar10"
    assert policy_of(replace(preset("cifar10").data, name="svhn")) == "svhn"
    assert policy_of(preset("paper_32").data) == "imagenet"
    assert policy_of(replace(preset("paper_32").data, policy="svhn")) == "svhn"
    for name, policy in {"cifar10": "cifar10", "cifar100": "cifar10", "stl10": "imagenet", "mnist": "imagenet"}.items():
        own = replace(preset("paper_32").data, classes=tuple(reversed(CATALOG[name].classes)))
        assert policy_of(own) == policy, name  # images of one's own with its class names
    assert policy_of(replace(own, classes=(*CATALOG["cifar10"].classes, "boat"))) == "imagenet"


@pytest.mark.parametrize("changes", [{"kind": "vit"}, {"kind": "genvit"}, {"kind": "hybvit"}, {"pseudo_labels": 0.9}])
def test_two_processes_share_every_batch(changes):
    cfg = override(config("strong" if "pseudo_labels" in changes else "weak", 8, mixing=0.0), objective=changes)
    whole = batches_of(colors(), cfg)(5)
    parts = [batches_of(colors(), cfg, rank, 2)(5) for rank in (0, 1)]
    assert [part.part for part in (whole, *parts, *whole.split(2))] == [(0, 1), (0, 2), (1, 2), (0, 2), (1, 2)]
    assert all(same(half, part) for half, part in zip(whole.split(2), parts, strict=True))
    assert [part.part for part in parts[1].split(2)] == [(1, 4), (3, 4)]
    for name, together in list(whole._asdict().items())[:5]:
        halves = [getattr(part, name) for part in parts]
        if together is None:
            assert halves == [None, None], name
        else:
            assert torch.equal(torch.stack(halves, dim=1).flatten(0, 1), together), name
