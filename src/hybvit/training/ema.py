"""The exponential moving average (EMA) of the weights, which is what is evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Config
from .parallel import divided_like, is_divided


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
        self.of_net: list[Tensor] = list(net.parameters())
        self.weights: list[Tensor] = list(of.parameters())
        # the same tensors, unless the processes share the weights: then each averages its own part
        self.averaged = [divided_like(average.detach(), w) for average, w in zip(self.of_net, self.weights, strict=True)]
        self.buffers = list(zip(net.buffers(), of.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        torch._foreach_lerp_(self.averaged, self.weights, 1 - decay)
        for average, buffer in self.buffers:  # batch statistics and the replay buffer are copied, not averaged
            average.copy_(buffer)

    @torch.no_grad()
    def put_together(self) -> None:
        """Bring ``net`` up to date, where the processes share the weights; every process must call it."""
        for tensor, averaged in zip(self.of_net, self.averaged, strict=True):
            if is_divided(averaged):
                tensor.copy_(averaged.full_tensor())
