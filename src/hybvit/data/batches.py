"""What a training step sees, as a pure function of (seed, step): that is what makes a resumed run exact.

The same function serves one process or many (each takes every ``world``-th row of the batch) and any number of loader workers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import Config
from ..errors import ConfigError, DataError
from ..objective import Batch
from ..seeds import generator
from .augment import auto_augment, draws, erase, flip_half, mix_batch, weak
from .catalog import CATALOG
from .image_set import ImageSet
from .images import to_x
from .own_images import Dataset
from .shards import Shards, ShardStream

IMAGES_FOR_THE_MEAN = 2048


class Order:
    """An endless shuffled sequence of 0..n-1: an epoch is one permutation, each index standing ``repeats`` times in a row."""

    def __init__(self, n: int, seed: int, stream: str, repeats: int = 1) -> None:
        self.n, self.seed, self.stream, self.repeats = n, seed, stream, repeats
        self._permutations: dict[int, Tensor] = {}

    def at(self, positions: Tensor) -> Tensor:
        """int64 [B] -> (epoch, index, repeat) int64 [B, 3] of these entries."""
        sample, repeat = positions // self.repeats, positions % self.repeats
        epoch, place = sample // self.n, sample % self.n
        index = torch.empty_like(positions)
        for e in epoch.unique().tolist():
            index[epoch == e] = self._permutation(e)[place[epoch == e]]
        return torch.stack((epoch, index, repeat), dim=1)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = torch.randperm(self.n, generator=generator(self.seed, self.stream, epoch))
        return self._permutations[epoch]


class EndlessSequence(Protocol):
    """An endless shuffled sequence of images."""

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """int64 [B] -> pixels, labels, and (epoch, image, repeat) int64 [B, 3] of these entries."""


class ShuffledSets:
    """The images of some sets together, shuffled anew in every epoch."""

    def __init__(self, sets: Sequence[ImageSet], seed: int, stream: str, repeats: int = 1) -> None:
        self.sets = sets
        self.order = Order(sum(map(len, sets)), seed, stream, repeats)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        keys = self.order.at(positions)
        index = keys[:, 1]
        if len(self.sets) == 1:
            return *self.sets[0].take(index), keys
        pixels, start = torch.empty(len(index), *self.sets[0].pixels.shape[1:], dtype=torch.uint8), 0
        for images in self.sets:
            here = (index >= start) & (index < start + len(images))
            if bool(here.any()):
                pixels[here] = images.take(index[here] - start)[0]
            start += len(images)
        return pixels, None, keys


class TrainingBatches:
    """Step number in, :class:`Batch` out, on the CPU. The two mini-batches are shuffled independently; only ``images`` is
    augmented.

    Args:
        rank, world: of ``world`` processes that share every batch, process ``rank`` gets rows rank, rank + world, ...

    Raises:
        ConfigError: the batch cannot be shared among so many.
    """

    def __init__(self, data: Dataset, cfg: Config, rank: int = 0, world: int = 1) -> None:
        self.cfg, size = cfg, cfg.train.batch_size
        if world > 1 and size % (2 * world):
            raise ConfigError(f"train.batch_size is {size}: {world} processes need a multiple of {2 * world}")
        self.rows = torch.arange(rank, size, world)
        self.labelled = self._sequence([data.train], "order of labelled images", cfg.data.repeats)
        clean = [images for images in (data.train, data.unlabelled) if images is not None]
        self.clean = self._sequence(clean, "order of clean images", 1)
        strong = cfg.data.augment == "strong" and cfg.objective.kind != "genvit"
        self.mean = to_x(data.train.spread(IMAGES_FOR_THE_MEAN).in_memory).mean(dim=(0, 2, 3)) if strong else None
        self.auto_augment = auto_augment(policy_of(cfg)) if strong else None

    def _sequence(self, sets: list[ImageSet], stream: str, repeats: int) -> EndlessSequence:
        cfg = self.cfg
        if isinstance(sets[0].pixels, Shards):
            return ShardStream(sets[0].pixels, cfg.train.seed, stream, cfg.train.batch_size, cfg.data.shuffle_buffer, repeats)
        return ShuffledSets(sets, cfg.train.seed, stream, repeats)

    def __call__(self, step: int) -> Batch:
        data, kind, seed = self.cfg.data, self.cfg.objective.kind, self.cfg.train.seed
        positions = step * self.cfg.train.batch_size + self.rows
        clean = images = labels = None
        if kind != "vit":
            pixels, _, keys = self.clean.take(positions)
            if data.clean_flip:
                pixels = flip_half(pixels, draws(seed, "flips of clean images", keys))
            clean = to_x(pixels)
        if kind != "genvit":
            pixels, labels, keys = self.labelled.take(positions)
            if labels is None or bool((labels < 0).any()):
                raise DataError(f"{data.root}: a sample without a label; train with --objective genvit")
            images, labels = self.augmented(pixels, labels, draws(seed, "augmentation", keys), step)
        return Batch(clean, images, labels)

    def augmented(self, pixels: Tensor, labels: Tensor, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The labelled mini-batch as ``data.augment`` says -> x, and labels int64 [B] or class shares float [B, K]."""
        data = self.cfg.data
        if data.augment != "none":
            pixels = weak(pixels, u, data.crop_padding, data.flip)
        if self.auto_augment is None or self.mean is None:
            return to_x(pixels), labels
        x = erase(to_x(self.auto_augment.apply(pixels, u)), u, data.erasing, self.mean)
        return mix_batch(x, labels, self.cfg.model.num_classes, data.mixing, generator(self.cfg.train.seed, "mixing", step))


def policy_of(cfg: Config) -> str:
    """The AutoAugment policy: the configured one, else the data set's own, else ImageNet's."""
    if cfg.data.policy != "auto":
        return cfg.data.policy
    return CATALOG[cfg.data.name].policy if cfg.data.name in CATALOG else "imagenet"


def batches_of_steps(batches: TrainingBatches, start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of steps start..stop - 1 in order, made by ``workers`` background processes, or here for 0."""
    if workers == 0:
        return map(batches, range(start, stop))
    loader: DataLoader[Batch] = DataLoader(
        _Guarded(batches),  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=4,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )
    return map(_unguarded, loader)


class _Guarded:
    """Batches, or the exception in their place: a DataLoader would bury it in a traceback."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self.batches(step)
        except Exception as error:
            return error


def _unguarded(found: Batch | Exception) -> Batch:
    if isinstance(found, Exception):
        raise found
    return found


def resolve_workers(workers: int | None, device: torch.device) -> int:
    """None: no workers beside a CPU that trains, else one per core up to eight."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides when to stop
