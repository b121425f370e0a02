"""Adversarial robustness: projected gradient descent (Figure 8b, Table 12).

Shapes: x float [B, C, H, W] in [-1, 1], labels int64 [B]; ``logits`` is a callable, x -> [B, K], whose rows depend on
their own image only. Every eps and every step is on the [0, 1] scale of pixels, so 8/255 is a radius of 16/255 in x.
The same holds in :mod:`autoattack` and :mod:`reliability`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = Literal["linf", "l2"]
Loss = Literal["cross_entropy", "margin"]
Logits = Callable[[Tensor], Tensor]

LINF_EPS = tuple(n / 255 for n in (1, 2, 4, 8, 12, 16, 22, 30))
L2_EPS = tuple(n / 255 for n in (50, 100, 150, 200, 250, 300, 350, 400, 450, 500))
PGD_STEPS = 50
PGD_STEP = 20 / 255

X_PER_PIXEL = 2.0  # x is in [-1, 1], the pixels of the attack literature in [0, 1]


class Attack(NamedTuple):
    """The outcome of an attack.

    Attributes:
        images: [B, C, H, W]; where ``broken`` they fool the model, elsewhere they are the last iterate.
        broken: bool [B], whether the image was misclassified at any time.
    """

    images: Tensor
    broken: Tensor


def pgd(  # noqa: PLR0913  the attack's own parameters, as the literature has them
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    generator: torch.Generator | None,
    steps: int = PGD_STEPS,
    step: float = PGD_STEP,
    *,
    start: Tensor | None = None,
    loss: Loss = "cross_entropy",
) -> Attack:
    """Projected gradient ascent of a loss inside the ball of radius eps around x, clipped to [-1, 1].

    An image is broken as soon as any iterate is misclassified, including x itself and the start; it takes no further steps.
    Where the gradient is 0 or not finite the iterate does not move: see ``reliability``.

    Args:
        eps: the radius on the [0, 1] scale, for l2 that of the whole image.
        generator: CPU generator of the start, which is uniform in the ball.
        steps: the number of steps.
        step: their length on the [0, 1] scale, for linf that of every pixel and for l2 that of the whole image.
        start: [B, C, H, W] in [-1, 1], projected onto the ball: where to start instead.
        loss: cross_entropy, or margin: the largest logit of another class less that of the label, whose gradient does not
            vanish where the network is certain.

    Raises:
        ValueError: ``norm`` is neither linf nor l2.
    """
    check_norm(norm)
    radius, stride = X_PER_PIXEL * eps, X_PER_PIXEL * step
    x = x.detach()
    if start is None:
        start = x + radius * uniform_in_ball(x, norm, generator)
    images = _project(start.detach(), x, radius, norm)
    with torch.no_grad():
        broken = misclassified(logits(x), labels)
    images = torch.where(broken[:, None, None, None], x, images)
    for _ in range(steps):
        left = (~broken).nonzero().flatten()
        if not len(left):
            break
        scores, gradient, _ = ascent(logits, images[left], labels[left], loss)
        wrong = misclassified(scores, labels[left])
        broken[left[wrong]] = True
        left, gradient = left[~wrong], gradient[~wrong]
        images[left] = _project(images[left] + stride * _direction(gradient, norm), x[left], radius, norm)
    left = (~broken).nonzero().flatten()
    if len(left):
        with torch.no_grad():
            broken[left] = misclassified(logits(images[left]), labels[left])
    return Attack(images, broken)


def robust_curve(broken_at: Sequence[Tensor]) -> list[float]:
    """Robust accuracy at each eps, in 0..1, from the broken images (bool [N]) at each eps, in ascending order.

    The balls are nested, so an image that is broken at one eps counts as broken at all larger ones.
    """
    curve: list[float] = []
    broken: Tensor | None = None
    for found in broken_at:
        broken = found if broken is None else broken | found
        curve.append(1 - broken.double().mean().item())
    return curve


def check_norm(norm: str) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm is {norm!r}: it must be linf or l2")


def misclassified(scores: Tensor, labels: Tensor) -> Tensor:
    """[B, K] -> bool [B]; NaN logits count as wrong, whatever their argmax is."""
    return (scores.argmax(dim=1) != labels) | scores.isnan().any(dim=1)


def strong_pgd(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    eps: float,
    norm: Norm,
    generator: torch.Generator | None,
    steps: int = PGD_STEPS,
) -> Attack:
    """:func:`pgd` with the margin loss and steps of eps / 8.

    A step longer than the radius, as the paper's is up to 16/255 in linf, jumps from corner to corner of the ball.
    """
    return pgd(logits, x, labels, eps, norm, generator, steps, eps / 8, loss="margin")


def smoothed_pgd(
    logits: Logits,
    x: Tensor,
    labels: Tensor,
    noise: float,
    radius: Tensor,
    generator: torch.Generator | None,
    steps: int = 20,
    draws: int = 32,
) -> Tensor:
    """Attack the classifier that randomized smoothing makes of ``logits`` (SmoothAdv; Salman et al. 2019) -> images, as x.

    L2 steps of 2.5 radius / steps up the cross-entropy of the mean probabilities under noise, which is drawn anew at every
    step. The images are not clipped to [-1, 1], since a certificate speaks of all of R^n: the attacker may do more than with
    real images. Whether it succeeded is for the smoothed classifier to say.

    Args:
        logits: the base classifier of noisy images x + 2 noise eps.
        noise: standard deviation of the smoothing noise, on the [0, 1] scale.
        radius: float [B], of each image's ball, on the [0, 1] scale.
        generator: CPU generator of the noise.
        draws: copies of each image in an expectation.
    """
    x, reach = x.detach(), X_PER_PIXEL * radius.to(x)[:, None]
    copied = labels.repeat_interleave(draws)
    rows = torch.arange(len(copied), device=x.device)
    images = x
    for _ in range(steps):
        eps = torch.randn(len(copied), *x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            log_p = logits(images.repeat_interleave(draws, dim=0) + X_PER_PIXEL * noise * eps).log_softmax(dim=1)[rows, copied]
            loss = -log_p.reshape(-1, draws).logsumexp(dim=1).sum()  # of the mean probability, up to a constant
        (gradient,) = torch.autograd.grad(loss, images)
        stride = (2.5 / steps * reach)[:, :, None, None]
        images = _into_l2_ball(images.detach() + stride * _direction(gradient, "l2"), x, reach)
    return images


def ascent(logits: Logits, x: Tensor, labels: Tensor, loss: Loss = "cross_entropy") -> tuple[Tensor, Tensor, bool]:
    """-> logits [B, K], the gradient of the loss in each image [B, C, H, W], and whether there is one (else 0)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        scores = logits(x)
        # In half precision the loss would saturate long before the model.
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        total = _margin(exact, labels).sum() if loss == "margin" else F.cross_entropy(exact, labels, reduction="sum")
    gradient = None
    if total.requires_grad:
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)  # leaves the parameters' .grad alone
    return scores.detach(), torch.zeros_like(x) if gradient is None else gradient, gradient is not None


def _margin(scores: Tensor, labels: Tensor) -> Tensor:
    """The largest logit of another class less that of the label, [B]; with a single class minus its logit."""
    own = scores.gather(1, labels[:, None])[:, 0]
    if scores.shape[1] < 2:
        return -own
    return scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Steepest ascent of length 1 in the norm; 0 where the gradient is 0 or not finite."""
    gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if norm == "linf":
        return gradient.sign()
    # First divided by its largest entry: the squares of a small gradient would underflow.
    flat = gradient.flatten(1)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    return flat.reshape(gradient.shape)


def _project(images: Tensor, x: Tensor, radius: float, norm: Norm) -> Tensor:
    """Project onto the ball around x, then clip to [-1, 1]; x is in there, so this moves no pixel away from it."""
    if norm == "linf":
        images = torch.minimum(torch.maximum(images, x - radius), x + radius)
    else:
        images = _into_l2_ball(images, x, radius)
    return images.clamp(-1, 1)


def _into_l2_ball(images: Tensor, x: Tensor, radius: float | Tensor) -> Tensor:
    """Project onto the L2 balls around x; radius is one for all, or [B, 1]."""
    moved = (images - x).flatten(1)
    length = moved.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return x + (moved * (radius / length).clamp(max=1)).reshape(x.shape)


def uniform_in_ball(x: Tensor, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """A uniform point of the ball of radius 1 for each image, like x."""
    if norm == "linf":
        return (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1).to(x.device)
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    direction = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
    share = torch.rand(len(x), 1, 1, 1, generator=generator, dtype=x.dtype)
    return (direction * share ** (1 / x.shape[1:].numel())).to(x.device)
