"""What the modules of this folder share: results/*.json, and how a metric, a machine and versions are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
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


def percent(metric: dict[str, Any]) -> str:
    """A proportion with its interval."""
    return f"{100 * metric['value']:.1f} % ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"
