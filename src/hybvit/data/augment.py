"""What happens to the labelled mini-batch before the network, on whole batches.

Every draw is a hash of (seed, epoch, image, repeat): the same image in the same epoch is augmented alike, whatever the batch
size, the number of workers or of processes. Order: flip, crop, AutoAugment on ``pixels``; random erasing on ``x``; then MixUp
or CutMix of the batch.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict

import torch
from torch import Tensor
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy, InterpolationMode

from ..catalog import Policy
from ..seeds import mix

# Columns of the draws, each uniform in [0, 1).
FLIP, TOP, LEFT, POLICY, FIRST, FIRST_SIGN, SECOND, SECOND_SIGN, ERASE, ERASE_TOP, ERASE_LEFT = range(11)
ERASE_SHAPES = 11  # from here on: an area and an aspect ratio for each attempt
ERASE_ATTEMPTS = 10
DRAWS = ERASE_SHAPES + 2 * ERASE_ATTEMPTS
ERASE_AREA, ERASE_ASPECT = (0.02, 0.4), (0.3, 3.3)


def draws(seed: int, stream: str, keys: Tensor) -> Tensor:
    """int64 [B, 3] of (epoch, image, repeat) -> float64 [B, DRAWS], uniform in [0, 1): counter-based, one row per key."""
    state = torch.full((len(keys),), mix(seed, stream), dtype=torch.int64)
    for column in keys.unbind(1):
        state = _finalise(state + column * 0x1E3779B97F4A7C15)
    rows = _finalise(state[:, None] + torch.arange(1, DRAWS + 1) * 0x1E3779B97F4A7C15)
    return ((rows >> 11) & ((1 << 53) - 1)).double() / 2.0**53


def _finalise(z: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 with wrapping products; >> copies the sign, hence the masks."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def flip_half(pixels: Tensor, u: Tensor) -> Tensor:
    """Mirror left to right with probability 1/2; uint8 [B, C, H, W], draws [B, DRAWS]."""
    return torch.where((u[:, FLIP] < 0.5)[:, None, None, None], pixels.flip(3), pixels)


def weak(pixels: Tensor, u: Tensor, padding: int, flip: bool) -> Tensor:
    """Random crop of the original size after padding with black, and a mirror image with probability 1/2 if ``flip``.

    uint8 [B, C, H, W], draws [B, DRAWS] -> the same shape.
    """
    b, c, h, w = pixels.shape
    top, left = ((u[:, column, None] * (2 * padding + 1)).long() for column in (TOP, LEFT))
    rows, columns = top + torch.arange(h), left + torch.arange(w)
    if flip:
        columns = torch.where(u[:, FLIP, None] < 0.5, columns.flip(1), columns)
    padded = torch.nn.functional.pad(pixels, (padding, padding, padding, padding)).flatten(2)
    index = (rows[:, :, None] * (w + 2 * padding) + columns[:, None, :]).flatten(1)
    return padded.gather(2, index[:, None].expand(b, c, h * w)).reshape(b, c, h, w)


class BatchAutoAugment(AutoAugment):
    """torchvision's AutoAugment with its policies and its operations, each run once for all images that drew it."""

    def apply(self, pixels: Tensor, u: Tensor) -> Tensor:
        """uint8 [B, C, H, W], draws [B, DRAWS] -> the same shape. Colour-only operations are dropped for grey images."""
        _, channels, height, width = pixels.shape
        space = self._augmentation_space(10, (height, width))
        chosen = (u[:, POLICY] * len(self._policies)).long().tolist()
        pixels = pixels.clone()
        for stage, (draw, sign) in enumerate(((FIRST, FIRST_SIGN), (SECOND, SECOND_SIGN))):
            groups: dict[tuple[str, float], list[int]] = defaultdict(list)
            for i, (probability, negative) in enumerate(zip(u[:, draw].tolist(), (u[:, sign] < 0.5).tolist(), strict=True)):
                operation, p, level = self._policies[chosen[i]][stage]
                if probability >= p or (channels == 1 and operation == "Color"):
                    continue
                magnitudes, signed = space[operation]
                magnitude = magnitudes[level] if magnitudes is not None else 0.0
                groups[operation, -magnitude if signed and negative else magnitude].append(i)
            for (operation, magnitude), members in groups.items():
                index = torch.tensor(members)
                changed = self._apply_image_or_video_transform(
                    pixels[index], operation, magnitude, interpolation=self.interpolation, fill=self._fill
                )
                pixels[index] = changed
        return pixels

    @functools.lru_cache  # noqa: B019  (one instance per policy lives as long as the process)
    def _augmentation_space(self, levels: int, size: tuple[int, int]) -> dict[str, tuple[list[float] | None, bool]]:
        """Operation -> its magnitudes by level, and whether a draw decides their sign."""
        space = {}
        for operation, (magnitudes, signed) in self._AUGMENTATION_SPACE.items():
            values = magnitudes(levels, *size)
            space[operation] = (None if values is None else values.tolist(), signed)
        return space


@functools.lru_cache
def auto_augment(policy: Policy) -> BatchAutoAugment:
    return BatchAutoAugment(AutoAugmentPolicy(policy), InterpolationMode.NEAREST)


def erase(x: Tensor, u: Tensor, probability: float, fill: Tensor) -> Tensor:
    """Random erasing (Zhong et al. 2020): with ``probability``, a rectangle of 2 to 40 % of the area and an aspect ratio
    of 0.3 to 3.3 takes the colour ``fill`` [C]. An image too small for such a rectangle stays whole.

    x float [B, C, H, W], draws [B, DRAWS] -> the same shape.
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
    """``share`` of each image and the rest of its partner, half a batch away (Zhang et al. 2018)."""
    return x * share + x.roll(len(x) // 2, 0) * (1 - share)


def cutmix(x: Tensor, share: float, centre: tuple[float, float]) -> tuple[Tensor, float]:
    """A box of 1 - ``share`` of the area, around ``centre`` (of height and width), of each image's partner, half a batch away
    (Yun et al. 2019) -> the images, and the share that is left of each, exactly."""
    _, _, height, width = x.shape
    half_h, half_w = (int(side * math.sqrt(1 - share)) // 2 for side in (height, width))
    row, column = int(centre[0] * height), int(centre[1] * width)
    top, bottom = max(row - half_h, 0), min(row + half_h, height)
    left, right = max(column - half_w, 0), min(column + half_w, width)
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x.roll(len(x) // 2, 0)[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def mixed_labels(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """int64 [B] -> class shares float32 [B, K] of images mixed with their partners, half a batch away."""
    own = torch.nn.functional.one_hot(labels, num_classes).float()
    return own * share + own.roll(len(labels) // 2, 0) * (1 - share)


def mix_batch(
    x: Tensor, labels: Tensor, num_classes: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """With ``probability``, MixUp or CutMix, half each; lambda ~ Beta(1, 1), one draw for the whole batch.

    The partner stands half a batch away (torchvision takes the neighbour): of interleaved parts of a batch, as processes hold
    them, each then has its own partners, and repeats of one image are not mixed with each other.

    Args:
        x: float [B, C, H, W]; labels: int64 [B].

    Returns:
        the images, and their targets: int64 [B] where nothing was mixed, class shares float32 [B, K] otherwise.
    """
    happens, cut, share, *centre = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    if happens >= probability:
        return x, labels
    if cut < 0.5:
        x, share = cutmix(x, share, (centre[0], centre[1]))
    else:
        x = mixup(x, share)
    return x, mixed_labels(labels, num_classes, share)
