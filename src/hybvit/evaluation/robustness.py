"""Adversarial robustness: a strong PGD, the paper's (Figure 8b, Table 12), AutoAttack, and whether they can be trusted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from ..data.image_set import ImageSet, to_pixels, to_x
from ..data.images import grid
from ..distributed import from_first, share_calls
from ..evaluation import plots
from ..metrics.autoattack import AUTOATTACK_CURE, autoattack, distinct, has_autoattack
from ..metrics.classification import wilson_interval
from ..metrics.reliability import reliability
from ..metrics.robustness import L2_EPS, LINF_EPS, PGD_STEP, Norm, pgd, robust_curve, strong_pgd
from .context import Context, Metric, Picture, Result, proportion

ATTACK_BATCH, AUTOATTACK_BATCH = 64, 250
RADII: dict[Norm, tuple[float, ...]] = {"linf": LINF_EPS, "l2": L2_EPS}
STRONG: dict[Norm, tuple[float, ...]] = {"linf": (4 / 255, 8 / 255), "l2": (128 / 255,)}  # radii of the strong PGD
AUTOATTACK_EPS: dict[Norm, float] = {"linf": 8 / 255, "l2": 128 / 255}  # on the [0, 1] pixel scale
RELIABILITY_IMAGES = 64
SHOWN = 8
NOISE = 0.02  # a rise in accuracy with the radius up to this counts as noise


def run(ctx: Context) -> Result:
    result, images = Result(), ctx.test.subsample(ctx.options.attack_images)
    strong = run_strong_pgd(ctx, images, result)
    reasons = [reason for norm, radii in RADII.items() for reason in run_pgd(ctx, images, norm, radii, result, strong[norm])]
    reasons += run_autoattack(ctx, images, result)
    few = torch.arange(min(RELIABILITY_IMAGES, len(images)))
    reasons = from_first(lambda: reliability(ctx.model.logits, *batch_of(ctx, images, few), ctx.generator(5))) + reasons
    result.metrics["robustness/reliable"] = Metric(int(not reasons), len(few))
    result.tables["not_reliable_because"] = reasons
    result.notes += [f"NOT RELIABLE: {reason}" for reason in reasons]
    return result


def batch_of(ctx: Context, images: ImageSet, index: Tensor) -> tuple[Tensor, Tensor]:
    """x float [B, C, H, W] and labels int64 [B] on the model's device."""
    pixels, labels = images.take(index)
    assert labels is not None
    return to_x(pixels).to(ctx.model.device), labels.to(ctx.model.device)


Curve = list[tuple[float, float]]  # (radius in 1/255, accuracy)


def run_strong_pgd(ctx: Context, images: ImageSet, result: Result) -> dict[Norm, Curve]:
    curves: dict[Norm, Curve] = {}
    for norm, radii in STRONG.items():

        def attack(eps: float, index: Tensor, norm: Norm = norm) -> tuple[Tensor, ...]:
            x, labels = batch_of(ctx, images, index)
            seed = ctx.generator((1 << 18) + int(index[0]))
            return (strong_pgd(ctx.model.logits, x, labels, eps, norm, seed, ctx.options.attack_steps).broken.cpu(),)

        broken = [found for (found,) in at_radii(radii, len(images), attack, f"strong PGD {norm}")]
        curves[norm] = [(255 * eps, accuracy) for eps, accuracy in zip(radii, robust_curve(broken), strict=True)]
        for eps, accuracy in curves[norm]:
            bounds = wilson_interval(accuracy, len(images))
            result.metrics[f"robustness/pgd_strong_{norm}_{eps:.0f}"] = Metric(accuracy, len(images), *bounds)
    return curves


def run_pgd(ctx: Context, images: ImageSet, norm: Norm, radii: tuple[float, ...], result: Result, strong: Curve) -> list[str]:
    """The paper's PGD at increasing radii -> reasons not to trust the result.

    Args:
        strong: what the strong PGD found, for the plot.
    """

    def attack(eps: float, index: Tensor) -> tuple[Tensor, ...]:
        x, labels = batch_of(ctx, images, index)
        seed = ctx.generator((1 << 10) + int(index[0]))
        found = pgd(ctx.model.logits, x, labels, eps, norm, seed, ctx.options.attack_steps, PGD_STEP)
        return found.broken.cpu(), to_pixels(found.images).cpu()

    broken, attacked = zip(*at_radii(radii, len(images), attack, f"PGD {norm}"), strict=True)
    middle = len(radii) // 2
    result.pictures[f"attacked_{norm}"] = Picture(
        attacked_grid(images, attacked[middle]),
        f"Clean images (top) and the same attacked by PGD (bottom), {norm}, eps {255 * radii[middle]:.0f}/255",
    )
    assert images.labels is not None
    clean = (ctx.logits_of(images).argmax(dim=1) == images.labels).double().mean().item()
    curve = list(zip((0.0, *radii), (clean, *robust_curve(broken)), strict=True))
    for eps, accuracy in curve:
        bounds = wilson_interval(accuracy, len(images))
        result.metrics[f"robustness/pgd_{norm}_{255 * eps:.0f}"] = Metric(accuracy, len(images), *bounds)
    line = [(255 * eps, accuracy) for eps, accuracy in curve]
    result.pictures[f"curve_{norm}"] = Picture(
        plots.curves(
            {f"the paper's PGD, {ctx.options.attack_steps} steps": line} | ({"strong PGD": strong} if strong else {}),
            f"eps ({norm}) in 1/255",
            "accuracy",
        ),
        f"Accuracy under PGD, {norm}, of {len(images)} images: with the paper's step of 20/255 (its Figure 8b)"
        f"{', and with steps of eps/8 and a margin loss' if strong else ''}; "
        "an image counts as broken if any step fools the model",
    )
    alone = [1 - at.double().mean().item() for at in broken]
    if any(larger > smaller + NOISE for smaller, larger in pairwise(alone)):
        return [f"PGD ({norm}) breaks fewer images at a larger radius than at a smaller one"]
    return []


def at_radii(
    radii: Sequence[float], n: int, attack: Callable[[float, Tensor], tuple[Tensor, ...]], what: str
) -> list[tuple[Tensor, ...]]:
    """An attack on n images at each radius -> what it returns there; the processes share radii and batches."""
    batches = torch.arange(n).split(ATTACK_BATCH)
    found = iter(share_calls([partial(attack, eps, index) for eps in radii for index in batches], what))
    return [tuple(torch.cat(column) for column in zip(*(next(found) for _ in batches), strict=True)) for _ in radii]


def run_autoattack(ctx: Context, images: ImageSet, result: Result) -> list[str]:
    """AutoAttack's standard version on a few images -> those of its warnings that make the result unreliable."""
    few, doubts = images.subsample(max(1, ctx.options.autoattack_images)), list[str]()
    if not ctx.options.autoattack_images:
        why = "--autoattack-images 0" if has_autoattack() else f"it {AUTOATTACK_CURE}"
        result.notes.append(f"AutoAttack was not run ({why}), so the results are those of PGD alone.")
        return doubts

    def attack(norm: Norm, index: Tensor) -> tuple[Tensor, list[str]]:
        what = f"AutoAttack {norm} {255 * AUTOATTACK_EPS[norm]:.0f}/255"
        x, labels = batch_of(ctx, few, index)
        found = autoattack(ctx.model.logits, x, labels, AUTOATTACK_EPS[norm], norm, ctx.options.seed, progress=what)
        return found.robust.cpu(), found.warnings

    parts = torch.arange(len(few)).split(AUTOATTACK_BATCH)
    found = share_calls([partial(attack, norm, index) for norm in AUTOATTACK_EPS for index in parts])
    for i, (norm, eps) in enumerate(AUTOATTACK_EPS.items()):
        robust, warnings = zip(*found[i * len(parts) : (i + 1) * len(parts)], strict=True)
        result.metrics[f"robustness/autoattack_{norm}_{255 * eps:.0f}"] = proportion(torch.cat(robust))
        for warning in distinct([text for of_part in warnings for text in of_part]):
            said = f"AutoAttack ({norm}): {warning}"
            (doubts if is_doubt(warning, len(parts[0])) else result.notes).append(said)
    return doubts


def is_doubt(warning: str, n: int) -> bool:
    """Whether a warning of AutoAttack makes its result unreliable.

    Too few target classes do not, nor does a single image that only the Square attack breaks.
    """
    if "target classes in place of" in warning or "does not exist for" in warning:
        return False
    square = re.search(r"Square Attack has decreased the robust accuracy of ([\d.]+)\s*%", warning)
    return square is None or float(square[1]) / 100 * n > 1.5


def attacked_grid(images: ImageSet, attacked: Tensor) -> Image.Image:
    n = min(SHOWN, len(images))
    clean = images.take(torch.arange(n))[0]
    return grid(torch.cat((clean, attacked[:n])), columns=n, scale=max(1, 64 // clean.shape[-1]))
