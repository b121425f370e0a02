"""Certified robustness: randomized smoothing with the network's own reading of noisy images, beside two references.

The references are one-shot denoise-then-classify, and an attack on the classifier that is not smoothed.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..data.image_set import ImageSet, to_x
from ..distributed import share_batches
from ..errors import ConfigError, DivergedError
from ..evaluation import plots
from ..method.smoothing import NoiseLevel, NoisyClassifier, cast_votes, denoised_reading
from ..metrics.certified import Certificates, certified_at, certify_votes, largest_radius
from ..metrics.classification import wilson_interval
from ..metrics.robustness import robust_curve, strong_pgd
from ..model import HybridModel
from .context import Context, Metric, Picture, Result, proportion
from .options import CERTIFIED_CONFIDENCE, Options
from .robustness import at_radii, batch_of

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # L2, on the [0, 1] scale
STEP = 0.05  # of the plotted curves
SELECTION = 100  # votes
SHARED = 4  # images that a process certifies at a time
SHARES = (0, 0.5, 0.75, 0.9, 0.95, 0.99, 1)  # edges of the table of votes


def run(ctx: Context) -> Result:
    result, images = Result(), ctx.test.subsample(ctx.options.certified_images)
    assert images.labels is not None
    plan = {f"{reading}_{noise:g}": (reading, noise) for reading, noise in readings(ctx, result)}
    if not plan:
        return result
    curves, shares = dict[str, list[tuple[float, float]]](), dict[str, list[float]]()
    result.tables["certified"] = {
        "votes": ctx.options.certified_votes, "selection": SELECTION, "confidence": CERTIFIED_CONFIDENCE,
        "precision": "float32", "share_of_votes": {},
    }  # fmt: skip
    ends = dict[float, float]()
    for name, (reading, noise) in plan.items():
        found = certify(ctx, images, classifier(ctx, reading, noise), noise, name)
        at = partial(certified_at, found, images.labels)
        end = largest_radius(noise, ctx.options.certified_votes, CERTIFIED_CONFIDENCE)
        within = [radius for radius in RADII if radius < end]
        result.metrics |= {f"certified/{name}/accuracy_{radius:g}": proportion(at(radius)) for radius in within}
        result.metrics[f"certified/{name}/abstained"] = proportion(found.labels < 0)
        if len(within) < len(RADII):
            ends[noise] = end
        steps = [STEP * k for k in range(int(end / STEP) + 1)]
        key = f"noise {noise:g}" + (", denoised first" if reading == "denoised" else "")
        curves[key] = [(radius, at(radius).double().mean().item()) for radius in (*steps, end - 1e-9, end)]
        of_label = found.votes.gather(1, images.labels[:, None])[:, 0].double() / ctx.options.certified_votes
        shares[key] = of_label.tolist()
        result.tables["certified"]["share_of_votes"][name] = table_of_shares(of_label)
    if ends:
        reached = ", ".join(f"{end:.2g} at noise {noise:g}" for noise, end in ends.items())
        result.notes.append(
            f"Radii up to {reached} can be certified with so many votes, even if all agree; larger ones are left out."
        )
    result.notes.append(
        "noisy_s: by the network's own reading of images with noise of standard deviation s; denoised_s: by its reading after "
        f"a denoising step; plain_pgd: without noise, under PGD (--attack-steps {ctx.options.attack_steps}; more break more)."
    )
    curves["attacked by PGD, no certificate"] = attacked(ctx, images, result)
    add_pictures(ctx, len(images), curves, shares, result)
    return result


def readings(ctx: Context, result: Result) -> list[tuple[str, float]]:
    """What is certified: (noisy or denoised, noise). Denoising takes three times as long, and is measured at one noise only
    where there is the network's own reading.

    Raises:
        ConfigError: noise was asked for that the model has no time for.
    """
    levels = list[float]()
    for noise in ctx.options.certified_noise:
        try:
            NoiseLevel.of(ctx.model.diffusion, noise)
            levels.append(noise)
        except ValueError as error:
            if ctx.options.certified_noise != Options().certified_noise:
                raise ConfigError(f"certified_{error}") from None
            result.notes.append(f"{error}; it was left out.")
    if isinstance(ctx.model, HybridModel) and ctx.model.labels_noisy:
        return [*(("noisy", noise) for noise in levels), *(("denoised", noise) for noise in levels[len(levels) // 2 :][:1])]
    result.notes.append(
        "The classifier was not trained on noisy images (objective.noisy_labels), so its own reading of them was not "
        "certified, only that after one denoising step."
    )
    return [("denoised", noise) for noise in levels]


def classifier(ctx: Context, reading: str, noise: float) -> NoisyClassifier:
    if reading == "noisy":
        assert isinstance(ctx.model, HybridModel)
        return ctx.model.noisy_classifier(noise)
    return denoised_reading(ctx.model.predict_x0, ctx.model.logits, NoiseLevel.of(ctx.model.diffusion, noise))


def certify(ctx: Context, images: ImageSet, classify: NoisyClassifier, noise: float, what: str) -> Certificates:
    """The certificates of all images, shared among the processes.

    Raises:
        DivergedError: a vote is not finite.
    """
    total = ctx.options.certified_votes

    def vote(index: Tensor) -> tuple[Tensor, ...]:
        x = to_x(images.take(index)[0]).to(ctx.model.device)
        return cast_votes(classify, x, noise, (SELECTION, total), len(ctx.model.classes), ctx.options.seed, index.tolist())

    selection, votes = share_batches(len(images), SHARED, vote, f"certifying, {what}")
    if bool((votes.sum(dim=1) < total).any()):
        raise DivergedError("the logits are not finite: this model diverged in training; use another checkpoint")
    return certify_votes(selection, votes, total, noise, CERTIFIED_CONFIDENCE)


def table_of_shares(shares: Tensor) -> dict[str, int]:
    """The number of images by the share of the votes that the true label gets, float [N]."""
    counts = torch.bincount(
        torch.bucketize(shares, torch.tensor(SHARES[1:-1], dtype=torch.float64), right=True), minlength=len(SHARES) - 1
    )
    return {f"{low:g} to {high:g}": n for low, high, n in zip(SHARES[:-1], SHARES[1:], counts.tolist(), strict=True)}


def attacked(ctx: Context, images: ImageSet, result: Result) -> list[tuple[float, float]]:
    """Accuracy of the classifier that is not smoothed, clean and under PGD -> (radius, accuracy)."""
    assert images.labels is not None

    def attack(eps: float, index: Tensor) -> tuple[Tensor, ...]:
        x, labels = batch_of(ctx, images, index)
        random = ctx.generator((1 << 19) + int(index[0]))
        return (strong_pgd(ctx.model.logits, x, labels, eps, "l2", random, ctx.options.attack_steps).broken.cpu(),)

    broken = [found for (found,) in at_radii(RADII[1:], len(images), attack, "PGD l2")]
    clean = ctx.logits_of(images).argmax(dim=1) != images.labels
    curve = list(zip(RADII, robust_curve([clean, *broken]), strict=True))
    for radius, accuracy in curve:
        bounds = wilson_interval(accuracy, len(images))
        result.metrics[f"certified/plain_pgd/accuracy_{radius:g}"] = Metric(accuracy, len(images), *bounds)
    return curve


def add_pictures(
    ctx: Context, n: int, curves: dict[str, list[tuple[float, float]]], shares: dict[str, list[float]], result: Result
) -> None:
    votes = f"{ctx.options.certified_votes:,} votes for each of {n} images, confidence {CERTIFIED_CONFIDENCE:g}"
    result.pictures["curve"] = Picture(
        plots.curves(curves, "L2 radius on the [0, 1] scale of pixels", "accuracy"),
        f"Share of the images with the right label, certified within the radius: {votes}. A curve ends where all votes agree. "
        "The attacked accuracy is not one of the smoothed classifier, and no certificate: a stronger attack lowers it",
    )
    result.pictures["votes"] = Picture(
        plots.histograms(shares, "share of the votes for the true label", bins=20), f"Distribution of the votes: {votes}"
    )
