"""Likelihood: the variational bound in bits per dimension, in total and by term (Sec. 5.2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.image_set import to_x
from ..distributed import share_batches
from ..evaluation import plots
from ..metrics.classification import mean_interval
from ..metrics.likelihood import bound_terms, sampled_parts
from .context import Context, Metric, Picture, Result

BOUND_BATCH, TERMS_BATCH = 64, 8  # images that a process takes at a time
PLOTTED_IMAGES = 16  # for the terms by t, which take all T evaluations
PARTS = ("prior", "decoder", "diffusion")


def run(ctx: Context) -> Result:
    result, images, draws = Result(), ctx.test.subsample(ctx.options.bound_images), ctx.options.bound_draws
    model, diffusion = ctx.model, ctx.model.diffusion

    def terms_of(index: Tensor) -> Tensor:
        """[B, T + 1]: prior, then the terms of t = 1 .. T."""
        with torch.no_grad():
            x = to_x(images.take(index)[0]).to(model.device)
            return bound_terms(model.predict_x0, diffusion, x, ctx.generator(4 + int(index[0])))

    if draws and draws < diffusion.T - 1:

        def parts_of(index: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                x = to_x(images.take(index)[0]).to(model.device)
                return sampled_parts(model.predict_x0, diffusion, x, ctx.generator(4 + int(index[0])), draws)

        parts, error = share_batches(len(images), BOUND_BATCH, parts_of, "bits per dimension")
        result.metrics["likelihood/time_sampling_error"] = Metric(error.pow(2).sum().sqrt().item() / len(error), len(error))
        result.tables["times_drawn_per_image"] = draws
        shown = images.subsample(PLOTTED_IMAGES)
    else:
        shown = images
    (terms,) = share_batches(len(shown), TERMS_BATCH, terms_of, "terms of the bound")
    if shown is images:
        parts = torch.stack((terms[:, 0], terms[:, 1], terms[:, 2:].sum(dim=1)), dim=1)
    bits = parts.sum(dim=1)
    result.metrics["likelihood/bits_per_dim"] = Metric(bits.mean().item(), len(bits), *interval(bits))
    for name, values in zip(PARTS, parts.unbind(dim=1), strict=True):
        result.metrics[f"likelihood/{name}_bits"] = Metric(values.mean().item(), len(values), *interval(values))
    by_time = terms[:, 1:].mean(dim=0)
    result.tables["bits_by_time"] = [round(value, 8) for value in by_time.tolist()]
    points = [(t, max(value, 1e-12)) for t, value in enumerate(by_time.tolist(), 1)]
    result.pictures["terms"] = Picture(
        plots.curve(points, "t", "bits per dimension", log=True),
        f"The bound's term at each t (mean of {len(shown)} images; the figures in the table are of {len(images)})",
    )
    return result


def interval(values: Tensor) -> tuple[float, float] | tuple[()]:
    return mean_interval(values) if len(values) > 1 else ()
