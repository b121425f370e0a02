"""Build the network of a configuration: the paper's ViT or one of the baselines."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import checkpoint
from .baselines.jem import JEM
from .baselines.preact_resnet import PreActResNet18
from .baselines.unet import DenoisingUNet
from .baselines.wide_resnet import WideResNet
from .checkpoint import CONFIG
from .config import FREE_TO_CHANGE, Config, differences, is_line, read_config, without_addresses
from .errors import CheckpointError, quantity
from .method.vit import HybViT

Network = HybViT | WideResNet | PreActResNet18 | DenoisingUNet | JEM


def build_network(cfg: Config) -> Network:
    """A newly initialized network, on the default device.

    Raises:
        ConfigError: the U-Net's library is not installed.
        ValueError: a field of ``network`` does not fit the images.
    """
    shape, network = cfg.model.image_shape, cfg.network
    backbone: Network
    if network.name == "wide_resnet":
        backbone = WideResNet(shape, cfg.model.num_classes, network.depth, network.width, network.dropout, network.batch_norm)
    elif network.name == "preact_resnet18":
        backbone = PreActResNet18(shape, cfg.model.num_classes)
    elif network.name == "unet":
        backbone = DenoisingUNet(shape, network.channels, network.layers, network.attention_at, network.dropout)
    else:
        backbone = HybViT(cfg.model)
    return JEM(backbone, shape, cfg.model.num_classes, cfg.jem) if cfg.objective.kind == "jem" else backbone


def compile_network(net: Network) -> None:
    """Compile the methods that the objective calls, in place; weights and state dict are not affected.

    On a GPU, a step of a small network consists of about a thousand kernels that run for less time than their launches take.
    They are therefore recorded once as CUDA graphs and launched together.
    """
    mode = "reduce-overhead" if next(net.parameters()).is_cuda else None
    torch.compiler.reset()  # torch stops compiling a function that was compiled for many networks before
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # silences "CUDA is missing" on CPU machines
    for name in ("classify", "denoise", "denoise_cond_uncond", "joint"):
        if hasattr(net, name):
            setattr(net, name, torch.compile(getattr(net, name), dynamic=False, mode=mode))


class Parametrized(Protocol):
    """What has weights: a module, or a model around one."""

    def parameters(self) -> Iterable[Tensor]: ...


def number_of_parameters(net: Parametrized) -> int:
    return sum(p.numel() for p in net.parameters())


def load_network(cfg: Config, weights: Path) -> tuple[Network, Config]:
    """:func:`fill_network` with the weights of a file."""
    return fill_network(cfg, checkpoint.read_tensors(weights), weights)


def fill_network(cfg: Config, tensors: dict[str, Tensor], weights: Path) -> tuple[Network, Config]:
    """Build a stored network from its weights -> the network, and its configuration without references to anything outside
    its folder.

    Raises:
        CheckpointError: a weight is missing, unexpected, or has the wrong shape. This is checked before any memory is
            allocated, so a configuration cannot request more memory than its weights take, and no more layers either.
    """
    check_classes(cfg, weights.parent)
    if layers_of(cfg) > len(tensors):
        raise CheckpointError(f"{weights}: {len(tensors)} tensors, one is missing for each of the {layers_of(cfg):,} layers")
    with torch.device("meta"), NothingDrawn():
        checkpoint.check_fits(build_network(cfg), tensors, weights.parent)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{weights}: {name} contains values that are not finite; use an earlier checkpoint")
    net = build_network(cfg)
    checkpoint.load_strictly(net, tensors, weights.parent)
    return net, without_addresses(cfg)


class NothingDrawn(TorchFunctionMode):
    """Within it, random initial weights are not drawn: without values, torch would import its compiler for them, which takes as
    long as importing torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def layers_of(cfg: Config) -> int:
    """The number of layers of a network, each of which has at least one tensor; counted without building it."""
    network = cfg.network
    counts = {"vit": cfg.model.depth, "wide_resnet": network.depth, "unet": network.layers * len(network.channels)}
    return counts.get(network.name, 1)


def check_classes(cfg: Config, folder: Path) -> None:
    """Raise CheckpointError if the names of a stored model's classes are not one line each, unique and complete."""
    names = cfg.data.classes
    if names and len(names) != cfg.model.num_classes:
        raise CheckpointError(
            f"{folder}: data.classes has {quantity(len(names), 'name')}, but model.num_classes is {cfg.model.num_classes}"
        )
    counts = Counter(names)
    odd = next((name for name in names if not is_line(name) or counts[name] > 1), None)
    if odd is not None:
        raise CheckpointError(f"{folder}: data.classes: {odd!r} occurs twice, or is not one line of UTF-8 text")


def check_config(folder: Path, kept: bytes | None, cfg: Config) -> None:
    """Check that a checkpoint was written with this configuration, but for the fields that are free to change and the number of
    steps, which may have been raised since.

    Args:
        kept: the configuration that the checkpoint holds; None for one of 0.1.0, which holds none.

    Raises:
        ConfigError: the configuration in the checkpoint cannot be read.
        CheckpointError: a field differs; the message names the first.
    """
    if kept is None:
        return
    for name, (before, now) in differences(read_config(kept, folder / CONFIG), cfg).items():
        if name not in FREE_TO_CHANGE and not (name == "train.steps" and before < now):
            raise CheckpointError(
                f"{folder}: was written with {name} = {before!r}, but the run's {CONFIG} says {now!r}: it is damaged or of "
                f"another run; the checkpoint's {CONFIG} is the right one for it"
            )
