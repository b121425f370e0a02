"""The optimizers, their learning rate, and their state as tensors: AdamW, SGD, and a batched Muon."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..config import Config, OptimConfig
from ..devices import has_fast_bf16
from ..distributed import share_rows
from ..method.vit import HybViT
from ..networks import Network
from .parallel import divided_like, local, put_together, whole

RELATIVE_RATE = "relative_lr"  # of a parameter group: its learning rate as a multiple of the schedule's


def build_optimizers(net: Network, cfg: OptimConfig) -> list[torch.optim.Optimizer]:
    """One optimizer of all weights that are not frozen; for muon a second one, of the matrices inside the layers of the ViT.

    Muon's update is the orthogonal matrix U V^T times sqrt(max(1, rows/columns)) (Jordan et al. 2024), with ``muon_lr``.
    PyTorch decays weights by lr * weight_decay; Muon's weight_decay is scaled so that all weights decay by
    ``cfg.lr * cfg.weight_decay`` at the peak.
    """
    matrices = [p for p in matrices_of_layers(net) if p.requires_grad] if cfg.name == "muon" else []
    apart = set(map(id, matrices))
    others = [p for p in net.parameters() if p.requires_grad and id(p) not in apart]
    if cfg.name == "sgd":
        momentum, nesterov = cfg.beta1, cfg.nesterov
        return [torch.optim.SGD(others, lr=cfg.lr, momentum=momentum, weight_decay=cfg.weight_decay, nesterov=nesterov)]
    betas = (cfg.beta1, cfg.beta2)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=cfg.lr, betas=betas, weight_decay=cfg.weight_decay, fused=True)
    ]
    if matrices:
        relative = cfg.muon_lr / cfg.lr
        group = {"params": matrices, RELATIVE_RATE: relative}
        optimizers.append(BatchedMuon([group], lr=cfg.muon_lr, weight_decay=cfg.weight_decay / relative))
    return optimizers


def matrices_of_layers(net: Network) -> list[nn.Parameter]:
    """The weight matrices of the linear maps inside the transformer layers."""
    layers = [module.layers for module in net.modules() if isinstance(module, HybViT)]  # a JEM wraps its network
    linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    return [cast(nn.Parameter, module.weight) for module in linear]


def set_rates(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate; muon's matrices get their multiple of it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(RELATIVE_RATE, 1.0)


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state as a flat dict of tensors: ``index/name`` for the first, ``1/index/name`` for the second.

    Their settings are in the configuration."""
    return put_together(
        {
            f"{number}/{index}/{name}" if number else f"{index}/{name}": value
            for number, optimizer in enumerate(optimizers)
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
            if value is not None
        }
    )


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Load the state that :func:`optimizer_tensors` gave.

    Raises:
        ValueError, LookupError: a tensor is not of such a state.
    """
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        *number, index, name = key.split("/")
        states[int(number[0]) if number else 0].setdefault(int(index), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for place, entry in state.items():
            for name, value in entry.items():
                if value.shape not in ((), weights[place].shape):
                    raise ValueError(f"{name} of weight {place} has shape {list(value.shape)}")
                if value.shape:
                    entry[name] = divided_like(value.to(weights[place].device), weights[place])
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def learning_rate(step: int, cfg: Config) -> float:
    """The learning rate at a step, counted from 0: a linear warm-up to ``optim.lr``, then a cosine that reaches
    ``optim.min_lr`` after ``train.steps``, or a drop at each milestone."""
    optim, warmup = cfg.optim, cfg.optim.warmup_steps
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.schedule == "steps":
        return optim.lr * optim.drop ** sum(step >= share * cfg.train.steps for share in optim.milestones)
    progress = (step - warmup) / max(cfg.train.steps - warmup, 1)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


Coefficients = tuple[float, float, float]


def orthogonalize(matrices: Tensor, coefficients: Coefficients, iterations: int, eps: float) -> Tensor:
    """Newton-Schulz: [n, rows, columns] -> about U V^T of every matrix U S V^T, in bfloat16 where the device is faster with it.

    The singular values end near 1, not at 1: the published coefficients trade accuracy for few iterations.
    """
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x.bfloat16() if has_fast_bf16(x.device) else x.float()
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def orthogonalize_all(stacks: list[Tensor], coefficients: Coefficients, iterations: int, eps: float) -> list[Tensor]:
    """:func:`orthogonalize` for each stack of matrices."""
    return [orthogonalize(matrices, coefficients, iterations, eps) for matrices in stacks]


class BatchedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` with Nesterov momentum and its default scale, for all matrices of a shape at once.

    State and updates are the same up to rounding. A small network has a handful of shapes, so a step takes tens of products
    instead of hundreds, whose overhead would dominate: see docs/log.md.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.orthogonalize_all = orthogonalize_all

    def compile(self) -> None:
        """Launch the products together, as a CUDA graph: each takes a few microseconds, less than its launch."""
        self.orthogonalize_all = torch.compile(orthogonalize_all, dynamic=False, mode="reduce-overhead")

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
                torch._foreach_lerp_(list(map(local, averages)), list(map(local, grads)), 1 - momentum)
                pairs = zip(grads, averages, strict=True)
                directions.append(torch.stack([whole(grad.lerp(average, momentum)) for grad, average in pairs]))
            settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
            updates = share_rows(directions, lambda stacks: self.orthogonalize_all(stacks, *settings))  # noqa: B023
            for ((rows, columns), found), update in zip(shapes.items(), updates, strict=True):
                matrices = [local(matrix) for matrix, _, _ in found]
                torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
                parts = update.to(matrices[0].dtype).unbind()
                own = [local(divided_like(part, matrix)) for part, (matrix, _, _) in zip(parts, found, strict=True)]
                torch._foreach_add_(matrices, own, alpha=-lr * math.sqrt(max(1, rows / columns)))
