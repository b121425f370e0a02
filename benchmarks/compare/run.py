"""Run the same five tasks here and in the usual libraries, on scikit-learn's digits as a folder of PNG files.

A program NUMBER_NAME.sh is of hybvit, a NUMBER_NAME.py of the peer. Those of tasks 3 to 5 use the network of the first.
Both train for the same number of steps of 96 images (ours of 96 and 96: labeled and noisy).

python benchmarks/compare/run.py [--steps 400] [--write]     --write: results/compare.json
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from hybvit.devices import environment

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent.parent / "results" / "compare.json"
PEERS = {
    "1_timm.py": ("timm", "torchvision"), "2_diffusers.py": ("diffusers",), "3_torchmetrics.py": ("torchmetrics",),
    "4_pytorch_ood.py": ("pytorch-ood",), "5_autoattack.py": ("pyautoattack",),
}  # fmt: skip
SCORES = ("max_prob", "max_logit", "entropy", "logpx", "knn", "relative_mahalanobis")  # those of 4_pytorch_ood.py


def programs() -> list[Path]:
    return sorted(path for path in HERE.iterdir() if path.name[0].isdigit())


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor a comment alone."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def write_images(folder: Path) -> None:
    """The digits as files: train/CLASS/*.png and test/CLASS/*.png."""
    from hybvit.config import DataConfig
    from hybvit.data.datasets import open_dataset

    data = open_dataset(DataConfig(name="digits"), (1, 8, 8))
    for split, images in (("train", data.train), ("test", data.test)):
        assert images.labels is not None
        for i, (pixels, label) in enumerate(zip(images.in_memory, images.labels.tolist(), strict=True)):
            path = folder / split / str(label) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0].numpy()).save(path)


def run(program: Path, folder: Path, steps: int, cwd: Path) -> dict[str, Any]:
    """One program -> its lines, its seconds of processor time, and what it printed last."""
    command = ["bash"] if program.suffix == ".sh" else [sys.executable]
    before, path = os.times(), f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*command, str(program), str(folder), str(steps)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{program.name}: {done.stderr}")
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])  # of the children
    return {
        "lines": lines_of_code(program),
        "steps": steps,
        "sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
        "cpu_seconds": round(seconds, 1),
        "printed": done.stdout.replace(str(folder), "digits").strip().splitlines()[-8:],
        "peers": {name: importlib.metadata.version(name) for name in PEERS.get(program.name, ())},
    }


def metrics_of(folder: Path) -> dict[str, Any]:
    """What our evaluation stored for the tasks."""
    names = (
        "test/accuracy", "calibration/ece_15", "calibration/ece_15_scaled", "doubt/coverage_thr_95", "doubt/set_size_thr_95",
        "doubt/aurc_max_prob", "doubt/risk_at_80_coverage_max_prob", "robustness/autoattack_linf_8",
        *(f"ood/noise/auroc_{score}" for score in (*SCORES, "fused")),
    )  # fmt: skip
    found = json.loads((folder / "results.json").read_text())["metrics"]
    return {name: found[name] for name in names if name in found}


def facts() -> dict[str, int]:
    """How much the peers have of what they do better."""
    import diffusers
    import pytorch_ood.detector
    import timm

    schedulers = dir(diffusers.schedulers)
    return {
        "timm_models": len(timm.list_models()),
        "timm_weights": len(timm.list_pretrained()),
        "diffusers_schedulers": sum(name.endswith("Scheduler") and not name.startswith("Flax") for name in schedulers),
        "pytorch_ood_detectors": sum(name[0].isupper() for name in pytorch_ood.detector.__all__),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--write", action="store_true", help="keep the figures in results/, for docs/compare.md")
    args = parser.parse_args()
    record: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "environment": environment()}
    record["facts"], record["programs"], record["ours"] = facts(), {}, {}
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        write_images(cwd / "digits")
        for program in programs():
            record["programs"][program.name] = run(program, cwd / "digits", args.steps, cwd)
            print(program.name, record["programs"][program.name], flush=True)
            if program.suffix == ".sh" and program.name[0] != "2":
                record["ours"] |= metrics_of(cwd / "judged")
    if args.write:
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
