"""The cards of the bundled models."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from .blocks import block
from .records import MODELS, machine, result, threads


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
    attacked = f"{options['attack_images']} images attacked by PGD and {options['autoattack_images']} by AutoAttack, "
    attacked = attacked if "robustness" in record["suites"] else ""
    lines += [
        "",
        f"{options['samples']} samples ({options['sampler']}, {options['steps']} steps{condition}), "
        f"{options['bound_images']} images for the likelihood bound with {options['bound_draws']} times each, {attacked}"
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


@block(**{f"card_{name}": (name,) for name in MODELS})
def card(name: str) -> str:
    """The model card's figures of a bundled model."""
    from hybvit.evaluation.context import Options
    from hybvit.evaluation.suites import DEFAULT, SUITES

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
    if missing := [suite for suite in DEFAULT if suite not in record["suites"]]:
        asked += ["--suites", ",".join(suite for suite in SUITES if suite in record["suites"])]
        notes.append(f"Not measured: {', '.join(missing)}.")
    measured = f"Measured by `{' '.join(['hybvit evaluate', name, *asked])}`:"
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
