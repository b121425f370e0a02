"""Speed on this machine: parameters, FLOPs, images/s in training, classification and sampling, peak memory (Tables 8, 13)."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from ..config import minibatches
from ..data.batches import random_batch
from ..devices import alternating, autocast, peak_mib, resolve_precision
from ..distributed import from_first
from ..method.objective import hybrid_loss
from ..method.seeds import generator
from ..model import HybridModel
from ..networks import build_network, number_of_parameters
from ..training.cost import Operations
from .context import Context, Metric, Result

REPEATS, IMAGES = 5, 64


def run(ctx: Context) -> Result:
    return from_first(lambda: measured(ctx))  # several processes would slow each other down


def measured(ctx: Context) -> Result:
    result, model = Result(), ctx.model
    parameters = number_of_parameters(model)
    if parameters:
        result.metrics["speed/parameters"] = Metric(parameters, 1)
    x = torch.rand(IMAGES, *model.image_shape, device=model.device) * 2 - 1
    t = torch.randint(1, model.diffusion.T + 1, (IMAGES,), device=model.device)
    work: dict[str, Callable[[], object]] = {}
    if model.has_classes:
        work["classify"] = lambda: model.logits(x)
    if model.has_denoiser:
        work["denoise"] = lambda: model.denoise(x, t)
    with torch.no_grad():
        for name, call in work.items():
            result.metrics[f"speed/{name}_gflop_per_image"] = Metric(gflop(call) / IMAGES, IMAGES)
            result.metrics[f"speed/{name}_images_per_second"] = Metric(IMAGES / median_seconds(call), REPEATS * IMAGES)
    if model.has_samples:
        o = ctx.options
        sampling = median_seconds(lambda: model.draw(range(IMAGES), o.sampler, o.steps, o.seed), 1)
        result.metrics[f"speed/sample_{model.own_sampler or o.sampler}_{o.steps}_images_per_second"] = Metric(
            IMAGES / sampling, IMAGES
        )
    if isinstance(model, HybridModel):
        train_speed(model, result)
    result.metrics["speed/peak_memory_mib"] = Metric(peak_mib(model.device), 1)
    drawn_in = getattr(model, "sampling_precision", "fp32")
    result.tables["precision"] = f"fp32 to classify, {drawn_in} to sample; training as configured"
    return result


def train_speed(model: HybridModel, result: Result) -> None:
    """A training step without the optimizer: forward and backward of the model's own objective."""
    cfg = model.cfg
    torch.manual_seed(0)
    net = build_network(cfg).to(model.device)
    sizes = minibatches(cfg)
    batch = random_batch(cfg, model.device)
    precision = resolve_precision(cfg.train.precision, model.device)

    def step() -> None:
        with autocast(model.device, precision):
            loss = hybrid_loss(net, model.diffusion, batch, cfg.objective, generator=generator(0, "noise")).total
        loss.backward()
        net.zero_grad()

    shown = sum(sizes)
    result.metrics["speed/train_gflop_per_image"] = Metric(gflop(step) / shown, shown)
    result.metrics["speed/train_images_per_second"] = Metric(shown / median_seconds(step), REPEATS * shown)


def gflop(call: Callable[[], object]) -> float:
    """10^9 operations of a call."""
    with Operations() as counter:
        call()
    return counter.total / 1e9


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median over the repeats, after one warm-up call."""
    return statistics.median(alternating({"call": call}, repeats)["call"])
