"""Wide residual networks (Zagoruyko & Komodakis 2016), the backbone of the paper's WRN, JEM and JEM++ results."""

from __future__ import annotations

from .preact_resnet import PreActResNet


class WideResNet(PreActResNet):
    """WRN-depth-width: three stages of n = (depth - 4) / 6 blocks with 16, 32 and 64 times ``width`` channels.

    WRN-28-10 has 36,479,194 parameters for three channels and ten classes, WRN-16-8 has 10,961,370.

    Args:
        depth: number of convolutions on the longest path, 6n + 4.
        width: the widening factor.
        dropout: rate between the two convolutions of a block.
        batch_norm: False gives JEM's network: no norms, convolutions with biases, LeakyReLU.

    Raises:
        ValueError: the depth is not 6n + 4.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        batch_norm: bool = True,
    ) -> None:
        blocks, remainder = divmod(depth - 4, 6)
        if remainder or blocks < 1:
            raise ValueError(f"network.depth is {depth}: it must be 6n + 4 (10, 16, 22, 28, 34, 40, ...)")
        stages = [16 * width, 32 * width, 64 * width]
        super().__init__(image_shape, num_classes, 16, stages, (1, 2, 2), blocks, dropout, batch_norm)
