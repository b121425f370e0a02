"""`hybvit evaluate MODEL`: the numbers about one model, and the pages that show them.

Suites: accuracy (labels on the test set), density (how familiar its images are), samples (a grid, and a second opinion).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .arguments import ArgumentParser, positive
from .checkpoint import MANIFEST
from .config import Config
from .data.datasets import Dataset, open_dataset
from .data.image_set import ImageSet
from .data.images import grid, save_image, to_x
from .data.locate import located
from .errors import ConfigError
from .hybrid import HybridModel, load
from .metrics.classification import confusion_matrix, topk_accuracy, wilson_interval
from .metrics.judge import LARGEST_TRAINING_SET, PixelSVM, class_shares
from .report import shown, write_report
from .run_folder import environment, make_folder, read_metrics, write_text
from .samplers import SAMPLERS

SUITES = ("accuracy", "density", "samples")
GRID_IMAGES = 100


class Metric(NamedTuple):
    """A number, how many observations it rests on, and its 95 % interval where there is one."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


class Evaluation(NamedTuple):
    """Metrics by name (``suite/what``), tables by name, pictures by name."""

    metrics: dict[str, Metric]
    tables: dict[str, Any]
    pictures: dict[str, Image.Image]


def share(name: str, hits: Tensor) -> dict[str, Metric]:
    """A share of successes, bool [N], with its interval."""
    value = hits.double().mean().item()
    return {name: Metric(value, len(hits), *wilson_interval(value, len(hits)))}


@torch.no_grad()
def evaluate(
    model: HybridModel,
    data: Dataset,
    suites: tuple[str, ...] = SUITES,
    limit: int | None = None,
    samples: int = 300,
    sampler: str = "ddpm",
    steps: int = 100,
    seed: int = 0,
) -> Evaluation:
    """Run the suites that make sense for this model. One pass over the test set serves accuracy and density.

    Args:
        limit: look at the first so many test images only.
        samples, sampler, steps, seed: how the generated images are drawn.
    """
    result = Evaluation({}, {}, {})
    kind = model.cfg.objective.kind
    if kind != "genvit" and {"accuracy", "density"} & set(suites):
        test = data.test if limit is None else data.test.first(limit)
        logits = torch.cat([model.logits(to_x(pixels)).cpu() for pixels, _ in test.batches()])
        if "accuracy" in suites and test.labels is not None:
            _accuracy(result, model, logits, test, test.labels)
        if "density" in suites:
            _density(result, logits, test)
    if kind != "vit" and "samples" in suites:
        pixels = model.sample(samples, sampler=sampler, steps=steps, seed=seed, progress=True)
        result.pictures["samples"] = grid(pixels[:GRID_IMAGES], columns=10, scale=max(1, 32 // pixels.shape[-1]))
        result.pictures["training images"] = grid(
            data.train.take(torch.arange(min(GRID_IMAGES, len(data.train))))[0],
            columns=10,
            scale=max(1, 32 // pixels.shape[-1]),
        )
        if kind == "hybvit" and len(data.classes) > 1 and len(data.train) <= LARGEST_TRAINING_SET:
            _second_opinion(result, model, data, pixels)
    return result


def _accuracy(result: Evaluation, model: HybridModel, logits: Tensor, test: ImageSet, labels: Tensor) -> None:
    predictions = logits.argmax(dim=1)
    result.metrics.update(share("test/accuracy", predictions == labels))
    if logits.shape[1] > 5:
        top5 = topk_accuracy(logits, labels, 5)
        result.metrics["test/accuracy_top5"] = Metric(top5, len(labels), *wilson_interval(top5, len(labels)))
    nll = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    result.metrics["test/nll"] = Metric(nll, len(labels))
    counts = confusion_matrix(predictions, labels, logits.shape[1])
    result.tables["confusion_matrix"] = counts.tolist()
    result.tables["accuracy_per_class"] = {
        name: row[k] / sum(row) if sum(row) else None
        for k, (name, row) in enumerate(zip(model.classes, counts.tolist(), strict=True))
    }
    wrong = (predictions != labels).nonzero().flatten()[:20]
    if len(wrong):
        result.pictures["mistakes"] = grid(
            test.take(wrong)[0], columns=min(10, len(wrong)), scale=max(1, 48 // test.pixels.shape[-1])
        )
        result.tables["mistakes"] = [
            f"{model.classes[labels[i]]} called {model.classes[predictions[i]]}" for i in wrong.tolist()
        ]


def _density(result: Evaluation, logits: Tensor, test: ImageSet) -> None:
    density = logits.double().logsumexp(dim=1)
    result.metrics["test/log_density_mean"] = Metric(density.mean().item(), len(density))
    result.metrics["test/log_density_std"] = Metric(density.std(correction=0).item(), len(density))
    order, scale = density.argsort(), max(1, 48 // test.pixels.shape[-1])
    result.pictures["least familiar"] = grid(test.take(order[:20])[0], columns=10, scale=scale)
    result.pictures["most familiar"] = grid(test.take(order[-20:])[0], columns=10, scale=scale)


def _second_opinion(result: Evaluation, model: HybridModel, data: Dataset, pixels: Tensor) -> None:
    (train, labels), (test, test_labels) = (part.take(torch.arange(len(part))) for part in (data.train, data.test))
    if labels is None or test_labels is None:
        return
    judge = PixelSVM(train, labels)
    result.metrics.update(share("judge/svm_accuracy", judge.predict(test) == test_labels))
    opinion, own = judge.predict(pixels), model.predict(pixels).labels
    result.metrics.update(share("samples/svm_agreement", opinion == own))
    shares = class_shares(opinion, len(data.classes))
    result.metrics["samples/svm_classes_covered"] = Metric(int((shares > 0).sum()), len(pixels))
    result.metrics["samples/svm_smallest_class_share"] = Metric(shares.min().item(), len(pixels))
    result.tables["svm_class_shares"] = dict(zip(model.classes, shares.tolist(), strict=True))


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="hybvit evaluate", description="Measure a model; write results.json (and report.html).")
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder or hub id")
    parser.add_argument("--suites", default=",".join(SUITES), help=f"comma-separated, of {', '.join(SUITES)} (all)")
    parser.add_argument("--data", help="where the data are, if not where they were in training")
    parser.add_argument("--limit", type=positive, help="only the first so many test images, for a quick look")
    parser.add_argument("--samples", type=positive, default=300, help="generated images (300)")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default="ddpm", help="(ddpm)")
    parser.add_argument("--steps", type=positive, default=100, help="sampler steps (100; the paper takes all 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the results (the run folder, else the current folder)")
    parser.add_argument("--report", action="store_true", help="write report.html too")
    args = parser.parse_args(arguments)
    suites = tuple(args.suites.split(","))
    for suite in suites:
        if suite not in SUITES:
            parser.error(f"--suites: {suite!r} is none of {', '.join(SUITES)}")
    started = time.monotonic()
    model = load(args.model)
    cfg = located(model.cfg, args.data) if args.data else model.cfg
    is_run = (Path(args.model) / "config.yaml").is_file() and not (Path(args.model) / MANIFEST).is_file()
    out = args.out or (Path(args.model) if is_run else Path())
    make_folder(out)
    data = open_dataset(cfg)
    check_classes(model.cfg, data)
    kind = model.cfg.objective.kind
    for suite in suites:
        if (suite == "samples") == (kind == "vit") and kind != "hybvit":
            print(f"{suite}: left out, {args.model} was trained with objective {kind}")
    result = evaluate(model, data, suites, args.limit, args.samples, args.sampler, args.steps, args.seed)
    history = read_metrics(Path(args.model) / "metrics.jsonl") if is_run else []
    record = {
        "model": Path(args.model).name,
        "objective": kind,
        "data": cfg.data.name,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "training": training_summary(history),
        "seed": cfg.train.seed,
        "limit": args.limit,
        "samples": {"n": args.samples, "sampler": args.sampler, "steps": args.steps, "seed": args.seed},
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 2),
        "metrics": {name: {k: v for k, v in m._asdict().items() if v is not None} for name, m in result.metrics.items()},
        "tables": result.tables,
    }
    write_text(out / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    if "samples" in result.pictures:
        save_image(result.pictures["samples"], out / "samples" / "evaluated.png")
    for name, metric in result.metrics.items():
        interval = f"  [{metric.low:.4f}, {metric.high:.4f}]" if metric.low is not None else ""
        print(f"{name:<36}{shown(metric.value):>10}{interval}  n {metric.n}")
    print(f"{out / 'results.json'} written")
    if args.report:
        write_report(out / "report.html", model.cfg, record, result.pictures, history, model.classes)
        print(f"{out / 'report.html'} written: open it in a browser")


def training_summary(history: list[dict[str, Any]]) -> dict[str, float]:
    """What a run's metrics.jsonl says in a line: steps, seconds and rate of the training proper, losses over its last tenth."""
    lines = [line for line in history if "loss" in line]
    if not lines:
        return {}
    steps, seconds = lines[-1]["step"], sum(line["seconds"] for line in lines)
    summary = {"steps": steps, "seconds": round(seconds, 1)}
    summary["images_per_second"] = round(sum(line["images_per_second"] * line["seconds"] for line in lines) / seconds, 1)
    late = [line for line in lines if line["step"] > 0.9 * steps]
    for name in ("ce", "denoising"):
        if name in lines[-1]:
            summary[name] = round(sum(line[name] for line in late) / len(late), 4)
    return summary


def check_classes(cfg: Config, data: Dataset) -> None:
    if cfg.objective.kind == "genvit":
        return
    if len(data.classes) != cfg.model.num_classes:
        raise ConfigError(f"the data have {len(data.classes)} classes, the model has {cfg.model.num_classes}")
    if cfg.data.classes and data.classes != cfg.data.classes:
        raise ConfigError(f"the data's classes ({', '.join(data.classes)}) are not the model's ({', '.join(cfg.data.classes)})")
