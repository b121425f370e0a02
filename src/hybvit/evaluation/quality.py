"""The model's view of its own samples: log p(x) and p(y|x), by class (Appendix C.1; Figures 10, 11 and 15-24)."""

from __future__ import annotations

import torch

from ..data.image_set import ImageSet
from ..data.images import grid
from ..evaluation import plots
from ..metrics.likelihood import log_density
from .context import Context, Metric, Picture, Result

PER_CLASS = 10
CLASSES_SHOWN = 20


def run(ctx: Context) -> Result:
    result, samples = Result(), ctx.samples
    logits = ctx.logits_of(ImageSet(samples)).double()
    density, (confidence, label) = log_density(logits), logits.softmax(dim=1).max(dim=1)
    classes = ctx.model.classes
    scores = {"logpx": ("log p(x)", density), "confidence": ("p(y|x)", confidence)}
    real = ctx.logits.double()
    real_scores = {"logpx": log_density(real), "confidence": real.softmax(dim=1).max(dim=1).values}
    for key, (words, values) in scores.items():
        result.metrics[f"quality/{key}_mean"] = Metric(values.mean().item(), len(values))
        result.metrics[f"quality/{key}_mean_test"] = Metric(real_scores[key].mean().item(), len(real))
        compared = {"samples": values.tolist(), "test images": real_scores[key].tolist()}
        result.pictures[f"{key}_real"] = Picture(plots.histograms(compared, words), f"{words} of samples and of test images")
    shares = torch.bincount(label, minlength=len(classes)).double() / len(label)
    result.metrics["quality/smallest_class_share"] = Metric(shares.min().item(), len(label))
    result.tables["samples_by_class"] = {
        name: {
            "share": share,
            **{f"mean_{key}": values[label == k].mean().item() for key, (_, values) in scores.items() if (label == k).any()},
        }
        for k, (name, share) in enumerate(zip(classes, shares.tolist(), strict=True))
    }
    shown = shares.argsort(descending=True)[:CLASSES_SHOWN].sort().values.tolist()
    result.pictures["classes"] = Picture(
        plots.bars({classes[k]: shares[k].item() for k in shown}, "share of samples"),
        "Predicted classes of the samples",
    )
    for key, (words, values) in scores.items():
        by_class = {classes[k]: values[label == k].tolist() for k in shown if (label == k).sum() > 1}
        if by_class:
            result.pictures[f"{key}_by_class"] = Picture(
                plots.histogram_panels(by_class, words),
                f"{words} of samples, by class and their number (Figures 10 and 11)",
            )
        for title, largest in (("best", True), ("worst", False)):
            rows = [rank(values, label == k, largest) for k in shown if (label == k).sum() >= PER_CLASS]
            if rows:
                pixels = samples[torch.cat(rows)]
                picture = grid(pixels, columns=PER_CLASS, scale=max(1, 32 // pixels.shape[-1]))
                caption = f"The {PER_CLASS} {title} samples of each class by {words}, one class per row"
                caption += " (Figures 15-24 of the paper)"
                result.pictures[f"{title}_{key}"] = Picture(picture, caption)
    return result


def rank(values: torch.Tensor, member: torch.Tensor, largest: bool) -> torch.Tensor:
    """Indices of the PER_CLASS class members with the largest or smallest values."""
    index = member.nonzero().flatten()
    return index[values[index].argsort(descending=largest)[:PER_CLASS]]
