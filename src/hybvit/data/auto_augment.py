"""AutoAugment (Cubuk et al. 2019) of a batch, with torchvision's operations. Only strong augmentation imports this module."""

from __future__ import annotations

import functools
from collections import defaultdict

import torch
from torch import Tensor
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy, InterpolationMode

from ..catalog import Policy


class BatchAutoAugment(AutoAugment):
    """torchvision's AutoAugment for batches: each operation runs once for all images that it was selected for."""

    def apply(self, pixels: Tensor, u: Tensor) -> Tensor:
        """pixels uint8 [B, C, H, W] -> the same shape. Color-only operations are skipped for grayscale images.

        Args:
            u: [B, 5], uniform in [0, 1): which pair of operations; of each of the two, whether it runs, and its sign.
        """
        _, channels, height, width = pixels.shape
        space = self._augmentation_space(10, (height, width))
        chosen = (u[:, 0] * len(self._policies)).long().tolist()
        pixels = pixels.clone()
        for stage, (draw, sign) in enumerate(((1, 2), (3, 4))):
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

    @functools.lru_cache  # noqa: B019  (there is one instance per policy, for the lifetime of the process)
    def _augmentation_space(self, levels: int, size: tuple[int, int]) -> dict[str, tuple[list[float] | None, bool]]:
        """Operation -> its magnitudes by level, and whether their sign is random."""
        space = {}
        for operation, (magnitudes, signed) in self._AUGMENTATION_SPACE.items():
            values = magnitudes(levels, *size)
            space[operation] = (None if values is None else values.tolist(), signed)
        return space


@functools.lru_cache
def auto_augment(policy: Policy) -> BatchAutoAugment:
    """The operations of one policy."""
    return BatchAutoAugment(AutoAugmentPolicy(policy), InterpolationMode.NEAREST)
