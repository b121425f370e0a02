"""Calibration: ECE, MCE and reliability diagrams; after scaling the logits too, fitted on images outside of training."""

from __future__ import annotations

from torch import Tensor

from ..evaluation import plots
from ..metrics.calibration import (
    SHARE,
    Scaling,
    bootstrap_interval,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_table,
)
from ..metrics.classification import mean_interval, nll
from .context import Context, Judged, Metric, Picture, Result

PAPER_BINS, COMMON_BINS = 20, 15
FEWEST = 30  # images of a bin that counts for the MCE


def run(ctx: Context) -> Result:
    result, judged = Result(), ctx.judged
    logits, labels = ctx.logits[judged.images], ctx.labels[judged.images]
    scaling = scaling_of(judged, result)
    stages = [("", logits, "as trained")]
    if scaling is not None:
        stages.append(("_scaled", scaling.apply(logits), named(scaling)))
    for suffix, scaled, title in stages:
        for name, metric in measures(scaled, labels, ctx.options.seed).items():
            result.metrics[f"calibration/{name}{suffix}"] = metric
        losses = nll(scaled, labels)
        result.metrics[f"calibration/nll{suffix}"] = Metric(losses.mean().item(), len(losses), *mean_interval(losses))
        table = reliability_table(scaled, labels, PAPER_BINS)
        result.tables[f"reliability{suffix}"] = {
            "count": table.size.tolist(), "confidence": filled(table.confidence), "accuracy": filled(table.accuracy)
        }  # fmt: skip
        result.pictures[f"reliability{suffix}"] = Picture(
            plots.reliability(filled(table.confidence), filled(table.accuracy), table.size.tolist(), title),
            f"Reliability, {title}: on the dashed line, accuracy equals confidence (Figures 6 and 12 of the paper)",
        )
    if len(stages) > 1:
        compare(result, nll(stages[1][1], labels) - nll(logits, labels))
    if f"calibration/mce_{PAPER_BINS}_min{FEWEST}" not in result.metrics:
        result.notes.append(f"No MCE: none of the {PAPER_BINS} bins has {FEWEST} images.")
    return result


def named(scaling: Scaling) -> str:
    return "vector scaling" if scaling.temperature is None else f"temperature {scaling.temperature:.2f}"


def scaling_of(judged: Judged, result: Result) -> Scaling | None:
    """The scaling to judge; None, with a note, where there is none."""
    result.notes += [judged.note] if judged.note else []
    if judged.calibration is None:
        return None
    found = judged.calibration
    if found.scaling.kind == "none":
        perfect = bool((found.labels.rank == 1).all())
        result.notes.append(
            "No scaling was applied: "
            + (
                "the accuracy on the images to fit it on is perfect, so no finite temperature is optimal."
                if perfect
                else "cross-validated on the images to fit it on, none was better than the logits as they are."
            )
        )
        return None
    if found.scaling.temperature is not None:
        result.metrics["calibration/temperature"] = Metric(found.scaling.temperature, len(found))
    return found.scaling


def compare(result: Result, change: Tensor) -> None:
    """Say whether the scaling is an improvement on the test images, image by image, and warn where it is not."""
    metric = Metric(change.mean().item(), len(change), *mean_interval(change))
    result.metrics["calibration/nll_change"] = metric
    before, after = (result.metrics[f"calibration/ece_{COMMON_BINS}{suffix}"].value for suffix in ("", "_scaled"))
    if metric.low is not None and metric.low > 0:
        result.notes.append(f"Scaled, the NLL is worse on these test images (change {metric.value:+.4f} nats): do not scale.")
    elif metric.high is None or not metric.high < 0:
        result.notes.append(f"Scaled, the NLL is not clearly better on these test images (change {metric.value:+.4f} nats).")
    if after > before:
        result.notes.append(f"Scaled, the ECE is larger on these test images ({after:.4f}, before {before:.4f}).")


def measures(logits: Tensor, labels: Tensor, seed: int) -> dict[str, Metric]:
    """Each calibration error by name; MCE has no interval, and n is the number of images in the bins that count."""
    found: dict[str, Metric] = {}
    for name, bins, equal_mass in (
        (f"ece_{PAPER_BINS}", PAPER_BINS, False),
        (f"ece_{COMMON_BINS}", COMMON_BINS, False),
        (f"adaptive_ece_{COMMON_BINS}", COMMON_BINS, True),
    ):

        def error(index: Tensor, bins: int = bins, equal_mass: bool = equal_mass) -> float:
            return expected_calibration_error(reliability_table(logits[index], labels[index], bins, equal_mass))

        interval = bootstrap_interval(error, len(labels), seed, limits=SHARE)
        value = expected_calibration_error(reliability_table(logits, labels, bins, equal_mass))
        found[name] = Metric(value, len(labels), *interval)
    table = reliability_table(logits, labels, PAPER_BINS)
    counted = int(table.size[table.size >= FEWEST].sum())
    if counted:
        found[f"mce_{PAPER_BINS}_min{FEWEST}"] = Metric(maximum_calibration_error(table, FEWEST), counted)
    return found


def filled(values: Tensor) -> list[float]:
    """Empty bins, which have no mean, as 0: JSON has no NaN, and an empty bin is drawn as a bar of height 0."""
    return values.nan_to_num().tolist()
