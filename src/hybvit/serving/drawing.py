"""Generated images, seen while they are denoised."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.image_set import to_pixels
from ..devices import autocast, keep_freed_memory
from ..model import HybridModel, image_noise, run_to_pixels
from .limits import IMAGES, STEPS

SAMPLER = "dpmpp_2m"
SEEDS = 2**63  # so many
EVERY = 0.1  # seconds between two views


class Wanted(BaseModel):
    """Which images to generate."""

    model_config = ConfigDict(extra="forbid", strict=True)  # true is no number
    n: int = Field(1, ge=1, le=IMAGES, description="How many.")
    label: str | int | None = Field(None, description="Their class, by name or number; null for any.")
    guidance: float = Field(0.0, ge=-20, le=20, description="Weight of the guidance to the class; below 0 away from it.")
    steps: int = Field(20, ge=1, le=STEPS, description="Sampler steps.")
    seed: int = Field(0, ge=0, lt=SEEDS, description="Image i of a seed is always the same.")


class View(NamedTuple):
    """Images after some of the steps, as the network predicts them then; uint8 [n, C, H, W]."""

    pixels: Tensor
    step: int


def draw(model: HybridModel, wanted: Wanted, say: Callable[[View], None] = lambda view: None) -> Tensor:
    """Generate images, those that :meth:`HybridModel.sample` does -> uint8 [n, C, H, W] on the CPU.

    Args:
        say: takes a view of the images now and then.

    Raises:
        ValueError: there is no such class, a model without ``label_conditioning`` gets a class without guidance, or T is less
            than the steps.
        ConfigError: the model cannot generate.
    """
    n, steps, guidance, seed = wanted.n, wanted.steps, wanted.guidance, wanted.seed
    labels = None if wanted.label is None else model.wanted_labels(wanted.label, n)
    if model.own_sampler or (labels is not None and not guidance and not model.takes_labels):
        return model.sample(n, SAMPLER, steps, labels, guidance, seed)  # which refuses a class that nothing guides to
    keep_freed_memory()
    denoise = model.denoiser(range(n), seed, guidance, labels)
    step, seen = 0, 0.0

    def watched(x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal step, seen
        x0, step = denoise(x_t, t), step + 1
        if time.monotonic() - seen >= EVERY:
            say(View(to_pixels(x0).cpu(), step))
            seen = time.monotonic()
        return x0

    with autocast(model.device, model.sampling_precision):  # around all steps, as in HybridModel.draw
        noise = image_noise(range(n), seed, model.image_shape, model.device)
        return run_to_pixels(watched, model.diffusion, noise, SAMPLER, steps)
