"""Three readings of one image: the label read-out, the diffusion classifier, and the label read-out after a denoising step.

Each, and the mean of their probabilities, is measured by its accuracy, its calibration, and attacks through the whole of it;
their agreement by how well it tells right answers from wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..data.image_set import ImageSet
from ..distributed import share_batches
from ..method.readings import DENOISED_AT, DENOISED_DRAWS, DenoisedReading, DiffusionClassifier
from ..method.seeds import generator
from ..metrics.agreement import agreement
from ..metrics.calibration import SHARE, bootstrap_interval, expected_calibration_error, reliability_table
from ..metrics.classification import mean_interval, nll, wilson_interval
from ..metrics.robustness import Logits, strong_pgd
from ..metrics.selective import aurc, max_probability, risk_coverage
from ..model import HybridModel
from . import plots
from .calibration import filled
from .context import Context, Metric, Picture, Result, proportion
from .doubt import selective, thinned
from .robustness import batch_of

EPS = 8 / 255  # L-inf, on the [0, 1] scale
ATTACK_BATCH = 16
FRESH = 1 << 10  # added to the number of an attack, for the noise of what it attacks
ECE_BINS = 15
NAMES = {
    "label": "label read-out",
    "diffusion": "diffusion classifier",
    "denoised": "after one denoising step",
    "together": "mean of all readings",
}

NoisyReading = DiffusionClassifier | DenoisedReading


def run(ctx: Context) -> Result:
    result, images = Result(), ctx.test.subsample(max(2, ctx.options.reading_images))
    if len(images) < 2:
        result.notes.append("Nothing was measured: at least two test images are needed.")
        return result
    noisy = noisy_readings(ctx, result)
    assert images.labels is not None
    logits = {"label": ctx.logits_of(images)} | {name: logits_by(ctx, reading, images) for name, reading in noisy.items()}
    for name, of in {**logits, "together": together([*logits.values()])}.items():
        measure(ctx, name, of, images.labels, result)
    measure_agreement(ctx, logits, images.labels, result)
    if ctx.options.reading_attacks:
        measure_attacks(ctx, noisy, result)
    return result


def noisy_readings(ctx: Context, result: Result) -> dict[str, NoisyReading]:
    """The readings by the denoiser that the model has."""
    model = ctx.model
    if isinstance(model, HybridModel) and model.takes_labels:
        return {name: model.reading(name) for name in ("diffusion", "denoised")}
    result.notes.append("The diffusion classifier was left out: the denoiser takes no labels (model.label_conditioning).")
    return {"denoised": DenoisedReading(model.predict_x0, model.logits, model.diffusion, DENOISED_AT, DENOISED_DRAWS)}


def noise_of(ctx: Context, reading: NoisyReading) -> Tensor:
    """The noise that HybridModel.read draws for this seed."""
    return reading.draw_noise(ctx.model.image_shape, generator(ctx.options.seed, "readings"))


def logits_by(ctx: Context, reading: NoisyReading, images: ImageSet) -> Tensor:
    noise = noise_of(ctx, reading)
    with torch.no_grad():
        return ctx.map_batches(images, lambda x: reading(x.to(ctx.model.device), noise).cpu(), "readings", ATTACK_BATCH * 4)


def together(logits: Sequence[Tensor]) -> Tensor:
    """The log of the mean probabilities of several readings, each [B, K] -> [B, K]. Differentiable."""
    return torch.stack([of.log_softmax(dim=1) for of in logits]).logsumexp(dim=0) - math.log(len(logits))


def measure(ctx: Context, name: str, logits: Tensor, labels: Tensor, result: Result) -> None:
    """Accuracy and calibration of one reading."""

    def error(index: Tensor) -> float:
        return expected_calibration_error(reliability_table(logits[index], labels[index], ECE_BINS))

    losses = nll(logits, labels)
    result.metrics[f"readings/{name}_accuracy"] = proportion(logits.argmax(dim=1) == labels)
    result.metrics[f"readings/{name}_nll"] = Metric(losses.mean().item(), len(losses), *mean_interval(losses))
    interval = bootstrap_interval(error, len(labels), ctx.options.seed, limits=SHARE)
    result.metrics[f"readings/{name}_ece_{ECE_BINS}"] = Metric(error(torch.arange(len(labels))), len(labels), *interval)
    table = reliability_table(logits, labels, ECE_BINS)
    result.pictures[f"reliability_{name}"] = Picture(
        plots.reliability(filled(table.confidence), filled(table.accuracy), table.size.tolist(), NAMES[name]),
        f"Reliability of the {NAMES[name]}: on the dashed line, accuracy equals confidence",
    )


def measure_agreement(ctx: Context, logits: dict[str, Tensor], labels: Tensor, result: Result) -> None:
    """Whether the readings agree, and the confidence that this gives, beside the largest probability of the label read-out."""
    correct = logits["label"].argmax(dim=1) == labels
    answers = torch.stack([of.argmax(dim=1) for of in logits.values()])
    same = (answers == answers[0]).all(dim=0)
    result.metrics["readings/all_agree"] = proportion(same)
    for name, chosen in (("agreeing", same), ("disagreeing", ~same)):
        if bool(chosen.any()):
            result.metrics[f"readings/label_accuracy_where_{name}"] = proportion(correct[chosen])
    confidences = {
        "max_prob": max_probability(logits["label"]),
        "agreement": agreement([of.log_softmax(dim=1) for of in logits.values()]),
    }
    for name, scores in confidences.items():
        for what, metric in selective(scores, correct, ctx.options.seed).items():
            result.metrics[f"readings/{what}_{name}"] = metric

    def lowered(index: Tensor) -> float:
        by = [aurc(scores[index], correct[index]) for scores in confidences.values()]
        return 1 - by[1] / by[0] if by[0] else 0.0

    change = bootstrap_interval(lowered, len(labels), ctx.options.seed, 1000)
    result.metrics["readings/aurc_lowered_by"] = Metric(lowered(torch.arange(len(labels))), len(labels), *change)
    lines = {name: thinned(risk_coverage(scores, correct)) for name, scores in confidences.items()}
    words = {"max_prob": "largest probability of the label read-out", "agreement": "agreement of the readings"}
    result.pictures["risk_coverage"] = Picture(
        plots.curves({words[name]: points for name, points in lines.items()}, "coverage", "share of wrong answers"),
        f"Wrong answers of the label read-out among the images that it is surest of, by two confidences ({len(labels)} images)",
    )


ByNoise = Callable[[torch.Generator], Logits]  # a generator of noise -> a reading that may draw from it in each call


def with_fixed(logits: Logits) -> ByNoise:
    return lambda fresh: logits


def read_with(reading: NoisyReading, noise: Tensor, x: Tensor) -> Tensor:
    return reading(x, noise)


def read_anew(reading: NoisyReading, shape: Sequence[int], fresh: torch.Generator) -> Logits:
    return lambda x: reading(x, reading.draw_noise(shape, fresh))


def read_together(readings: Sequence[ByNoise], fresh: torch.Generator) -> Logits:
    several = [reading(fresh) for reading in readings]
    return lambda x: together([reading(x) for reading in several])


def measure_attacks(ctx: Context, noisy: dict[str, NoisyReading], result: Result) -> None:
    """Accuracy under an attack on each reading by its exact gradient, and on what an attack on the label read-out found.

    ``fixed``: the attacker knows the noise that the answer is given with. ``eot``: noise is drawn anew in every step and for
    the answer (expectation over transformation, Athalye et al. 2018).
    """
    images, label = ctx.test.subsample(ctx.options.reading_attacks), with_fixed(ctx.model.logits)
    fixed, anew = dict[str, ByNoise](), dict[str, ByNoise]()
    for name, reading in noisy.items():
        fixed[name] = with_fixed(partial(read_with, reading, noise_of(ctx, reading)))
        anew[name] = partial(read_anew, reading, ctx.model.image_shape)
    for known in (fixed, anew):
        known["together"] = partial(read_together, [label, *known.values()])
    found: dict[str, Tensor] = {"label_attacked": attack(ctx, images, label, label, 30)}
    for k, name in enumerate(fixed):
        found[f"{name}_fixed"] = attack(ctx, images, fixed[name], fixed[name], 40 + k)
        found[f"{name}_eot"] = attack(ctx, images, anew[name], anew[name], 50 + k)
        found[f"{name}_transfer"] = attack(ctx, images, label, fixed[name], 30)
    for name, robust in found.items():
        value = robust.double().mean().item()
        result.metrics[f"readings/{name}_linf_{255 * EPS:.0f}"] = Metric(
            value, len(robust), *wilson_interval(value, len(robust))
        )
    result.pictures["attacked"] = Picture(
        plots.bars({name.replace("_", ", "): robust.double().mean().item() for name, robust in found.items()}, "accuracy"),
        f"Accuracy under PGD ({ctx.options.attack_steps} steps, L-inf {255 * EPS:.0f}/255), {len(images)} images: upper bounds",
    )


def attack(ctx: Context, images: ImageSet, attacked: ByNoise, judged: ByNoise, purpose: int) -> Tensor:
    """Which images keep their right answer, bool [N]: that of ``judged`` on what was found against ``attacked``.

    Where the two are the same reading, an image is lost as soon as any answer on the way was wrong. Fresh noise is that of a
    batch, so that it does not matter which process attacks it.
    """

    def of_batch(index: Tensor) -> Tensor:
        x, labels = batch_of(ctx, images, index)
        seed, fresh = (ctx.generator((number << 12) + int(index[0])) for number in (purpose, FRESH + purpose))
        answer = attacked(fresh)
        found = strong_pgd(answer, x, labels, EPS, "linf", seed, ctx.options.attack_steps)
        judge = answer if attacked is judged else judged(fresh)
        with torch.no_grad():
            robust = judge(found.images).argmax(dim=1) == labels
        return (robust & ~found.broken if attacked is judged else robust).cpu()

    return share_batches(len(images), ATTACK_BATCH, of_batch, "attacks on readings")[0]
