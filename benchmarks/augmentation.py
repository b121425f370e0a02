"""Strong against weak augmentation where the images are passed over many times: the paper's classifier on a part of CIFAR-10.

    python benchmarks/augmentation.py [--shares 0.1,0.01] [--out runs/augmentation]

trains the rows ViT of `hybvit reproduce all --scale cifar` with strong and weak augmentation on these shares of the labels, in
as many steps, so that each image is seen more often. Writes results/augmentation.json; the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import hybvit
from hybvit.config import override
from hybvit.devices import environment
from hybvit.reproduce.scales import cifar
from hybvit.training.loop import train
from hybvit.training.run_folder import read_metrics, training_summary

ROOT = Path(__file__).resolve().parent.parent
RUNS = {"strong": "cifar10_vit", "weak": "cifar10_vit_weak"}


def measure(name: str, share: float, out: Path) -> dict[str, Any]:
    """Train a row on a share of the labels -> its accuracy and calibration on the test images."""
    row = cifar(name)
    assert row is not None
    model = train(override(row, data={"labelled": share}, train={"snapshot_every": 0}), out, trial=False)
    found = hybvit.evaluate(model, suites=["accuracy", "calibration"], out=out / "evaluation", say=print)
    metrics = {name: metric._asdict() for name, metric in found.metrics.items()}
    seen = model.cfg.train.steps * model.cfg.train.batch_size
    summary = training_summary(read_metrics(out / "metrics.jsonl"))
    return {"run": name, "share": share, "images_seen": seen, **summary, "metrics": metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="0.1,0.01")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "augmentation")
    args = parser.parse_args()
    shares = [float(share) for share in args.shares.split(",")]
    rows = [
        {"augmentation": kind, **measure(name, share, args.out / f"{name}-{share:g}")}
        for share in shares
        for kind, name in RUNS.items()
    ]
    record = {
        "command": f"python benchmarks/augmentation.py --shares {args.shares}",
        "rows": rows,
        "environment": environment(),
    }
    (ROOT / "results" / "augmentation.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
