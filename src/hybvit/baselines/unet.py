"""The U-Net of DDPM (Ho et al. 2020, Appendix B), in the implementation of diffusers.

Every setting below but those in the signature is that of google/ddpm-cifar10-32, the published weights in diffusers' format;
they load into :attr:`DenoisingUNet.net`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError

GROUPS = 32  # of the group norms


class DenoisingUNet(nn.Module):
    """A U-Net that sees the time; the defaults are DDPM's network for CIFAR-10 with its 35,746,307 parameters.

    Args:
        image_shape: (C, H, W).
        channels: one number per level; each level halves the sides. Where 32 does not divide them all, the norms have as many
            groups as the greatest power of two that does.
        layers: residual blocks per level on the way down (one more on the way up).
        attention_at: side in pixels of the level with self-attention, which the middle has always; 0: only the middle.
        dropout: inside the residual blocks.

    Raises:
        ValueError: the images cannot be halved so often, or no level has ``attention_at`` pixels.
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
        check(image_shape, channels, attention_at)
        try:
            from diffusers.models.unets.unet_2d import UNet2DModel
        except ImportError:
            raise ConfigError("network.name unet needs diffusers: pip install 'hybvit[baselines]'") from None
        attentive = [image_shape[1] >> level == attention_at for level in range(len(channels))]
        # In channels_last it is a tenth slower on a CPU: diffusers' group norms and attention copy it back.
        self.net = UNet2DModel(
            sample_size=image_shape[1:],
            in_channels=image_shape[0],
            out_channels=image_shape[0],
            block_out_channels=channels,
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attentive),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attentive)),
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

        diffusers sees t - 1: it counts the steps of DDPM from 0.
        """
        predicted: Tensor = self.net(x_t, t - 1).sample
        return predicted if predicted.dtype == torch.float64 else predicted.float()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.denoise(x_t, t)


def check(image_shape: tuple[int, int, int], channels: tuple[int, ...], attention_at: int) -> None:
    """Raises ValueError where no such U-Net exists; the message names the field and a value that will do."""
    _, height, width = image_shape
    if not channels or channels[0] % 2 or min(channels) < 4:
        raise ValueError(f"network.channels is {channels}: one number per level, each at least 4, the first even")
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
            f"network.attention_at is {attention_at}, but the levels have {', '.join(map(str, sides))} pixels a side: "
            "give one of these, or 0 for self-attention in the middle only"
        )
