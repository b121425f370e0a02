"""What a program can ask of a model without hybvit: its label, its label under noise, and one denoising step.

Each is a graph: a module that takes and returns tensors only, with the batch first, so that it can be traced for any batch.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..method.diffusion import Diffusion
from ..method.objective_config import Target
from ..model import HybridModel


class Value(NamedTuple):
    """An input or an output of a graph.

    Attributes:
        dtype: float32 or int64.
        shape: without the batch, which comes first.
        range: the least and the greatest value; None where there is no limit.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    range: tuple[int, int] | None = None

    def describe(self) -> dict[str, Any]:
        """What ``model.json`` says of it."""
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": ["batch", *self.shape],
            "range": self.range and list(self.range),
        }


class Graph(NamedTuple):
    """A function of a model: the module, and its inputs and outputs by name, in order."""

    module: nn.Module
    inputs: dict[str, Value]
    outputs: dict[str, Value]

    def examples(self, batch: int) -> tuple[Tensor, ...]:
        """Random inputs, always the same ones.

        Times are from the less noisy half. Above it, a network that predicts noise has its x_0 divided by a small
        sqrt(abar_t), which would magnify differences of rounding.
        """
        draws, made = torch.Generator().manual_seed(0), list[Tensor]()
        for name, value in self.inputs.items():
            if value.dtype == torch.int64:
                low, high = value.range or (0, 0)
                high = high // 2 if name == "t" else high
                made.append(torch.randint(low, high + 1, (batch, *value.shape), generator=draws))
            else:
                noise = torch.randn(batch, *value.shape, generator=draws)
                made.append(noise.clamp(*value.range) if value.range else noise)
        return tuple(made)


class Classifier(nn.Module):
    """x [B, C, H, W], clean, in [-1, 1] -> logits [B, K]."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.classify(x)


class NoisyClassifier(nn.Module):
    """x_t [B, C, H, W] at t int64 [B] -> logits [B, K]."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.net.classify(x_t, t)


class Denoiser(nn.Module):
    """x_t [B, C, H, W] at t int64 [B], with labels y int64 [B] if the network takes them -> the predicted x_0, not clipped."""

    def __init__(self, net: Any, diffusion: Diffusion, target: Target) -> None:
        super().__init__()
        self.net, self.diffusion, self.target = net, diffusion, target

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        prediction = self.net.denoise(x_t, t) if y is None else self.net.denoise(x_t, t, y)
        return self.diffusion.to_x0(self.target, prediction, x_t, t)


def graphs_of(model: HybridModel) -> dict[str, Graph]:
    """The graphs of a model by name, on the CPU: those of ``classifier``, ``noisy_classifier`` and ``denoiser`` that it was
    trained for."""
    net, classes = copy.deepcopy(model.net).cpu(), model.cfg.model.num_classes
    image = Value(torch.float32, model.image_shape)
    clean, noisy = image._replace(range=(-1, 1)), {"x_t": image, "t": Value(torch.int64, (), (1, model.diffusion.T))}
    logits, graphs = {"logits": Value(torch.float32, (classes,))}, {}
    if model.has_classes:
        graphs["classifier"] = Graph(Classifier(net), {"x": clean}, logits)
    if model.labels_noisy:
        graphs["noisy_classifier"] = Graph(NoisyClassifier(net), noisy, logits)
    if model.has_denoiser:
        labels = {"y": Value(torch.int64, (), (0, classes))} if model.takes_labels else {}
        denoiser = Denoiser(net, model.diffusion, model.cfg.objective.target)
        graphs["denoiser"] = Graph(denoiser, noisy | labels, {"x0": image})
    return graphs


def left_out(model: HybridModel) -> list[str]:
    """A line for each graph that a model does not have: its name, and why."""
    kind = model.cfg.objective.kind
    lines = []
    if not model.has_classes:
        lines.append(f"no classifier: the model was trained with objective {kind}")
    if not model.has_denoiser:
        lines.append(f"no denoiser: the model was trained with objective {kind}")
    elif model.has_classes and not model.labels_noisy:
        lines.append("no noisy_classifier: the label read-out was not trained on noisy images (objective.noisy_labels)")
    return lines
