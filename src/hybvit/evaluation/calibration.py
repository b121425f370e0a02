"""Calibration: ECE, MCE and reliability diagrams, before and after temperature scaling."""

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


def run(ctx: Context) -> Result:
    result, logits, labels = Result(), ctx.logits, ctx.labels
    part = ctx.data.held_out if ctx.data.held_out is not None else ctx.train_part
    assert part.labels is not None
    temperature = fit_temperature(ctx.logits_of(part), part.labels)
    stages = [("", logits)]
    if ctx.data.held_out is None:
        result.notes.append(
            "No images were held out of training to fit the temperature on (train with --data.held_out 0.1). "
            "It was fitted on images that the network was trained on, so it may be too small."
        )
    if TEMPERATURES[0] < temperature < TEMPERATURES[1]:
        result.metrics["calibration/temperature"] = Metric(temperature, len(part))
        stages.append(("_scaled", logits / temperature))
    else:
        how = "is perfect" if temperature <= TEMPERATURES[0] else "is no better than chance"
        result.notes.append(
            f"No temperature was applied: the accuracy on the images to fit it on {how}, so no finite temperature is optimal."
        )
    for suffix, scaled in stages:
        for name, value, interval in measures(scaled, labels, ctx.options.seed):
            result.metrics[f"calibration/{name}{suffix}"] = Metric(value, len(labels), *interval)
        losses = nll(scaled, labels)
        result.metrics[f"calibration/nll{suffix}"] = Metric(losses.mean().item(), len(losses), *mean_interval(losses))
        table = reliability_table(scaled, labels, PAPER_BINS)
        result.tables[f"reliability{suffix}"] = {
            "count": table.size.tolist(), "confidence": filled(table.confidence), "accuracy": filled(table.accuracy)
        }  # fmt: skip
        title = "as trained" if not suffix else f"temperature {temperature:.2f}"
        result.pictures[f"reliability{suffix}"] = Picture(
            plots.reliability(filled(table.confidence), filled(table.accuracy), table.size.tolist(), title),
            f"Reliability, {title}: on the dashed line, accuracy equals confidence (Figures 6 and 12)",
        )
    return result


def measures(logits: Tensor, labels: Tensor, seed: int) -> list[tuple[str, float, tuple[float, float] | tuple[()]]]:
    """Name, value and 95 % interval of each calibration error; MCE has no interval."""
    found: list[tuple[str, float, tuple[float, float] | tuple[()]]] = []
    for name, bins, equal_mass in (
        (f"ece_{PAPER_BINS}", PAPER_BINS, False),
        (f"ece_{COMMON_BINS}", COMMON_BINS, False),
        (f"adaptive_ece_{COMMON_BINS}", COMMON_BINS, True),
    ):

        def error(index: Tensor, bins: int = bins, equal_mass: bool = equal_mass) -> float:
            return expected_calibration_error(reliability_table(logits[index], labels[index], bins, equal_mass))

        interval = bootstrap_interval(error, len(labels), seed)
        found.append((name, expected_calibration_error(reliability_table(logits, labels, bins, equal_mass)), interval))
    found.append((f"mce_{PAPER_BINS}", maximum_calibration_error(reliability_table(logits, labels, PAPER_BINS)), ()))
    return found


def filled(values: Tensor) -> list[float]:
    """Empty bins, which have no mean, as 0: JSON has no NaN, and an empty bin is drawn as a bar of height 0."""
    return values.nan_to_num().tolist()
