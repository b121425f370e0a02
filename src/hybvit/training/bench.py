"""Benchmark of the joint training step: against a plain reference step, and as a fraction of this machine's peak."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..devices import alternating, autocast, best_device, environment, keep_freed_memory, resolve_precision
from ..method.diffusion import Diffusion
from ..method.objective import Batch, Objective, draw_times, hybrid_loss
from ..method.seeds import generator, normal_like
from ..method.vit import HybViT, Output, TokenScalarLayer, patchify, unpatchify

PAPER = Objective(label_smoothing=0.0)


PEAK_SIZE = 2048  # side of the square matrices whose product measures the machine's peak


def reference_forward(net: HybViT, x: Tensor, t: Tensor | None) -> Output:
    """The paper's network in plain form: einsum attention, separate products, nothing fused. Same weights, same results."""
    tokens = net.patch_embedding(patchify(x, net.cfg.patch_size))
    z = torch.cat((net.class_token.expand(len(x), -1, -1), tokens), dim=1) + net.positions
    time_embedding = net.time_embedding(t) if t is not None else None
    for layer in net.layers:
        assert isinstance(layer, TokenScalarLayer)
        scale = shift = None
        if time_embedding is not None:
            scale, shift = (s[:, :, None] for s in layer.modulation(F.silu(time_embedding)).chunk(2, dim=1))
        z = z if scale is None else z * (scale + 1) + shift
        q, k, v = layer.attention.qkv(layer.norm_attention(z)).chunk(3, dim=-1)
        q, k, v = (part.reshape(*part.shape[:2], layer.attention.heads, -1).transpose(1, 2) for part in (q, k, v))
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
        attended = torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).flatten(2)
        z = z + layer.attention.out(attended)
        z = z if scale is None or not layer.ffn_time else z * (scale + 1) + shift
        z = z + layer.mlp(layer.norm_mlp(z))
    image = unpatchify(net.pixel_readout.to_pixels(z[:, 1:]), net.cfg.patch_size, net.cfg.channels)
    return Output(net.class_readout(z[:, 0]).float(), image.float())


def joint_step(net: HybViT, diffusion: Diffusion, batch: Batch, precision: str) -> Tensor:
    """Forward and backward pass of the joint objective, as in training -> the loss."""
    assert batch.x0 is not None
    with autocast(batch.x0.device, precision):
        loss = hybrid_loss(net, diffusion, batch, PAPER, generator=generator(0, "noise")).total
    loss.backward()
    return loss.detach()


def reference_step(net: HybViT, diffusion: Diffusion, batch: Batch, precision: str) -> Tensor:
    """The same loss and gradient by two plain forward passes."""
    x0, images, labels = batch.x0, batch.images, batch.labels
    assert x0 is not None
    assert images is not None
    assert labels is not None
    draws = generator(0, "noise")
    t, noise = draw_times(len(x0), diffusion.T, generator=draws).to(x0.device), normal_like(x0, draws)
    with autocast(x0.device, precision):
        ce = F.cross_entropy(reference_forward(net, images, None).logits, labels)
        eps = reference_forward(net, diffusion.q_sample(x0, t, noise), t).prediction
        loss = ce + PAPER.alpha * F.l1_loss(eps, noise)
    loss.backward()
    return loss.detach()


def bench(cfg: Config, batch_size: int, repeats: int) -> dict[str, Any]:
    """Time the joint step of a preset with the paper's network -> medians in seconds, ratio, and fraction of the peak."""
    device = best_device()
    keep_freed_memory()
    precision = resolve_precision(cfg.train.precision, device)
    torch.manual_seed(0)
    net, diffusion, m = HybViT(cfg.model).to(device), cfg.diffusion.build(), cfg.model
    shape = (batch_size, m.channels, m.image_size, m.image_size)
    x0, images = (torch.randn(shape, device=device) for _ in range(2))
    labels = torch.randint(m.num_classes, (batch_size,), device=device)
    batch = Batch(x0, images, labels)
    a, b = (
        torch.randn(PEAK_SIZE, PEAK_SIZE, device=device, dtype=torch.bfloat16 if precision == "bf16" else None) for _ in "ab"
    )
    with FlopCounterMode(display=False) as counter:
        joint_step(net, diffusion, batch, precision)
    net.zero_grad()

    def run(step: Callable[..., Tensor]) -> None:
        step(net, diffusion, batch, precision)
        net.zero_grad()

    steps: dict[str, Callable[[], Any]] = {
        "joint step": lambda: run(joint_step),
        "plain reference step": lambda: run(reference_step),
        "matrix product": lambda: a @ b,
    }
    seconds = alternating(steps, repeats)
    peak = 2 * PEAK_SIZE**3 / statistics.median(seconds["matrix product"])
    ratios = [r / j for j, r in zip(seconds["joint step"], seconds["plain reference step"], strict=True)]
    joint = statistics.median(seconds["joint step"])
    return {
        "batch": f"{batch_size} + {batch_size}",
        "device": device.type,
        "precision": precision,
        "repeats": repeats,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "speedup_over_reference": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "gflop_per_step": counter.get_total_flops() / 1e9,
        "peak_gflop_per_second": peak / 1e9,
        "fraction_of_peak": counter.get_total_flops() / joint / peak,
        "images_per_second": 2 * batch_size / joint,
        "environment": environment(),
    }
