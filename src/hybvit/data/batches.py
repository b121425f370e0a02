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

from ..catalog import CATALOG
from ..config import Config, minibatches
from ..errors import ConfigError, DataError
from ..objective import Batch
from ..seeds import generator
from .augment import auto_augment, draws, erase, flip_half, mix_batch, weak
from .image_set import Dataset, ImageSet, to_x
from .shards import Shards, ShardStream

IMAGES_FOR_THE_MEAN = 2048
NO_LABEL = -1  # of an image without one, where others have theirs


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
        """int64 [B] -> pixels, labels, and (epoch, image, repeat) int64 [B, 3] of these entries.

        An image without a label has :data:`NO_LABEL`; instead of labels that are all missing there may be None.
        """


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
        labels = torch.full_like(index, NO_LABEL)
        for images in self.sets:
            here = (index >= start) & (index < start + len(images))
            if bool(here.any()):
                pixels[here], known = images.take(index[here] - start)
                if known is not None:
                    labels[here] = known
            start += len(images)
        return pixels, labels, keys


class TrainingBatches:
    """Step number in, :class:`Batch` out, on the CPU. The two mini-batches are shuffled independently; only ``images`` is
    augmented. What is conditioned on labels, or labels noisy images too, gets those of the denoising images.

    Args:
        rank, world: of ``world`` processes that share every batch, process ``rank`` gets rows rank, rank + world, ...

    Raises:
        ConfigError: the batch cannot be shared among so many.
    """

    def __init__(self, data: Dataset, cfg: Config, rank: int = 0, world: int = 1) -> None:
        self.cfg = cfg
        for name in ("batch_size", "labelled_batch_size"):
            size = getattr(cfg.train, name)
            if world > 1 and size is not None and size % (2 * world):
                raise ConfigError(f"train.{name} is {size}: {world} processes need a multiple of {2 * world}")
        self.rank, self.world = rank, world
        self.sizes = minibatches(cfg)
        denoising, labelled = self.sizes
        clean = [images for images in (data.train, data.unlabelled) if images is not None]
        self.clean = self._sequence(clean, "order of clean images", denoising, 1)
        self.labelled = self._sequence([data.train], "order of labelled images", labelled, cfg.data.repeats)
        strong = cfg.data.augment == "strong" and cfg.objective.kind != "genvit"
        self.mean = to_x(data.train.subsample(IMAGES_FOR_THE_MEAN).in_memory).mean(dim=(0, 2, 3)) if strong else None
        self.auto_augment = auto_augment(policy_of(cfg)) if strong else None

    def _sequence(self, sets: list[ImageSet], stream: str, size: int, repeats: int) -> EndlessSequence:
        cfg = self.cfg
        if size and isinstance(sets[0].pixels, Shards):
            return ShardStream(sets[0].pixels, cfg.train.seed, stream, size, cfg.data.shuffle_buffer, repeats)
        return ShuffledSets(sets, cfg.train.seed, stream, repeats)

    def __call__(self, step: int) -> Batch:
        data, kind, seed = self.cfg.data, self.cfg.objective.kind, self.cfg.train.seed
        denoising, labelled = (step * n + torch.arange(n)[self.rank :: self.world] for n in self.sizes)
        clean = images = labels = clean_labels = None
        if kind != "vit":
            pixels, known, keys = self.clean.take(denoising)
            if data.clean_flip:
                pixels = flip_half(pixels, draws(seed, "flips of clean images", keys))
            clean = to_x(pixels)
            if labels_of_clean(self.cfg):
                clean_labels = torch.full((len(clean),), NO_LABEL) if known is None else known
        if kind != "genvit":
            pixels, labels, keys = self.labelled.take(labelled)
            if labels is None or bool((labels < 0).any()):
                raise DataError(f"{data.root}: a sample without a label; train with --objective genvit")
            images, labels = self.augmented(pixels, labels, draws(seed, "augmentation", keys), step)
        return Batch(clean, images, labels, clean_labels)

    def augmented(self, pixels: Tensor, labels: Tensor, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The labelled mini-batch as ``data.augment`` says -> x, and labels int64 [B] or class shares float [B, K]."""
        data = self.cfg.data
        if data.augment != "none":
            pixels = weak(pixels, u, data.crop_padding, data.flip)
        if self.auto_augment is None or self.mean is None:
            return to_x(pixels), labels
        x = erase(to_x(self.auto_augment.apply(pixels, u)), u, data.erasing, self.mean)
        return mix_batch(x, labels, self.cfg.model.num_classes, data.mixing, generator(self.cfg.train.seed, "mixing", step))


def random_batch(cfg: Config, sizes: tuple[int, int], device: torch.device | str) -> Batch:
    """Random images in the form that the objective takes, (to denoise, labelled) so many: to be timed or counted."""
    shape = (cfg.model.channels, cfg.model.image_size, cfg.model.image_size)
    clean, images = (torch.rand(n, *shape, device=device) * 2 - 1 if n else None for n in sizes)
    denoised, labels = (torch.arange(n, device=device) % cfg.model.num_classes if n else None for n in sizes)
    return Batch(clean, images, labels, denoised if labels_of_clean(cfg) else None)


def labels_of_clean(cfg: Config) -> bool:
    """Whether the objective takes the labels of the images to be denoised."""
    return cfg.model.label_conditioning or (cfg.objective.kind == "hybvit" and cfg.objective.noisy_labels > 0)


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
    for number in (signal.SIGINT, signal.SIGTERM):  # both may go to the whole process group
        signal.signal(number, signal.SIG_IGN)  # the training process decides when to stop
