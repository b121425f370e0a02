"""What an evaluation will take, said before it starts: how many images each suite sends through the model, times one timed call
of each kind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..data.image_set import to_pixels
from ..devices import announce
from ..distributed import rank, world_size
from ..errors import ConfigError, DataError
from ..method.readings import ROUNDS
from ..metrics.autoattack import passes as attack_passes
from ..metrics.robustness import L2_EPS, LINF_EPS, ascent
from . import certified, corruptions, fidelity, likelihood, ood, ood_scores, robustness, speed
from .context import SHARD, Context
from .options import NOISE

ENDS_EARLY = ("robustness", "certified", "readings")  # an image that an attack breaks takes no more steps
ENSEMBLE = ("apgd-ce", "apgd-t", "fab-t", "square")  # AutoAttack's standard version
SHARED = ("accuracy", "calibration", "doubt")  # suites of the same logits


OF_ANOTHER = {"logits": 0, "drawn": 0}  # what a suite does not compute again


class Work(NamedTuple):
    """Images that go through a model: its classifier, that and back for a gradient, its denoiser, a step of its sampler."""

    logits: float = 0
    gradients: float = 0
    denoised: float = 0
    drawn: float = 0


def announce_suites(ctx: Context, suites: Sequence[str]) -> None:
    """Say what these suites will take. What they read, resample and draw beside the model's calls does not count."""
    if rank() != 0 or not suites:
        return
    alone = unshared(suites)
    works = [work_of(ctx, suite)._replace(**({} if suite in alone else OF_ANOTHER)) for suite in suites]
    total = Work(*(sum(parts) for parts in zip(*works, strict=True)))
    model, size = ctx.model, min(ctx.options.batch_size, SHARD)
    x = torch.rand(size, *model.image_shape, device=model.device) * 2 - 1
    few, t = x[: robustness.ATTACK_BATCH], torch.randint(1, model.diffusion.T + 1, (size,), device=model.device)
    labels = torch.zeros(len(few), dtype=torch.int64, device=model.device)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "logits": (torch.no_grad()(lambda: model.logits(x)), size),
        "gradients": (lambda: ascent(model.logits, few, labels), len(few)),
        "denoised": (torch.no_grad()(lambda: model.denoise(few, t[: len(few)])), len(few)),
        "drawn": (lambda: model.draw(range(size), ctx.options.sampler, 1, ctx.options.seed, ctx.options.guidance), size),
    }
    able = {
        "logits": model.has_classes,
        "gradients": model.has_classes,
        "denoised": model.has_denoiser,
        "drawn": model.has_samples,
    }
    parts = [(calls[kind][0], images / calls[kind][1] / world_size()) for kind, images in total._asdict().items() if able[kind]]
    if "fidelity" in suites:
        with contextlib.suppress(ConfigError, DataError):  # which the suite itself raises, or notes
            extractor, seen = fidelity.extractor_of(ctx), len(ctx.data.train) + ctx.options.samples + len(ctx.test)
            parts.append((lambda: extractor.features(to_pixels(x)), seen / size / world_size()))
    announce(parts, model.device, at_most=any(suite in ENDS_EARLY for suite in suites))


def unshared(suites: Sequence[str]) -> list[str]:
    """The suites, without those that read the logits or the samples of another one of them."""
    reused = [suite for suite in suites if suite in SHARED][1:] + (["quality"] if "fidelity" in suites else [])
    return [suite for suite in suites if suite not in reused]


def work_of(ctx: Context, suite: str) -> Work:
    """What a suite sends through the model. Attacks count in full, and other sets as if as large as the test images."""
    o, n, classes = ctx.options, len(ctx.test), max(len(ctx.model.classes), 1)
    bound = ood_scores.passes(ctx, "bits")
    if suite == "doubt":
        return Work(n, denoised=n * ood_scores.passes(ctx, "denoising") if ctx.model.has_denoiser else 0)
    if suite == "probe":
        return Work(logits=n + len(ctx.train_subset))
    if suite == "ood":
        images = n * (1 + len(o.out_of_distribution or (*ood.default_sets(ctx.data_name), NOISE)))
        sets, of_all = images // n, sum(ood_scores.passes(ctx, score) for score in ("denoising", "scoped", "trajectory"))
        classified = (2 * images + len(ctx.train_subset), images) if ctx.model.has_classes else (0, 0)
        return Work(*classified, (images * of_all + sets * min(n, o.bound_images) * bound) if ctx.model.has_denoiser else 0)
    if suite == "robustness":
        attacked, few = min(n, o.attack_images), min(n, o.autoattack_images)
        radii = len(LINF_EPS) + len(L2_EPS) + sum(map(len, robustness.STRONG.values()))
        ensemble = len(robustness.AUTOATTACK_EPS) * few * sum(attack_passes(name, classes) for name in ENSEMBLE)
        square = min(n, robustness.RELIABILITY_IMAGES) * attack_passes("square", classes)
        return Work(logits=ensemble + square, gradients=attacked * radii * o.attack_steps)
    if suite == "certified":
        images, votes = min(n, o.certified_images), o.certified_votes + certified.SELECTION
        polls = votes * images * len(o.certified_noise)
        return Work(polls, images * (len(certified.RADII) - 1) * o.attack_steps, polls)
    if suite == "corruptions":
        images = min(n, o.corruption_images)
        levels = 1 + len(o.corruptions or corruptions.COMMON) * len(corruptions.SEVERITIES)
        seen = min(images, corruptions.DENOISING_IMAGES) * len(ood_scores.DENOISING_TIMES)
        return Work(logits=levels * images, denoised=levels * seen if ctx.model.has_denoiser else 0)
    if suite == "readings":
        images, attacked = min(n, o.reading_images), min(n, o.reading_attacks)
        reading = sum(len(part.times) * min(part.classes or classes, classes) for part in ROUNDS)
        steps = attacked * o.attack_steps  # of each attack; two of every noisy reading, and two of all together
        return Work(images, 6 * steps, images * reading + 2 * 2 * 3 * steps * reading)
    if suite == "likelihood":
        shown = likelihood.PLOTTED_IMAGES * ctx.model.diffusion.T if o.bound_draws else 0
        return Work(denoised=min(n, o.bound_images) * bound + shown)
    if suite in ("fidelity", "quality"):
        evaluations = 2 * o.steps - 1 if o.sampler == "heun" else o.steps
        return Work(logits=o.samples if ctx.model.has_classes else 0, drawn=o.samples * evaluations)
    if suite == "speed":
        timed = speed.IMAGES * (speed.REPEATS + 1)
        return Work(timed, 2 * timed, timed, 2 * speed.IMAGES * o.steps)
    return Work(logits=n)
