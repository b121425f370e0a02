"""What a training step sees, as a pure function of (seed, step): that is what makes a resumed run exact."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Config
from ..objective import Batch
from ..seeds import generator
from .datasets import ImageSet
from .images import to_x


class Order:
    """An endless shuffled sequence of 0..n-1: an epoch is one permutation, each index standing ``repeats`` times in a row."""

    def __init__(self, n: int, seed: int, stream: str, repeats: int = 1) -> None:
        self.n, self.seed, self.stream, self.repeats = n, seed, stream, repeats
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def take(self, start: int, count: int) -> Tensor:
        """Entries start..start + count - 1 of the sequence, int64 [count]."""
        epoch_length, parts = self.n * self.repeats, []
        while count:
            epoch, offset = divmod(start, epoch_length)
            if epoch != self._epoch:
                permutation = torch.randperm(self.n, generator=generator(self.seed, self.stream, epoch))
                self._epoch, self._permutation = epoch, permutation.repeat_interleave(self.repeats)
            parts.append(self._permutation[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)


class TrainingBatches:
    """Step number in, :class:`Batch` out. The two mini-batches are shuffled independently; only ``images`` is augmented."""

    def __init__(self, train: ImageSet, cfg: Config, device: torch.device) -> None:
        self.train, self.cfg, self.device = train, cfg, device
        seed = cfg.train.seed
        self.labelled = Order(len(train.labels), seed, "order of labelled images", cfg.data.repeats)
        self.clean = Order(len(train.labels), seed, "order of clean images")

    def __call__(self, step: int) -> Batch:
        size, kind = self.cfg.train.batch_size, self.cfg.objective.kind
        clean = images = labels = None
        if kind != "vit":
            clean = to_x(self.train.pixels[self.clean.take(step * size, size)].to(self.device))
        if kind != "genvit":
            chosen = self.labelled.take(step * size, size)
            pixels, labels = self.train.pixels[chosen], self.train.labels[chosen].to(self.device)
            if self.cfg.data.augment == "weak":
                draws = generator(self.cfg.train.seed, "augmentation", step)
                pixels = weak(pixels, draws, self.cfg.data.crop_padding, self.cfg.data.flip)
            images = to_x(pixels.to(self.device))
        return Batch(clean, images, labels)


def weak(pixels: Tensor, draws: torch.Generator, padding: int, flip: bool) -> Tensor:
    """Random crop of the original size after padding with black, and a mirror image with probability 1/2 if ``flip``.

    uint8 [B, C, H, W] -> the same shape.
    """
    b, c, h, w = pixels.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, b, 1), generator=draws)
    rows, columns = top + torch.arange(h), left + torch.arange(w)
    if flip:
        mirrored = torch.rand(b, 1, generator=draws) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(pixels, (padding, padding, padding, padding))
    index = torch.arange(b)[:, None, None, None], torch.arange(c)[:, None, None]
    return padded[index[0], index[1], rows[:, None, :, None], columns[:, None, None, :]]
