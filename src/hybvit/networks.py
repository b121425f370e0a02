"""The network of a configuration: the paper's ViT, or one of the systems that it is compared with."""

from __future__ import annotations

import logging

import torch
from torch import nn

from .baselines.jem import JEM
from .baselines.preact_resnet import PreActResNet18
from .baselines.unet import DenoisingUNet
from .baselines.wide_resnet import WideResNet
from .config import Config
from .vit import HybViT

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


def number_of_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
