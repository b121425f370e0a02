"""Muon (Jordan et al. 2024) with one batched product where PyTorch's has one product per matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .devices import multiplies_bf16

Coefficients = tuple[float, float, float]


def orthogonalise(matrices: Tensor, coefficients: Coefficients, iterations: int, eps: float) -> Tensor:
    """Newton-Schulz: [n, rows, columns] -> about U V^T of every matrix U S V^T, in bfloat16 where the device is made for it.

    The singular values end near 1, not at it: the published coefficients trade that for few iterations.
    """
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x.bfloat16() if multiplies_bf16(x.device) else x.float()
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def orthogonalise_all(stacks: list[Tensor], coefficients: Coefficients, iterations: int, eps: float) -> list[Tensor]:
    return [orthogonalise(matrices, coefficients, iterations, eps) for matrices in stacks]


class BatchedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` with Nesterov momentum and its default scale, all matrices of one shape at once.

    State and updates are the same but for rounding. A small network is a handful of shapes, so that a step
    is some tens of products instead of hundreds, whose overhead is most of their time: see docs/log.md.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.orthogonalise_all = orthogonalise_all

    def compile(self) -> None:
        """Launch the products together, as a CUDA graph: each takes a few microseconds, and its launch many."""
        self.orthogonalise_all = torch.compile(orthogonalise_all, dynamic=False, mode="reduce-overhead")

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
                shapes.setdefault(matrix.shape, []).append((matrix, matrix.grad, self.state[matrix]["momentum_buffer"]))
            directions = []
            for found in shapes.values():
                _, grads, averages = zip(*found, strict=True)
                torch._foreach_lerp_(averages, grads, 1 - momentum)
                directions.append(torch.stack(grads).lerp(torch.stack(averages), momentum))
            updates = self.orthogonalise_all(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
            for ((rows, columns), found), update in zip(shapes.items(), updates, strict=True):
                matrices = [matrix for matrix, _, _ in found]
                torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
                own = update.to(matrices[0].dtype).unbind()
                torch._foreach_add_(matrices, own, alpha=-lr * math.sqrt(max(1, rows / columns)))
