"""Where the backbone meets pixels and labels: patches, the stem before them, and the two read-outs (Sec. 4.1).

Shapes: B images, C channels, H = W = image_size, p patch_size, N = (H / p)^2 patches, D dim, K classes.
Time A [B, h] and noisy [B, 1] are as in :mod:`hybvit.layers`: None where all rows are clean.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import attend, make_norm
from .vit_config import ViTConfig


def patchify(x: Tensor, p: int) -> Tensor:
    """[B, C, H, W] -> [B, N, p*p*C]: patches in raster order; inside one: row, column, channel (as published)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)


def unpatchify(patches: Tensor, p: int, channels: int) -> Tensor:
    """The inverse of :func:`patchify`: [B, N, p*p*channels] -> [B, channels, H, W], for square images."""
    b, n, _ = patches.shape
    side = math.isqrt(n)
    image = patches.reshape(b, side, side, p, p, channels).permute(0, 1, 3, 2, 4, 5).reshape(b, side * p, side * p, channels)
    return image.permute(0, 3, 1, 2)  # channels last in memory, the order that convolutions like best


class FiLM(nn.Linear):
    """The map from the time to a scale and a shift for each of ``width`` channels; a clean row sees the bias alone."""

    def __init__(self, time_width: int, width: int) -> None:
        super().__init__(time_width, 2 * width)

    def modulate(self, features: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """features [B, width, H, W] -> features (1 + scale) + shift."""
        modulation = self.bias.to(features.dtype)[None] if time is None or noisy is None else self(F.silu(time) * noisy)
        scale, shift = modulation[..., None, None].chunk(2, dim=1)
        return torch.addcmul(shift, features, 1 + scale)


class ConvStem(nn.Module):
    """Two 3x3 convolutions before the patches are cut: [B, C, H, W] -> [B, stem_width, H, W]."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.into = nn.Conv2d(cfg.channels, cfg.stem_width, 3, padding=1)
        self.modulation = FiLM(cfg.time_width, cfg.stem_width)
        self.mix = nn.Conv2d(cfg.stem_width, cfg.stem_width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        features = self.into(x.contiguous(memory_format=torch.channels_last))
        return F.gelu(self.mix(F.gelu(self.modulation.modulate(features, time, noisy))))


class LinearReadout(nn.Module):
    """Each patch token is mapped linearly to its pixels (Sec. 4.1)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_size, self.channels = cfg.patch_size, cfg.channels
        self.to_pixels = nn.Linear(cfg.dim, cfg.patch_size**2 * cfg.channels)

    def forward(self, tokens: Tensor, pixels: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """tokens [B, N, D], pixels [B, C or stem_width, H, W] what the patches were cut from -> [B, C, H, W]."""
        return unpatchify(self.to_pixels(tokens), self.patch_size, self.channels)


class LinearConvReadout(LinearReadout):
    """The same, and a 3x3 convolution that evens out the seams between patches (U-ViT); it starts as the identity."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg)
        self.smooth = nn.Conv2d(cfg.channels, cfg.channels, 3, padding=1)

    def forward(self, tokens: Tensor, pixels: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        return self.smooth(super().forward(tokens, pixels, time, noisy))


class ConvReadout(nn.Module):
    """Tokens become ``readout_width`` features per pixel, which three 3x3 convolutions refine beside the pixels at hand."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_size, width = cfg.patch_size, cfg.readout_width
        self.width = width
        beside = cfg.stem_width if cfg.patch_embedding == "conv" else cfg.channels
        self.to_pixels = nn.Linear(cfg.dim, cfg.patch_size**2 * width)
        self.modulation = FiLM(cfg.time_width, width)
        self.mix = nn.Conv2d(width + beside, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.to_image = nn.Conv2d(width, cfg.channels, 3, padding=1)

    def forward(self, tokens: Tensor, pixels: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        features = unpatchify(self.to_pixels(tokens), self.patch_size, self.width)
        features = self.mix(torch.cat((features, pixels.to(features.dtype)), dim=1))
        features = features + self.refine(F.gelu(self.modulation.modulate(features, time, noisy)))
        return self.to_image(F.gelu(features))


READOUTS: dict[str, type[LinearReadout] | type[ConvReadout]] = {
    "linear": LinearReadout,
    "linear_conv": LinearConvReadout,
    "conv": ConvReadout,
}


class ClassToken(nn.Module):
    """z [B, n, D] -> z_0 [B, D] (Eq. 20)."""

    def forward(self, z: Tensor) -> Tensor:
        return z[:, 0]


class AttentionPool(nn.Module):
    """z [B, n, D] -> [B, D]: the patch tokens weighted, head by head, by how well they answer a learned query."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.heads, self.prefix = cfg.heads, cfg.prefix
        self.norm = make_norm(cfg)
        self.query = nn.Parameter(torch.randn(1, cfg.heads, 1, cfg.dim // cfg.heads))
        self.kv = nn.Linear(cfg.dim, 2 * cfg.dim, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        b, _, d = z.shape
        k, v = self.kv(self.norm(z[:, self.prefix :])).reshape(b, -1, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return attend(self.query.to(k.dtype).expand(b, -1, -1, -1), k, v).reshape(b, d)
