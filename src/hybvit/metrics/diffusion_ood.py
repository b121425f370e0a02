"""What a denoiser says about images along the way to noise, for out-of-distribution detection: SCOPED and DiffPath.

Each function gives statistics, not a score: an image may be unusual on either side of them. The density of training images'
statistics turns them into one (:func:`hybvit.metrics.ood.density_score`, :func:`hybvit.metrics.ood.normal_score`).

Shapes: x float [B, C, H, W] in [-1, 1]; ``denoise_eps`` is a callable, (x_t, t int64 [B]) -> the predicted noise [B, C, H, W],
whose rows depend on their own image only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..method.diffusion import Diffusion

PredictedNoise = Callable[[Tensor, Tensor], Tensor]


def score_curvature(
    denoise_eps: PredictedNoise, diffusion: Diffusion, x: Tensor, t: int, noise: Tensor, probe: Tensor
) -> Tensor:
    """The squared norm of the score over minus the trace of its Jacobian (SCOPED, Barkley et al. 2025), as a log; float64 [B].

    With the score s = -eps/sqrt(1 - abar_t), the ratio is |s|^2 / -tr(ds/dx_t). By Stein's identity the two have the same mean
    over a distribution whose score is s, so the log is near 0 where images are typical of it. The trace is Hutchinson's
    estimate v^T J v with one probe v, by one backward pass. An estimate below a hundredth of the trace for N(0, I), whose score
    is -x, is taken as that.

    Args:
        t: the time at which the score is taken, in 1..T.
        noise: standard normal, like one image x[0] or like x; the same for all sets that are compared.
        probe: entries -1 and 1, like ``noise``.
    """
    at = torch.full((len(x),), t, device=x.device)
    with torch.enable_grad():
        x_t = diffusion.q_sample(x.detach(), at, noise.expand_as(x)).requires_grad_()
        eps = denoise_eps(x_t, at)
        (row,) = torch.autograd.grad((eps * probe).sum(), x_t)
    deviation = float(diffusion.sqrt_one_minus_alpha_bar[t])
    trace = (row * probe).flatten(1).sum(dim=1).cpu().double() / deviation
    squared = eps.detach().flatten(1).cpu().double().square().sum(dim=1) / deviation**2
    return squared.log() - trace.clamp_min(0.01 * x[0].numel()).log()


@torch.no_grad()
def path_statistics(denoise_eps: PredictedNoise, diffusion: Diffusion, x: Tensor, times: Sequence[int]) -> Tensor:
    """Six statistics of the deterministic path from an image to noise (DiffPath-6D, Heng et al. 2024), float64 [B, 6].

    DDIM is run backwards from x through ``times``, and eps is the predicted noise on the way. The statistics are the means,
    over pixels and times, of the first three powers of eps (the path's rate of change) and of d eps/dt (its curvature), each as
    its signed root so that they have one scale. It costs one evaluation for each time.

    Args:
        times: strictly increasing, at least two of 1..T.

    Raises:
        ValueError: ``times`` does not satisfy this.
    """
    if len(times) < 2 or times[0] < 1 or times[-1] > diffusion.T or any(s >= t for s, t in pairwise(times)):
        raise ValueError(f"times are {list(times)}: they must increase strictly within 1..{diffusion.T}, two at least")
    x_t, found, x0 = x, list[Tensor](), x
    for t in times:
        at = torch.full((len(x),), t, device=x.device)
        eps = found[-1] if found else torch.zeros_like(x)
        x_t = diffusion.q_sample(x0, at, eps)
        found.append(denoise_eps(x_t, at))
        x0 = diffusion.predict_x0(x_t, at, found[-1])
    values = torch.stack(found, dim=1).cpu().double()
    spans = torch.tensor([(t - s) / diffusion.T for s, t in pairwise(times)], dtype=torch.float64)
    slopes = values.diff(dim=1) / spans[:, None, None, None]
    moments = [part.flatten(1).pow(power).mean(dim=1) for part in (values, slopes) for power in (1, 2, 3)]
    return torch.stack([m.sign() * m.abs().pow(1 / power) for m, power in zip(moments, (1, 2, 3) * 2, strict=True)], dim=1)
