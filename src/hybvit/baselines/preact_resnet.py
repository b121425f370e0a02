"""Pre-activation residual networks (He et al. 2016b, "Identity Mappings in Deep Residual Networks").

Shapes: B images, C channels, K classes; x is [B, C, H, W] in [-1, 1]; H and W are at least 8 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.2  # of JEM's LeakyReLU (github.com/wgrathwohl/JEM, wideresnet.py)


def normalization(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


def activation(batch_norm: bool) -> nn.Module:
    """ReLU; LeakyReLU without batch norm, as in JEM, whose sampler needs gradients with respect to the pixels."""
    return nn.ReLU() if batch_norm else nn.LeakyReLU(NEGATIVE_SLOPE)


# With fewer channels in channels_last, the backward pass of a 1x1 convolution of stride 2 writes out of bounds on a CPU with
# several threads (torch 2.14.1). It was not observed with 16 or more.
MIN_WIDTH_CHANNELS_LAST = 16


class PreActBlock(nn.Module):
    """x + conv3x3(a(conv3x3(a(x)))) with a = ReLU o BN; where the shape changes, the shortcut x becomes conv1x1(a(x))."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        bias = not batch_norm
        self.enter = nn.Sequential(normalization(in_channels, batch_norm), activation(batch_norm))
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=bias),
            normalization(channels, batch_norm),
            activation(batch_norm),
            nn.Dropout(dropout),
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
        )
        same_shape = stride == 1 and in_channels == channels
        self.shortcut = None if same_shape else nn.Conv2d(in_channels, channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.branch(h) + (x if self.shortcut is None else self.shortcut(h))


class PreActResNet(nn.Module):
    """3x3 stem, stages of :class:`PreActBlock`, BN-ReLU, global average pooling, linear classifier.

    Args:
        image_shape: (C, H, W).
        num_classes: K.
        stem: channels after the first convolution.
        stages: channels of each stage.
        strides: stride of the first block of each stage.
        blocks: blocks per stage.
        dropout: rate between the two convolutions of a block.
        batch_norm: False gives JEM's network: no norms, convolutions with biases, LeakyReLU.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        stem: int,
        stages: Sequence[int],
        strides: Sequence[int],
        blocks: int,
        dropout: float = 0.0,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(image_shape[0], stem, 3, padding=1, bias=not batch_norm)
        layers: list[nn.Module] = []
        width = stem
        for channels, stride in zip(stages, strides, strict=True):
            for k in range(blocks):
                layers.append(PreActBlock(width, channels, stride if k == 0 else 1, dropout, batch_norm))
                width = channels
        self.body = nn.Sequential(*layers, normalization(width, batch_norm), activation(batch_norm))
        self.readout = nn.Linear(width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He et al. 2015: N(0, 2 / (k^2 * channels out)) for convolutions, as in the published code; zero biases."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> the last stage's channels, averaged over the image: [B, channels]."""
        x = self.stem(x)
        if x.shape[1] >= MIN_WIDTH_CHANNELS_LAST:  # the fastest memory layout for convolutions
            x = x.contiguous(memory_format=torch.channels_last)
        return self.body(x).mean(dim=(2, 3))

    def classify(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> logits [B, K] in float32 or wider."""
        logits = self.readout(self.features(x))
        return logits if logits.dtype == torch.float64 else logits.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x)


class PreActResNet18(PreActResNet):
    """The 18-layer network for small images: a 3x3 stem, no pooling, four stages of two blocks.

    With ``width`` 64, three channels and ten classes it has 11,172,170 parameters: the 11,171,146 of common implementations
    plus the final BN of He et al. before the pooling, with 512 scales and 512 shifts.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, width: int = 64) -> None:
        stages = [width, 2 * width, 4 * width, 8 * width]
        super().__init__(image_shape, num_classes, stem=width, stages=stages, strides=(1, 2, 2, 2), blocks=2)
