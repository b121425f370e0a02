"""What calibration, abstention and conformal sets are worth for the bundled models -> results/doubt.json, docs/doubt_*.svg.

    python benchmarks/doubt.py [MODEL ...]

The models were trained on all training images (`digits`: on nine tenths). So every second test image of each class calibrates
the model, and the suites `calibration` and `doubt` judge it on the others: `hybvit calibrate NAME --half-of-test --out DIR`,
then `hybvit evaluate DIR --suites calibration,doubt`. One half of a small set says little about a promise, so random halves
follow.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hybvit
from hybvit import cli
from hybvit.data.image_set import ImageSet, select_per_class, to_x
from hybvit.devices import environment
from hybvit.evaluation.doubt import COVERAGES
from hybvit.evaluation.subject import with_own_data
from hybvit.hub import bundled
from hybvit.metrics.calibration import expected_calibration_error, fit_temperature, reliability_table
from hybvit.metrics.conformal import METHODS, conformal_quantile, covered, nonconformity, prediction_sets, ranked

ROOT = Path(__file__).resolve().parent.parent
HALVES, SEED, BINS = 200, 0, 15
SHOWN = ("fashion-mnist", "cifar10")  # in pictures
RESULT = ROOT / "results" / "doubt.json"
PICTURES = ("doubt/risk_coverage", "doubt/class_coverage", "calibration/reliability", "calibration/reliability_scaled")


def random_halves(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Means over random halves to calibrate on, judged by the other half: of the ECE after temperature scaling, of what it
    would be if the probabilities were exactly right, and of coverage and size of the sets."""
    generator = torch.Generator().manual_seed(SEED)
    found: dict[str, list[float]] = {"ece": [], "ece_if_right": []}
    whole = ImageSet(torch.zeros(len(labels), 1, dtype=torch.uint8), labels)
    for _ in range(HALVES):
        half = select_per_class(
            whole, lambda members: members[torch.randperm(len(members), generator=generator)[: len(members) // 2]]
        )
        perfect = bool((logits[half].argmax(1) == labels[half]).all())  # then no finite temperature is optimal
        temperature = 1.0 if perfect else fit_temperature(logits[half], labels[half])
        mine, theirs = logits[half] / temperature, logits[~half] / temperature
        right = theirs.softmax(1).multinomial(1, generator=generator)[:, 0]
        for name, drawn in (("ece", labels[~half]), ("ece_if_right", right)):
            found[name].append(expected_calibration_error(reliability_table(theirs, drawn, BINS)))
        calibrating, judged = ranked(mine).of(labels[half]), ranked(theirs)
        for method in METHODS:
            for coverage in COVERAGES:
                quantile = conformal_quantile(nonconformity(calibrating, method), coverage)
                sets = covered(prediction_sets(nonconformity(judged, method), quantile), labels[~half])
                name = f"{method}_{100 * coverage:.0f}"
                found.setdefault(f"coverage_{name}", []).append(sets.hits.double().mean().item())
                found.setdefault(f"size_{name}", []).append(sets.sizes.double().mean().item())
    values = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in found.items()}
    return {name: {"mean": value.mean().item(), "deviation": value.std().item()} for name, value in values.items()}


def measure(name: str, folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    copy = folder / name
    if cli.main(["calibrate", name, "--half-of-test", "--out", str(copy)]):
        raise SystemExit(1)
    model = hybvit.load(copy, "cpu")
    calibration, data = model.calibration, with_own_data(model, None, None).data
    assert calibration is not None
    results = hybvit.evaluate(copy, suites=["calibration", "doubt"], out=folder / f"{name}-results", say=print)
    for picture in PICTURES if name in SHOWN else ():
        suite, _, file = picture.partition("/")
        drawn = folder / f"{name}-results" / "evaluation" / suite / f"{file}.svg"
        (ROOT / "docs" / f"doubt_{name}_{file}.svg").write_text(drawn.read_text(encoding="utf-8"), encoding="utf-8")
    with torch.no_grad():
        logits = torch.cat([model.logits(to_x(pixels)) for pixels, _ in data.test.batches()]).double()
    record = {part: results.record[part] for part in ("metrics", "tables", "notes", "data")}
    record |= {"scaling": calibration.scaling.kind, "calibrated_on": [len(calibration), calibration.source]}
    record |= {"halves": random_halves(logits, data.test.labels), "seconds": round(time.monotonic() - started, 1)}
    return record | {"environment": environment()}


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in bundled()]:
        sys.exit(f"{', '.join(unknown)}: the bundled models are {', '.join(bundled())}")
    found = json.loads(RESULT.read_text())["models"] if RESULT.is_file() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, Path(folder))
        models = dict(sorted(found.items(), key=lambda item: bundled().index(item[0])))
        RESULT.write_text(
            json.dumps({"models": models, "number_of_halves": HALVES, "bins": BINS, "seed": SEED}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or bundled())
