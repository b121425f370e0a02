"""From few images of your own: a training from the start against fine-tuning the bundled `cifar10` -> results/few_images.json.

    python benchmarks/few_images.py TINY_IMAGENET [--each 30] [--classes 20] [--rows scratch,finetuned] [--out DIR]

makes a folder of some of Tiny-ImageNet's classes from its 50 labeled validation images each, `--each` of them to train on and
the rest to test on, and runs the commands below with it. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from hybvit.training.run_folder import read_metrics, training_summary

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "few_images.json"
ROWS = {  # 500 steps each: of 64 + 32 images from the start, of 64 + 64 in a fine-tuning
    "scratch": ("train", "photos_32", "--train.steps", "500"),
    "finetuned": ("finetune", "cifar10"),
    "labels": ("finetune", "cifar10", "--objective", "vit"),
    "frozen": ("finetune", "cifar10", "--freeze", "--objective", "vit"),
}


def make_folder(tiny: Path, folder: Path, classes: int, each: int) -> None:
    """Evenly spaced classes of Tiny-ImageNet as `train/CLASS` and `test/CLASS`, by the order of the files' names."""
    of_class = defaultdict[str, list[str]](list)
    for line in (tiny / "val" / "val_annotations.txt").read_text().splitlines():
        file, name = line.split("\t")[:2]
        of_class[name].append(file)
    names = sorted(of_class)
    for name in names[:: len(names) // classes][:classes]:
        for place, file in enumerate(sorted(of_class[name])):
            split = folder / ("train" if place < each else "test") / name
            split.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tiny / "val" / "images" / file, split / file)


def measure(row: str, folder: Path, run: Path) -> dict[str, Any]:
    """Run a row's command and measure its accuracy, in the folder that holds ``folder``."""
    words = [*ROWS[row], "--data", folder.name, "--out", run.name]
    for command in (words, ["evaluate", run.name, "--data", folder.name, "--suites", "accuracy"]):
        subprocess.run([sys.executable, "-m", "hybvit.cli", *command], cwd=run.parent, check=True)
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    return {
        "command": f"hybvit {' '.join(words)}",
        "training": training_summary(read_metrics(run / "metrics.jsonl")),
        "accuracy": metrics["test/accuracy"],
        "environment": json.loads((run / "environment.json").read_text()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiny", type=Path, metavar="TINY_IMAGENET", help="the folder tiny-imagenet-200")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--each", type=int, default=30, help="training images of each class")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "few_images")
    args = parser.parse_args()
    place = args.out / f"{args.classes}x{args.each}"
    if not (folder := place / "photos").is_dir():
        make_folder(args.tiny, place / "part", args.classes, args.each)
        (place / "part").rename(folder)
    rows = {row: measure(row, folder, place / row) for row in args.rows.split(",")}
    found = json.loads(OUT.read_text()) if OUT.is_file() else {"rows": []}
    same = {"classes": args.classes, "each": args.each}
    kept = [line for line in found["rows"] if not (line["row"] in rows and same.items() <= line.items())]
    added = [{"row": row, **same, **line} for row, line in rows.items()]
    OUT.write_text(json.dumps({"rows": kept + added}, indent=1) + "\n")


if __name__ == "__main__":
    main()
