"""Put a trained run into the package: its averaged weights, every figure of `hybvit evaluate`, and the picture of its card.

    python benchmarks/ship.py NAME RUN [options of `hybvit evaluate`]

Then `make readme` renders the card. The figures are measured on the exported model, loaded by its name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from hybvit import load
from hybvit.config import load_config, override
from hybvit.hybrid import BUNDLED
from hybvit.run_folder import read_metrics, training_summary

ROOT = Path(__file__).resolve().parent.parent
LARGEST_MIB = 12  # of all models in the package together


def ship(name: str, run: Path, options: list[str]) -> None:
    model = load(run)
    model.cfg = override(model.cfg, data={"root": None})  # where the images were is nobody else's place
    model.save_pretrained(BUNDLED / name)
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*.safetensors")) / 2**20
    if size > LARGEST_MIB:
        sys.exit(f"{BUNDLED}: {size:.1f} MiB of weights, at most {LARGEST_MIB}")
    out = Path("runs/shipped") / name
    call = [sys.executable, "-m", "hybvit.cli", "evaluate", name, "--out", str(out), "--report", *options]
    code = subprocess.run(call).returncode
    if code:
        sys.exit(code)
    record = json.loads((out / "results.json").read_text())
    cfg = load_config(run / "config.yaml")
    record["training"] = training_summary(read_metrics(run / "metrics.jsonl")) | {
        "of_steps": cfg.train.steps,
        "batch_size": cfg.train.batch_size,
        "labelled_batch_size": cfg.train.labelled_batch_size,
        "environment": json.loads((run / "environment.json").read_text()),
    }
    (ROOT / "results" / f"model_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.copy(out / "evaluation" / "fidelity" / "samples.png", ROOT / "docs" / f"model_{name}.png")
    print(f"{BUNDLED / name}: {size:.1f} MiB with the others; now `make readme`, and look at docs/model_{name}.png")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    ship(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
