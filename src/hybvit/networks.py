"""The network of a configuration: the paper's ViT, or one of the systems that it is compared with."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from . import checkpoint
from .baselines.jem import JEM
from .baselines.preact_resnet import PreActResNet18
from .baselines.unet import DenoisingUNet
from .baselines.wide_resnet import WideResNet
from .config import Config, without_addresses
from .method.vit import HybViT

Network = HybViT | WideResNet | PreActResNet18 | DenoisingUNet | JEM


def build_network(cfg: Config) -> Network:
    """A freshly initialised network, on the default device.

    Raises:
        ConfigError: the U-Net's library is not installed.
        ValueError: a field of ``network`` does not fit the images.
    """
    shape, own = cfg.model.image_shape, cfg.network
    backbone: Network
    if own.name == "wide_resnet":
        backbone = WideResNet(shape, cfg.model.num_classes, own.depth, own.width, own.dropout, own.batch_norm)
    elif own.name == "preact_resnet18":
        backbone = PreActResNet18(shape, cfg.model.num_classes)
    elif own.name == "unet":
        backbone = DenoisingUNet(shape, own.channels, own.layers, own.attention_at, own.dropout)
    else:
        backbone = HybViT(cfg.model)
    return JEM(backbone, shape, cfg.model.num_classes, cfg.jem) if cfg.objective.kind == "jem" else backbone


def compile_calls(net: Network) -> None:
    """Compile what the objective calls of a network; its weights and its state stay where they are.

    On a GPU the step of a small network is a thousand kernels whose launches take longer than they do. So there they are
    recorded once, as CUDA graphs, and launched together.
    """
    mode = "reduce-overhead" if next(net.parameters()).is_cuda else None
    torch.compiler.reset()  # it gives up on a function that was compiled for many networks before
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # else it tells every CPU user that CUDA is missing
    for name in ("classify", "denoise", "denoise_cond_uncond", "joint"):
        if hasattr(net, name):
            setattr(net, name, torch.compile(getattr(net, name), dynamic=False, mode=mode))


class Parametrized(Protocol):
    """What has weights: a module, or a model around one."""

    def parameters(self) -> Iterable[Tensor]: ...


def number_of_parameters(net: Parametrized) -> int:
    return sum(p.numel() for p in net.parameters())


def network_of(cfg: Config, weights: Path) -> tuple[Network, Config]:
    """A stored network with its weights, and its configuration without what it names outside of its folder.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape. Nothing is built before that is known, so a
            configuration cannot ask for more memory than its weights take.
    """
    tensors = checkpoint.read_tensors(weights)
    with torch.device("meta"):
        checkpoint.check_fits(build_network(cfg), tensors, weights.parent)
    net = build_network(cfg)
    checkpoint.load_strictly(net, tensors, weights.parent)
    return net, without_addresses(cfg)
