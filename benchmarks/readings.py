"""Three readings of one image, and out-of-distribution detection by both halves of a model
-> results/readings.json, readings_attacks.json, readings_evaluations.json, ood_both.json and ood_choice.json.

    python benchmarks/readings.py ood --ood mnist_test/,digits,interpolation,noise --images 600 [--write]
    python benchmarks/readings.py choose [--write]
    python benchmarks/readings.py readings --images 300 [--write]
    python benchmarks/readings.py attacks --images 12 --steps 8 [--write]
    python benchmarks/readings.py evaluations --images 300 [--write]

``choose`` compares combinations of scores on altered training images alone; that of ``fused`` was taken from it. ``--model``
and ``--data`` measure another model. Each file has an entry for each model:

    python benchmarks/readings.py ood --model cifar10 --ood celeba,cifar_lossless,tiny_imagenet,mnist,interpolation,noise \\
        --images 300 --jpeg 75 --write
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recording import RESULTS, options
from torch import Tensor

import hybvit
from hybvit.data.image_set import Dataset, ImageSet, to_x
from hybvit.devices import environment
from hybvit.evaluation import EvaluationOptions, plots
from hybvit.evaluation.context import Context, Result
from hybvit.evaluation.ood import compare, mean_of_draws, ood_sets
from hybvit.evaluation.ood_scores import Scorer, fused, passes, remembered, scores, two_halves
from hybvit.evaluation.subject import subject_of
from hybvit.method.readings import TIMES, time_at
from hybvit.metrics.classification import wilson_interval
from hybvit.metrics.ood import auroc

RECORDS = {
    "ood": "ood_both.json",
    "choose": "ood_choice.json",
    "readings": "readings.json",
    "attacks": "readings_attacks.json",
    "evaluations": "readings_evaluations.json",
}
SUITE = "readings"
EVALUATIONS = 60  # of the diffusion classifier, of every class
FEW = 200  # images of each altered set
CLASSIFIER = ("max_prob", "max_logit", "entropy", "logpx", "knn", "mahalanobis", "relative_mahalanobis")
DENOISER = ("denoising", "scoped", "diffpath", "trajectory")


def measure(args: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """What ``hybvit evaluate --suites readings`` records."""
    asked = EvaluationOptions(batch_size=100, attack_steps=args.steps, **options)
    with tempfile.TemporaryDirectory() as folder:
        found = hybvit.evaluate(args.model, args.data, suites=SUITE, options=asked, out=args.pictures or folder, say=print)
    record = {key: found.record[key] for key in ("data", "environment", "seconds", "metrics", "tables", "notes")}
    return record | {"options": asked.of_suite(SUITE)}


@torch.no_grad()
def evaluations(args: argparse.Namespace) -> dict[str, Any]:
    """The accuracy of the diffusion classifier after each number of evaluations, if no class is left out."""
    subject, started = subject_of(args.model, args.data), time.monotonic()
    images, reading = subject.data.test.subsample(args.images), subject.model.reading("diffusion")
    pixels, labels = images.take(torch.arange(len(images)))
    times = [TIMES[k % len(TIMES)] for k in range(EVALUATIONS)]
    noise = torch.randn(EVALUATIONS, *pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    right = torch.zeros(EVALUATIONS, dtype=torch.float64)
    for x, y in zip(to_x(pixels).split(50), labels.split(50), strict=True):
        every = torch.arange(reading.num_classes).expand(len(x), -1)
        errors = [reading.errors(x, time_at(reading.diffusion, t), noise[k], every) for k, t in enumerate(times)]
        right += (torch.stack(errors).cumsum(dim=0).argmin(dim=2) == y).sum(dim=1)
    accuracy = (right / len(labels)).tolist()
    low, high = wilson_interval(accuracy[-1], len(labels))
    return {
        "images": len(labels), "accuracy": accuracy, "low": low, "high": high,
        "seconds": round(time.monotonic() - started), "environment": environment(),
    }  # fmt: skip


def draw_evaluations(records: dict[str, Any]) -> None:
    """docs/readings_evaluations.svg"""
    curves = {f"{model} (n {r['images']})": list(enumerate(r["accuracy"], 1)) for model, r in records.items()}
    picture = plots.curves(curves, "evaluations of every class", "accuracy of the diffusion classifier", markers=False)
    (RESULTS.parent / "docs" / "readings_evaluations.svg").write_text(picture)


def compare_sets(args: argparse.Namespace) -> dict[str, Any]:
    """The scores that a fused one is made of or could be. The other scores of the suite are on the models' cards."""
    subject, started = subject_of(args.model, args.data), time.monotonic()
    sets = tuple(filter(None, args.ood.split(",")))
    options = EvaluationOptions(batch_size=125, limit=args.images, out_of_distribution=sets)
    ctx, result = Context(subject.model, subject.data, subject.data_name, options, Path()), Result()
    images = {name: part.subsample(args.images) for name, part in ood_sets(ctx, result).items()}
    if args.jpeg:
        images |= {f"{name}, as JPEG": as_jpeg(part, args.jpeg) for name, part in images.items()}
    for name, scorer in scores(ctx).items():
        if name in (*CLASSIFIER, *DENOISER[1:], "fused"):
            compare(ctx, name, scorer(ctx.test), {label: scorer(part) for label, part in images.items()}, result)
            result.tables[name] = passes(ctx, name)
            print(
                name, {key: round(m.value, 4) for key, m in result.metrics.items() if key.endswith(f"auroc_{name}")}, flush=True
            )
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        for name in ("relative_mahalanobis", "trajectory", "fused"):
            (args.pictures / f"ood_{name}.svg").write_text(result.pictures[name].content)
    return {
        "images": args.images,
        "jpeg": args.jpeg,
        "seed": options.seed,
        "passes": result.tables,
        "metrics": {name: {k: v for k, v in m._asdict().items() if v is not None} for name, m in result.metrics.items()},
        "seconds": round(time.monotonic() - started),
        "environment": environment(),
    }


def as_jpeg(images: ImageSet, quality: int) -> ImageSet:
    """The images after JPEG compression with halved color resolution, as the copy of CIFAR-10 was made."""
    pixels, rows = images.take(torch.arange(len(images)))[0], []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        rows.append(torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1))
    return ImageSet(torch.stack(rows))


def altered(images: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
    """Sets that no training image belongs to, made of training images uint8 [2 N, C, H, W] alone."""
    one, other = images.chunk(2)
    half, quarter = one.shape[-1] // 2, one.shape[-1] // 4
    tiles = one.unfold(2, quarter, quarter).unfold(3, quarter, quarter).flatten(2, 3)
    order = torch.rand(len(one), 1, tiles.shape[2], 1, 1, generator=draws).argsort(dim=2).expand_as(tiles)
    rows = tiles.gather(2, order).unflatten(2, (4, 4)).transpose(3, 4)
    return {
        "means of two": ((one.int() + other.int() + 1) // 2).to(torch.uint8),
        "halves of two": torch.cat((one[..., :half], other[..., half:]), dim=-1),
        "sixteen parts in another order": rows.reshape(*one.shape[:2], 4 * quarter, 4 * quarter),
        "quarter turn": one.rot90(1, (2, 3)),
        "negative": 255 - one,
    }


def mean_score(scorer: Scorer, images: ImageSet) -> Tensor:
    return mean_of_draws(scorer(images))


def choose(args: argparse.Namespace) -> dict[str, Any]:
    """The AUROC on each altered set of one or two of the classifier's scores, fused with one of the denoiser's."""
    subject = subject_of(args.model, args.data)
    train = subject.data.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    known, plain, changed = order[: -3 * FEW], order[-3 * FEW : -2 * FEW], order[-2 * FEW :]
    sets = {"unchanged": train.where(plain)}
    sets |= {
        name: ImageSet(pixels) for name, pixels in altered(train.take(changed)[0], torch.Generator().manual_seed(1)).items()
    }
    options = EvaluationOptions(batch_size=100, limit=2 * FEW)
    data = Dataset(train.where(known), sets["unchanged"], subject.data.classes)
    ctx = Context(subject.model, data, subject.data_name, options, Path())
    found = {name: scorer for name, scorer in scores(ctx).items() if name in CLASSIFIER + DENOISER}
    parts = {name: remembered(partial(mean_score, scorer)) for name, scorer in found.items()}
    reference, areas_of = two_halves(ctx)[1].subsample(2 * FEW), dict[str, dict[str, float]]()
    few = (*((name,) for name in CLASSIFIER), *combinations(CLASSIFIER, 2))
    for names in ((*first, second) for first in few for second in DENOISER):
        of = {name: fused([parts[part] for part in names], reference)(images) for name, images in sets.items()}
        areas = {name: round(auroc(of["unchanged"], values), 4) for name, values in of.items() if name != "unchanged"}
        areas_of[" + ".join(names)] = {"mean": round(sum(areas.values()) / len(areas), 4)} | areas
        print(" + ".join(names), areas_of[" + ".join(names)], flush=True)
    best = dict(sorted(areas_of.items(), key=lambda item: -item[1]["mean"]))
    return {"images": FEW, "seed": 0, "combinations": best}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=RECORDS)
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--data", help="where the model's images are, if it was trained on your own")
    parser.add_argument("--ood", default="", help="out-of-distribution sets, as for hybvit evaluate")
    parser.add_argument("--jpeg", type=int, help="each of these sets also as JPEG of this quality, for a model of such images")
    parser.add_argument("--images", type=int, default=300, help="test images, and images of each other set")
    parser.add_argument("--steps", type=int, default=10, help="of an attack")
    parser.add_argument("--pictures", type=Path, help="keep the suite's pictures in this folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "ood":
        record = compare_sets(args)
    elif args.what == "choose":
        record = choose(args)
    elif args.what == "evaluations":
        record = evaluations(args)
    elif args.what == "readings":
        record = measure(args, reading_images=args.images, reading_attacks=0)
    else:
        record = measure(args, reading_images=2, reading_attacks=args.images)
    print(json.dumps(record, indent=1))
    if args.write:
        file = RESULTS / RECORDS[args.what]
        found = json.loads(file.read_text()) if file.is_file() else {}
        found = dict(sorted((found | {args.model: record}).items(), reverse=True))
        file.write_text(json.dumps(found, indent=1) + "\n")
        if args.what == "evaluations":
            draw_evaluations(found)


if __name__ == "__main__":
    main()
