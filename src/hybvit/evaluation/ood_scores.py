"""The scores of out-of-distribution detection, each as a function of images; higher is more like the training data.

Some need only the classifier, some only the denoiser. ``fused`` joins one of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..data.image_set import ImageSet
from ..metrics.diffusion_ood import path_statistics, score_curvature
from ..metrics.likelihood import log_density, sampled_bound, variational_bound
from ..metrics.ood import (
    density_score,
    fused_score,
    gradient_norm_score,
    in_distribution_rank,
    knn_score,
    mahalanobis_score,
    normal_score,
    relative_mahalanobis_score,
)
from ..metrics.selective import max_logit, max_probability, negative_entropy
from .context import Context

NEIGHBORS = 50
DENOISING_TIMES = (0.1, 0.25, 0.5)  # as fractions of T
DENOISING_DRAWS = 4  # of noise for each time
CURVATURE_TIME = 0.1
PATH_TIMES = (0.001, *(i / 10 for i in range(1, 10)))
ERROR_TIMES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)  # of the denoising errors in the trajectory
BOUND_BATCH = 64  # fixed, whatever --batch-size is: an image's draws depend on its place in the batch
REFERENCE = 500  # training images that densities are fitted to, and others that ranks are taken among
TINY = 1e-12  # of an error, whose log is taken
FEWEST = 20  # training images, for a density of twelve statistics
FUSED = ("knn", "relative_mahalanobis", "trajectory")  # chosen on altered training images (docs/ood.md)

LABELS = {
    "logpx": "log p(x), the logsumexp of the logits",
    "max_prob": "largest class probability",
    "max_logit": "largest logit",
    "entropy": "minus the entropy of the class probabilities",
    "grad_norm": "minus the norm of the input gradient of log p(x)",
    "knn": f"minus the distance to the {NEIGHBORS}th nearest training feature",
    "mahalanobis": "Mahalanobis distance to the nearest class, negated",
    "relative_mahalanobis": "relative Mahalanobis distance, negated",
    "denoising": "minus the error of the predicted noise",
    "bits": "minus the bound on bits per dimension",
    "scoped": "log density of score norm over trace (SCOPED)",
    "diffpath": "density of six statistics of the path (DiffPath)",
    "trajectory": "density of the path and of six denoising errors",
    "fused": "Fisher's combination of three ranks",
}

Scorer = Callable[[ImageSet], Tensor]


def passes(ctx: Context, score: str) -> int:
    """What a score costs for each image, in forward passes of the network; a gradient counts two more."""
    trajectory = len(PATH_TIMES) + len(ERROR_TIMES)
    known = {
        "grad_norm": 3,
        "denoising": len(DENOISING_TIMES) * DENOISING_DRAWS,
        "bits": ctx.options.bound_draws + 2 if ctx.options.bound_draws else ctx.model.diffusion.T,
        "scoped": 3,
        "diffpath": len(PATH_TIMES),
        "trajectory": trajectory,
        "fused": 1 + trajectory,  # neighbors and distances are found among the same features
    }
    return known.get(score, 1)


def scores(ctx: Context) -> dict[str, Scorer]:
    """Score -> function of images [N] -> float [N], or [N, draws] where noise is drawn; slow scores use a subset of evenly
    spaced images."""
    found = dict[str, Scorer]()
    fitted, reference = two_halves(ctx)
    count = min(REFERENCE, max(FEWEST, ctx.options.limit or REFERENCE))  # fewer for a quick look
    if ctx.model.has_classes:
        found |= classifier_scores(ctx, fitted)
    if ctx.model.has_denoiser:
        found |= denoiser_scores(ctx, fitted.subsample(count))
    if all(part in found for part in FUSED):
        found |= {part: remembered(found[part]) for part in FUSED}  # which the fused score needs too
        found["fused"] = fused([found[part] for part in FUSED], reference.subsample(count))
    return found


def classifier_scores(ctx: Context, fitted: ImageSet) -> dict[str, Scorer]:
    """The scores that need labels. ``fitted`` are training images that some are fitted to."""
    model, logits_of, features_of = ctx.model, remembered(ctx.logits_of), remembered(ctx.features_of)
    found: dict[str, Scorer] = {
        "logpx": lambda images: log_density(logits_of(images).double()),
        "max_prob": lambda images: max_probability(logits_of(images)),
        "max_logit": lambda images: max_logit(logits_of(images)),
        "entropy": lambda images: negative_entropy(logits_of(images)),
        "grad_norm": lambda images: ctx.map_batches(
            images, lambda x: gradient_norm_score(model.logits, x.to(model.device)), "gradients"
        ),
    }
    if ctx.data.all_test:  # the test images would be compared with themselves
        return found
    neighbors, known = min(NEIGHBORS, len(ctx.train_subset)), ctx.features_of(ctx.train_subset)
    found["knn"] = lambda images: knn_score(features_of(images), known, neighbors)
    if (labels := fitted.labels) is not None:
        typical = known[::2]  # the features of ``fitted``
        found["mahalanobis"] = lambda images: mahalanobis_score(features_of(images), typical, labels)
        found["relative_mahalanobis"] = lambda images: relative_mahalanobis_score(features_of(images), typical, labels)
    return found


def denoiser_scores(ctx: Context, fitted: ImageSet) -> dict[str, Scorer]:
    """The scores that need a denoiser. ``fitted`` are the training images that densities are fitted to."""
    found: dict[str, Scorer] = {
        "denoising": lambda images: denoising_score(ctx, images),
        "bits": lambda images: bound_score(ctx, images.subsample(ctx.options.bound_images)),
    }
    if len(fitted) < FEWEST or ctx.data.all_test:
        return found
    six = remembered(partial(paths, ctx))
    found["scoped"] = density_of(partial(curvatures, ctx), fitted, density_score)
    found["diffpath"] = density_of(six, fitted, normal_score)
    found["trajectory"] = density_of(lambda images: torch.cat((six(images), log_errors(ctx, images)), 1), fitted, normal_score)
    return found


def two_halves(ctx: Context) -> tuple[ImageSet, ImageSet]:
    """Training images that scores are fitted to, and others, for the ranks of in-distribution images."""
    odd = torch.arange(len(ctx.train_subset)) % 2 == 1
    return ctx.train_subset.where(~odd), ctx.data.held_out or ctx.train_subset.where(odd)


def density_of(
    statistics: Callable[[ImageSet], Tensor], known: ImageSet, density: Callable[[Tensor, Tensor], Tensor]
) -> Scorer:
    """The density of statistics [N, S] of images under that of known ones."""
    of_known = statistics(known)
    return lambda images: density(statistics(images), of_known)


def fused(parts: Sequence[Scorer], reference: ImageSet) -> Scorer:
    """Fisher's combination of the ranks of scores among reference images."""
    id_scores = [part(reference) for part in parts]

    def score(images: ImageSet) -> Tensor:
        return fused_score([in_distribution_rank(part(images), own) for part, own in zip(parts, id_scores, strict=True)])

    return score


def remembered(scorer: Scorer) -> Scorer:
    """The same scorer, which computes the score of a set of images once."""
    known: dict[int, tuple[ImageSet, Tensor]] = {}  # the images too, so that no other set gets their id

    def score(images: ImageSet) -> Tensor:
        if id(images) not in known:
            known[id(images)] = (images, scorer(images))
        return known[id(images)][1]

    return score


def curvatures(ctx: Context, images: ImageSet) -> Tensor:
    """The statistic of SCOPED, [N, 1]. Noise and probe are the same for all images."""
    model, shape = ctx.model, ctx.model.image_shape
    t, draws = max(1, round(CURVATURE_TIME * model.diffusion.T)), ctx.generator(6)
    noise = torch.randn(shape, generator=draws)
    probe = 2.0 * torch.randint(2, shape, generator=draws) - 1

    def statistic(x: Tensor) -> Tensor:
        x = x.to(model.device)
        return score_curvature(model.denoise, model.diffusion, x, t, noise.to(x.device), probe.to(x.device))[:, None]

    return ctx.map_batches(images, statistic, "curvatures")


def paths(ctx: Context, images: ImageSet) -> Tensor:
    """The statistics of DiffPath, [N, 6]."""
    model, T = ctx.model, ctx.model.diffusion.T
    times = sorted({max(1, round(share * T)) for share in PATH_TIMES})
    return ctx.map_batches(
        images, lambda x: path_statistics(model.denoise, model.diffusion, x.to(model.device), times), "paths to noise"
    )


def log_errors(ctx: Context, images: ImageSet) -> Tensor:
    """The log of the mean squared error of the predicted x_0 at ERROR_TIMES, [N, 6]. The noise is the same for all images."""
    model, diffusion = ctx.model, ctx.model.diffusion
    times = [max(1, round(share * diffusion.T)) for share in ERROR_TIMES]
    noise = torch.randn(len(times), *model.image_shape, generator=ctx.generator(7))

    @torch.no_grad()
    def statistics(x: Tensor) -> Tensor:
        x, found = x.to(model.device), []
        for t, eps in zip(times, noise.to(x.device), strict=True):
            at = torch.full((len(x),), t, device=x.device)
            apart = model.predict_x0(diffusion.q_sample(x, at, eps.expand_as(x)), at) - x
            found.append(apart.flatten(1).square().mean(dim=1).cpu().double().clamp_min(TINY).log())
        return torch.stack(found, dim=1)

    return ctx.map_batches(images, statistics, "errors")


def denoising_score(ctx: Context, images: ImageSet, draws: int = DENOISING_DRAWS) -> Tensor:
    """Minus the mean squared error of the predicted noise at a few times, for several draws of noise -> [N, draws].

    A draw is the same for every image, so the error that it makes is no part of an interval over images.
    """
    diffusion, shape = ctx.model.diffusion, ctx.model.image_shape
    times = [max(1, round(share * diffusion.T)) for share in DENOISING_TIMES]
    noise = torch.randn(draws, len(times), *shape, generator=ctx.generator(1))

    @torch.no_grad()
    def score(x: Tensor) -> Tensor:
        x, total = x.to(ctx.model.device), torch.zeros(len(x), draws)
        for draw, own in enumerate(noise.to(x.device)):
            for t, eps in zip(times, own, strict=True):
                at = torch.full((len(x),), t, device=x.device)
                x_t = diffusion.q_sample(x, at, eps.expand_as(x))
                total[:, draw] += (ctx.model.denoise(x_t, at) - eps).pow(2).flatten(1).mean(dim=1).float().cpu()
        return -total / len(times)

    return ctx.map_batches(images, score, "denoising")


def bound_score(ctx: Context, images: ImageSet) -> Tensor:
    """Minus the sampled bound in bits per dimension, with the same draws for every batch."""

    @torch.no_grad()
    def score(x: Tensor) -> Tensor:
        x, draws = x.to(ctx.model.device), ctx.options.bound_draws
        if not draws:
            return -variational_bound(ctx.model.predict_x0, ctx.model.diffusion, x, ctx.generator(2))
        return -sampled_bound(ctx.model.predict_x0, ctx.model.diffusion, x, ctx.generator(2), draws)[0]

    return ctx.map_batches(images, score, "bounds", BOUND_BATCH)
