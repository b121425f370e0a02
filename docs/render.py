"""Render the tables of README.md and docs/*.md from results/*.json, between `<!-- begin NAME -->` and `<!-- end NAME -->`."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODELS = sorted(path.stem.removeprefix("model_") for path in (ROOT / "results").glob("model_*.json"))


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def value(record: dict[str, Any], name: str, percent: bool = True, digits: int | None = None) -> str:
    """A metric with its interval and the number of images, or a dash if it was not measured."""
    metric = record["metrics"].get(name)
    if metric is None:
        return "-"
    scale, usual = (100, 1) if percent else (1, 2)
    digits = usual if digits is None else digits
    shown = f"{scale * metric['value']:.{digits}f}" + (" %" if percent else "")
    interval = f"{scale * metric['low']:.{digits}f} to {scale * metric['high']:.{digits}f}, " if "low" in metric else ""
    return f"{shown} ({interval}n {metric['n']:,})"


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


def speed() -> str:
    return speed_of(result("bench"))


def speed_of(record: dict[str, Any]) -> str:
    """The joint step beside the plain reference, in the precision that training takes, from a record of `hybvit bench`."""
    size, product = record["batch_size"], record["products"][-1]  # the last precision is the fastest
    joint = {row["system"]: row for row in record["rows"] if row["row"] == "joint" and row["precision"] == product["precision"]}
    ratio, low, high = (joint["plain reference"]["speedup"][key] for key in ("median", "low", "high"))
    reached = 100 * joint["hybvit"]["fraction_of_peak"]["median"]
    return (
        f"The joint step at CIFAR-10's size (batch {size} + {size}, {product['precision']}) runs {ratio:.2f} times as fast as "
        f"a plain reference step, timed alternately (quartiles {low:.2f} to {high:.2f}), at {reached:.0f} % of the "
        f"{product['gflop_per_second']:.0f} GFLOP/s of a matrix product on the same machine. [More](docs/speed.md#measured)"
    )


def bench(*names: str) -> str:
    """All rows of records of `hybvit bench`, and which machine they are of."""
    lines = []
    for name in names:
        record = result(name)
        peaks = ", ".join(f"{p['gflop_per_second']:.0f} GFLOP/s in {p['precision']}" for p in record["products"])
        lines += [
            f"`{record['subject']}`, batch {record['batch_size']} (joint steps {record['batch_size']} + "
            f"{record['batch_size']}), {record['samples']} samples of {record['steps']} steps:",
            "",
            "| row | system | precision | ms (quartiles) | images/s | of peak | MiB | hybvit is ... as fast |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in record["rows"]:
            median, low, high = (1000 * row["seconds"][key] for key in ("median", "low", "high"))
            ratio = "{median:.2f} x ({low:.2f} to {high:.2f})".format(**row["speedup"]) if "speedup" in row else ""
            memory = "" if row["memory_mib"] is None else f"{row['memory_mib']:,.0f}"
            lines.append(
                f"| {row['row']} | {row['system']} | {row['precision']} | {median:,.0f} ({low:,.0f} to {high:,.0f}) "
                f"| {row['images_per_second']:,.0f} | {100 * row['fraction_of_peak']['median']:.0f} % | {memory} | {ratio} |"
            )
        lines += [
            "",
            f"Medians of {record['repeats']} alternating repeats, {threads(record['threads'])} of an {record['device']}, whose "
            f"large matrix products reach {peaks}; {versions(record['environment'])}.",
            "",
        ]
    return "\n".join(lines[:-1])


def loader() -> str:
    record = result("loader")
    lines = [
        "| images/s | training | loader: none | weak | strong | strong, without mixing | torchvision on PIL | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        low, high = row["speedup_range"]
        cells = [row["name"]]
        names = ("training", "loader_none", "loader_weak", "loader_strong", "strong_images_per_second", "pil_images_per_second")
        cells += [f"{row[name]:,.0f}" for name in names]
        lines.append(f"| {' | '.join(cells)} | {row['speedup']:.1f} ({low:.1f} to {high:.1f}) |")
    threads = record["environment"]["threads"]
    lines += [
        "",
        f"Training is the joint step of `digits`, `fashion_mnist_pocket` and `cifar10` on {threads} threads. Training and "
        "loader count the images of both mini-batches. The loader and the augmentations run on one thread. "
        "The last three columns count only the labeled images. "
        f"Medians of {record['repeats']} alternating repeats (`python benchmarks/loader.py`).",
    ]
    return "\n".join(lines)


def stream() -> str:
    record = result("stream_memory")
    small, whole = record["small_buffer"], record["buffer_of_everything"]
    return (
        f"Measured (`python benchmarks/stream_memory.py`): {record['samples']:,} images in {record['shards']} shards, "
        f"{record['stream_mib']:.0f} MiB, trained on for {record['epochs']} epochs with a buffer of "
        f"{small['buffer_samples']:,}. The process peaks at {small['largest_mib']:.0f} MiB and grows by "
        f"{small['growth_after_first_quarter_mib']:.1f} MiB after the first quarter; with a buffer for all images it peaks at "
        f"{whole['largest_mib']:.0f} MiB."
    )


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


def evaluation(record: dict[str, Any]) -> str:
    """All metrics of a model, and how they were measured."""
    options, left_out = record["options"], fitted_on_training_images(record)
    lines = ["| metric | value | 95 % interval | n |", "|---|---|---|---|"]
    for name, metric in record["metrics"].items():
        if name in left_out:
            continue
        number = metric["value"]
        shown = f"{number:,}" if isinstance(number, int) else f"{number:,.4f}" if abs(number) < 100 else f"{number:,.0f}"
        interval = f"{round(metric['low'], 4) + 0.0:.4f} to {metric['high']:.4f}" if "low" in metric else ""
        lines.append(f"| `{name}` | {shown} | {interval} | {metric['n']:,} |")
    seconds = sum(suite["seconds"] for suite in record["suites"].values())
    counts = sorted({suite["environment"]["threads"] for suite in record["suites"].values()})
    protocol = record.get("tables", {}).get("protocol", {})
    labels = {"no labels": "unconditional", "a random label for each": "class-conditional with a random label for each"}
    condition = f", {labels.get(protocol['told'], protocol['told'])}" if "told" in protocol else ""
    lines += [
        "",
        f"{options['samples']} samples ({options['sampler']}, {options['steps']} steps{condition}), "
        f"{options['bound_images']} images for the likelihood bound with {options['bound_draws']} times each, "
        f"{options['attack_images']} images attacked by PGD and {options['autoattack_images']} by AutoAttack, "
        f"seed {options['seed']}. "
        f"Evaluation took {seconds:.0f} s on {' or '.join(map(threads, counts))} of a shared machine.",
    ]
    return "\n".join([*lines, *unequal(record["metrics"])])


def unequal(metrics: dict[str, Any]) -> list[str]:
    """Lines about numbers of one table that earlier versions measured on different numbers of images."""
    lines, total = [], metrics.get("likelihood/bits_per_dim", {}).get("n")
    part = metrics.get("likelihood/diffusion_bits", {}).get("n")
    if part and total and part != total:
        lines += ["", f"The parts of the bound are those of {part:,} of the {total:,} images: they do not add up to it."]
    real = (name for name in metrics if re.fullmatch(r"fidelity/(fid|fd)_.*_real_test", name))
    old = next((name for name in real if not re.fullmatch(r".*_\d+_real_test", name)), None)
    samples = next((m["n"] for name, m in metrics.items() if re.fullmatch(r"fidelity/(fid|fd)_.*_\d+", name)), None)
    if old and samples and metrics[old]["n"] != samples:
        lines += [
            "",
            f"The Frechet distance of the test images is that of {metrics[old]['n']:,}, not of {samples:,} as for the samples. "
            "A distance falls with the number of images, so the two do not compare.",
        ]
    return lines


def fitted_on_training_images(record: dict[str, Any]) -> set[str]:
    """The metrics of a temperature that an earlier version fitted on images that the network was trained on."""
    notes = record["notes"].get("calibration", [])
    if not any(FITTED in reworded(note) for note in notes):
        return set()
    return {name for name in record["metrics"] if re.fullmatch(r"calibration/(temperature|.*_scaled)", name)}


def card(name: str) -> str:
    """The model card's figures of a bundled model."""
    from hybvit.evaluation.context import Options

    record = result(f"model_{name}")
    legs = []
    for leg in record["legs"]:
        batches = f"{leg['batch_size']} denoising and {leg['labelled_batch_size'] or leg['batch_size']} labeled images"
        spent = [f"{place['seconds'] / 3600:.2f} hours on {machine(place)}, torch {place['torch']}" for place in leg["places"]]
        steps = f"{leg['steps']:,}" + (f" of {leg['of_steps']:,}" if leg["steps"] < leg["of_steps"] else "")
        if leg["steps"] < leg["of_steps"]:
            steps += " (stopped there, before its schedules ended)"
        described = re.sub(r"--train\.init \S+", "--train.init PREVIOUS_STAGE", leg["command"])
        legs.append(f"{steps} steps of {batches} (`{described}`), {' and '.join(spent)}")
    trained = f"{record['parameters']:,} parameters; trained for {'; then for '.join(legs)}; seed {record['seed']}."
    notes = [LEFT_OUT if FITTED in reworded(note) else reworded(note) for suite in record["notes"].values() for note in suite]
    default = json.loads(json.dumps(dataclasses.asdict(Options())))  # with lists for tuples, as the record has them
    asked = [f"--{key.replace('_', '-')} {value}" for key, value in record["options"].items() if value != default[key]]
    measured = f"Measured by `{' '.join(['hybvit evaluate', name, *asked])}`:"
    bounded = [m for m in record["metrics"].values() if m.get("low") is not None]
    if any(not m["low"] <= m["value"] <= m["high"] for m in bounded):
        notes.append(
            "An interval that lies above its value is that of a small calibration error: images drawn anew with replacement "
            "are calibrated worse than all of them, so it is an upper estimate (docs/doubt.md in the repository)."
        )
    return "\n\n".join([trained, measured, evaluation(record), *dict.fromkeys(notes)])


FITTED = "It was fitted on images that the network was trained on"
LEFT_OUT = (
    "Nothing is given after temperature scaling: no images were held out of training to fit the temperature on "
    "(train with --data.held_out 0.1). Fitted on images that the network was trained on, it makes the calibration worse."
)
# Notes as earlier versions stored them -> as the evaluation writes them now.
REWORDED = {
    "No images were held out of training to fit a temperature on (train with --data.held_out 0.1): it was fitted on training "
    "images that the network has learnt, and may be too small.": "No images were held out of training to fit the temperature "
    "on (train with --data.held_out 0.1). It was fitted on images that the network was trained on, so it may be too small.",
    "The network labels all of those images rightly, so they ask for no finite temperature: none was used.": "No temperature "
    "was applied: the accuracy on the images to fit it on is perfect, so no finite temperature is optimal.",
}


def reworded(note: str) -> str:
    return REWORDED.get(note, note)


def machine(facts: dict[str, Any]) -> str:
    """The machine of a run, from its environment."""
    device = facts["device"]
    return f"one {device}" if "NVIDIA" in device else f"{threads(facts['threads'])} of {device}"


def spent(places: list[dict[str, Any]]) -> str:
    """The time of a training, in all and by machine."""
    from hybvit.waiting import duration

    by_machine: dict[str, float] = {}
    for place in places:
        by_machine[machine(place)] = by_machine.get(machine(place), 0.0) + place["seconds"]
    parts = [f"{duration(seconds)} on {name}" for name, seconds in by_machine.items()]
    return parts[0] if len(parts) == 1 else f"{sum(by_machine.values()) / 3600:.1f} h in all: {', '.join(parts)}"


def versions(facts: dict[str, Any]) -> str:
    """What a record was measured with."""
    return f"hybvit {facts['hybvit']}, torch {facts['torch']}"


def threads(count: int) -> str:
    return f"{count} CPU thread{'s' if count > 1 else ''}"


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


def study(name: str) -> str:
    """The table of a study, with its notes."""
    from hybvit.reproduce.studies import STUDIES, markdown

    return markdown(max((known for known in STUDIES if name.startswith(known)), key=len), result(f"study_{name}"))


def comparison() -> str:
    """The columns of the study `v2` that README.md shows."""
    from hybvit.reproduce.render import as_markdown
    from hybvit.reproduce.studies import STUDIES, facts, intervals, lines_of

    runs = result("study_v2")["runs"]
    heads, lines = lines_of(STUDIES["v2"], runs)
    shown = ("recipe", "accuracy %", "Frechet distance", "bits/dim", "parameters", "steps", "seconds")
    columns = [heads.index(head) for head in shown]
    table = as_markdown([heads[i] for i in columns], [[line[i] for i in columns] for line in lines])
    return "\n\n".join([table, facts(runs), *intervals(STUDIES["v2"], runs, shown)])


def cifar10_penalties() -> str:
    """What the runs of the study `cifar10` say of one network for both tasks, beside what was aimed at."""
    runs = result("study_cifar10")["runs"]
    accuracy = {run: 100 * runs[run]["metrics"]["test/accuracy"]["value"] for run in ("v2", "paper", "v2_vit")}
    named = "fidelity/fd_cnn-cifar10_5000"
    distance = {run: runs[run]["metrics"][named]["value"] for run in ("v2", "paper", "v2_genvit")}
    return "\n".join(
        (
            "| | measured | aim |",
            "|---|---|---|",
            f"| accuracy above the paper's recipe, points | {accuracy['v2'] - accuracy['paper']:.1f} | 10 |",
            f"| Frechet distance over that of the paper's recipe | {distance['v2'] / distance['paper']:.2f} | 0.33 |",
            f"| accuracy below labels only, points | {accuracy['v2_vit'] - accuracy['v2']:.1f} | 0.5 |",
            "| Frechet distance over that of images only, unconditional | "
            f"{distance['v2'] / distance['v2_genvit']:.2f} | 1.15 of a class-conditional one, which was not run |",
        )
    )


def v2_costs() -> str:
    """The cost of each v2 preset compared with the paper's preset for the same images."""
    from hybvit.config import override
    from hybvit.presets import PRESETS, preset
    from hybvit.reproduce import published
    from hybvit.training.cost import GPU, UTILISATION, cost

    took = float(published.row("table8", "HybViT(d=384)").values["hours"])
    pace = took / cost(preset("cifar10")).gpu_hours
    heads = (
        "| preset | parameters | paper's | steps | paper's | GFLOP per step | GPU hours, estimated | paper's, estimated "
        "| v2 at the paper's speed | operations, joint over denoising step |"
    )
    lines = [heads, f"|{'---|' * 10}"]
    for name in PRESETS:
        if not name.endswith("_v2"):
            continue
        paper = name.removesuffix("_v2") if name != "fashion_mnist_v2" else "fashion_mnist_pocket"
        ours, theirs = cost(preset(name)), cost(preset(paper))
        denoising = cost(override(preset(name), objective={"kind": "genvit"})).train_gflop_per_step
        joint = f"{ours.train_gflop_per_step / denoising:.2f}" if preset(name).objective.kind == "hybvit" else "-"
        hours = [
            f"{h:,.0f}" if h >= 10 else f"{h:.1f}" if h >= 0.1 else "less than 0.1"
            for h in (ours.gpu_hours, theirs.gpu_hours, pace * ours.gpu_hours)
        ]
        lines.append(
            f"| `{name}` | {ours.parameters / 1e6:.2f} M | {theirs.parameters / 1e6:.2f} M | {preset(name).train.steps:,} "
            f"| {preset(paper).train.steps:,} | {ours.train_gflop_per_step:,.0f} | {' | '.join(hours)} | {joint} |"
        )
    below = (
        f"Estimated from operation counts, not measured: one {GPU} at an assumed {UTILISATION:.0%} of its peak, which the "
        f"small presets did not reach on the card above. The paper's speed is that of its HybViT "
        f"on CIFAR-10 (Table 8): {took} hours on its GPU, {pace:.0f} times the estimate."
    )
    return "\n".join([*lines, "", below])


def gpu_steps() -> str:
    """Training steps of the GPU presets, as timed by benchmarks/steps.py."""
    record = result("gpu_steps")
    lines = [
        "| preset | ms per step | denoising only | joint over denoising | TFLOP/s | share of a matrix product's | images/s "
        "| GPU memory | hours for all steps |",
        f"|{'---|' * 9}",
    ]
    for name, found in record["presets"].items():
        joint = found["joint"]
        lines.append(
            f"| `{name}` | {1000 * joint['seconds']:.1f} | {1000 * found['denoising']['seconds']:.1f} "
            f"| {found['joint_over_denoising']:.2f} | {joint['gflop'] / 1000 / joint['seconds']:.0f} "
            f"| {joint['fraction_of_peak']:.0%} | {joint['images_per_second']:,.0f} | {found['peak_mib'] / 1024:.1f} GiB "
            f"| {joint['hours']:,.1f} |"
        )
    batches = {tuple(found["batch"]) for found in record["presets"].values()}
    assert len(batches) == 1
    denoised, labeled = batches.pop()
    facts = record["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {record['repeats']} alternating repeats on one {facts['device']}, torch {facts['torch']}, compiled, "
            f"bf16, {denoised} + {labeled} random images. Loading, clipping and the weight average "
            f"are not included; the memory covers both kinds of step "
            f"(`python benchmarks/steps.py "
            f"{' '.join(record['presets'])} --out FILE`).",
        ]
    )


def floors() -> str:
    """What real, copied, blurred and random images are worth on two extractors (benchmarks/floors.py)."""
    record = result("floors_cifar10")
    found, facts = record["extractors"], record["environment"]
    words = {
        "test": "real test images",
        "jpeg_train": "training images, from the JPEG copy",
        "lossless_train": "the same ones, lossless",
        "blur_1": "test images, blurred (Gaussian, sigma 1 pixel)",
        "blur_2": "test images, blurred (sigma 2)",
        "noise": "uniform noise",
    }
    lines = ["| images | n | " + " | ".join(f"`{name}`" for name in found) + " |", f"|---|---|{'---|' * len(found)}"]
    for row in next(iter(found.values()))["distances"]:
        kind, n = row.rsplit("_", 1)
        cells = (f"{of['distances'][row]:.3f}" for of in found.values())
        lines.append(f"| {words[kind]} | {int(n):,} | {' | '.join(cells)} |")
    references = " and ".join(f"{of['reference_images']:,} (`{name}`)" for name, of in found.items())
    speeds = " and ".join(f"{of['cpu_ms_per_image']:.1f} ms" for of in found.values())
    return "\n".join(
        [
            *lines,
            "",
            f"Distances from {references} evenly spaced training images of CIFAR-10, both from a JPEG copy (quality 75; "
            f"{record['jpeg_mean_error_in_gray_levels']:.1f} gray levels off on average). An image takes {speeds} of one CPU "
            f"thread ({facts['device']}). Seed {record['seed']}, torch {facts['torch']} (`python benchmarks/floors.py`).",
        ]
    )


def samples_cifar10() -> str:
    """Samples of the bundled `cifar10` by guidance: distances, and the share that has the class that it was drawn for."""
    record, real = result("samples_cifar10"), result("floors_cifar10")["extractors"]
    judges, rows, n = list(record["reference_images"]), record["guidance"], record["samples"]
    classes = list(rows["0"]["class_agreement_by_class"])
    lines = [
        "| guidance | " + " | ".join(f"`{name}`" for name in judges) + f" | wanted class, % | {' | '.join(classes)} |",
        f"|{'---|' * (2 + len(judges) + len(classes))}",
    ]
    for guidance, row in rows.items():
        distances = " | ".join(f"{row['distances'][name]:.2f}" for name in judges)
        every = row["class_agreement"]
        shares = " | ".join(f"{100 * row['class_agreement_by_class'][name]['value']:.0f}" for name in classes)
        interval = f"{100 * every['value']:.1f} ({100 * every['low']:.1f} to {100 * every['high']:.1f})"
        lines.append(f"| {guidance} | {distances} | {interval} | {shares} |")
    floors = " and ".join(f"{real[name]['distances'][f'test_{n}']:.2f}" for name in judges)
    facts = record["environment"]
    lines += [
        "",
        f"{n:,} samples of `{record['model']}`, as many of each class ({record['sampler']}, {record['steps']} steps, seed "
        f"{record['seed']}); real test images are at {floors}. The wanted class is what `cnn-cifar10` says. "
        f"{facts['device']}, torch {facts['torch']} (`python benchmarks/samples.py`).",
    ]
    return "\n".join(lines)


def paper_records(scale: str) -> dict[str, Any]:
    return result(f"paper_{scale}")["runs"]


def paper_table(name: str, scale: str = "pocket") -> str:
    """A table of the paper with our figures at a scale."""
    from hybvit.reproduce import render as tables
    from hybvit.reproduce.scales import SCALES

    return tables.markdown(name, paper_records(scale), SCALES[scale]).rstrip("\n")


def paper_runs(scale: str = "pocket") -> str:
    """The runs of the reproduction: data, size, steps and time, and which are still to be made."""
    from hybvit.reproduce.scales import SCALES
    from hybvit.reproduce.tables import NAMES
    from hybvit.reproduce.work import plan

    records = {run: record for run, record in paper_records(scale).items() if record.get("training")}
    lines = ["| preset | data | parameters | steps | batch | minutes | |", "|---|---|---|---|---|---|---|"]
    for run, record in records.items():
        training = record["training"]
        done, steps = training.get("steps", 0), training["of_steps"]
        lines.append(
            f"| `{run}` | {record['data']} | {record['parameters']:,} | {done:,} | {training['batch_size']} | "
            f"{training.get('seconds', 0) / 60:.1f} | {'diverged' if record.get('diverged') else ''}"
            f"{'' if done == steps else f' of {steps:,} steps'} |"
        )
    facts = next(iter(records.values()))["environment"]
    seeds = sorted({record["seed"] for record in records.values()})
    hours = sum(record["training"].get("seconds", 0) for record in records.values()) / 3600
    lines += [
        "",
        f"Seed {', '.join(map(str, seeds))}; {hours:.1f} core hours of training. Two runs at a time, each on "
        f"{facts['threads']} thread of a shared two-core {facts['machine']} machine; torch {facts['torch']}.",
    ]
    planned = plan(list(NAMES), SCALES[scale], set(), []).jobs
    if left := [f"`{job.run}`" for job in planned if job.run not in records]:
        lines += ["", f"{len(left)} of {len(planned)} runs are not trained yet: {', '.join(left)}."]
    return "\n".join(lines)


def titled(name: str) -> str:
    """table6 -> Table 6."""
    return re.sub(r"^(table|figure)", lambda match: f"{match[1].capitalize()} ", name)


def paper_verdicts(scale: str = "pocket") -> str:
    """The paper's claims by verdict at a scale."""
    from hybvit.reproduce import render as tables
    from hybvit.reproduce.claims import CLAIMS
    from hybvit.reproduce.scales import SCALES

    found = [(name, line) for name in CLAIMS for line in tables.verdicts(name, paper_records(scale), SCALES[scale])]
    parts = []
    for outcome in ("holds", "does not hold", "too close to call"):
        kinds = {"holds": ("holds", tables.ONCE), "does not hold": ("does not hold", tables.NOT_ONCE)}.get(outcome, (outcome,))
        same = [(name, line[0]) for name, line in found if line[3] in kinds]
        listed = "; ".join(f"{words} ({titled(name)})" for name, words in same)
        parts.append(f"**{outcome.capitalize()}** ({len(same)}): {listed or 'none'}.\n")
    return "\n".join(parts)


SCALE = (  # devices, gigabytes per second that one of them sends and receives (assumed), and in words
    (1, None, ""),
    (8, 300, "NVLink"),
    (64, 45, "a 400 Gbit/s card for each"),
    (64, 1.4, "a 100 Gbit/s card for eight"),
)
ADAM, MUON, AVERAGE = 8, 4, 4  # bytes of state for a weight; weights and gradients take four each


def scale() -> str:
    """What a step of ImageNet 224 costs on 1, 8 and 64 devices: measured computation, and communication by its bytes."""
    import torch

    from hybvit.networks import build_network, number_of_parameters
    from hybvit.presets import preset
    from hybvit.training.cost import cost
    from hybvit.training.optim import matrices_of_layers

    name = "imagenet224_v2"
    found = result("gpu_steps")["presets"][name]
    cfg, seconds, images = preset(name), found["joint"]["seconds"], sum(found["batch"])
    with torch.device("meta"):
        net = build_network(cfg)
    weights, matrices = number_of_parameters(net), sum(p.numel() for p in matrices_of_layers(net))
    state = (weights - matrices) * ADAM + matrices * MUON + weights * (8 + AVERAGE)
    lines = [
        "| devices | connection | images a step | of each device | sent and received | sending alone | computing alone "
        "| days for all images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = cost(cfg).images
    for times in (False, True):  # the preset's batch, and as many times that as there are devices
        for devices, speed, words in SCALE[times:]:
            others = (devices - 1) / devices
            sent = others * (2 * 4 * weights + 2 * matrices)  # gradients in float32, Muon's results in bfloat16
            sending = sent / (speed * 1e9) if speed else 0.0
            shared = found["batch"][0] + max(found["batch"][1], 2 * devices)  # two labeled images of a device are mixed
            own = images if times else shared // devices
            computing = seconds * own / images
            steps = total / images / (devices if times else 1)
            days = steps * max(computing, sending) / 86400
            lines.append(
                f"| {devices} | {words} | {devices * own:,} | {own} | {sent / 1e9:.2f} GB | {1000 * sending:.0f} ms "
                f"| {1000 * computing:.3g} ms | {days:.1f} |"
            )
    facts = result("gpu_steps")["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"`{name}`: {weights / 1e6:.1f} M weights, {cost(cfg).train_gflop_per_step:,.0f} GFLOP a step of "
            f"{found['batch'][0]} + {found['batch'][1]} images, {state / 1e9:.1f} GB of weights, gradients, "
            f"optimizer state and average on each (`ddp`; with `fsdp` all but the average is divided), "
            f"{found['peak_mib'] / 1024:.0f} GiB in all. Computing was measured on one {facts['device']} with all {images} "
            "images (results/gpu_steps.json); that fewer take proportionally less is the best that can be. The rest is a model "
            "that no run has checked: a ring that averages float32 gradients "
            "sends 2 (n - 1)/n times their bytes, each connection reaches the speed that is assumed for it "
            f"({', '.join(f'{words} {speed:g} GB/s' for _, speed, words in SCALE if speed)}), and the longer of computing and "
            "sending counts, since they go on at the same time.",
        ]
    )


def growth() -> str:
    """How a training step and the parts of an evaluation grow, by benchmarks/growth.py."""
    record = result("growth")
    facts = record["environment"]
    lines = [
        f"A training step of `{record['preset']}` ({record['precision']}, batch {record['batch']} where that does not grow):",
        "",
        "| grows | from ... to | time, s | GFLOP | MiB | time | operations | memory | expected of memory |",
        f"|{'---|' * 9}",
    ]
    for row in record["steps"]:
        first, last, found = row["points"][0], row["points"][-1], row["exponents"]
        spans = [f"{low} to {high}" for low, high in ((first["size"], last["size"]),)]
        spans += [f"{first['seconds']['median']:.3g} to {last['seconds']['median']:.3g}"]
        spans += [f"{first['gflop']:.3g} to {last['gflop']:.3g}"]
        measured = "memory_mib" in found
        spans += [f"{first['memory_mib']:,.0f} to {last['memory_mib']:,.0f}" if measured else "-"]
        memory = f"{found['memory_mib']:.2f}" if measured else "-"
        exponents = f"{found['seconds']:.2f} | {found['gflop']:.2f} | {memory} | {row['expected_memory']}"
        lines.append(f"| {row['what']} | {' | '.join(spans)} | {exponents} |")
    lines += [
        "",
        "Parts of an evaluation of `digits`:",
        "",
        "| part | images | time, s | exponent | expected |",
        f"|{'---|' * 5}",
    ]
    for row in record["evaluations"]:
        first, last = row["points"][0], row["points"][-1]
        times = f"{first['seconds']['median']:.3g} to {last['seconds']['median']:.3g}"
        exponents = f"{row['exponents']['seconds']:.2f} | {row['expected']}"
        lines.append(f"| {row['part']} | {first['size']} to {last['size']} | {times} | {exponents} |")
    lines += [
        "",
        f"Processor time of one thread ({facts['device']}), medians of {record['repeats']} alternating repeats at four sizes "
        f"each; {versions(facts)} (`python benchmarks/growth.py`).",
    ]
    return "\n".join(lines)


def sampling() -> str:
    """Images per second of the ways to draw, by benchmarks/sampling.py."""
    record = result("sampling")
    facts, peaks = record["environment"], record["peak_gflop_per_second"]
    batches = list(dict.fromkeys(row["images"] for row in record["rows"]))
    lines = [f"| how | precision | {' | '.join(f'{n} images' for n in batches)} |", f"|{'---|' * (2 + len(batches))}"]
    for how, precision in dict.fromkeys((row["how"], row["precision"]) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row["how"], row["precision"]) == (how, precision)]
        cells = [f"{row['images_per_second']:.0f} ({100 * row['fraction_of_peak']:.0f} %)" for row in rows]
        lines.append(f"| {how} | {precision} | {' | '.join(cells)} |")
    reached = ", ".join(f"{gflops:.0f} GFLOP/s in {precision}" for precision, gflops in peaks.items())
    threads = f"{facts['threads']} thread" + ("" if facts["threads"] == 1 else "s")
    lines += [
        "",
        f"Images a second of `{record['model']}` in {record['steps']} steps of `{record['sampler']}`, by {record['clock']} of "
        f"{threads} ({facts['device']}), and the share of what large matrix products reach: {reached}. Medians of "
        f"{record['repeats']} alternating repeats; {versions(facts)} (`python benchmarks/sampling.py`).",
    ]
    return "\n".join(lines)


def busy() -> str:
    """Training with all threads, with one and by a trial, alone and beside busy programs, by benchmarks/busy.py."""
    record = result("busy")
    loads = sorted({row["busy"] for row in record["runs"]})
    heads = ["alone" if load == 0 else f"beside {load} busy programs" for load in loads]
    lines = [f"| threads | {' | '.join(heads)} |", f"|{'---|' * (1 + len(heads))}"]
    for way in dict.fromkeys(row["way"] for row in record["runs"]):
        cells = []
        for load in loads:
            rows = [row for row in record["runs"] if (row["way"], row["busy"]) == (way, load)]
            rates = sorted(row["images_per_second"] for row in rows)
            chosen = " or ".join(map(str, sorted({row["threads"] for row in rows})))
            spread = f" ({rates[0]:,.0f} to {rates[-1]:,.0f})" if len(rates) > 1 else ""
            whole = statistics.median(row["seconds"] for row in rows)
            cells.append(f"{statistics.median(rates):,.0f}{spread}, {whole:.0f} s, {chosen}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    repeats, facts = len(record["runs"]) // (len(lines) - 2) // len(loads), record["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"Images a second of `{record['command'][0]}` (median), seconds of the whole command, and its threads; {repeats} "
            f"training{'s' if repeats > 1 else ''} each of {record['steps']} steps, in turn, on {facts['device']}; "
            f"{versions(facts)} "
            "(`python benchmarks/busy.py`).",
        ]
    )


def processes() -> str:
    """One process with all cores against a process for each, by benchmarks/processes.py."""
    found, said = result("processes"), []
    for row in found["rows"]:
        (one, alone), (many, apart) = row["seconds_per_step"].items()
        spread = max(max(part) / min(part) - 1 for part in (alone, apart)) * 100
        beside = f"; beside {row['busy']} busy programs" if row["busy"] else ""
        said.append(
            f"{beside} {1000 * statistics.median(alone):.0f} ms a step in {one} process of {many} threads and "
            f"{1000 * statistics.median(apart):.0f} ms in {many} processes of one thread ({100 * row['overhead']:+.1f} %; "
            f"{found['repeats']} alternating repeats within {spread:.0f} %)"
        )
    facts = found["environment"]
    return f"Measured: `{' '.join(found['command'])}` takes{''.join(said)}. {facts['device']}, {versions(facts)}, gloo."


def speed_curves() -> str:
    """The losses of plain and of fast trainings, by benchmarks/curves.py."""
    record = result("curves")
    facts, ends = record["environment"], record["ends"]
    lines = ["| steps | options | loss at the end, by seed | mean | deviation of a seed |", "|---|---|---|---|---|"]
    for way, words in record["ways"].items():
        by_seed = " / ".join(f"{value:.3f}" for value in ends[way])
        spread = statistics.stdev(ends[way])
        lines.append(f"| {way} | `{' '.join(words)}` | {by_seed} | {statistics.mean(ends[way]):.3f} | {spread:.3f} |")
    gaps = [fast - plain for plain, fast in zip(*ends.values(), strict=True)]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    return "\n".join(
        [
            *lines,
            "",
            f"`{record['command'][0]}`, {record['steps']} steps; the loss is the mean of the last 200. Seed by seed the fast "
            f"steps end {statistics.mean(gaps):+.3f} away, with a standard error of {error:.3f}. "
            f"{threads(facts['threads'])} of an {facts['device']}, {versions(facts)} (`python benchmarks/curves.py`).",
        ]
    )


def budget() -> str:
    """The parts of a joint step, by benchmarks/budget.py."""
    record = result("budget")
    steps, facts = record["steps"], record["environment"]
    parts = list(dict.fromkeys(part for step in steps for part in step["parts"]))

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> str:
        return f"| {name} | {' | '.join(map(cell, steps))} |"

    def at_peak(step: dict[str, Any]) -> float:
        """Seconds of all operations of a step at the peak."""
        return step["flop"] / step["peak"]

    def counted(step: dict[str, Any]) -> float:
        """The share of the parts whose operations count."""
        return sum(step["parts"].get(part, 0.0) for part in ("matrix products", "attention", "convolutions"))

    lines = [row("part of the time", lambda step: f"`{step['preset']}`, {step['precision']}"), f"|{'---|' * (1 + len(steps))}"]
    lines += [row(part, lambda step, part=part: f"{100 * step['parts'].get(part, 0):.0f} %") for part in parts]
    lines += [
        row("a step, ms", lambda step: f"{1000 * step['seconds']:,.0f}"),
        row("of the peak", lambda step: f"{100 * at_peak(step) / step['seconds']:.0f} %"),
        row("faster, if all but products, attention and convolutions took no time", lambda step: f"{1 / counted(step):.2f} x"),
        row(
            "time of those parts over that of their operations at the peak",
            lambda step: f"{counted(step) * step['seconds'] / at_peak(step):.2f}",
        ),
    ]
    peaks = ", ".join(f"{step['peak'] / 1e9:.0f} GFLOP/s in {step['precision']}" for step in steps[:1])
    return "\n".join(
        [
            *lines,
            "",
            f"{record['batch']} + {record['batch']} images, {threads(facts['threads'])} of an {facts['device']}, whose large "
            f"matrix products reach {peaks}; shares of PyTorch's profiler over {record['repeats']} steps, {versions(facts)} "
            "(`python benchmarks/budget.py`).",
        ]
    )


def demo_times() -> str:
    """How long the demo takes alone and beside busy programs, by benchmarks/demo.py --record."""
    record = result("demo")
    facts, demos = record["environment"], record["demos"]
    lines = ["| beside | training | evaluation | samples | in all | threads of the training |", "|---|---|---|---|---|---|"]
    for demo in demos:
        parts = " | ".join(f"{demo['parts'][name]:.0f} s" for name in ("training", "evaluation", "samples"))
        beside = f"{demo['busy']} busy programs" if demo["busy"] else "nothing"
        lines.append(f"| {beside} | {parts} | {demo['seconds']:.0f} s | {demo['training_threads']} |")
    ratio = demos[-1]["seconds"] / demos[0]["seconds"]
    return "\n".join(
        [
            *lines,
            "",
            f"`make demo` on a machine with {demos[-1]['busy']} cores, {facts['device']}; beside as many busy programs it "
            f"takes {ratio:.1f} times as long. One run each; {versions(facts)} "
            "(`python benchmarks/demo.py --record`).",
        ]
    )


def checkpoints() -> str:
    """What a checkpoint costs the steps, by benchmarks/checkpoints.py."""
    record = result("checkpoints")
    facts = record["environment"]
    lines = [
        "| preset | parameters | MB of a checkpoint | written in | the steps wait | share | a gradient | beside the writing |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record["presets"].items():
        lines.append(
            f"| `{name}` | {row['parameters']:,} | {row['bytes'] / 1e6:,.0f} | {1000 * row['writing']:,.0f} ms "
            f"| {1000 * row['held_up']:.1f} ms | {100 * row['share']:.1f} % "
            f"| {1000 * row['gradient']:,.0f} ms | {1000 * row['gradient_beside']:,.0f} ms |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {record['repeats']} checkpoints, {threads(facts['threads'])} of an {facts['device']}; "
            f"{versions(facts)} (`python benchmarks/checkpoints.py`).",
        ]
    )


def certified() -> str:
    """Certified accuracy at radii, the votes, the attacks, and what the noise was chosen by (benchmarks/certified.py)."""
    record = result("certified")
    rows = record["certified"].values()

    def share(metric: dict[str, float]) -> str:
        return f"{100 * metric['value']:.1f} ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"

    def lines_of(split: str) -> list[str]:
        chosen = [row for row in rows if row["split"] == split]
        radii = list(chosen[0]["accuracy"])
        heads = ["model", "votes", "noise", "n", *(f"radius {r}, %" for r in radii), "abstained, %", "votes/s"]
        lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in chosen:
            reading = "its own" if row["kind"] == "noisy" else "after denoising"
            shown = [share(row["accuracy"][r]) if float(r) < row["largest_radius"] else "-" for r in radii]
            cells = [f"`{row['model']}`", reading, f"{row['noise']:g}", f"{row['n']:,}", *shown, share(row["abstained"])]
            lines.append(f"| {' | '.join(cells)} | {row['votes_per_cpu_second']:,} |")
        return lines

    edges = list(next(iter(rows))["share_of_votes"])
    spread = [f"| model | votes | noise | {' | '.join(edges)} |", f"|---|---|---|{'---|' * len(edges)}"]
    for row in (row for row in rows if row["split"] == "test"):
        reading = "its own" if row["kind"] == "noisy" else "after denoising"
        counts = " | ".join(f"{100 * count / row['n']:.1f}" for count in row["share_of_votes"].values())
        spread.append(f"| `{row['model']}` | {reading} | {row['noise']:g} | {counts} |")
    attacks = "; ".join(
        f"`{model}` (n {next(iter(found.values()))['n']}): "
        + ", ".join(f"{share(metric)} % at {radius}" for radius, metric in found.items())
        for model, found in record["attacked"].items()
        if found
    )
    strongest = result("model_fashion-mnist")["metrics"]["robustness/autoattack_l2_128"]
    facts = next(iter(record["parts"].values()))["environment"]
    pace = record["certified"]["fashion-mnist test noisy 0.25"]["votes_per_cpu_second"]
    few = min(row["votes"] for row in rows if row["split"] == "train")
    within = [
        f"Attacks inside of the certified radius (`{found['model']}`, SmoothAdv at {record['inside_share']:g} of it, noise "
        f"{found['noise']:g}): "
        f"{found['broken']} of {found['attacked']} certified images were broken, and {found['below_theorem']} lost more votes "
        f"than the theorem allows. The mean share of the votes fell from {found['mean_share_before']:.3f} to "
        f"{found['mean_share_after']:.3f}, the least is {found['least_share']:.3f}."
        for found in record["inside"].values()
    ]
    return "\n".join([
        *lines_of("test"),
        "",
        f"Test images, evenly spaced; {record['votes']:,} votes after {record['selection']} that select, confidence "
        f"{record['confidence']:g}, float32, seed {record['seed']}; 95 % intervals in parentheses; a dash where not even "
        "votes that all agree certify the radius. Votes per second of one "
        f"thread ({facts['device']}, torch {facts['torch']}; `python benchmarks/certified.py`): 500 images of `fashion-mnist` "
        f"take {500 * (record['votes'] + record['selection']) / pace / 60:.0f} minutes of one core.",
        "",
        "The same classifier without smoothing, under a strong PGD in L2 (50 steps, margin loss), which is an upper bound and "
        f"no certificate: {attacks}. AutoAttack leaves `fashion-mnist` {share(strongest)} % at 128/255 (n {strongest['n']}).",
        "",
        *within,
        "",
        "Share of the test images, in %, by the share of the votes that the true label gets:",
        "",
        *spread,
        "",
        f"The same on training images, to choose the noise by ({few} votes each; the figures are those of {record['votes']:,} "
        "votes in the same shares, and higher than those of test images, since the network knows these by heart):",
        "",
        *lines_of("train"),
    ])  # fmt: skip


def corruptions() -> str:
    """The bundled models under the common corruptions, by benchmarks/corruptions.py."""
    records = result("corruptions")
    lines = [
        "| | " + " | ".join(["clean", *(f"severity {severity}" for severity in range(1, 6))]) + " |",
        f"|---|{'---|' * 6}",
    ]
    rows = {
        "error": ("error", True), "error of the accepted": ("accepted_error", True), "share accepted": ("accepted", True),
        "ECE, 15 bins": ("ece_15", True), "NLL, nats": ("nll", False), "AUROC, log p(x)": ("auroc_logpx", False),
        "AUROC, denoising error": ("auroc_denoising", False),
    }  # fmt: skip
    for name, record in records.items():
        for title, (metric, percent) in rows.items():
            cells = [value(record, f"corruptions/{metric}_severity_{severity}", percent) for severity in range(6)]
            lines.append(f"| `{name}`: {title} | {' | '.join(cells)} |")
    for name, record in records.items():
        worst = sorted(record["tables"]["error"].items(), key=lambda item: -item[1][4])[:3]
        shown = ", ".join(f"{corruption} {100 * errors[4]:.0f} %" for corruption, errors in worst)
        facts, settings = record["environment"], record["settings"]
        lines += [
            "",
            f"`{name}` (`{record['command']}`): mean error {value(record, 'corruptions/mean_error')}; worst at severity 5: "
            f"{shown}. Constants of {record['tables']['constants']}, {record['tables']['images']['all']} test images, seed "
            f"{settings['seed']}; {record['seconds']:.0f} s on {machine(facts)} beside other programs; torch {facts['torch']}. "
            + " ".join(record["notes"]),
        ]
    return "\n".join(lines)


def doubt_calibration() -> str:
    """The calibration of the bundled models before and after scaling, by benchmarks/doubt.py."""
    record = result("doubt")
    models, bins = record["models"], record["bins"]
    lines = ["| | " + " | ".join(f"`{name}`" for name in models) + " |", "|---|" + "---|" * len(models)]

    def halves(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda m: f"{100 * m['halves'][name]['mean']:.2f} % (deviation {100 * m['halves'][name]['deviation']:.2f})"

    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "calibrated on": lambda m: f"{m['calibrated_on'][0]:,} images ({m['calibrated_on'][1]})",
        "chosen by cross-validation": lambda m: f"{m['scaling']}, {m['metrics']['calibration/temperature']['value']:.3f}",
        f"ECE of {bins} bins, as trained": lambda m: value(m, f"calibration/ece_{bins}", digits=2),
        f"ECE of {bins} bins, scaled": lambda m: value(m, f"calibration/ece_{bins}_scaled", digits=2),
        "ECE of 20 bins, scaled": lambda m: value(m, "calibration/ece_20_scaled", digits=2),
        "NLL, as trained, nats": lambda m: value(m, "calibration/nll", percent=False, digits=4),
        "NLL, scaled": lambda m: value(m, "calibration/nll_scaled", percent=False, digits=4),
        "change of the NLL": lambda m: value(m, "calibration/nll_change", percent=False, digits=4),
        f"mean ECE over {record['number_of_halves']} random halves, scaled": halves("ece"),
        "the same if every probability were exactly right": halves("ece_if_right"),
    }
    lines += [f"| {name} | " + " | ".join(cell(model) for model in models.values()) + " |" for name, cell in rows.items()]
    return "\n".join([*lines, "", measured_by(record)])


def measured_by(record: dict[str, Any]) -> str:
    models = record["models"]
    taken = ", ".join(
        f"`{name}` in {model['seconds']:.0f} s on {threads(model['environment']['threads'])} "
        f"({model['environment']['device']}, torch {model['environment']['torch']})"
        for name, model in models.items()
    )
    return (
        f"Judged on the other half of the test images; 95 % intervals in parentheses; seed {record['seed']}; shared machines: "
        f"{taken} (`python benchmarks/doubt.py`)."
    )


def doubt_scores() -> str:
    """Selective classification by each score, and abstention."""
    from hybvit.evaluation.doubt import RISKS, SCORE_LABELS

    models = result("doubt")["models"]
    lines = [SELECTIVE_HEAD, f"|{'---|' * 6}"]
    for name, model in models.items():
        for score, words in SCORE_LABELS.items():
            lines.append(f"| `{name}` | {words} | {' | '.join(selective(model, 'doubt', score))} |")
    lines += ["", "| model | promised risk | images answered | wrong among them |", f"|{'---|' * 4}"]
    for name, model in models.items():
        for risk in RISKS:
            key = f"doubt/abstain_above_{100 * risk:.0f}"
            known = f"{key}_risk" in model["metrics"]
            cells = [value(model, f"{key}_{what}", digits=2) for what in ("answered", "risk")] if known else ["none", "-"]
            lines.append(f"| `{name}` | {risk:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def doubt_sets() -> str:
    """Coverage and size of conformal sets: of one half, and over random halves."""
    record = result("doubt")
    models, n = record["models"], record["number_of_halves"]
    lines = [
        f"| model | score | coverage asked | covered | mean size | no class | covered, {n} halves | mean size, {n} halves |",
        f"|{'---|' * 8}",
    ]
    for name, model in models.items():
        for row in model["tables"]["conformal"]:
            key = f"{row['method']}_{100 * row['coverage']:.0f}"
            if row["random"]:
                covered, over, size = f"{row['covered']:.1%}", ["-", "-"], f"{row['size']:.3f}"
            else:
                covered = value(model, f"doubt/coverage_{key}")
                size = value(model, f"doubt/set_size_{key}", percent=False, digits=3)
                spread = [model["halves"][f"{what}_{key}"] for what in ("coverage", "size")]
                over = [f"{spread[0]['mean']:.2%} (deviation {100 * spread[0]['deviation']:.2f})", f"{spread[1]['mean']:.3f}"]
            words = f"{row['method']}{', with random numbers' if row['random'] else ''}"
            cells = [f"`{name}`", words, f"{row['coverage']:.0%}", covered, size, f"{row['empty']:.1%}", *over]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(metric: dict[str, Any]) -> str:
    """A proportion with its interval."""
    return f"{100 * metric['value']:.1f} % ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"


def editing_measured(*parts: dict[str, Any]) -> str:
    facts, seconds = [part["environment"] for part in parts], sum(part["seconds"] for part in parts)
    where = " and ".join(dict.fromkeys(map(machine, facts)))
    versions = ", ".join(dict.fromkeys(fact["torch"] for fact in facts))
    return (
        f"95 % intervals in parentheses. Seed {parts[0]['seed']}, {seconds:,} s on {where}, shared with other work, torch "
        f"{versions} (`python benchmarks/editing.py`)."
    )


def editing_counterfactuals() -> str:
    lines = [
        "| model | confidence | n | classifier agrees | judge agrees | both | distance | nearest training image "
        "| closer than it | both agree and closer |",
        f"|{'---|' * 10}",
    ]
    notes, parts = [], []
    for name, record in result("editing").items():
        found, far = record["counterfactuals"], record["rivals"]
        parts += [found, far]
        for key, row in found.items():
            if not key.startswith("confidence_"):
                continue
            shares = (percent(row[what]) for what in ("classifier", "judge", "both"))
            lines.append(
                f"| `{name}` | {key.removeprefix('confidence_')} | {row['both']['n']} | {' | '.join(shares)} "
                f"| {row['distance']:.2f} | {row['nearest']:.2f} | {percent(row['closer'])} "
                f"| {percent(row['both_and_closer'])} |"
            )
        notes.append(
            f"`{name}`: the judge is {found['judge_name']}. Of the nearest training images of the wanted classes, both "
            f"classifiers agree with the label of {percent(found['nearest_both'])}; the nearest ones that both accept are at "
            f"{far['nearest_accepted']:.2f} on average (n {far['n']})."
        )
    return "\n\n".join(["\n".join(lines), *notes, editing_measured(*parts)])


def editing_inpainting() -> str:
    lines = [
        "| model | hidden | n | known pixels changed | error | of the training images' mean | of the known pixels' mean "
        "| class kept | judge |",
        f"|{'---|' * 9}",
    ]
    parts = []
    for name, record in result("editing").items():
        parts.append(record["inpainting"])
        for key, words in (("right_half", "right half"), ("center", "a quarter, in the center")):
            row = record["inpainting"][key]
            errors = (f"{row[what]:.3f}" for what in ("rmse", "rmse_mean_of_training_images", "rmse_mean_of_known_pixels"))
            kept = (
                f"{percent(row[a])}, original {100 * row[b]['value']:.1f} %"
                for a, b in (("same_class", "before"), ("judge", "judge_before"))
            )
            cells = (words, str(row["same_class"]["n"]), str(row["known_pixels_changed"]), *errors, *kept)
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), "Class kept: the label of the data set is predicted. " + editing_measured(*parts)])


def editing_inversion() -> str:
    found = {name: record["inversion"] for name, record in result("editing").items()}
    ends = " and ".join(
        f"{row['rmse_gray_levels']:.2f} of 255 gray levels (at most {row['largest_rmse']:.2f}, `{name}`, n {row['n']})"
        for name, row in found.items()
    )
    steps = next(iter(found.values()))["steps"]
    return f"Both ends reproduce the images to a root mean square error of {ends}, in {steps} steps each way."


def editing_variations() -> str:
    lines = ["| model | strength | n | distance | class of the data set |", f"|{'---|' * 5}"]
    for name, record in result("editing").items():
        lines += [
            f"| `{name}` | {strength} | {row['same_class']['n']} | {row['distance']:.2f} | {percent(row['same_class'])} |"
            for strength, row in record["variations"].items()
            if strength[0].isdigit()
        ]
    return "\n".join(lines)


def editing_tries() -> str:
    found = result("editing")["fashion-mnist"]["tries"]
    words = {"plain": "one sample each", "tries_2": "up to 2 tries", "tries_4": "up to 4 tries"}
    for m in (2, 4):
        words |= {f"best_of_{m}_{by}": f"best of {m} by {said}" for by, said in (
            ("probability", "p(y\\|x)"), ("familiarity", "familiarity"), ("both", "the ranks of both"))}  # fmt: skip
    lines = [
        "| rule | samples drawn for each | Frechet distance | precision | recall | judge agrees | classifier agrees |",
        f"|{'---|' * 7}",
    ]
    for key, said in words.items():
        rows = found["rules"][key]
        cells = [f"{statistics.mean(row[what] for row in rows):.3f}" for what in ("frechet", "precision", "recall")]
        if len(rows) > 1:
            cells[0] += f" ({min(row['frechet'] for row in rows):.3f} to {max(row['frechet'] for row in rows):.3f})"
        cells += [f"{100 * statistics.mean(row[what]['value'] for row in rows):.1f} %" for what in ("judge", "classifier")]
        lines.append(f"| {said} | {statistics.mean(row['draws'] for row in rows):.2f} | {' | '.join(cells)} |")
    every, n = found["rules"]["all"], found["n"]
    return "\n".join(
        [
            *lines,
            "",
            f"{n:,} samples of `fashion-mnist` a row, all chosen from the same {every['n']:,} (dpmpp_2m, {found['steps']} "
            f"steps, classes in turn); distances from {found['reference']:,} training images, precision and recall from {n:,}. "
            f"Plain rows and tries are means over {len(found['rules']['plain'])} orders of the candidates, with their range. "
            f"At equal cost, all {every['n']:,} plain samples have a distance of {every['frechet']:.3f} at that n, precision "
            f"{every['precision']:.3f} and recall {every['recall']:.3f} from as many training images. Do not compare these "
            f"three with the rows: all depend on n. The judge is {found['judge_name']}. Seed {found['seed']}.",
        ]
    )


def readings() -> str:
    """Accuracy and calibration of the three readings, and what their agreement is worth (benchmarks/readings.py readings)."""
    words = {
        "label": "label read-out", "diffusion": "diffusion classifier", "denoised": "after a denoising step",
        "together": "mean of the three",
    }  # fmt: skip
    lines, notes = ["| model | reading | accuracy | NLL, nats | ECE, 15 bins |", f"|{'---|' * 5}"], []
    for model, record in result("readings").items():
        for name, reading in words.items():
            cells = (
                value(record, f"readings/{name}_accuracy"),
                value(record, f"readings/{name}_nll", percent=False),
                value(record, f"readings/{name}_ece_15"),
            )
            lines.append(f"| `{model}` | {reading} | {' | '.join(cells)} |")
        notes.append(
            f"`{model}`: all three give one label to {value(record, 'readings/all_agree')} of the test images. There the label "
            f"read-out is right for {value(record, 'readings/label_accuracy_where_agreeing')}; elsewhere for "
            f"{value(record, 'readings/label_accuracy_where_disagreeing')}. {of_model(model, record, 'readings')}"
        )
    return "\n\n".join(["\n".join(lines), *notes])


def readings_agreement() -> str:
    """The agreement of the readings as a confidence, beside the largest probability, on the same images."""
    lines, notes = [SELECTIVE_HEAD, f"|{'---|' * 6}"], []
    for model, record in result("readings").items():
        for name, words in (("max_prob", "largest probability"), ("agreement", "agreement of the readings")):
            lines.append(f"| `{model}` | {words} | {' | '.join(selective(record, 'readings', name))} |")
        lowered = record["metrics"]["readings/aurc_lowered_by"]
        change, least, most = (-100 * lowered[part] for part in ("value", "high", "low"))
        notes.append(f"`{model}`: the agreement changes the AURC by {change:+.1f} % ({least:+.1f} to {most:+.1f}).")
    return "\n\n".join(["\n".join(lines), *notes])


SELECTIVE_HEAD = "| model | score | AURC, 10^-3 | AUGRC, 10^-3 | coverage at 5 % risk | risk at 80 % coverage |"


def selective(record: dict[str, Any], suite: str, score: str) -> list[str]:
    """The cells of a score of selective classification."""
    areas = (record["metrics"][f"{suite}/{what}_{score}"] for what in ("aurc", "augrc"))
    cells = [f"{1000 * m['value']:.1f} ({1000 * m['low']:.1f} to {1000 * m['high']:.1f})" for m in areas]
    return cells + [
        value(record, f"{suite}/{what}_{score}", digits=2) for what in ("coverage_at_5_risk", "risk_at_80_coverage")
    ]


def of_model(name: str, record: dict[str, Any], what: str) -> str:
    facts = record["environment"]
    return (
        f"Seed 0, torch {facts['torch']}, {record['seconds'] / 60:.0f} minutes on one thread of a crowded machine "
        f"({facts['device']}; `python benchmarks/readings.py {what} --model {name}`). 95 % intervals in parentheses."
    )


def readings_attacks() -> str:
    """Accuracy of each reading under attacks through the whole of it (benchmarks/readings.py attacks)."""
    words = {
        "label_attacked": "label read-out, attacked",
        **{
            f"{name}_{how}": f"{reading}, {how}"
            for name, reading in (
                ("denoised", "after a denoising step"),
                ("diffusion", "diffusion classifier"),
                ("together", "mean of the three"),
            )
            for how in ("transfer", "fixed", "eot")
        },
    }
    records = result("readings_attacks")
    lines = [f"| reading, attack | {' | '.join(f'`{model}`' for model in records)} |", f"|---|{'---|' * len(records)}"]
    for name, text in words.items():
        cells = [value(record, f"readings/{name}_linf_8") for record in records.values()]
        if set(cells) != {"-"}:
            lines.append(f"| {text} | {' | '.join(cells)} |")
    notes = [
        f"`{model}`: PGD with the margin loss, {record['options']['attack_steps']} steps of 1/255 in L-inf 8/255. "
        + of_model(model, record, "attacks")
        for model, record in records.items()
    ]
    return "\n\n".join(["\n".join(lines), *notes])


def ood_choice() -> str:
    """The AUROC of fused scores on altered training images (benchmarks/readings.py choose)."""
    parts = []
    for model, record in result("ood_choice").items():
        sets = [name for name in next(iter(record["combinations"].values())) if name != "mean"]
        lines = [f"| combination | mean | {' | '.join(sets)} |", f"|{'---|' * (2 + len(sets))}"]
        for names, areas in [*record["combinations"].items()][:8]:
            lines.append(f"| {names} | {' | '.join(f'{areas[name]:.3f}' for name in ('mean', *sets))} |")
        parts += [
            "\n".join(lines),
            f"The best eight of {len(record['combinations'])}, AUROC of the fused score of `{model}`, {record['images']} "
            f"images each (`python benchmarks/readings.py choose --model {model}`).",
        ]
    return "\n\n".join(parts)


def ood_both() -> str:
    """AUROC of each score on each set (benchmarks/readings.py ood); compressed sets have a table of their own."""
    parts, jpeg = [], ", as JPEG"
    for model, record in result("ood_both").items():
        sets = list(dict.fromkeys(name.split("/")[1] for name in record["metrics"]))
        plain, compressed = ([name for name in sets if name.endswith(jpeg) is wanted] for wanted in (False, True))
        for some in filter(None, (plain, compressed)):
            lines = [f"| `{model}` | passes | {' | '.join(some)} |", f"|{'---|' * (2 + len(some))}"]
            for score, passes in record["passes"].items():
                cells = [value(record, f"ood/{name}/auroc_{score}", percent=False, digits=3) for name in some]
                lines.append(f"| `{score}` | {passes} | {' | '.join(cells)} |")
            rates = [value(record, f"ood/{name}/fpr95_fused") for name in some]
            lines.append(f"| accepted by `fused` where 95 % of test images are | | {' | '.join(rates)} |")
            parts.append("\n".join(lines))
        parts.append(f"`{model}`: {of_model(model, record, 'ood')}")
    return "\n\n".join(parts)


def deployment() -> str:
    """Processor time and quality of each form of the classifier and the denoiser (benchmarks/deployment.py)."""
    record = result("deployment")
    rows = {(row["graph"], row["form"]): row for row in record["rows"]}
    batches = [*record["rows"][0]["milliseconds"]]
    heads = [f"{graph}, batch {batch}" for graph in ("classifier", "denoiser") for batch in batches]
    lines = [f"| form | {heads[0]} | {heads[1]} | accuracy | {heads[2]} | {heads[3]} | x_0 off by |", f"|{'---|' * 7}"]
    for form in dict.fromkeys(row["form"] for row in record["rows"]):
        classifier, denoiser = rows["classifier", form], rows["denoiser", form]
        times = [[f"{row['milliseconds'][batch]['median']:.3g}" for batch in batches] for row in (classifier, denoiser)]
        cells = [*times[0], f"{100 * classifier['accuracy']:.2f} %", *times[1], f"{denoiser['difference']:.2g}"]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    facts = record["environment"]
    lines += [
        "",
        f"Milliseconds of processor time per image on one thread ({facts['device']}), medians of {record['repeats']} "
        f"alternating repeats. Model `{record['model']}`, accuracy on {record['images']:,} test images. The last column is the "
        f"root mean square difference from eager fp32 in gray levels of 255. Seed {record['seed']}, torch {facts['torch']}, "
        f"onnxruntime {facts['onnxruntime']} (`{record['command']}`).",
    ]
    return "\n".join(lines)


def export_sizes() -> str:
    """What each format of an export takes on disk, and how exact it is (benchmarks/export_sizes.py)."""
    record = result("export_sizes")
    lines = ["| `--format` | file | MB | off by |", "|---|---|---|---|"]
    for row in record["rows"]:
        for name, apart in row["difference"].items():
            exact = f"{apart:.1g}" if apart else "0"
            lines.append(f"| `{row['form']}` | `{name}` | {row['megabytes'][name]:.1f} | {exact} |")
    facts = record["environment"]
    lines += [
        "",
        f"Model `{record['model']}`. The last column is the largest difference of an output from the model's for five "
        f"random inputs, relative to values above 1. torch {facts['torch']}, onnxruntime {facts['onnxruntime']} "
        f"(`{record['command']}`).",
    ]
    return "\n".join(lines)


def page() -> str:
    """How fast the page of `hybvit serve` is, by benchmarks/page.py."""
    record = result("page")
    facts, spans = record["environment"], record["milliseconds"]
    paint, view, done = (
        f"{statistics.median(times) / 1e3:.2f} s ({min(times) / 1e3:.2f} to {max(times) / 1e3:.2f})" for times in spans.values()
    )
    return (
        f"The first paint comes {paint} after the request. Of {record['images']} images of `{record['model']}` in "
        f"{record['steps']} steps the first view is there after {view}, and all after {done}. Medians of "
        f"{len(spans['first paint'])} repeats and their range, {facts['threads']} threads ({facts['device']}), Chromium "
        f"{facts['chromium']} on the same machine, gradio {facts['gradio']}, torch {facts['torch']} (`{record['command']}`)."
    )


TASKS = {  # number in benchmarks/compare -> what it is
    "1": "train a classifier; test accuracy with its interval",
    "2": "draw 16 images of a class with 20 evaluations (theirs trains a generator first)",
    "3": "calibrate; ECE, sets of classes at 95 %, risk and coverage",
    "4": "foreign images: AUROC of six scores",
    "5": "accuracy under AutoAttack, 16 images",
}


def compare() -> str:
    """The lines of the programs of benchmarks/compare, and the time they took."""
    record = result("compare")
    lines = ["| task | here, lines | the peer, lines | of | here, s | the peer, s |", "|---|---|---|---|---|---|"]
    totals = [0, 0]
    for number, task in TASKS.items():
        pair = {name[-3:]: found for name, found in record["programs"].items() if name.startswith(number)}
        ours, theirs = pair[".sh"], pair[".py"]
        peers = ", ".join(f"{name} {version}" for name, version in theirs["peers"].items())
        seconds = " | ".join(f"{found['cpu_seconds']:.0f}" for found in (ours, theirs))
        lines.append(f"| {task} | {ours['lines']} | {theirs['lines']} | {peers} | {seconds} |")
        totals = [totals[0] + ours["lines"], totals[1] + theirs["lines"]]
    where = record["environment"]
    lines += [
        f"| together | {totals[0]} | {totals[1]} | | | |",
        "",
        f"Seconds of processor time on one thread of {where['device']}, a shared machine, the import of torch included; torch "
        f"{where['torch']}, {record['date']} (`python benchmarks/compare/run.py`). Networks were trained for "
        f"{record['programs']['1_timm.py']['steps']} steps.",
    ]
    return "\n".join(lines)


def compare_results() -> str:
    """What the programs of benchmarks/compare found."""
    record = result("compare")
    ours = {name: found["value"] for name, found in record["ours"].items()}
    numbers = {name: found["n"] for name, found in record["ours"].items()}
    theirs = {name[0]: found["printed"] for name, found in record["programs"].items() if name.endswith(".py")}
    aurocs = {line.split()[0]: float(line.split("'AUROC': ")[1].split(",")[0]) for line in theirs["4"]}
    rows = {
        "1": [
            (
                f"test accuracy {ours['test/accuracy']:.4f} ({record['ours']['test/accuracy']['low']:.4f} to "
                f"{record['ours']['test/accuracy']['high']:.4f}), n {numbers['test/accuracy']}",
                theirs["1"][-1],
            )
        ],
        "3": list(
            zip(
                (
                    f"ECE {ours['calibration/ece_15']:.4f} -> {ours['calibration/ece_15_scaled']:.4f}",
                    f"sets at 95 %: coverage {ours['doubt/coverage_thr_95']:.4f}, size {ours['doubt/set_size_thr_95']:.3f}",
                    f"AURC {ours['doubt/aurc_max_prob']:.5f}, risk at 80 % coverage "
                    f"{ours['doubt/risk_at_80_coverage_max_prob']:.4f}",
                ),
                theirs["3"],
                strict=True,
            )
        ),
        "4": [
            *((f"AUROC of {name} {ours[f'ood/noise/auroc_{name}']:.4f}", f"{value:.4f}") for name, value in aurocs.items()),
            (f"of the fused score {ours['ood/noise/auroc_fused']:.4f}", "none"),
        ],
        "5": [
            (
                f"accuracy under AutoAttack at 8/255: {ours['robustness/autoattack_linf_8']:.4f}, "
                f"n {numbers['robustness/autoattack_linf_8']}",
                theirs["5"][-1],
            )
        ],
    }
    lines = ["| task | here | the peer |", "|---|---|---|"]
    for number, pairs in rows.items():
        lines += [f"| {TASKS[number] if not k else ''} | {here} | {there} |" for k, (here, there) in enumerate(pairs)]
    return "\n".join(lines)


def compare_facts() -> str:
    """How much the peers have of what they do better."""
    record, versions = result("compare"), dict[str, str]()
    for program in record["programs"].values():
        versions |= program["peers"]
    found = record["facts"]
    return (
        f"  timm {versions['timm']} lists {found['timm_models']:,} networks and {found['timm_weights']:,} sets of weights, "
        f"diffusers {versions['diffusers']} has {found['diffusers_schedulers']} schedulers and pipelines for published models, "
        f"pytorch-ood {versions['pytorch-ood']} has {found['pytorch_ood_detectors']} detectors. hybvit brings "
        f"{len(MODELS)} small networks: {', '.join(MODELS)}."
    )


AUGMENTED = {"strong": "cifar10_vit", "weak": "cifar10_vit_weak"}
CIFAR10_IMAGES = 50_000


def augmentation() -> str:
    """Strong against weak augmentation for passes over fewer images, by benchmarks/augmentation.py."""
    record, whole = result("augmentation"), result("paper_cifar")["runs"]
    rows = list[dict[str, Any]]()
    for kind, name in AUGMENTED.items():
        training = whole[name]["training"]
        seen = training["steps"] * training["batch_size"]
        rows.append({**whole[name], **training, "share": 1.0, "augmentation": kind, "images_seen": seen})
    rows += record["rows"]
    lines = [
        "| training images | passes over them | augmentation | test accuracy | expected calibration error | training loss |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        images = round(row["share"] * CIFAR10_IMAGES)
        passes = row["images_seen"] / images
        accuracy, error = (value(row, name) for name in ("test/accuracy", "calibration/ece_20"))
        lines.append(f"| {images:,} | {passes:.0f} | {row['augmentation']} | {accuracy} | {error} | {row['ce']:.2f} |")
    facts = record["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"The row ViT of Table 1, seed 0; the loss is of augmented images with smoothed labels, the mean of the last tenth "
            f"of the steps. {facts['device']}, {versions(facts)} (`{record['command']}`).",
        ]
    )


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


def extras() -> str:
    """What each extra is for, and the packages that it installs."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert asked.keys() == EXTRAS.keys(), "each extra has its words"
    rows = [f"| `{name}` | {words} | {', '.join(asked[name])} |" for name, words in EXTRAS.items()]
    return "\n".join(["| extra | for | packages |", "|---|---|---|", *rows])


def lean() -> str:
    """What a lean installation may leave out."""
    from hybvit.health.packages import OPTIONAL

    return "\n".join(["| package | needed for |", "|---|---|", *(f"| {name} | {words} |" for name, words in OPTIONAL.items())])


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
        f"of the preset take {step * record['steps_of_preset'] / 60:.0f} minutes of one thread. The page is timed until it can "
        f"be opened. Test accuracy: {value({'metrics': {'a': record['accuracy']}}, 'a')}; guessing is right half of the time.",
    ])  # fmt: skip


BLOCKS: dict[str, Callable[[], str]] = {
    "first_model": first_model,
    "extras": extras,
    "lean": lean,
    "table": table,
    "speed": speed,
    "bench": partial(bench, "bench", "bench_cifar10_pocket_v2"),
    "growth": growth,
    "sampling": sampling,
    "bench_classify": partial(bench, "bench_classify"),
    "budget": budget,
    "busy": busy,
    "checkpoints": checkpoints,
    "demo_times": demo_times,
    "loader": loader,
    "stream": stream,
    "datasets": datasets,
    "paper_runs": paper_runs,
    "paper_verdicts": paper_verdicts,
    "comparison": comparison,
    "v2_costs": v2_costs,
    "gpu_steps": gpu_steps,
    "scale": scale,
    "processes": processes,
    "floors": floors,
    "corruptions": corruptions,
    "doubt_calibration": doubt_calibration,
    "doubt_scores": doubt_scores,
    "doubt_sets": doubt_sets,
    "certified": certified,
    "readings": readings,
    "readings_agreement": readings_agreement,
    "readings_attacks": readings_attacks,
    "ood_choice": ood_choice,
    "ood_both": ood_both,
    "deployment": deployment,
    "export_sizes": export_sizes,
    "page": page,
    **{
        f"study_{name}": partial(study, name)
        for name in (
            "ablation_first",
            "ablation",
            "ablation_third",
            "v2",
            "cifar10",
            "cifar10_trials",
            "few_labels",
            "few_labels_5",
            "few_labels_10",
            "few_labels_digits",
        )
    },
    "shipped": shipped,
    "editing_counterfactuals": editing_counterfactuals,
    "editing_inpainting": editing_inpainting,
    "editing_inversion": editing_inversion,
    "editing_variations": editing_variations,
    "editing_tries": editing_tries,
    "compare": compare,
    "compare_results": compare_results,
    "compare_facts": compare_facts,
    "cifar10_penalties": cifar10_penalties,
    "speed_curves": speed_curves,
    "augmentation": augmentation,
    "samples_cifar10": samples_cifar10,
    **{f"card_{name}": partial(card, name) for name in MODELS},
    **{f"paper_table{n}": partial(paper_table, f"table{n}") for n in range(1, 14)},
    **{f"cifar_table{n}": partial(paper_table, f"table{n}", "cifar") for n in range(1, 14)},
    "cifar_runs": partial(paper_runs, "cifar"),
    "cifar_verdicts": partial(paper_verdicts, "cifar"),
}
PAGES = (
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
    *(f"src/hybvit/assets/models/{name}/README.md" for name in MODELS),
)


def render(text: str) -> str:
    for name, block in BLOCKS.items():
        if f"<!-- begin {name} -->" not in text:
            continue
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, block=block: match[1] + block() + "\n" + match[2], text)
    return text


if __name__ == "__main__":
    for page in (ROOT / name for name in PAGES):
        rendered = render(page.read_text())
        if "--check" not in sys.argv:
            page.write_text(rendered)
        elif rendered != page.read_text():
            sys.exit(f"{page.name} differs from what results/ render to: run `make readme`")
