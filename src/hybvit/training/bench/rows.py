"""What `hybvit bench` times. A row is one kind of work; a case is that work done by one system, ours or a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Config, minibatches, override
from ...data.batches import random_batch
from ...devices import autocast
from ...errors import ConfigError
from ...method.objective import Batch
from ...method.seeds import generator
from ...method.vit import HybViT
from ...metrics.likelihood import sampled_bound
from ...model import HybridModel
from ...networks import build_network
from ..cost import cost
from ..loop import new_network, training_step
from .peers import (
    COUNTED,
    denoising_gflop,
    differs_from_paper,
    gflop,
    nearest_dit,
    nearest_unet,
    noisy_images,
    reference_loss,
    timm_vit,
)

ROWS = {  # name -> what one call of it is
    "joint": "a training step of the loop, with its noise: forward and backward pass of its mini-batches, no optimizer",
    "update": "the same with clipping, optimizer and weight average",
    "denoise-step": "forward and backward pass of denoising alone",
    "classify": "the logits of clean images",
    "denoise": "one denoising pass, for images at different times",
    "sample": "images from noise by dpmpp_2m, as they leave the sampler",
    "bits": "the bound on the likelihood, from a few times of each image",
}
DEFAULT_ROWS = ("joint", "classify", "denoise", "sample")
SAMPLER = "dpmpp_2m"
BOUND_DRAWS = 8  # times of each image; two passes more evaluate t = 1
OURS, REFERENCE, TIMM, UNET, DIT = "hybvit", "plain reference", "timm ViT", "diffusers U-Net", "diffusers DiT"

Step = Callable[[str], object]  # makes a call in a precision, fp32 or bf16


@dataclass(frozen=True)
class Settings:
    """What is timed, and for how long.

    Args:
        rows: names of :data:`ROWS`.
        samples: images that the row ``sample`` draws.
        steps: of the sampler.
        peers: whether other systems are timed too.
        seconds: how long all of it should take.
        repeats: of each case, however long they take; None: as many as fit into ``seconds``.
    """

    rows: tuple[str, ...] = DEFAULT_ROWS
    samples: int = 8
    steps: int = 20
    peers: bool = True
    seconds: float = 100.0
    repeats: int | None = None


class Case(NamedTuple):
    """A row's work, done by one system.

    Attributes:
        images: in one call.
        gflop: 10^9 operations of a call, as ``FlopCounterMode`` counts them: of products and convolutions. None: not counted.
    """

    row: str
    system: str
    images: int
    gflop: float | None
    step: Step


class LeftOut(NamedTuple):
    """What is not timed, and why."""

    what: str
    reason: str


Cases = Iterator[Case | LeftOut]


def with_batch_size(cfg: Config, size: int) -> Config:
    """The configuration with ``size`` images to denoise, and labeled ones in proportion."""
    labelled = cfg.train.labelled_batch_size
    if labelled is not None:
        labelled = max(1, size * labelled // cfg.train.batch_size)
    return override(cfg, train={"batch_size": size, "labelled_batch_size": labelled})


def cases(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    """Everything that is asked for, and what of it is left out; ``cfg`` is the model's, with the batch size to be timed."""
    for row in ROWS:
        if row in settings.rows:
            yield from MAKERS[row](model, cfg, settings)


# Training steps


def joint(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    images = sum(minibatches(cfg))
    yield Case("joint", OURS, images, cost(cfg).train_gflop_per_step, training_step(cfg, model.device))
    if not settings.peers:
        return
    if odd := differs_from_paper(cfg):
        yield LeftOut(f"joint, {REFERENCE}", f"it is the paper's network and loss, and {odd}")
        return
    diffusion, net = cfg.diffusion.build(), new_network(cfg, model.device)
    batch = random_batch(cfg, model.device)

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(net, HybViT)
        return reference_loss(net, diffusion, batch, cfg)

    def step(precision: str) -> None:
        with autocast(model.device, precision):
            total = loss(net, batch)
        total.backward()
        net.zero_grad()

    on_meta = random_batch(cfg, "meta")
    yield Case("joint", REFERENCE, images, gflop(lambda: loss(build_network(cfg), on_meta).backward()), step)


def update(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    counted = cost(cfg).train_gflop_per_step
    yield Case("update", OURS, sum(minibatches(cfg)), counted, training_step(cfg, model.device, update=True))


# Calls of a trained network


def inference(device: torch.device, call: Callable[[], object]) -> Step:
    """A call without gradients."""

    def step(precision: str) -> object:
        with torch.no_grad(), autocast(device, precision):
            return call()

    return step


def classify(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    if not model.has_classes:
        yield LeftOut("classify", "the objective is genvit, without labels")
        return
    n, shape = cfg.train.batch_size, model.image_shape
    x = torch.randn(n, *shape, device=model.device)
    ours = gflop(lambda: build_network(cfg).eval().classify(torch.randn(COUNTED, *shape))) / COUNTED  # type: ignore[operator]
    yield Case("classify", OURS, n, n * ours, inference(model.device, lambda: model.logits(x)))
    if not settings.peers:
        return
    try:
        net = timm_vit(cfg).to(model.device).eval()
    except ConfigError as error:
        yield LeftOut(f"classify, {TIMM}", str(error))
        return
    theirs = gflop(lambda: timm_vit(cfg)(torch.randn(COUNTED, *shape))) / COUNTED
    yield Case("classify", TIMM, n, n * theirs, inference(model.device, lambda: net(x)))


class Denoiser(NamedTuple):
    """A denoising network of another library, and what builds it."""

    system: str
    net: nn.Module
    build: Callable[[], nn.Module]


def denoisers(row: str, model: HybridModel, cfg: Config) -> Iterator[Denoiser | LeftOut]:
    """diffusers' networks whose denoising pass takes nearest to the operations of ours, with random weights."""
    for system, nearest in ((UNET, nearest_unet), (DIT, nearest_dit)):
        try:
            build = nearest(cfg, our_denoising_gflop(cfg))
        except ConfigError as error:
            yield LeftOut(f"{row}, {system}", str(error))
            continue
        yield Denoiser(system, build().to(model.device).eval(), build)


@cache
def our_denoising_gflop(cfg: Config) -> float:
    return denoising_gflop(cfg, lambda: build_network(cfg))


def denoise(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    if not model.has_denoiser:
        yield LeftOut("denoise", f"the objective is {cfg.objective.kind}, without a denoiser")
        return
    n, ours = cfg.train.batch_size, our_denoising_gflop(cfg)
    x_t, t = (tensor.to(model.device) for tensor in noisy_images(cfg, n))
    yield Case("denoise", OURS, n, n * ours, inference(model.device, lambda: model.predict_x0(x_t, t)))
    for found in denoisers("denoise", model, cfg) if settings.peers else ():
        if isinstance(found, LeftOut):
            yield found
            continue
        call = inference(model.device, lambda net=found.net: net.denoise(x_t, t))  # type: ignore[misc]
        yield Case("denoise", found.system, n, n * denoising_gflop(cfg, found.build), call)


def denoise_step(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    if not model.has_denoiser:
        yield LeftOut("denoise-step", f"the objective is {cfg.objective.kind}, without a denoiser")
        return
    alone = override(cfg, objective={"kind": "genvit"})
    n = cfg.train.batch_size
    yield Case("denoise-step", OURS, n, cost(alone).train_gflop_per_step, training_step(alone, model.device))
    x_t, t = (tensor.to(model.device) for tensor in noisy_images(cfg, n))
    noise = torch.randn_like(x_t)
    for found in denoisers("denoise-step", model, cfg) if settings.peers else ():
        if isinstance(found, LeftOut):
            yield found
            continue

        def step(precision: str, net: nn.Module = found.net) -> None:
            with autocast(model.device, precision):
                loss = F.l1_loss(net.denoise(x_t, t).float(), noise)  # type: ignore[operator]
            loss.backward()
            net.zero_grad()

        yield Case("denoise-step", found.system, n, n * denoising_gflop(cfg, found.build, backward=True), step)


def sample(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    if not model.has_samples:
        yield LeftOut("sample", "the objective is vit, which generates nothing")
        return
    n, steps = settings.samples, min(settings.steps, model.diffusion.T)
    counted = n * steps * our_denoising_gflop(cfg) if model.has_denoiser else None
    drawn_in = HybridModel(model.net, model.cfg, model.device)

    def draw(precision: str) -> object:
        drawn_in.sampling_precision = precision
        return drawn_in.draw(range(n), SAMPLER, steps, 0)

    yield Case("sample", OURS, n, counted, draw)


def bits(model: HybridModel, cfg: Config, settings: Settings) -> Cases:
    if not model.has_denoiser:
        yield LeftOut("bits", f"the objective is {cfg.objective.kind}, without a denoiser")
        return
    n = settings.samples
    x0 = (torch.randint(256, (n, *model.image_shape)) / 127.5 - 1).to(model.device)

    def bound() -> object:
        return sampled_bound(model.predict_x0, model.diffusion, x0, generator(0, "bound"), BOUND_DRAWS)

    counted = n * (BOUND_DRAWS + 2) * our_denoising_gflop(cfg)
    yield Case("bits", OURS, n, counted, inference(model.device, bound))


MAKERS: dict[str, Callable[[HybridModel, Config, Settings], Cases]] = {
    "joint": joint,
    "update": update,
    "denoise-step": denoise_step,
    "classify": classify,
    "denoise": denoise,
    "sample": sample,
    "bits": bits,
}
