"""Calibration: ECE, MCE and reliability diagrams; with images held out of training, after temperature scaling too."""

from __future__ import annotations

from torch import Tensor

from ..evaluation import plots
from ..metrics.calibration import (
    TEMPERATURES,
    bootstrap_interval,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    reliability_table,
)
from ..metrics.classification import mean_interval, nll
from .context import Context, Metric, Picture, Result

PAPER_BINS, COMMON_BINS = 20, 15
FEWEST = 30  # images of a bin that counts for the MCE
NOT_FITTED = (
    "No temperature was fitted: no images were held out of training (train with --data.held_out 0.1). "
    "Fitted on images that the network was trained on, it would make the calibration worse."
)


def run(ctx: Context) -> Result:
    result, logits, labels = Result(), ctx.logits, ctx.labels
    temperature = fitted(ctx, result)
    stages = [("", logits)] if temperature is None else [("", logits), ("_scaled", logits / temperature)]
    for suffix, scaled in stages:
        for name, metric in measures(scaled, labels, ctx.options.seed).items():
            result.metrics[f"calibration/{name}{suffix}"] = metric
        losses = nll(scaled, labels)
        result.metrics[f"calibration/nll{suffix}"] = Metric(losses.mean().item(), len(losses), *mean_interval(losses))
        table = reliability_table(scaled, labels, PAPER_BINS)
        result.tables[f"reliability{suffix}"] = {
            "count": table.size.tolist(), "confidence": filled(table.confidence), "accuracy": filled(table.accuracy)
        }  # fmt: skip
        title = "as trained" if temperature is None or not suffix else f"temperature {temperature:.2f}"
        result.pictures[f"reliability{suffix}"] = Picture(
            plots.reliability(filled(table.confidence), filled(table.accuracy), table.size.tolist(), title),
            f"Reliability, {title}: on the dashed line, accuracy equals confidence (Figures 6 and 12)",
        )
    if f"calibration/mce_{PAPER_BINS}_min{FEWEST}" not in result.metrics:
        result.notes.append(f"No MCE: none of the {PAPER_BINS} bins has {FEWEST} images.")
    return result


def fitted(ctx: Context, result: Result) -> float | None:
    """The temperature, fitted on images held out of training; None, with a note, if there are none or it is not finite."""
    part = ctx.data.held_out
    if part is None or len(part) == 0:  # few images have no tenth
        result.notes.append(NOT_FITTED)
        return None
    assert part.labels is not None
    temperature = fit_temperature(ctx.logits_of(part), part.labels)
    if TEMPERATURES[0] < temperature < TEMPERATURES[1]:
        result.metrics["calibration/temperature"] = Metric(temperature, len(part))
        return temperature
    how = "is perfect" if temperature <= TEMPERATURES[0] else "is no better than chance"
    result.notes.append(
        f"No temperature was applied: the accuracy on the images to fit it on {how}, so no finite temperature is optimal."
    )
    return None


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

        interval = bootstrap_interval(error, len(labels), seed)
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
