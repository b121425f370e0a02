"""What README.md and the pages of installation and data show."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any

from hybvit.presets import preset

from .blocks import block
from .records import MODELS, ROOT, result, spent, threads, value, versions


@block()
def table() -> str:
    columns = {
        "`digits`": result("digits"),
        "`digits_paper`": result("digits_paper"),
        "`fashion_mnist_pocket`": result("fashion_mnist_pocket"),
    }
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "parameters": lambda r: f"{r['parameters']:,}",
        "training": lambda r: f"{r['training']['steps']:,} steps, {r['training']['seconds']:.0f} s",
        "images/s in training": lambda r: f"{r['training']['images_per_second']:,.0f}",
        "test accuracy": lambda r: value(r, "test/accuracy"),
        "test NLL, nats": lambda r: value(r, "test/nll", percent=False),
        "samples: SVM and model agree on the class": lambda r: value(r, "samples/svm_agreement"),
        "samples: share of the rarest class": lambda r: value(r, "samples/svm_smallest_class_share"),
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cell(record) for record in columns.values()) + " |" for name, cell in rows.items()]
    facts, draw = result("digits")["environment"], result("digits")["options"]
    judge = value(result("digits"), "judge/svm_accuracy")
    lines += [
        "",
        f"Seed 0, {facts['threads']} CPU threads ({facts['machine']}), torch {facts['torch']}; 95 % intervals in parentheses. "
        f"The SVM is fitted on the real training digits; its own test accuracy is {judge}. "
        f"{draw['samples']} samples each, {draw['sampler']}, {draw['steps']} steps.",
    ]
    return "\n".join(lines)


@block()
def datasets() -> str:
    from hybvit.catalog import CATALOG

    lines = ["| name | images | classes | splits | license | preset |", "|---|---|---|---|---|---|"]
    for name, info in CATALOG.items():
        side = "any size" if info.size is None else f"{info.size}x{info.size}"
        splits = ", ".join(f"{count:,} {split}" for split, count in info.splits.items())
        preset = f"`{info.preset}`" if info.preset else ""
        lines.append(
            f"| `{name}` | [{info.title}]({info.source}), {side}, {'gray' if info.channels == 1 else 'color'} "
            f"| {info.num_classes or 'none'} | {splits} | {info.license} | {preset} |"
        )
    return "\n".join(lines)


@block()
def shipped() -> str:
    """The bundled models side by side."""
    records = {name: result(f"model_{name}") for name in MODELS}

    def distance(record: dict[str, Any], what: str) -> str:
        """Of samples or real images, with their number: where there are fewer real images, that of as many samples too."""
        extractor = record["tables"]["protocol"]["extractor"]
        found = {
            name: metric
            for name, metric in record["metrics"].items()
            if re.fullmatch(rf"fidelity/fd_{re.escape(extractor)}_(\d+_)?{what}", name)
        }
        cells = [f"{metric['value']:.3f} (n {metric['n']:,})" for metric in found.values()]
        return f"{', '.join(cells) or '-'} on `{extractor}`"

    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "parameters": lambda r: f"{r['parameters']:,}",
        "training": lambda r: spent([place for leg in r["legs"] for place in leg["places"]]),
        "test accuracy": lambda r: value(r, "test/accuracy"),
        "test NLL, nats": lambda r: value(r, "test/nll", percent=False),
        "bits per dimension (upper bound)": lambda r: value(r, "likelihood/bits_per_dim", percent=False),
        "Frechet distance of samples": lambda r: distance(r, r"(\d+|of_samples)"),
        "Frechet distance of real test images": lambda r: distance(r, "real_test"),
    }
    lines = ["| | " + " | ".join(f"`{name}`" for name in records) + " |", "|---|" + "---|" * len(records)]
    lines += [f"| {name} | " + " | ".join(cell(record) for record in records.values()) + " |" for name, cell in rows.items()]
    options = [record["options"] for record in records.values()]
    drawn = " and ".join(dict.fromkeys(f"{o['samples']:,} samples by {o['sampler']} in {o['steps']} steps" for o in options))
    notes = (
        f"95 % intervals in parentheses; {drawn}. Each column has its own small extractor: compare its distances at the "
        "same n with each other, not with another column and not with an FID. More images, even real ones, are closer."
    )
    return "\n".join([*lines, "", notes])


EXTRAS = {  # extra of pyproject.toml -> what it is for
    "baselines": "the pipeline of diffusers, the U-Net of DDPM, and diffusers' networks in `hybvit bench`",
    "docs": "the documentation site, `make docs`",
    "eval": "AutoAttack; without it `hybvit evaluate` attacks by PGD alone, and says so",
    "export": "`hybvit export --format onnx`",
    "judge": "the extractor `efficientnet-lite0`, with its weights",
    "serve": "`hybvit serve`, the page in the browser",
    "stream": "data sets of the hub, parquet files, tar shards",
    "test": "all tests, with the packages that they compare with",
    "track": "TensorBoard, Weights & Biases, MLflow, trackio",
}


@block()
def extras() -> str:
    """What each extra is for, and the packages that it installs."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert asked.keys() == EXTRAS.keys(), "each extra has its words"
    rows = [f"| `{name}` | {words} | {', '.join(asked[name])} |" for name, words in EXTRAS.items()]
    return "\n".join(["| extra | for | packages |", "|---|---|---|", *rows])


@block()
def lean() -> str:
    """What a lean installation may leave out."""
    from hybvit.health.packages import OPTIONAL

    return "\n".join(["| package | needed for |", "|---|---|", *(f"| {name} | {words} |" for name, words in OPTIONAL.items())])


@block()
def first_model() -> str:
    """The commands of README.md for images of one's own, with their seconds."""
    record = result("first_model")
    lines = ["| command | seconds of the processor |", "|---|---|"]
    lines += [f"| `{row['command']}` | {row['processor_seconds']:.0f} |" for row in record["rows"]]
    step, n = record["rows"][0]["processor_seconds"] / record["steps"], record["accuracy"]["n"]
    cores = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    return "\n".join([
        *lines, "",
        f"{record['images'] - n} photographs to train on, {n} to test on; {cores} of {record['machine']}, torch "
        f"{record['torch']}. A training step takes {step:.2f} s, start and end included, so all {record['steps_of_preset']:,} "
        f"of the preset take {step * record['steps_of_preset'] / 60:.0f} minutes of one thread. The page is opened and "
        f"ended. Test accuracy: {value({'metrics': {'a': record['accuracy']}}, 'a')}; guessing is right half of the time.",
    ])  # fmt: skip


@block()
def few_images() -> str:
    """A training from the start against fine-tuning, on few images of one's own, by benchmarks/few_images.py."""
    lines = ["| images of each class | command | steps | minutes | test accuracy |", "|---|---|---|---|---|"]
    rows = result("few_images")["rows"]
    for row in sorted(rows, key=lambda row: (row["each"], -row["accuracy"]["value"])):
        training, accuracy = row["training"], value({"metrics": {"a": row["accuracy"]}}, "a")
        minutes = f"{training['seconds'] / 60:.0f}"
        lines.append(f"| {row['each']} | `{row['command']}` | {training['steps']:,} | {minutes} | {accuracy} |")
    facts, classes, aside = rows[0]["environment"], rows[0]["classes"], 100 * preset("photos_32").data.held_out
    return "\n".join([
        *lines, "",
        f"{classes} of Tiny-ImageNet's classes, evenly spaced, reduced to 32x32 pixels; guessing is right in "
        f"{100 / classes:.0f} % of the cases. Of these images `photos_32` keeps {aside:.0f} % aside; fine-tuning "
        f"trains on all. One seed, {threads(facts['threads'])} of {facts['device']} beside another "
        f"program; {versions(facts)} (`python benchmarks/few_images.py`).",
    ])  # fmt: skip
