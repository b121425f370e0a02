"""The network of a configuration: the paper's ViT, or one of the systems that it is compared with."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import nn

from .baselines.jem import JEM, JEMLosses
from .baselines.preact_resnet import PreActResNet18
from .baselines.unet import DenoisingUNet
from .baselines.wide_resnet import WideResNet
from .config import Config
from .diffusion import Diffusion
from .objective import Batch, Losses, hybrid_loss
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
        if cfg.objective.balance == "uncertainty":  # learned, averaged and saved with the weights
            backbone.register_parameter("log_variances", nn.Parameter(torch.zeros(2)))
    if cfg.objective.kind != "jem":
        return backbone
    settings = cfg.jem
    return JEM(
        backbone,
        shape,
        cfg.model.num_classes,
        steps=settings.steps,
        step_size=settings.step_size,
        noise=settings.noise,
        replay=settings.replay,
        restart=settings.restart,
        input_noise=settings.input_noise,
        weight=settings.weight,
        informative=settings.informative,
        proximal=settings.proximal,
        limit=settings.limit,
    )


def losses_of(
    net: Network, cfg: Config, diffusion: Diffusion, batch: Batch, generator: torch.Generator, progress: float = 0.0
) -> Losses | JEMLosses:
    """What a training step minimises.

    Args:
        generator: on the CPU; it decides every draw.
        progress: share of the run that is done, in [0, 1].
    """
    objective = cfg.objective
    if isinstance(net, JEM):
        return net.loss(batch, generator, objective.label_smoothing)
    return hybrid_loss(
        cast(Any, net),  # that it has what its objective asks of it, the configuration has checked
        diffusion,
        batch,
        alpha=alpha_at(cfg, progress),
        norm=objective.norm,
        target=objective.target,
        label_smoothing=objective.label_smoothing,
        times=objective.times,
        weighting=objective.weighting,
        balance=objective.balance,
        class_noise=objective.class_noise,
        noisy_labels=objective.noisy_labels,
        label_dropout=objective.label_dropout,
        guidance=objective.guidance,
        generator=generator,
    )


def alpha_at(cfg: Config, progress: float) -> float:
    """The weight of the denoising loss when ``progress``, a share in [0, 1], of the run is done."""
    start, end = cfg.objective.alpha, cfg.objective.alpha_end
    return start if end is None else start + (end - start) * progress


def compile_calls(net: Network) -> None:
    """Compile what the objective calls of a network; its weights and its state stay where they are.

    On a GPU the step of a small network is a thousand kernels whose launches take longer than they do. So there they are
    recorded once, as CUDA graphs, and launched together.
    """
    mode = "reduce-overhead" if next(net.parameters()).is_cuda else None
    torch.compiler.reset()  # it gives up on a function that was compiled for many networks before
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # else it tells every CPU user that CUDA is missing
    for name in ("classify", "denoise", "denoise_with_and_without", "joint"):
        if hasattr(net, name):
            setattr(net, name, torch.compile(getattr(net, name), dynamic=False, mode=mode))


def number_of_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
