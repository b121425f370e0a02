"""Strong against weak augmentation where the images are passed over many times: the paper's classifier on a part of CIFAR-10.

    python benchmarks/augmentation.py [--shares 0.1,0.01] [--out runs/augmentation] [--write]

trains the rows ViT of `hybvit reproduce all --scale cifar` with strong and weak augmentation on these shares of the labels, in
as many steps, so that each image is seen more often.
The same command goes on where it ended. `--write`: results/augmentation.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recording import ROOT, keep, options

import hybvit
from hybvit.config import override
from hybvit.devices import environment
from hybvit.reproduce.scales import cifar
from hybvit.training.loop import train
from hybvit.training.run_folder import read_metrics, training_summary

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
    parser = options(__doc__)
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
    keep("augmentation", record, args.write)


if __name__ == "__main__":
    main()
