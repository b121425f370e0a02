"""The tables of docs/v2.md, docs/ablation.md and docs/few_labels.md, and the samples of `cifar10`."""

from __future__ import annotations

from .blocks import block
from .records import result, value, versions

STUDIES = (
    "ablation_first", "ablation", "ablation_third", "v2", "cifar10", "cifar10_trials", "own_images",
    "few_labels", "few_labels_5", "few_labels_10", "few_labels_digits",
)  # fmt: skip


@block(**{f"study_{name}": (name,) for name in STUDIES})
def study(name: str) -> str:
    """The table of a study, with its notes."""
    from hybvit.reproduce.studies import STUDIES, markdown

    return markdown(max((known for known in STUDIES if name.startswith(known)), key=len), result(f"study_{name}"))


@block()
def own_images_judged() -> str:
    """The samples of the study `own_images` by a second extractor, by benchmarks/own_images.py."""
    from hybvit.reproduce.studies import STUDIES

    judged, variants = result("own_images_judged"), STUDIES["own_images"].variants
    lines = ["| recipe | Frechet distance | KID | precision |", "|---|---|---|---|"]
    for name, record in judged["runs"].items():
        stem = f"_{judged['extractor']}_{record['options']['samples']}"
        distance, kid, precision = (
            value(record, f"fidelity/{metric}{stem}", percent=False, digits=digits)
            for metric, digits in (("fd", 0), ("kid", 3), ("precision", 2))
        )
        lines.append(f"| {variants[name].description} | {distance} | {kid} | {precision} |")
        real = value(record, f"fidelity/fd{stem}_real_test", percent=False, digits=0)
    return "\n".join([
        *lines, "",
        f"On {judged['extractor']}; real test images: {real}. {versions(record['environment'])} "
        "(`python benchmarks/own_images.py OUT FOLDER`).",
    ])  # fmt: skip


@block()
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


@block()
def cifar10_penalties() -> str:
    """What the runs of the study `cifar10` say of one network for both tasks, beside what was aimed at."""
    runs = result("study_cifar10")["runs"]
    accuracy = {run: 100 * runs[run]["metrics"]["test/accuracy"]["value"] for run in ("v2", "paper", "v2_vit")}
    named = "fidelity/fd_cnn-cifar10_5000"
    distance = {run: runs[run]["metrics"][named]["value"] for run in ("v2", "paper", "v2_genvit")}
    bundled = result("model_cifar10")  # went on from v2's run
    longer, steps = 100 * bundled["metrics"]["test/accuracy"]["value"], sum(leg["steps"] for leg in bundled["legs"])
    as_many = f"{steps:,} steps of the hybrid (the bundled `cifar10`), {runs['v2_vit']['training']['steps']:,} of labels only"
    return "\n".join(
        (
            "| | measured | aim |",
            "|---|---|---|",
            f"| accuracy above the paper's recipe, points | {accuracy['v2'] - accuracy['paper']:.1f} | 10 |",
            f"| Frechet distance over that of the paper's recipe | {distance['v2'] / distance['paper']:.2f} | 0.33 |",
            f"| accuracy below labels only, points | {accuracy['v2_vit'] - accuracy['v2']:.1f} | 0.5 |",
            f"| the same after {as_many}, points | {accuracy['v2_vit'] - longer:.1f} | |",
            "| Frechet distance over that of images only, unconditional | "
            f"{distance['v2'] / distance['v2_genvit']:.2f} | 1.15 of a class-conditional one, which was not run |",
        )
    )


@block()
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


@block()
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


@block()
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
