"""What every suite is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..adapters import Evaluable
from ..data.image_set import ImageSet
from ..data.images import to_x
from ..data.own_images import Dataset
from ..distributed import gathered, share_batches
from ..metrics.classification import wilson_interval

TRAINING_FEATURES = 10_000  # training images at most that nearest neighbours are looked for among


class Metric(NamedTuple):
    """A value with the number of items behind it and, where one is known, its 95 % interval."""

    value: float | int
    n: int
    low: float | None = None
    high: float | None = None


def share(hits: Tensor) -> Metric:
    """The share of True in bool [N], with Wilson's interval."""
    value = hits.double().mean().item()
    return Metric(value, len(hits), *wilson_interval(value, len(hits)))


class Picture(NamedTuple):
    """A raster image or the text of an SVG, with what it shows."""

    content: Image.Image | str
    caption: str


@dataclass
class Result:
    """``metrics`` by full name (suite/what); ``tables`` for JSON; ``pictures`` by file name; ``notes``: a line each."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """How much is looked at; every value is part of a result's record.

    Args:
        limit: at most so many test images, at equal distances.
        seed: decides samples, noise, attacks and resampling.
        batch_size: images in one call of the model.
        out_of_distribution: names of data sets, folders, ``interpolation`` or ``noise``; empty takes the data set's own.
        bound_images, bound_draws: images whose likelihood is bounded, and the diffusion times drawn for each; 0 takes all.
        attack_images, autoattack_images: images that are attacked, by PGD and by AutoAttack.
        attack_steps: steps of PGD (the paper's 50).
        samples, sampler, steps, guidance: how many images are generated, and how; guidance (classifier-free) is for networks
            that draw by label.
        extractor, inception: what a Frechet distance is measured with.
    """

    limit: int | None = None
    seed: int = 0
    batch_size: int = 256
    out_of_distribution: tuple[str, ...] = ()
    bound_images: int = 256
    bound_draws: int = 32
    attack_images: int = 256
    autoattack_images: int = 64
    attack_steps: int = 50
    samples: int = 1000
    sampler: str = "ddpm"
    steps: int = 100
    guidance: float = 0.0
    extractor: str | None = None
    inception: str | None = None


@dataclass
class Context:
    """A model, the data it is judged on, and what several suites need of both, computed once."""

    model: Evaluable
    data: Dataset
    data_name: str
    data_root: str | None
    options: Options
    folder: Path
    objective: str = "adapted"
    identity: str = ""  # of somebody else's model: what it was made from

    @cached_property
    def test(self) -> ImageSet:
        return self.data.test if self.options.limit is None else self.data.test.spread(self.options.limit)

    @cached_property
    def fingerprint(self) -> str:
        from .samples import fingerprint

        return gathered(fingerprint(self))[0]

    def over(self, images: ImageSet, work: Callable[[Tensor], Tensor], what: str, size: int | None = None) -> Tensor:
        """``work`` (x float [B, C, H, W] -> [B, ...]) on all images, shared by the processes."""
        size = size or self.options.batch_size
        (result,) = share_batches(len(images), size, lambda index: work(to_x(images.take(index)[0])), what)
        return result

    def logits_of(self, images: ImageSet) -> Tensor:
        """float [N, K] on the CPU."""
        with torch.no_grad():
            return self.over(images, self.model.logits, "logits")

    def features_of(self, images: ImageSet) -> Tensor:
        """float [N, D] on the CPU."""
        with torch.no_grad():
            return self.over(images, self.model.features, "features")

    @cached_property
    def logits(self) -> Tensor:
        return self.logits_of(self.test)

    @cached_property
    def labels(self) -> Tensor:
        assert self.test.labels is not None
        return self.test.labels

    @cached_property
    def train_part(self) -> ImageSet:
        """At most TRAINING_FEATURES training images, at equal distances."""
        return self.data.train.spread(TRAINING_FEATURES)

    @cached_property
    def samples(self) -> Tensor:
        """Generated uint8 [n, C, H, W]: kept on disk in shards, so that an interrupted run goes on where it was."""
        from .samples import sampled

        return sampled(self)

    def seeded(self, what: int) -> torch.Generator:
        """A CPU generator for one use: the number tells uses apart."""
        return torch.Generator().manual_seed(((self.options.seed << 20) + what) % 2**63)


class Suite(NamedTuple):
    """``wants``: of classes, labels, denoiser, samples; what a model (or its data) lacks of them leaves the suite out."""

    words: str
    wants: frozenset[str]
    options: tuple[str, ...]
    run: Callable[[Context], Result]


def lacking(ctx: Context, wants: Sequence[str] | frozenset[str]) -> str | None:
    """What is missing for a suite, in words; None if nothing is."""
    if "classes" in wants and not ctx.model.has_classes:
        return "the model has no classes"
    if "denoiser" in wants and not ctx.model.has_denoiser:
        return "the model has no denoiser"
    if "samples" in wants and not ctx.model.has_samples:
        return "the model cannot generate images"
    if "labels" in wants and ctx.data.test.labels is None:
        return "the test images have no labels"
    return None
