"""Noise to pixels: the random numbers of samples, and one run of a sampler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.image_set import to_pixels
from ..devices import go_on
from ..errors import DivergedError
from ..method.diffusion import Diffusion
from ..method.samplers import Denoiser, ImageNoise, Spacing, run_sampler
from ..method.seeds import derive_seed
from ..waiting import part_done


def image_noise(
    indices: Sequence[int],
    seed: int,
    image_shape: tuple[int, int, int],
    device: torch.device | str,
    stream: str = "samples",
) -> ImageNoise:
    """The noise of the images of a seed with these numbers; that of image i does not depend on the others."""
    return ImageNoise([derive_seed(seed, stream, i) for i in indices], image_shape, device)


def counted(denoise: Denoiser, calls: float) -> Denoiser:
    """The denoiser; one call of it is one of ``calls`` that somebody waits for."""

    def called(x_t: Tensor, t: Tensor) -> Tensor:
        part_done(1 / calls)
        return denoise(x_t, t)

    return called


@torch.no_grad()
def run_to_pixels(
    denoise: Denoiser, diffusion: Diffusion, noise: ImageNoise, sampler: str, steps: int, spacing: Spacing | None = None
) -> Tensor:
    """Run a sampler with a denoiser (-> x_0), one image for each of the noise: uint8 [B, C, H, W] on the CPU."""
    for x in run_sampler(sampler, denoise, diffusion, noise, steps, spacing):
        part_done(1 / steps)
        go_on()
    if not bool(x.isfinite().all()):
        raise DivergedError("the generated images are not finite: this model diverged in training; use another checkpoint")
    return to_pixels(x).cpu()
