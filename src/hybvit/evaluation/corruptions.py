"""Common corruptions (Hendrycks & Dietterich 2019): error, calibration, out-of-distribution scores and doubt by severity.

Severity 0 is the same images, clean. What is given by severity is over the common corruptions; the extra ones have an error
each. Every image occurs once for each corruption, so all intervals are over images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.corruptions import COMMON, FAMILIES, SEVERITIES, SMALLEST, applicable, check_frost, corrupt, frost_photos, scale_of
from ..data.image_set import ImageSet, evenly_spaced
from ..data.images import grid
from ..distributed import share_batches
from ..evaluation import plots
from ..metrics.calibration import SHARE, bootstrap_interval, expected_calibration_error, reliability_table
from ..metrics.classification import mean_interval, nll, wilson_interval
from ..metrics.likelihood import log_density
from ..metrics.ood import auroc, clustered_auroc_interval
from ..metrics.selective import max_probability
from .context import Context, Metric, Picture, Result
from .ood_scores import denoising_score

BINS = 15  # of the calibration error
ACCEPTED = 0.9  # share of the clean images that the threshold of doubt accepts
DENOISING_IMAGES = 50  # with one draw of noise, its score takes three passes for each
CORRUPTED_BATCH = 64
SCORE_LABELS = {"logpx": "log p(x)", "denoising": "denoising error"}


class Answer(NamedTuple):
    """What the model says of the images at one corruption and severity: logits float [N, K], and scores that are higher for
    images like the training data: log p(x) float64 [N], and of M of the images the denoising score [M] (M = 0 without one)."""

    logits: Tensor
    scores: dict[str, Tensor]


Answers = Mapping[tuple[str, int], Answer]  # by corruption and severity


def run(ctx: Context) -> Result:
    result, (channels, size, _), options = Result(), ctx.model.image_shape, ctx.options
    if channels not in (1, 3) or size < SMALLEST or len(ctx.test) < 2:
        result.notes.append(f"Nothing was measured: at least two images of 1 or 3 channels and {SMALLEST} pixels are needed.")
        return result
    photos = frost_photos(options.frost) if options.frost else ()
    names = chosen(options.corruptions, channels, bool(photos), result)
    if "frost" in names:
        check_frost(photos, size)  # now, not when its turn has come
    if not names:
        return result
    images = ctx.test.subsample(options.corruption_images)
    place = evenly_spaced(len(ctx.test), len(images))  # an image is corrupted alike, however many are
    clean, answers = answer(ctx, images), dict[tuple[str, int], Answer]()
    shown = {"clean": images.in_memory[:1]}
    for name in names:
        for severity in SEVERITIES:

            def corrupted(index: Tensor, name: str = name, severity: int = severity) -> Tensor:
                return corrupt(images.in_memory[index], name, severity, options.seed, index=place[index], photos=photos)

            (pixels,) = share_batches(len(images), CORRUPTED_BATCH, corrupted, f"{name} {severity}")
            answers[name, severity] = answer(ctx, ImageSet(pixels))
            shown[f"{name} {severity}"] = pixels[:1]
    assert images.labels is not None
    counted = tuple(name for name in names if name in COMMON) or names
    if not set(counted) & set(COMMON):
        over = ", ".join(names)
        result.notes.append(f"mean_error and what is given by severity are over {over}: no common corruption was asked for.")
    add_by_corruption(result, answers, names, counted, images.labels)
    add_by_severity(ctx, result, {0: [clean]} | by_severity(answers, counted), images.labels)
    add_tables(result, clean, answers, names, images.labels, size)
    add_pictures(result, names, counted)
    result.pictures["examples"] = Picture(examples(shown, names), examples_caption(names))
    return result


def chosen(asked: Sequence[str], channels: int, with_frost: bool, result: Result) -> tuple[str, ...]:
    """The corruptions to measure; a note names those that are left out."""
    possible = applicable(channels, with_frost)
    if "frost" not in possible and not asked:
        result.notes.append("frost was left out: it needs photographs that hybvit may not pass on (--frost DIR).")
    if "saturate" not in possible and (not asked or "saturate" in asked):
        result.notes.append("saturate was left out: it does not change gray images.")
    return tuple(name for name in possible if not asked or name in asked)


def answer(ctx: Context, images: ImageSet) -> Answer:
    logits = ctx.logits_of(images)
    scores = {"logpx": log_density(logits.double())}
    if ctx.model.has_denoiser:
        scores["denoising"] = denoising_score(ctx, images.subsample(DENOISING_IMAGES), draws=1)[:, 0]
    return Answer(logits, scores)


def by_severity(answers: Answers, names: Sequence[str]) -> dict[int, list[Answer]]:
    return {severity: [answers[name, severity] for name in names] for severity in SEVERITIES}


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 [N], 1 where the largest logit is not the label's."""
    return (logits.argmax(dim=1) != labels).double()


def mean_metric(values: Tensor) -> Metric:
    """The mean of float64 [N, ...], with its interval over the first dimension."""
    of_images = values.flatten(1).mean(dim=1)
    return metric_of(of_images.mean().item(), len(of_images), mean_interval(of_images))


def share_metric(values: Tensor) -> Metric:
    """The mean of float64 [N, ...] of 0 and 1, with its interval over the first dimension."""
    return as_share(mean_metric(values))


def metric_of(value: float, n: int, bounds: tuple[float, float]) -> Metric:
    """A figure with its interval, or without where n images that agree leave no variance to estimate."""
    varies = not math.isclose(*bounds, rel_tol=1e-12, abs_tol=1e-12)  # but for rounding
    return Metric(value, n, *(bounds if varies else ()))


def as_share(found: Metric) -> Metric:
    """A share with its interval, within 0 and 1: Wilson's where n images that agree leave no variance to estimate."""
    if found.low is None or found.high is None:
        return Metric(found.value, found.n, *wilson_interval(found.value, found.n))
    return from_0_to_1(found)


def from_0_to_1(found: Metric) -> Metric:
    """A figure that cannot leave 0 to 1, with its interval cut there."""
    if found.low is None or found.high is None:
        return found
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))


def add_by_corruption(result: Result, answers: Answers, names: Sequence[str], counted: Sequence[str], labels: Tensor) -> None:
    """The error of each corruption, and the mean of the counted ones, all over the five severities."""
    wrong = {name: torch.stack([is_wrong(answers[name, s].logits, labels) for s in SEVERITIES], dim=1) for name in names}
    result.metrics["corruptions/mean_error"] = share_metric(torch.stack([wrong[name] for name in counted], dim=1))
    for name in names:
        result.metrics[f"corruptions/error_{name}"] = share_metric(wrong[name])


def add_by_severity(ctx: Context, result: Result, levels: Mapping[int, Sequence[Answer]], labels: Tensor) -> None:
    """Error, calibration, doubt and detection at each severity; at 0 of the clean images."""
    (clean,) = levels[0]
    threshold = max_probability(clean.logits).quantile(1 - ACCEPTED, interpolation="lower").item()
    for severity, found in levels.items():
        logits = torch.stack([answer.logits for answer in found], dim=1)  # [N, corruptions, K]
        measured = measures(logits, labels, threshold, ctx.options.seed)
        if severity:
            measured |= detection(clean, found, ctx.options.seed)
        result.metrics |= {f"corruptions/{name}_severity_{severity}": metric for name, metric in measured.items()}
    result.tables["threshold_of_doubt"] = threshold


def measures(logits: Tensor, labels: Tensor, threshold: float, seed: int) -> dict[str, Metric]:
    """Logits [N, M, K] of M corruptions of N images -> metrics over all of them.

    Args:
        threshold: the least largest probability of an answer that is accepted.
    """
    n, m, _ = logits.shape
    every, of_all = logits.flatten(0, 1), labels.repeat_interleave(m)
    wrong, confidence = is_wrong(every, of_all).reshape(n, m), max_probability(every).reshape(n, m)
    accepted = (confidence >= threshold).double()

    def ece(index: Tensor) -> float:
        return expected_calibration_error(
            reliability_table(logits[index].flatten(0, 1), labels[index].repeat_interleave(m), BINS)
        )

    def accepted_error(index: Tensor) -> float:
        return ((wrong * accepted)[index].sum() / accepted[index].sum().clamp(min=1)).item()

    everyone, answered = torch.arange(n), int(accepted.any(dim=1).sum())
    found = metric_of(accepted_error(everyone), answered, bootstrap_interval(accepted_error, n, seed))
    of_accepted = {"accepted_error": as_share(found)} if answered else {}  # of no answers there is no error
    return {
        "error": share_metric(wrong),
        "nll": mean_metric(nll(every, of_all).reshape(n, m)),
        f"ece_{BINS}": metric_of(ece(everyone), n, bootstrap_interval(ece, n, seed, limits=SHARE)),
        "confidence": from_0_to_1(mean_metric(confidence)),
        "accepted": share_metric(accepted),
    } | of_accepted


def detection(clean: Answer, found: Sequence[Answer], seed: int) -> dict[str, Metric]:
    """The AUROC of each score, clean images against all corrupted ones; an image and its corruptions are drawn together."""
    metrics = {}
    for score, id_scores in clean.scores.items():
        ood_scores = torch.stack([answer.scores[score] for answer in found], dim=1)
        image = torch.arange(len(id_scores))
        images, values = image.repeat_interleave(len(found)), ood_scores.flatten()
        bounds = clustered_auroc_interval(id_scores, values, image, images, seed)
        metrics[f"auroc_{score}"] = Metric(auroc(id_scores, values), len(id_scores), *bounds)
    return metrics


def add_tables(result: Result, clean: Answer, answers: Answers, names: Sequence[str], labels: Tensor, size: int) -> None:
    """The figures of each corruption at each severity, of as many images as the metrics."""
    cells: dict[str, dict[str, list[float]]] = {"error": {}, "nll": {}, f"ece_{BINS}": {}}
    for name in names:
        row = [answers[name, severity] for severity in SEVERITIES]
        cells["error"][name] = [is_wrong(cell.logits, labels).mean().item() for cell in row]
        cells["nll"][name] = [nll(cell.logits, labels).mean().item() for cell in row]
        tables = [reliability_table(cell.logits, labels, BINS) for cell in row]
        cells[f"ece_{BINS}"][name] = [expected_calibration_error(table) for table in tables]
        for score, id_scores in clean.scores.items():
            cells.setdefault(f"auroc_{score}", {})[name] = [auroc(id_scores, cell.scores[score]) for cell in row]
    result.tables |= cells | {
        "constants": scale_of(size),
        "images": {"all": len(labels)} | {score: len(values) for score, values in clean.scores.items()},
    }


def add_pictures(result: Result, names: Sequence[str], counted: Sequence[str]) -> None:
    """A heat map of the error, and curves by severity."""
    metrics, errors = result.metrics, result.tables["error"]
    clean, n = metrics["corruptions/error_severity_0"].value, len(counted)
    result.pictures["errors"] = Picture(
        plots.heat_map({name: [100 * clean, *(100 * value for value in errors[name])] for name in names}, (0, *SEVERITIES),
        "severity (0: clean)", "error, %"),
        f"Error in % by corruption and severity, of {metrics['corruptions/mean_error'].n} images",
    )  # fmt: skip
    families = {
        family: [1 - clean, *(1 - np.mean([errors[name] for name in members], axis=0))]
        for family, named in FAMILIES.items()
        if (members := [name for name in named if name in counted])
    }
    result.pictures["accuracy"] = Picture(
        plots.curves({name: list(enumerate(values)) for name, values in families.items()}, "severity (0: clean)", "accuracy"),
        "Accuracy by kind of corruption",
    )

    def by_level(name: str, severities: Sequence[int] = (0, *SEVERITIES)) -> list[tuple[float, float]]:
        return [(s, metrics[f"corruptions/{name}_severity_{s}"].value) for s in severities]

    result.pictures["doubt"] = Picture(
        plots.curves(
            {
                "accuracy": [(s, 1 - error) for s, error in by_level("error")],
                "mean confidence": by_level("confidence"),
                "accuracy of the accepted": [(s, 1 - error) for s, error in by_level("accepted_error")],
                "share accepted": by_level("accepted"),
            },
            "severity (0: clean)",
            "share",
        ),
        f"Mean of {n} corruptions. Accepted: a confidence that {ACCEPTED:.0%} of the clean images reach",
    )
    scores = [score for score in SCORE_LABELS if f"corruptions/auroc_{score}_severity_1" in metrics]
    result.pictures["detection"] = Picture(
        plots.curves(
            {SCORE_LABELS[score]: [(0, 0.5), *by_level(f"auroc_{score}", SEVERITIES)] for score in scores},
            "severity (0: clean)",
            "AUROC",
        ),
        f"How well the scores separate clean images from those of {n} corruptions (0.5 is chance)",
    )


def examples(shown: Mapping[str, Tensor], names: Sequence[str]) -> Image.Image:
    """One image: a row for each corruption, with a column for the clean one and for each severity."""
    rows = [shown["clean" if severity == 0 else f"{name} {severity}"] for name in names for severity in (0, *SEVERITIES)]
    return grid(torch.cat(rows), columns=1 + len(SEVERITIES), scale=max(1, 48 // rows[0].shape[-1]))


def examples_caption(names: Sequence[str]) -> str:
    return f"One image, clean and at severities 1 to 5; from top to bottom: {', '.join(names)}"
