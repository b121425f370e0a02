"""Training batches: the order of the images, and their augmentation.

A batch is a pure function of (seed, step), which makes resuming exact. The same function works for one process or many (each
takes every ``world``-th row of the batch) and for any number of loader workers.

Only images to classify are augmented: flip, crop and AutoAugment on ``pixels``, random erasing on ``x``, then MixUp or CutMix
of the labeled mini-batch. The random numbers are hashes of (seed, epoch, image, repeat), so the augmentation of an image in an
epoch does not depend on the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..catalog import CATALOG, Policy, has_classes
from ..config import Config, DataConfig, minibatches, needs_x0_augmented, needs_x0_labels
from ..errors import ConfigError, DataError
from ..method.objective import Batch
from ..method.seeds import derive_seed, generator, splitmix64, unsigned_shift
from .image_set import Dataset, ImageSet, to_x
from .shards import Shards, ShardStream

MEAN_COLOR_IMAGES = 2048
NO_LABEL = -1  # label of an unlabeled image in a batch that also has labeled ones


class TrainingBatches:
    """Maps a step number to its :class:`Batch`, on the CPU. The two mini-batches are shuffled independently.

    Args:
        data: the settings for augmentation and flips.
        sizes: (images to denoise, labeled images) per step; 0 for a mini-batch that the objective does not use.
        x0_labels: whether to return the labels of the images to denoise.
        x0_augmented: whether to return strongly augmented copies of them, for ``data.augment`` strong.
        rank, world: rank of this process and number of processes; this process gets rows rank, rank + world, ... of a batch.

    Raises:
        ConfigError: the batch cannot be divided among that many processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: DataConfig,
        sizes: tuple[int, int],
        seed: int,
        *,
        x0_labels: bool = False,
        x0_augmented: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_batches(dataset, data, sizes, world)
        self.data, self.sizes, self.seed, self.x0_labels, self.x0_augmented = data, sizes, seed, x0_labels, x0_augmented
        self.num_classes, self.rank, self.world = len(dataset.classes), rank, world
        denoising, labeled = sizes
        known, train = None, dataset.train
        if data.labelled < 1 and labeled:
            known = few_labeled(train, data, seed, len(dataset.classes))
            train = without_other_labels(train, known)
        to_denoise = [images for images in (train, dataset.unlabelled) if images is not None]
        self.to_denoise = self._sequence(to_denoise, "order of clean images", denoising, 1)
        self.labeled = self._sequence([train], "order of labeled images", labeled, data.repeats, known)
        strong = labeled > 0 and data.augment == "strong"
        self.mean = mean_color(dataset.train) if strong else None
        self.auto_augment = None
        if strong:
            from .auto_augment import auto_augment  # torchvision takes as long to import as torch

            self.auto_augment = auto_augment(policy_of(data))

    def _sequence(
        self, sets: list[ImageSet], stream: str, size: int, repeats: int, only: Tensor | None = None
    ) -> EndlessSequence:
        if size and isinstance(sets[0].pixels, Shards):
            lanes, buffer = self.data.lanes, self.data.shuffle_buffer
            return ShardStream(sets[0].pixels, self.seed, stream, size, buffer, row_lanes=lanes, repeats=repeats)
        return ShuffledSets(sets, self.seed, stream, repeats, only)

    def __call__(self, step: int) -> Batch:
        denoising, labeled = (step * n + torch.arange(n)[self.rank :: self.world] for n in self.sizes)
        x0 = images = labels = x0_labels = x0_augmented = None
        if len(denoising):
            pixels, known, keys = self.to_denoise.take(denoising)
            if self.data.clean_flip:
                pixels = flip_half(pixels, uniforms(self.seed, "flips of clean images", keys))
            x0 = to_x(pixels)
            if self.x0_labels:
                x0_labels = torch.full((len(x0),), NO_LABEL) if known is None else known
            if self.x0_augmented:
                x0_augmented = self.augment(pixels, uniforms(self.seed, "augmentation of unlabeled images", keys))
        if len(labeled):
            pixels, labels, keys = self.labeled.take(labeled)
            if labels is None or bool((labels < 0).any()):
                raise DataError(f"{self.data.root}: a sample without a label; train with --objective genvit")
            images = self.augment(pixels, uniforms(self.seed, "augmentation", keys))
            if self.auto_augment is not None:
                mixing = generator(self.seed, "mixing", step)
                images, labels = mix_batch(images, labels, self.num_classes, self.data.mixing, mixing)
        return Batch(x0, images, labels, x0_labels, x0_augmented, (self.rank, self.world))

    def augment(self, pixels: Tensor, u: Tensor) -> Tensor:
        """Augment images by ``data.augment``, each by its own random numbers u [B, UNIFORMS] -> x."""
        data = self.data
        if data.augment != "none":
            pixels = augment_weakly(pixels, u, data.crop_padding, data.flip)
        if self.auto_augment is None or self.mean is None:
            return to_x(pixels)
        return erase(to_x(self.auto_augment.apply(pixels, u[:, AUTO_AUGMENT])), u, data.erasing, self.mean)


def mixes(data: DataConfig) -> bool:
    """Whether labeled images are mixed in pairs (:func:`mix_batch`)."""
    return data.augment == "strong" and data.mixing > 0


def why_not_divided(data: DataConfig, sizes: tuple[int, int], world: int, parts: int = 1) -> str | None:
    """Why so many processes cannot share mini-batches of these sizes equally, each its rows in ``parts``; None if they can.

    Images that are mixed with each other must be of one process.
    """
    if world == 1:
        return None  # the configuration checks the parts
    for size, together in zip(sizes, (1, 2 if mixes(data) else 1), strict=True):
        multiple = math.lcm(world * parts, world * together)
        if size % multiple:
            how = f"in {parts} parts each" if parts > 1 else "equally"
            pairs = ", in pairs that are mixed" if together > 1 else ""
            return (
                f"{world} processes cannot share a mini-batch of {size} images {how}{pairs}: "
                f"set train.batch_size and train.labelled_batch_size to multiples of {multiple}"
            )
    return None


def check_batches(dataset: Dataset, data: DataConfig, sizes: tuple[int, int], world: int, parts: int = 1) -> None:
    """Raise ConfigError where mini-batches of these sizes cannot be shared by so many processes, or taken from a stream."""
    if problem := why_not_divided(data, sizes, world, parts):
        raise ConfigError(problem)
    if not isinstance(dataset.train.pixels, Shards):
        return
    for size, repeats, mixed in zip(sizes, (1, data.repeats), (False, mixes(data)), strict=True):
        if size:
            lanes, buffer = data.lanes, data.shuffle_buffer
            stream = ShardStream(dataset.train.pixels, 0, "", size, buffer, row_lanes=lanes, repeats=repeats)
            if mixed:
                check_partners(stream)


def check_partners(stream: ShardStream) -> None:
    """Raise ConfigError where an image of a stream would be mixed with a repeat of itself, which follows it in its lane."""
    apart, lanes = divmod(stream.batch_size // 2, stream.row_lanes)
    if lanes == 0 and 0 < apart < stream.repeats:
        raise ConfigError(
            f"data.lanes: with {stream.row_lanes} lanes and mini-batches of {stream.batch_size}, MixUp and CutMix would mix "
            f"images with their own repeats: give {stream.batch_size} lanes, or data.repeats 1"
        )


def few_labeled(images: ImageSet, data: DataConfig, seed: int, num_classes: int) -> Tensor:
    """The images whose labels are used: ``data.labelled`` of each class, and at least one -> int64 [N], sorted.

    Raises:
        ConfigError: the images come from shards, whose labels are not known beforehand.
    """
    if images.labels is None or isinstance(images.pixels, Shards):
        raise ConfigError(
            f"data.labelled is {data.labelled:g}, but the labels of {data.name} are not known beforehand: set it to 1"
        )
    chosen = []
    for k in range(num_classes):
        of_class = (images.labels == k).nonzero().flatten()
        count = max(1, round(data.labelled * len(of_class)))
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator(seed, "labeled images", k))[:count]])
    return torch.cat(chosen).sort().values


def without_other_labels(images: ImageSet, known: Tensor) -> ImageSet:
    """The images with those labels only."""
    assert images.labels is not None
    labels = torch.full_like(images.labels, NO_LABEL)
    labels[known] = images.labels[known]
    return ImageSet(images.pixels, labels)


def mean_color(images: ImageSet) -> Tensor:
    """The mean color [C] of a subset of the images, in [-1, 1]; random erasing fills with it."""
    return to_x(images.subsample(MEAN_COLOR_IMAGES).in_memory).mean(dim=(0, 2, 3))


def policy_of(data: DataConfig) -> Policy:
    """The AutoAugment policy: the configured one, else that of the data set of this name, or with these class names, else
    ImageNet's."""
    if data.policy != "auto":
        return data.policy
    if data.name in CATALOG:
        return CATALOG[data.name].policy
    alike = {info.policy for info in CATALOG.values() if has_classes(info, data.classes)}
    return alike.pop() if len(alike) == 1 else "imagenet"  # several sets have the classes 0 to 9


def random_batch(cfg: Config, device: torch.device | str, sizes: tuple[int, int] | None = None) -> Batch:
    """A batch of random images, for timing a training step or counting its operations.

    Args:
        sizes: (images to denoise, labeled images), instead of those of the configuration.
    """
    model, sizes = cfg.model, minibatches(cfg) if sizes is None else sizes
    copies = sizes[0] if needs_x0_augmented(cfg) else 0
    x0, images, augmented = (torch.rand(n, *model.image_shape, device=device) * 2 - 1 if n else None for n in (*sizes, copies))
    denoised, labels = (torch.arange(n, device=device) % model.num_classes if n else None for n in sizes)
    return Batch(x0, images, labels, denoised if needs_x0_labels(cfg) else None, augmented)


# The order


class Order:
    """An endless shuffled sequence of 0..n-1. An epoch is one permutation; each index occurs ``repeats`` times in a row."""

    def __init__(self, n: int, seed: int, stream: str, repeats: int = 1) -> None:
        self.n, self.seed, self.stream, self.repeats = n, seed, stream, repeats
        self._permutations: dict[int, Tensor] = {}

    def at(self, positions: Tensor) -> Tensor:
        """Positions int64 [B] in the sequence -> (epoch, index, repeat) int64 [B, 3]."""
        sample, repeat = positions // self.repeats, positions % self.repeats
        epoch, offset = sample // self.n, sample % self.n
        index = torch.empty_like(positions)
        for e in epoch.unique().tolist():
            index[epoch == e] = self._permutation(e)[offset[epoch == e]]
        return torch.stack((epoch, index, repeat), dim=1)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = torch.randperm(self.n, generator=generator(self.seed, self.stream, epoch))
        return self._permutations[epoch]


class EndlessSequence(Protocol):
    """An endless shuffled sequence of images."""

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Positions int64 [B] in the sequence -> pixels, labels, and (epoch, image, repeat) int64 [B, 3].

        Unlabeled images have :data:`NO_LABEL`; if no image has a label, labels may be None.
        """


class ShuffledSets:
    """The concatenated images of several sets, or ``only`` those at some indices, int64 [N], reshuffled in every epoch."""

    def __init__(self, sets: Sequence[ImageSet], seed: int, stream: str, repeats: int = 1, only: Tensor | None = None) -> None:
        self.sets, self.only = sets, only
        self.order = Order(sum(map(len, sets)) if only is None else len(only), seed, stream, repeats)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        keys = self.order.at(positions)
        if self.only is not None:
            keys[:, 1] = self.only[keys[:, 1]]
        index = keys[:, 1]
        if len(self.sets) == 1:
            return *self.sets[0].take(index), keys
        pixels, start = torch.empty(len(index), *self.sets[0].pixels.shape[1:], dtype=torch.uint8), 0
        labels = torch.full_like(index, NO_LABEL)
        for images in self.sets:
            in_set = (index >= start) & (index < start + len(images))
            if bool(in_set.any()):
                pixels[in_set], known = images.take(index[in_set] - start)
                if known is not None:
                    labels[in_set] = known
            start += len(images)
        return pixels, labels, keys


# Augmentation, on whole batches

# Columns of the random numbers of an image, each uniform in [0, 1).
FLIP, TOP, LEFT, POLICY, FIRST, FIRST_SIGN, SECOND, SECOND_SIGN, ERASE, ERASE_TOP, ERASE_LEFT = range(11)
AUTO_AUGMENT = slice(POLICY, ERASE)
ERASE_SHAPES = 11  # first of the remaining columns: an area and an aspect ratio for each attempt
ERASE_ATTEMPTS = 10
UNIFORMS = ERASE_SHAPES + 2 * ERASE_ATTEMPTS
ERASE_AREA, ERASE_ASPECT = (0.02, 0.4), (0.3, 3.3)


def uniforms(seed: int, stream: str, keys: Tensor) -> Tensor:
    """Random numbers by a counter-based generator: keys (epoch, image, repeat) int64 [B, 3] -> float64 [B, UNIFORMS] in
    [0, 1)."""
    state = torch.full((len(keys),), derive_seed(seed, stream), dtype=torch.int64)
    for column in keys.unbind(1):
        state = splitmix64(state + column * 0x1E3779B97F4A7C15)
    rows = splitmix64(state[:, None] + torch.arange(1, UNIFORMS + 1) * 0x1E3779B97F4A7C15)
    return unsigned_shift(rows, 11).double() / 2.0**53


def flip_half(pixels: Tensor, u: Tensor) -> Tensor:
    """Flip horizontally with probability 1/2; pixels uint8 [B, C, H, W], u [B, UNIFORMS]."""
    return torch.where((u[:, FLIP] < 0.5)[:, None, None, None], pixels.flip(3), pixels)


def augment_weakly(pixels: Tensor, u: Tensor, padding: int, flip: bool) -> Tensor:
    """Random crop of the original size after padding with black and, if ``flip``, a horizontal flip with probability 1/2.

    pixels uint8 [B, C, H, W], u [B, UNIFORMS] -> the same shape as pixels.
    """
    b, c, h, w = pixels.shape
    top, left = ((u[:, column, None] * (2 * padding + 1)).long() for column in (TOP, LEFT))
    rows, columns = top + torch.arange(h), left + torch.arange(w)
    if flip:
        columns = torch.where(u[:, FLIP, None] < 0.5, columns.flip(1), columns)
    padded = torch.nn.functional.pad(pixels, (padding, padding, padding, padding)).flatten(2)
    index = (rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]).flatten(1)
    return padded.gather(2, index[:, None].expand(b, c, h * w)).reshape(b, c, h, w)


def erase(x: Tensor, u: Tensor, probability: float, fill: Tensor) -> Tensor:
    """Random erasing (Zhong et al. 2020): with ``probability``, fill a rectangle of 2 to 40 % of the area and an aspect ratio
    of 0.3 to 3.3 with the color ``fill`` [C]. Images too small for such a rectangle are unchanged.

    x float [B, C, H, W], u [B, UNIFORMS] -> the same shape as x.
    """
    _, _, height, width = x.shape
    shapes = u[:, ERASE_SHAPES:].reshape(len(x), ERASE_ATTEMPTS, 2)
    area = height * width * (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * shapes[..., 0])
    low, high = map(math.log, ERASE_ASPECT)
    aspect = torch.exp(low + (high - low) * shapes[..., 1])
    h, w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    share = h * w / (height * width)
    fits = (h >= 1) & (w >= 1) & (h < height) & (w < width) & (share >= ERASE_AREA[0]) & (share <= ERASE_AREA[1])
    erased = (u[:, ERASE] < probability) & fits.any(dim=1)
    first = fits.int().argmax(dim=1, keepdim=True)
    h, w = h.gather(1, first), w.gather(1, first)
    top, left = (
        (u[:, at, None] * (full - side + 1)).floor() for at, full, side in ((ERASE_TOP, height, h), (ERASE_LEFT, width, w))
    )
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows, in_columns = (rows >= top) & (rows < top + h), (columns >= left) & (columns < left + w)
    mask = erased[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
    return torch.where(mask[:, None], fill[:, None, None].to(x.dtype), x)


def mixup(x: Tensor, share: float) -> Tensor:
    """MixUp (Zhang et al. 2018): share * image + (1 - share) * partner; the partner is half a batch away."""
    return x * share + x.roll(len(x) // 2, 0) * (1 - share)


def cutmix(x: Tensor, share: float, center: tuple[float, float]) -> tuple[Tensor, float]:
    """CutMix (Yun et al. 2019): paste a box of the partner, half a batch away, into each image -> the images, and the exact
    share of its own pixels that each keeps.

    The box covers 1 - ``share`` of the area around ``center``, given as fractions of height and width, and is clipped to the
    image.
    """
    _, _, height, width = x.shape
    half_h, half_w = (int(side * math.sqrt(1 - share)) // 2 for side in (height, width))
    row, column = int(center[0] * height), int(center[1] * width)
    top, bottom = max(row - half_h, 0), min(row + half_h, height)
    left, right = max(column - half_w, 0), min(column + half_w, width)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x.roll(len(x) // 2, 0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def mixed_labels(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """Labels int64 [B] -> soft labels float32 [B, K] of images mixed with partners half a batch away."""
    own = torch.nn.functional.one_hot(labels, num_classes).float()
    return own * share + own.roll(len(labels) // 2, 0) * (1 - share)


def mix_batch(
    x: Tensor, labels: Tensor, num_classes: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """With ``probability``, MixUp or CutMix with equal chance; one lambda ~ Beta(1, 1) for the whole batch.

    The partner of an image is half a batch away (in torchvision, the next image). So each process, which has every
    ``world``-th row, finds all partners in its own rows, and repeats of an image, which follow one another, are not mixed with
    each other if they are no more than half a batch.

    Args:
        x: float [B, C, H, W]; labels: int64 [B].

    Returns:
        the images, and their targets: int64 [B] if nothing was mixed, soft labels float32 [B, K] otherwise.
    """
    mixing, choice, share, *center = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    if mixing >= probability:
        return x, labels
    if choice < 0.5:
        x, share = cutmix(x, share, (center[0], center[1]))
    else:
        x = mixup(x, share)
    return x, mixed_labels(labels, num_classes, share)
