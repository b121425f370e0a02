"""What the features hold: a linear probe and nearest neighbors, learned from training images."""

from __future__ import annotations

from ..metrics.probe import linear_probe, nearest_neighbors
from .context import Context, Result, proportion


def run(ctx: Context) -> Result:
    result, known = Result(), ctx.train_subset
    if ctx.data.all_test or known.labels is None or len(known.labels.unique()) < 2:
        result.notes.append("Nothing to learn from: the probes need labeled training images of two classes or more.")
        return result
    features, others = ctx.features_of(known), ctx.features_of(ctx.test)
    for name, predict in (("linear", linear_probe), ("knn", nearest_neighbors)):
        right = predict(features, known.labels, others) == ctx.labels
        result.metrics[f"probe/{name}_accuracy"] = proportion(right)
    result.notes.append(f"Learned from {len(known):,} training images, on {features.shape[1]} features.")
    return result
