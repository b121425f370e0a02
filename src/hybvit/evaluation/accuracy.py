"""Accuracy: top-1 and top-5, per class, the confusion matrix, NLL and Brier score."""

from __future__ import annotations

from itertools import groupby

from ..data.images import grid
from ..evaluation import plots
from ..metrics.classification import brier, confusion_matrix, mean_interval, nll, per_class_accuracy
from .context import Context, Metric, Picture, Result, proportion

MISTAKES = 20


def run(ctx: Context) -> Result:
    result, logits, labels = Result(), ctx.logits, ctx.labels
    classes = ctx.model.classes
    predictions = logits.argmax(dim=1)
    result.metrics["test/accuracy"] = proportion(predictions == labels)
    if logits.shape[1] > 5:
        result.metrics["test/accuracy_top5"] = proportion((logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1))
    for name, values in (("nll", nll(logits, labels)), ("brier", brier(logits, labels))):
        result.metrics[f"test/{name}"] = Metric(values.mean().item(), len(values), *mean_interval(values))
    counts = confusion_matrix(predictions, labels, logits.shape[1])
    per_class = per_class_accuracy(counts)
    result.tables["confusion_matrix"] = counts.tolist()
    result.tables["accuracy_per_class"] = {
        name: None if value != value else value for name, value in zip(classes, per_class.tolist(), strict=True)
    }
    result.pictures["confusion"] = Picture(
        plots.confusion(counts.tolist(), classes),
        "Confusion matrix: true class by row, predicted class by column; shading is the share of the row",
    )
    shown = {name: value for name, value in result.tables["accuracy_per_class"].items() if value is not None}
    if len(shown) <= 30:
        result.pictures["per_class"] = Picture(plots.bars(shown, "accuracy"), "Accuracy per class")
    wrong = (predictions != labels).nonzero().flatten()[:MISTAKES]
    if len(wrong):
        pixels = ctx.test.take(wrong)[0]
        named = [f"{classes[labels[i]]} predicted as {classes[predictions[i]]}" for i in wrong.tolist()]
        result.tables["mistakes"] = named
        picture = grid(pixels, columns=min(10, len(wrong)), scale=max(1, 48 // pixels.shape[-1]))
        runs = [(mistake, len(list(same))) for mistake, same in groupby(named)]
        caption = "; ".join(mistake if n == 1 else f"{mistake} ({n} times)" for mistake, n in runs)
        result.pictures["mistakes"] = Picture(picture, f"The first mistakes: {caption}")
    return result
