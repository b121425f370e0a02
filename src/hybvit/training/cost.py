"""The cost of a training run, counted without running it: parameters, operations, images, GPU hours."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ..baselines.jem import JEM
from ..config import Config, DataConfig, minibatches
from ..data.batches import random_batch
from ..method.objective import hybrid_loss
from ..method.objective_config import Objective
from ..method.seeds import generator
from ..networks import build_network, number_of_parameters

GPU = "A100 (312 TFLOP/s bf16)"
PEAK = {"bf16": 312e12, "fp32": 156e12}  # operations per second, from its data sheet; fp32 products run in TF32
UTILISATION = 0.35
ROWS = 2  # images of a mini-batch that are counted; the operations are proportional to their number


class Cost(NamedTuple):
    """The cost of a training run. A product of n x k and k x m matrices counts as 2nkm operations; only products and
    convolutions count.

    Attributes:
        parameters: of the network.
        train_gflop_per_step: 10^9 operations per training step: forward, backward, and the Langevin steps of a JEM.
        total_eflop: 10^18 operations of the whole run.
        images: training images of both mini-batches over the run, without generated ones.
        gpu_hours: an estimate for one :data:`GPU` at an assumed 35 % (:data:`UTILISATION`) of its peak, which is 312 TFLOP/s in
            bf16 (what ``train.precision`` auto takes there), and 156 TFLOP/s in the TF32 of fp32 runs.
    """

    parameters: int
    train_gflop_per_step: float
    total_eflop: float
    images: int
    gpu_hours: float


def cost(cfg: Config) -> Cost:
    """The cost of ``hybvit train`` with a configuration. Counting takes up to a second, once for all that share a network."""
    sizes = minibatches(cfg)
    times = math.gcd(*sizes)  # multiples of the few images that are counted
    few = (ROWS * sizes[0] // times, ROWS * sizes[1] // times)
    asked = cfg.objective  # only some of its fields change the operations
    noisy, guidance, pseudo = (0.5 if used > 0 else 0.0 for used in (asked.noisy_labels, asked.guidance, asked.pseudo_labels))
    objective = Objective(asked.kind, noisy_labels=noisy, guidance=guidance, pseudo_labels=pseudo)
    counted = _counted(Config(cfg.model, cfg.network, objective=objective, data=COPIED), few)
    step = (counted.update + cfg.jem.steps * counted.langevin) * times // ROWS
    total = step * cfg.train.steps
    peak = PEAK["fp32" if cfg.train.precision == "fp32" else "bf16"]
    return Cost(
        parameters=counted.parameters,
        train_gflop_per_step=step / 1e9,
        total_eflop=total / 1e18,
        images=sum(sizes) * cfg.train.steps,
        gpu_hours=total / (UTILISATION * peak) / 3600,
    )


class Operations(TorchDispatchMode):
    """Counts the operations of what runs in it, by the formulas of PyTorch's ``FlopCounterMode``.

    That mode follows the modules too, which takes as long as the counting and allows no leaf tensor inside autograd.grad, and
    it takes the fused attention of CPUs for none. Here the backward pass of that counts as two forward passes, like that of any
    product of matrices: what it computes anew does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # it imports triton

        aten, attention = torch.ops.aten, flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
        self.total, self.whole = 0, set[Any]()
        self.formulas: dict[Any, Callable[..., int]] = {
            **flop_registry,
            aten._scaled_dot_product_flash_attention_for_cpu: attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda _, q, k, v, *__, **___: 2 * attention(q, k, v),
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula, kwargs = self.formulas.get(func._overloadpacket), kwargs or {}
        if formula is None and func not in self.whole:  # such as linear, which inference mode leaves in one piece
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            self.whole.add(func)
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


class _Counted(NamedTuple):
    parameters: int
    langevin: int
    update: int


COPIED = DataConfig(augment="strong")  # which pseudo labels require


@cache
def _counted(cfg: Config, sizes: tuple[int, int]) -> _Counted:
    """Operations of one Langevin step, and of the rest of a training step, for mini-batches of these sizes."""
    with torch.device("meta"):
        net = build_network(cfg)
    batch = random_batch(cfg, "meta", sizes)
    langevin = 0
    with Operations() as counter:
        if isinstance(net, JEM):
            # The passes of JEM.loss, which itself reads the energies, and meta tensors have no values.
            x0, images, labels = batch.x0, batch.images, batch.labels
            assert x0 is not None
            assert images is not None
            assert labels is not None
            chains = x0.clone().requires_grad_()
            torch.autograd.grad(net.energy(chains).sum(), chains)
            langevin = counter.total
            energies = net.energy(x0).mean() - net.energy(images).mean()
            (F.cross_entropy(net.classify(images), labels) + energies).backward()
        else:
            hybrid_loss(net, cfg.diffusion.build(), batch, cfg.objective, generator=generator(0, "noise")).total.backward()
    return _Counted(number_of_parameters(net), langevin, counter.total - langevin)
