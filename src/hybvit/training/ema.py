"""The exponential moving average of the weights, whose weights are the ones evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config


def ema_decay(step: int, cfg: Config) -> float:
    decay = cfg.train.ema_decay
    return min(decay, (1 + step) / (10 + step)) if cfg.train.ema_warmup else decay


class Average:
    """The exponential moving average of the weights, updated after the optimizer's step.

    Args:
        net: the copy that holds the average.
        of: the network that is trained.
    """

    def __init__(self, net: nn.Module, of: nn.Module) -> None:
        self.averaged: list[Tensor] = list(net.parameters())
        self.weights: list[Tensor] = list(of.parameters())
        self.buffers = list(zip(net.buffers(), of.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        torch._foreach_lerp_(self.averaged, self.weights, 1 - decay)
        for average, buffer in self.buffers:  # statistics and replayed images are not averaged
            average.copy_(buffer)
