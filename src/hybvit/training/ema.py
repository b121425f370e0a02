"""The exponential moving average (EMA) of the weights, which is what is evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config


def ema_decay(step: int, cfg: Config) -> float:
    """The decay of the average at a step, counted from 0, in 0..1."""
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
        for average, buffer in self.buffers:  # batch statistics and the replay buffer are copied, not averaged
            average.copy_(buffer)
