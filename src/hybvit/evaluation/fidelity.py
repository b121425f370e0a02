"""Sample fidelity against the training images: Frechet distance, Inception score, KID, precision and recall.

Only a Frechet distance on the canonical Inception weights is called FID; on any other extractor it carries that extractor's
name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.image_set import ImageSet, LazyImages, evenly_spaced
from ..data.images import grid
from ..distributed import all_gather, share_batches
from ..errors import ConfigError, DataError
from ..evaluation import plots
from ..metrics.fidelity import (
    Statistics,
    frechet_distance,
    frechet_interval,
    inception_score,
    kernel_distance,
    precision_recall,
)
from ..metrics.judge import PixelSVM, affordable, class_shares
from .context import Context, Metric, Picture, Result, proportion
from .extractors import Extractor, open_extractor

NO_EXTRACTOR = "no_extractor"  # the table that says why there is no Frechet distance
GRID_IMAGES = 100
CLASSES_SHOWN = 20
PRECISION_RECALL_IMAGES = 10_000  # images of each kind for precision and recall, whose cost is quadratic
KID_SUBSETS, KID_SUBSET = 100, 1000
NEIGHBORS, SPLITS = 3, 10
MIN_FOR_INTERVAL = 100
REFERENCES_KEPT, REFERENCE_PROBE, PROBED_FEATURES = 2, 256, 32
BIASED_BELOW = 1000  # images: a Frechet distance of fewer gets a note (the bundled extractors add about 80/n)


def run(ctx: Context) -> Result:
    result, o, extractor = Result(), ctx.options, None
    try:
        extractor = extractor_of(ctx)
    except (ConfigError, DataError) as error:
        if o.extractor or o.inception:
            raise
        result.notes.append(f"No Frechet distance: {error}")
        result.tables[NO_EXTRACTOR] = str(error)
    samples = ctx.samples
    scale = max(1, 64 // samples.shape[-1])
    condition = ", each of a random class" if ctx.model.draws_by_label else ""
    condition += f", guidance {o.guidance:g}" if o.guidance else ""
    caption = f"Generated images: {ctx.model.own_sampler or o.sampler}, {o.steps} steps, seed {o.seed}{condition}"
    result.pictures["samples"] = Picture(grid(samples[:GRID_IMAGES], columns=10, scale=scale), caption)
    real = ctx.data.train.subsample(GRID_IMAGES).in_memory
    result.pictures["training_images"] = Picture(grid(real, columns=10, scale=scale), ctx.reference.capitalize())
    if extractor is not None:
        distances(ctx, extractor, samples, result)
    judge_by_svm(ctx, samples, result)
    return result


def cured(ctx: Context, tables: Mapping[str, Any]) -> bool:
    """Whether there is a feature network now that a stored result was measured without."""
    if NO_EXTRACTOR not in tables:
        return False
    with suppress(ConfigError, DataError):
        extractor_of(ctx)
        return True
    return False


def extractor_of(ctx: Context) -> Extractor:
    """The feature network of this evaluation.

    Raises:
        ConfigError, DataError: there is none, or it cannot be read.
    """
    weights = ctx.options.inception
    spec = ctx.options.extractor or ("inception" if weights else None)
    return open_extractor(spec, ctx.data_name, Path(weights) if weights else None, ctx.model.device)


def distances(ctx: Context, extractor: Extractor, samples: Tensor, result: Result) -> None:
    """All metrics that compare the features of samples with those of all training images."""
    real = reference_features(ctx, extractor)
    generated = ImageSet(samples)
    made, logits = share_batches(
        len(samples), ctx.options.batch_size, lambda i: both(extractor, generated.take(i)[0]), "samples"
    )
    if (drawn := ctx.drawn_labels) is not None and extractor.classes == ctx.model.classes:
        as_drawn(logits, drawn, extractor, ctx.model.classes, result)
    n, reference = len(samples), len(real)
    frechet, extractor_name = ("fid", "inception") if extractor.is_inception else ("fd", extractor.name)
    name = f"{extractor_name}_{n}"
    statistics = Statistics.of(real)
    if n > 1 and reference > 1:
        interval = frechet_interval(made, real) if n >= MIN_FOR_INTERVAL else ()
        result.metrics[f"fidelity/{frechet}_{name}"] = Metric(frechet_distance(Statistics.of(made), statistics), n, *interval)
        beside_real_images(ctx, extractor, made, statistics, f"fidelity/{frechet}_{extractor_name}", result)
    subset = min(KID_SUBSET, n // 2, reference // 2)
    if subset > 1:
        kid, error = kernel_distance(made, real, KID_SUBSETS, subset)
        result.metrics[f"fidelity/kid_{name}"] = Metric(kid, n, *around(kid, error))
    if min(n, reference) > NEIGHBORS:
        few = min(n, reference, PRECISION_RECALL_IMAGES)  # unequal numbers would favor precision or recall
        precision, recall = precision_recall(made[:few], subsample(real, few), NEIGHBORS)
        result.metrics[f"fidelity/precision_{name}"] = Metric(precision, few)
        result.metrics[f"fidelity/recall_{name}"] = Metric(recall, few)
    if extractor.has_logits and n >= SPLITS:
        mean, deviation = inception_score(logits, SPLITS)
        # The same formula on another network is not the Inception score.
        label = "is" if extractor.is_inception else "score"
        result.metrics[f"fidelity/{label}_{name}"] = Metric(mean, n, *around(mean, deviation / SPLITS**0.5))
    result.tables["protocol"] = {
        "extractor": extractor.name, "feature_size": real.shape[1], "reference": f"{reference} {ctx.reference}", "samples": n,
        "sampler": ctx.model.own_sampler or ctx.options.sampler, "steps": ctx.options.steps, "seed": ctx.options.seed,
        "told": "a random label for each" if ctx.model.draws_by_label else "no labels", "guidance": ctx.options.guidance,
        "weights": "as given" if ctx.objective == "adapted" else "EMA",
        "kid_subsets": f"{KID_SUBSETS} of {subset}", "neighbours": NEIGHBORS, "score_splits": SPLITS,
    }  # fmt: skip


def as_drawn(logits: Tensor, drawn: Tensor, extractor: Extractor, classes: Sequence[str], result: Result) -> None:
    """How many samples the extractor's classifier gives the class that they were drawn for, in all and by class."""
    hits = logits.argmax(dim=1) == drawn
    result.metrics[f"fidelity/class_agreement_{extractor.name}_{len(hits)}"] = proportion(hits)
    shares = {name: hits[drawn == k].double().mean().item() for k, name in enumerate(classes) if bool((drawn == k).any())}
    result.tables["class_agreement"] = shares
    shown = sorted(shares, key=shares.__getitem__)[:CLASSES_SHOWN]
    result.pictures["class_agreement"] = Picture(
        plots.bars({name: shares[name] for name in shown}, "share with the class they were drawn for"),
        f"How often {extractor.name} gives samples the class they were drawn for",
    )


def beside_real_images(
    ctx: Context, extractor: Extractor, made: Tensor, reference: Statistics, stem: str, result: Result
) -> None:
    """The distance of as many real images as there are samples, since a Frechet distance depends on their number.

    They are test images, and images held out of training if there are not enough; none of them is in the reference. If even
    these are too few, the distance of as many samples stands beside theirs.

    Args:
        made: the features of the samples.
        stem: the metric's name, without the number of images.
    """
    if ctx.data.all_test:
        result.notes.append("There is no distance of real images: all of them are in the reference.")
        return
    n, test, held_out = len(made), ctx.test, ctx.data.held_out
    real, words = features(ctx, extractor, test, "test images", n), "test images"
    if len(real) < n and held_out is not None and len(held_out):
        more = features(ctx, extractor, held_out, "held-out images", n - len(real))
        words = f"test images and {len(more)} held out of training, {len(real) + len(more)} in all"
        real = torch.cat((real, more))
    found = len(real)
    if found < 2:
        return
    result.metrics[f"{stem}_{found}_real_test"] = Metric(frechet_distance(Statistics.of(real), reference), found)
    result.tables["real_images"] = found
    if words != "test images":
        result.notes.append(f"The Frechet distance of real images is that of {len(test)} {words}.")
    if found < n:
        own = frechet_distance(Statistics.of(made[:found]), reference)
        result.metrics[f"{stem}_{found}_of_samples"] = Metric(own, found)
        result.notes.append(
            f"There are {n} samples, but only {found} real images outside of the reference. Compare their distance with "
            f"{stem}_{found}_of_samples, that of the first {found} samples: a distance falls with the number of images."
        )
    if found < BIASED_BELOW:
        result.notes.append(
            f"A Frechet distance of {found} images is biased upward: of fewer than {BIASED_BELOW:,} images, compare it only "
            "with another one at the same number."
        )


def both(extractor: Extractor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits of uint8 [B, C, H, W] in one pass; the logits have no columns if the network has no classes."""
    found = extractor.extract(pixels)
    return found.features, found.features[:, :0] if found.logits is None else found.logits


def features(ctx: Context, extractor: Extractor, images: ImageSet, what: str, most: int | None = None) -> Tensor:
    """float [N, D] on the CPU, computed by all processes; a stream contributes its first images.

    Args:
        most: if given, at most so many images, evenly spaced.
    """
    if not isinstance(images.pixels, (Tensor, LazyImages)):
        images = images.first(PRECISION_RECALL_IMAGES if most is None else min(most, PRECISION_RECALL_IMAGES))
    index = evenly_spaced(len(images), len(images) if most is None else most)
    (found,) = share_batches(len(index), ctx.options.batch_size, lambda i: extractor.features(images.take(index[i])[0]), what)
    return found


_references: dict[str, Tensor] = {}  # of the last training sets


def reference_features(ctx: Context, extractor: Extractor) -> Tensor:
    """The features of all training images, kept for the next model that this process evaluates on them.

    An extractor is known by its features of some of them: its name may be that of another network.
    """
    few = ctx.data.train.subsample(REFERENCE_PROBE).in_memory
    digest = hashlib.sha256(f"{extractor.name} {len(ctx.data.train)}".encode())
    for seen in (few, extractor.features(few[:PROBED_FEATURES])):
        digest.update(seen.contiguous().numpy().tobytes())
    key = all_gather(digest.hexdigest())[0]
    if key not in _references:
        found = features(ctx, extractor, ctx.data.train, "training images")
        for old in [*_references][: 1 - REFERENCES_KEPT]:
            del _references[old]
        _references[key] = found
    return _references[key]


def around(value: float, error: float) -> tuple[float, float]:
    """The 95 % interval of a value with this standard error."""
    return value - 1.96 * error, value + 1.96 * error


def subsample(features: Tensor, n: int) -> Tensor:
    """At most n rows, evenly spaced. Indices are computed in float32, as they were for every recorded result."""
    return features[evenly_spaced(len(features), n, torch.float32)]


def judge_by_svm(ctx: Context, samples: Tensor, result: Result) -> None:
    """Classify the samples with a support vector machine on pixels, fitted on the training images; small data sets only."""
    has_labels = ctx.model.has_classes and ctx.data.train.labels is not None and ctx.data.test.labels is not None
    if not has_labels or ctx.data.all_test or len(ctx.model.classes) < 2:
        return
    if not affordable(len(ctx.data.train), len(ctx.data.test) + len(samples), samples[0].numel()):
        return
    (train, labels), (test, test_labels) = (part.take(torch.arange(len(part))) for part in (ctx.data.train, ctx.data.test))
    assert labels is not None
    assert test_labels is not None
    judge = PixelSVM(train, labels)
    result.metrics["judge/svm_accuracy"] = proportion(judge.predict(test) == test_labels)
    predicted = judge.predict(samples)
    own = ctx.logits_of(ImageSet(samples)).argmax(dim=1)
    result.metrics["samples/svm_agreement"] = proportion(predicted == own)
    shares = class_shares(predicted, len(ctx.model.classes))
    result.metrics["samples/svm_classes_covered"] = Metric(int((shares > 0).sum()), len(samples))
    result.metrics["samples/svm_smallest_class_share"] = Metric(shares.min().item(), len(samples))
    result.tables["svm_class_shares"] = dict(zip(ctx.model.classes, shares.tolist(), strict=True))
