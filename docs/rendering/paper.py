"""The pages of reproduction, docs/reproduction.md and docs/reproduction_cifar.md."""

from __future__ import annotations

import re
from typing import Any

from .blocks import block
from .records import result, value, versions


def paper_records(scale: str) -> dict[str, Any]:
    return result(f"paper_{scale}")["runs"]


TABLES = range(1, 14)


@block(
    **{f"paper_table{n}": (f"table{n}", "pocket") for n in TABLES},
    **{f"cifar_table{n}": (f"table{n}", "cifar") for n in TABLES},
)
def paper_table(name: str, scale: str) -> str:
    """A table of the paper with our figures at a scale."""
    from hybvit.reproduce import render as tables
    from hybvit.reproduce.scales import SCALES

    return tables.markdown(name, paper_records(scale), SCALES[scale]).rstrip("\n")


@block(paper_runs=("pocket",), cifar_runs=("cifar",))
def paper_runs(scale: str) -> str:
    """The runs of the reproduction: data, size, steps and time, and which are still to be made."""
    from hybvit.reproduce.runs import training_hours
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
    hours = training_hours(records, SCALES[scale])
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


@block(paper_verdicts=("pocket",), cifar_verdicts=("cifar",))
def paper_verdicts(scale: str) -> str:
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
    none = [(name, line[0], line[3].partition(":")[2]) for name, line in found if line[3].startswith("not judged")]
    if none:
        listed = "; ".join(f"{words} ({titled(name)};{reason})" for name, words, reason in none)
        parts.append(f"**Not judged** ({len(none)}): {listed}.\n")
    return "\n".join(parts)


@block()
def cifar_seeds() -> str:
    """The runs at the CIFAR scale that have a second seed, beside the first, and the claims about them by either."""
    from hybvit.reproduce import render as tables
    from hybvit.reproduce.claims import CLAIMS
    from hybvit.reproduce.runs import run_dir
    from hybvit.reproduce.scales import CIFAR

    records = [{run: record for run, record in paper_records(name).items() if record.get("metrics")} for name in SEEDS]
    seeds = [min(record["seed"] for record in of.values()) for of in records]
    measured = {"accuracy": "test/accuracy", "distance": "fidelity/fd_cnn-cifar10_1000"}
    heads = [f"{what}, seed {seed}" for what in measured for seed in seeds]
    lines = [f"| preset | {' | '.join(heads)} |", f"|{'---|' * (1 + len(heads))}"]
    for run in records[1]:
        if run_dir(run, CIFAR) != run:  # the same training by another name
            continue
        cells = [value(of[run], name, percent=what == "accuracy") for what, name in measured.items() for of in records]
        lines.append(f"| `{run}` | {' | '.join(cells)} |")
    lines += ["", f"| claim | {' | '.join(f'seed {seed} | verdict' for seed in seeds)} |", "|---|---|---|---|---|"]
    for name in CLAIMS:
        of_first, of_second = ({words: rest for words, *rest in tables.verdicts(name, of, CIFAR)} for of in records)
        for words, (_, figures, outcome) in of_second.items():
            first = of_first[words]
            lines.append(f"| {words} ({titled(name)}) | {first[1]} | {first[2]} | {figures} | {outcome} |")
    return "\n".join(lines)


SEEDS = ("cifar", "cifar_seed1")
AUGMENTED = {"strong": "cifar10_vit", "weak": "cifar10_vit_weak"}

CIFAR10_IMAGES = 50_000


@block()
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
