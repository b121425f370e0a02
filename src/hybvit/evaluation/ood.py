"""Out-of-distribution detection: the paper's scores (Tables 3 and 11), scores that need a denoiser, and common references.

Every score is higher for images that resemble the training data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..catalog import CATALOG
from ..config import DataConfig
from ..data.datasets import INTERPOLATION_BATCH, find, open_dataset, out_of_distribution
from ..data.files import Files
from ..data.image_set import BadFiles, Decoding, ImageSet, evenly_spaced, load_image_files
from ..data.images import Originals, grid
from ..data.locate import detect_format
from ..data.own_images import image_names
from ..distributed import first_of_all
from ..errors import DataError
from ..evaluation import plots
from ..metrics.classification import wilson_interval
from ..metrics.ood import aupr, auroc, auroc_interval, bootstrap_intervals, clustered_auroc_interval, fpr_at_95_tpr
from ..model import HybridModel
from .context import Context, Metric, Picture, Result
from .ood_scores import LABELS, passes, scores
from .options import INTERPOLATION, NOISE

FEWEST_CHAINS = 10  # of interpolations, for an interval
MEMORY = 4 << 30
SHOWN = 20
TEST = "test"
LEFT_OUT = "ood_left_out"  # the table of default sets that could not be read
RESERVED = (TEST, INTERPOLATION, NOISE, *CATALOG)  # a folder of such a name gets another


def run(ctx: Context) -> Result:
    result = Result()
    sets = first_of_all(lambda: ood_sets(ctx, result))
    sets = {name: images for name, images in sets.items() if len(images) > 1}
    if not sets or len(ctx.test) < 2 or ctx.options.bound_images < 2:
        result.notes.append("Nothing was measured: at least two test images and two images of another set are needed.")
        return result
    if ctx.options.limit is not None:
        sets = {name: images.subsample(ctx.options.limit) for name, images in sets.items()}
    passes_of: dict[str, int] = {}
    for score, scorer in scores(ctx).items():
        try:
            of_test = scorer(ctx.test)
        except RuntimeError as error:
            if score != "grad_norm":
                raise
            # an external model whose outputs are not differentiable
            result.notes.append(f"{score} was left out: {' '.join(str(error).split())[:120]}")
            continue
        compare(ctx, score, of_test, {name: scorer(images) for name, images in sets.items()}, result)
        passes_of[score] = passes(ctx, score)
    result.tables["ood_passes"] = passes_of
    for name, images in sets.items():
        pixels = images.subsample(SHOWN).in_memory
        result.pictures[f"images_{name}"] = Picture(
            grid(pixels, columns=10, scale=max(1, 32 // pixels.shape[-1])), f"{name}: out-of-distribution images"
        )
    return result


def compare(ctx: Context, score: str, id_draws: Tensor, ood_draws: dict[str, Tensor], result: Result) -> None:
    """How well a score separates the test images from each other set.

    Args:
        id_draws: float [N], the scores of the test images; [N, D] for the mean of D random draws.
        ood_draws: name of the set -> float [M] or [M, D].
    """
    id_scores, ood_scores = mean_of_draws(id_draws), {name: mean_of_draws(draws) for name, draws in ood_draws.items()}
    for name, of_set in ood_scores.items():
        n, key, area = len(id_scores) + len(of_set), f"ood/{name}", auroc(id_scores, of_set)
        bounds = interval(ctx, name, id_scores, of_set)
        if bounds and id_draws.ndim > 1:
            of_draws = [auroc(*pair) for pair in zip(id_draws.unbind(1), ood_draws[name].unbind(1), strict=True)]
            bounds = widened(area, bounds, torch.tensor(of_draws).std().item() / len(of_draws) ** 0.5)
        result.metrics[f"{key}/auroc_{score}"] = Metric(area, n, *bounds)
        separated = area in (0, 1)  # leaves no variance to estimate but that of resampled ties
        drawn = {} if name == INTERPOLATION or separated else bootstrap_intervals(id_scores, of_set, ctx.options.seed)
        accepted = fpr_at_95_tpr(id_scores, of_set)
        certain = wilson_interval(accepted, len(of_set)) if accepted in (0, 1) and name != INTERPOLATION else ()
        result.metrics[f"{key}/aupr_{score}"] = Metric(aupr(id_scores, of_set), n, *wide(drawn.get("aupr", ())))
        result.metrics[f"{key}/fpr95_{score}"] = Metric(
            accepted, len(of_set), *(certain or wide(drawn.get("fpr_at_95_tpr", ())))
        )
    plotted = {TEST: id_scores.tolist()} | {name: of_set.tolist() for name, of_set in ood_scores.items()}
    result.pictures[score] = Picture(plots.histograms(plotted, LABELS[score]), f"{LABELS[score]}, by data set")


def wide(bounds: tuple[float, float] | tuple[()]) -> tuple[float, float] | tuple[()]:
    """The interval, unless its width is 0: sets that do not overlap leave no variance to estimate."""
    return bounds if bounds and bounds[0] < bounds[1] else ()


def mean_of_draws(scores: Tensor) -> Tensor:
    return scores if scores.ndim == 1 else scores.mean(dim=1)


def widened(value: float, bounds: tuple[float, float], error: float) -> tuple[float, float]:
    """A 95 % interval, with an independent standard error added to each side."""
    down, up = (math.hypot(value - bounds[0], 1.96 * error), math.hypot(bounds[1] - value, 1.96 * error))
    return max(value - down, 0.0), min(value + up, 1.0)


def interval(ctx: Context, name: str, id_scores: Tensor, of_set: Tensor) -> tuple[float, float] | tuple[()]:
    """The 95 % interval of the AUROC.

    Interpolation k is the mean of test images k and k + b (:func:`out_of_distribution`). Images whose places differ by a
    multiple of b thus form a chain, and only chains are independent of each other.
    """
    if name != INTERPOLATION:
        return wide(auroc_interval(id_scores, of_set))
    apart = min(INTERPOLATION_BATCH, len(ctx.test) // 2)
    id_chain = evenly_spaced(len(ctx.test), len(id_scores)) % apart  # slow scores are of a part of the images
    ood_chain = evenly_spaced(len(ctx.test) - apart, len(of_set)) % apart
    if min(len(id_chain.unique()), len(ood_chain.unique())) < FEWEST_CHAINS:
        return ()
    return clustered_auroc_interval(id_scores, of_set, id_chain, ood_chain, ctx.options.seed)


def ood_sets(ctx: Context, result: Result) -> dict[str, ImageSet]:
    """The out-of-distribution sets at the model's size; a default set that cannot be read is named in a note."""
    names = ctx.options.out_of_distribution or (*default_sets(ctx.data_name), NOISE)
    channels, size, _ = ctx.model.image_shape
    bits = ctx.model.cfg.data.bits if isinstance(ctx.model, HybridModel) else None
    decoding = Decoding(channels, size, BadFiles(0), MEMORY, Originals(bits))
    found = {}
    for label, name in labeled(names).items():
        try:
            if name == NOISE:
                n = min(len(ctx.test), 2000)
                found[label] = ImageSet(
                    torch.randint(0, 256, (n, channels, size, size), generator=ctx.generator(3)).to(torch.uint8)
                )
            elif name == INTERPOLATION or name in CATALOG:
                found[label] = out_of_distribution(name, None, ctx.test, decoding)
            else:
                found[label] = read_images(name, decoding)
        except DataError as error:
            if ctx.options.out_of_distribution:
                raise
            absent = name in CATALOG and find(name, None) is None
            result.notes.append(f"{name} was left out: {'`hybvit datasets` says how to get it' if absent else error}.")
            result.tables.setdefault(LEFT_OUT, []).append(name)
    return found


def cured(ctx: Context, tables: Mapping[str, Any]) -> bool:
    """Whether a set that a stored result was measured without is there now."""
    return not ctx.options.out_of_distribution and any(find(name, None) is not None for name in tables.get(LEFT_OUT, ()))


def labeled(names: Iterable[str]) -> dict[str, str]:
    """A label of its own for each set: the name of a data set, or else of the folder or file, numbered where it is taken."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        label, number = name, 1
        if name not in RESERVED:
            base = label = Path(name).name.strip(".") or Path(name).resolve().name or "images"
            while label in found or label in RESERVED:
                number += 1
                label = f"{base}-{number}"
        found[label] = name
    return found


def default_sets(data_name: str) -> tuple[str, ...]:
    listed = CATALOG[data_name].out_of_distribution if data_name in CATALOG else ()
    return listed or (INTERPOLATION,)


def read_images(root: str, decoding: Decoding) -> ImageSet:
    """All images of a folder, a zip or any other source that --data accepts, whatever their class."""
    form = detect_format(root)
    if form == "folder":
        files = Files(Path(root))
        return load_image_files(files, image_names(files), None, decoding)
    group = DataConfig(name=form, root=root, split="none")  # all of them are wanted, whatever their split and class
    data = open_dataset(group, (decoding.channels, decoding.size, decoding.size), labeled=False)
    parts = (data.test,) if data.all_test else (data.train, data.test)
    return ImageSet(torch.cat([part.subsample(len(part)).in_memory for part in parts]))
