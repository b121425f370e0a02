"""What the training of a configuration costs, counted without computing anything: parameters, operations, images, GPU hours."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from .baselines.jem import JEM
from .config import Config, ObjectiveConfig
from .networks import build_network, image_shape, losses_of, number_of_parameters
from .objective import Batch
from .seeds import generator

GPU = "A100 (312 TFLOP/s bf16)"
PEAK = {"bf16": 312e12, "fp32": 156e12}  # of its data sheet; a fp32 product runs in TF32
UTILISATION = 0.35
ROWS = 2  # images of a mini-batch that are counted: the operations are in proportion to their number


class Cost(NamedTuple):
    """A product of matrices n x k and k x m counts as 2nkm operations; what is not a product, or a convolution, counts nothing.

    Attributes:
        parameters: of the network.
        train_gflop_per_step: 10^9 operations of one training step: forward, backward, and the Langevin steps of a JEM.
        total_eflop: 10^18 operations of the whole training.
        images: that the training sees, those of both mini-batches, drawn ones not.
        gpu_hours: an estimate: on one :data:`GPU`, at the assumed 35 % (:data:`UTILISATION`) of its peak, which is 312 TFLOP/s
            in bf16 (``train.precision`` auto takes it there) and 156 in the TF32 of fp32 runs.
    """

    parameters: int
    train_gflop_per_step: float
    total_eflop: float
    images: int
    gpu_hours: float


def cost(cfg: Config) -> Cost:
    """What ``hybvit train`` will take; counting takes up to a second, once for all configurations that share a network."""
    objective, batch = cfg.objective.kind, cfg.train.batch_size
    counted = _counted(Config(cfg.model, cfg.network, objective=ObjectiveConfig(kind=objective)))
    step = (counted.update + cfg.jem.steps * counted.langevin) * batch // ROWS
    total = step * cfg.train.steps
    peak = PEAK["fp32" if cfg.train.precision == "fp32" else "bf16"]
    minibatches = 2 if objective in ("hybvit", "jem") else 1
    return Cost(
        parameters=counted.parameters,
        train_gflop_per_step=step / 1e9,
        total_eflop=total / 1e18,
        images=minibatches * batch * cfg.train.steps,
        gpu_hours=total / (UTILISATION * peak) / 3600,
    )


class _Counted(NamedTuple):
    parameters: int
    langevin: int
    update: int


@cache
def _counted(cfg: Config) -> _Counted:
    """Operations of one Langevin step, and of the rest of a training step, for mini-batches of :data:`ROWS` images."""
    kind, shape = cfg.objective.kind, (ROWS, *image_shape(cfg))
    with torch.device("meta"):
        net = build_network(cfg)
        clean, images = torch.empty(shape), torch.empty(shape)
        labels = torch.zeros(ROWS, dtype=torch.int64)
    langevin = 0
    with FlopCounterMode(display=False) as counter:
        if isinstance(net, JEM):
            # JEM.loss itself looks at its energies, and a meta tensor has no numbers: these are its passes. The product with 1
            # is there because the counter's hooks on modules take no leaf inside autograd.grad.
            chains = clean.clone().requires_grad_()
            torch.autograd.grad(net.energy(chains * 1).sum(), chains)
            langevin = counter.get_total_flops()
            energies = net.energy(clean).mean() - net.energy(images).mean()
            (F.cross_entropy(net.classify(images), labels) + energies).backward()
        else:
            batch = Batch(None if kind == "vit" else clean, *((None, None) if kind == "genvit" else (images, labels)))
            losses_of(net, cfg, cfg.diffusion.build(), batch, generator(0, "noise")).total.backward()
    return _Counted(number_of_parameters(net), langevin, counter.get_total_flops() - langevin)
