"""Render the figures of README.md from results/*.json, between its `<!-- begin NAME -->` and `<!-- end NAME -->` marks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def value(record: dict[str, Any], name: str, percent: bool = True) -> str:
    """A metric with its interval, or a dash."""
    metric = record["metrics"].get(name)
    if metric is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 2)
    shown = f"{scale * metric['value']:.{digits}f}" + (" %" if percent else "")
    return shown + (f" ({scale * metric['low']:.1f} to {scale * metric['high']:.1f})" if "low" in metric else "")


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
        "labels' NLL, nats": lambda r: value(r, "test/nll", percent=False),
        "samples: SVM agrees with the model's label": lambda r: value(r, "samples/svm_agreement"),
        "samples: share of the rarest class": lambda r: value(r, "samples/svm_smallest_class_share"),
    }
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cell(record) for record in columns.values()) + " |" for name, cell in rows.items()]
    facts = result("digits")["environment"]
    judge = value(result("digits"), "judge/svm_accuracy")
    lines += [
        "",
        f"Seed 0, {facts['threads']} CPU threads ({facts['machine']}), torch {facts['torch']}; in brackets 95 % intervals. "
        f"The SVM is fitted on the real training digits and is itself right on {judge} of the test digits. "
        f"{result('digits')['samples']['n']} samples each, {result('digits')['samples']['sampler']}, "
        f"{result('digits')['samples']['steps']} steps.",
    ]
    return "\n".join(lines)


def speed() -> str:
    record = result("bench")
    low, high = record["speedup_range"]
    return (
        f"The joint step at CIFAR-10's size (batch {record['batch']}, {record['precision']}) runs "
        f"{record['speedup_over_reference']:.2f} times as fast as a plain reference step timed in turn with it "
        f"(pair by pair {low:.2f} to {high:.2f}), at {100 * record['fraction_of_peak']:.0f} % of the "
        f"{record['peak_gflop_per_second']:.0f} GFLOP/s that a matrix product reaches on the same machine."
    )


BLOCKS: dict[str, Callable[[], str]] = {"table": table, "speed": speed}


def render(text: str) -> str:
    for name, block in BLOCKS.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, block=block: match[1] + block() + "\n" + match[2], text)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    rendered = render(readme.read_text())
    if "--check" in sys.argv:
        sys.exit(0 if rendered == readme.read_text() else "README.md is not what results/ say: run `make readme`")
    readme.write_text(rendered)
