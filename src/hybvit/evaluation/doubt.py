"""Doubt: which answers to trust. Selective classification by several scores, abstention, and conformal sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..evaluation import plots
from ..metrics.calibration import SHARE, bootstrap_interval
from ..metrics.classification import mean_interval
from ..metrics.conformal import METHODS, Covered, Method, Ranked, covered, nonconformity, prediction_sets, ranked
from ..metrics.doubt import Calibration
from ..metrics.selective import CONFIDENCES, RiskCoverage, augrc, aurc, coverage_at_risk, risk_at_coverage, risk_coverage
from .context import Context, Metric, Picture, Result, proportion
from .ood import mean_of_draws
from .ood_scores import denoising_score

RISK, COVERAGE = 0.05, 0.8  # of coverage at 5 % risk, and of risk at 80 % coverage
RISKS = (0.01, 0.02, 0.05)  # to abstain above
COVERAGES, BY_CLASS = (0.9, 0.95, 0.99), 0.95  # of sets
PLOTTED = 60  # points of a curve
MOST_CLASSES = 40  # in a picture
SCORE_LABELS = {
    "max_prob": "largest probability",
    "max_logit": "largest logit",
    "entropy": "minus entropy",
    "energy": "minus energy",
    "denoising": "minus denoising error",
}


def run(ctx: Context) -> Result:
    result, judged = Result(), ctx.judged
    index = judged.images
    logits, labels = ctx.logits[index], ctx.labels[index]
    result.notes += [judged.note] if judged.note else []
    if len(labels) < 2:
        result.notes.append("Nothing was measured: at least two test images are needed.")
        return result
    correct, curves = logits.argmax(dim=1) == labels, dict[str, RiskCoverage]()
    for name, score in confidences(ctx).items():
        scores = score(index)
        curves[name] = risk_coverage(scores, correct)
        for what, metric in selective(scores, correct, ctx.options.seed).items():
            result.metrics[f"doubt/{what}_{name}"] = metric
    result.pictures["risk_coverage"] = Picture(
        plots.curves({SCORE_LABELS[name]: thinned(curve) for name, curve in curves.items()}, "coverage", "risk", markers=False),
        "Risk of the answers against the share of images answered, the surest first: lower is better",
    )
    if judged.calibration is not None:
        abstention(judged.calibration, logits, labels, result)
        conformal(ctx, judged.calibration, logits, labels, result)
    return result


def confidences(ctx: Context) -> dict[str, Callable[[Tensor], Tensor]]:
    """Score -> function of indices of test images, int64 [N] -> float64 [N], higher where the classifier is surer.

    All are of the network as trained. The agreement of several readings is measured by the suite ``readings``.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {
        name: lambda index, score=score: score(ctx.logits[index])  # type: ignore[misc]
        for name, score in CONFIDENCES.items()
    }
    if ctx.model.has_denoiser:
        found["denoising"] = lambda index: mean_of_draws(denoising_score(ctx, ctx.test.where(index))).double()
    return found


def selective(scores: Tensor, correct: Tensor, seed: int) -> dict[str, Metric]:
    """What a score is worth for selective classification, with bootstrap intervals."""
    measures: dict[str, Callable[[Tensor, Tensor], float]] = {
        "aurc": aurc,
        "augrc": augrc,
        f"coverage_at_{100 * RISK:.0f}_risk": lambda s, c: coverage_at_risk(risk_coverage(s, c), RISK),
        f"risk_at_{100 * COVERAGE:.0f}_coverage": lambda s, c: risk_at_coverage(risk_coverage(s, c), COVERAGE),
    }
    found = {}
    for name, measure in measures.items():

        def drawn(index: Tensor, measure: Callable[[Tensor, Tensor], float] = measure) -> float:
            return measure(scores[index], correct[index])

        interval = bootstrap_interval(drawn, len(scores), seed, limits=SHARE)
        found[name] = Metric(measure(scores, correct), len(scores), *(interval if interval[0] < interval[1] else ()))
    return found


def thinned(curve: RiskCoverage) -> list[tuple[float, float]]:
    """Points of a curve at about evenly spaced coverages."""
    at = torch.searchsorted(curve.coverage, torch.linspace(0, 1, PLOTTED, dtype=torch.float64)).clamp(max=len(curve.risk) - 1)
    at = at.unique()
    return list(zip(curve.coverage[at].tolist(), curve.risk[at].tolist(), strict=True))


def abstention(calibration: Calibration, logits: Tensor, labels: Tensor, result: Result) -> None:
    """How many images are answered if a risk is not to be exceeded, and the risk that they have."""
    confidence, predicted = calibration.probabilities(logits).max(dim=1)
    refused = dict[str, float]()
    for risk in RISKS:
        threshold = calibration.threshold(risk)
        answered, name = confidence >= threshold.score, f"abstain_above_{100 * risk:.0f}"
        if not bool(answered.any()):
            refused[f"{risk:.0%}"] = threshold.bound
            continue
        result.metrics[f"doubt/{name}_answered"] = proportion(answered)
        result.metrics[f"doubt/{name}_risk"] = proportion((predicted != labels)[answered])
    if refused:
        result.notes.append(
            f"No image is answered with a risk of at most {' or '.join(refused)}: {len(calibration):,} calibration images "
            f"cannot prove a risk below {min(refused.values()):.1%}. More of them (data.held_out, or hybvit calibrate) can."
        )


def conformal(ctx: Context, calibration: Calibration, logits: Tensor, labels: Tensor, result: Result) -> None:
    """Coverage and size of the sets of each method, for all images and by class."""
    found, table = ranked(calibration.scaling.apply(logits)), list[dict[str, Any]]()
    kinds: list[tuple[Method, bool]] = [*((method, False) for method in METHODS), ("aps", True), ("raps", True)]
    for method, random in kinds:
        for coverage in COVERAGES:
            sets = covered(sets_of(ctx, calibration, found, method, coverage, random), labels)
            hits, sizes = proportion(sets.hits), sets.sizes.double()
            size, empty = sizes.mean().item(), (sizes == 0).double().mean().item()
            row = {
                "method": method,
                "random": random,
                "coverage": coverage,
                "covered": hits.value,
                "size": size,
                "empty": empty,
            }
            table.append(row)
            if not random:
                name = f"{method}_{100 * coverage:.0f}"
                result.metrics[f"doubt/coverage_{name}"] = hits
                result.metrics[f"doubt/set_size_{name}"] = Metric(size, len(sizes), *mean_interval(sizes))
            if method == "thr" and coverage == BY_CLASS:
                by_class(ctx, sets, labels, result)
    result.tables["conformal"] = table
    if any(row["size"] == logits.shape[1] for row in table):
        result.notes.append(
            f"{len(calibration):,} calibration images are too few for some of the sets, which hold all classes."
        )


def sets_of(ctx: Context, calibration: Calibration, found: Ranked, method: Method, coverage: float, random: bool) -> Tensor:
    """The sets bool [N, K], with or without random numbers, which both sides then have."""
    mine: Tensor | float = 1.0
    theirs: Tensor | float = 1.0
    if random:
        generator = ctx.generator(4)
        mine, theirs = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (len(calibration), len(found.own)))
        theirs = theirs[:, None]
    return prediction_sets(nonconformity(found, method, theirs), calibration.quantile(coverage, method, mine))


def by_class(ctx: Context, sets: Covered, labels: Tensor, result: Result) -> None:
    """Coverage and mean size of the sets by true class: only the mean over all classes is promised."""
    shares, sizes = dict[str, Metric](), dict[str, float]()
    for k, name in enumerate(ctx.model.classes):
        here = labels == k
        if bool(here.any()):
            shares[name], sizes[name] = proportion(sets.hits[here]), sets.sizes[here].double().mean().item()
    result.tables["conformal_per_class"] = {
        name: {"coverage": share._asdict(), "size": sizes[name]} for name, share in shares.items()
    }
    if len(shares) <= MOST_CLASSES:
        result.pictures["class_coverage"] = Picture(
            plots.shares(shares, "share of sets with the true class", BY_CLASS),
            f"Coverage of the {BY_CLASS:.0%} sets (thr) by true class, with 95 % intervals: only their mean is promised",
        )
