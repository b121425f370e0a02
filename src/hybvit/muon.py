"""Muon (Jordan et al. 2024) with one batched product where PyTorch's has one product per matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], iterations: int, eps: float) -> Tensor:
    """Newton-Schulz: [n, rows, columns] -> about U V^T of every matrix U S V^T, in bfloat16.

    The singular values end near 1, not at it: the published coefficients trade that for few iterations.
    """
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class BatchedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` with Nesterov momentum and its default scale, all matrices of one shape at once.

    State and updates are the same but for the rounding of bfloat16. A small network is a handful of shapes, so that a step
    is some tens of products instead of hundreds, whose overhead is most of their time: see docs/log.md.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            shapes: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = self.state[matrix]["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                shapes.setdefault(matrix.shape, []).append((matrix, matrix.grad, average))
            for (rows, columns), found in shapes.items():
                matrices, grads, averages = zip(*found, strict=True)
                directions = torch.stack(grads).lerp(torch.stack(averages), momentum)
                updates = orthogonalise(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - lr * group["weight_decay"])
                    matrix.add_(update, alpha=-lr * math.sqrt(max(1, rows / columns)))
