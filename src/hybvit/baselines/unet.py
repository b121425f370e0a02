"""The U-Net of DDPM (Ho et al. 2020, Appendix B), as implemented in diffusers.

All settings that are not arguments are those of google/ddpm-cifar10-32, the published weights in diffusers' format, which load
into :attr:`DenoisingUNet.net`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError

GROUPS = 32  # groups of the group norms


class DenoisingUNet(nn.Module):
    """A time-conditioned U-Net; the defaults are DDPM's network for CIFAR-10 with its 35,746,307 parameters.

    Args:
        image_shape: (C, H, W).
        channels: one number per level; each further level halves height and width. The number of groups of the norms is the
            greatest power of two, up to 32, that divides all of them.
        layers: residual blocks per level of the encoder (the decoder has one more).
        attention_at: side in pixels of the level with self-attention; 0 is none. The middle block always has self-attention.
        dropout: rate in the residual blocks.

    Raises:
        ValueError: the images cannot be halved that often, or no level has ``attention_at`` pixels.
        ConfigError: diffusers is not installed.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, ...] = (128, 256, 256, 256),
        layers: int = 2,
        attention_at: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_levels(image_shape, channels, attention_at)
        try:
            from diffusers.models.unets.unet_2d import UNet2DModel
        except ImportError:
            raise ConfigError("network.name unet needs diffusers: pip install 'hybvit[baselines]'") from None
        with_attention = [image_shape[1] >> level == attention_at for level in range(len(channels))]
        # Not in channels_last, which is 10 % slower on a CPU: diffusers' group norms and attention copy it back.
        self.net = UNet2DModel(
            sample_size=image_shape[1:],
            in_channels=image_shape[0],
            out_channels=image_shape[0],
            block_out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in with_attention),
            up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(with_attention)),
            layers_per_block=layers,
            dropout=dropout,
            attention_head_dim=None,  # one head
            norm_num_groups=math.gcd(GROUPS, *channels),
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        )

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, H, W] at t int64 [B] in 1..T -> the predicted target [B, C, H, W] in float32 or wider.

        diffusers is given t - 1, because it counts steps from 0.
        """
        predicted: Tensor = self.net(x_t, t - 1).sample
        return predicted if predicted.dtype == torch.float64 else predicted.float()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.denoise(x_t, t)


def check_levels(image_shape: tuple[int, int, int], channels: tuple[int, ...], attention_at: int) -> None:
    """Raises ValueError if there is no such U-Net; the message names the field and a valid value."""
    _, height, width = image_shape
    if not channels or channels[0] % 2 or min(channels) < 4:
        raise ValueError(f"network.channels is {channels}: give one number per level, each at least 4, the first even")
    halvings = len(channels) - 1
    possible = (math.gcd(height, width) & -math.gcd(height, width)).bit_length() - 1
    if halvings > possible:
        raise ValueError(
            f"network.channels has {len(channels)} levels, but {height} x {width} images can be halved only "
            f"{possible} times: give at most {possible + 1} numbers"
        )
    sides = [height >> level for level in range(len(channels))]
    if attention_at and attention_at not in sides:
        raise ValueError(
            f"network.attention_at is {attention_at}, but the levels have {', '.join(map(str, sides))} pixels per side: "
            "give one of these, or 0 for self-attention in the middle only"
        )
