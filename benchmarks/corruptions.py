"""Evaluate the bundled models under the common corruptions: results/corruptions.json, and the pictures of docs/corruptions.md.

    python benchmarks/corruptions.py [MODEL ...]

The data sets of the models must be there (`hybvit datasets`).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hybvit.evaluation import Options, evaluate
from hybvit.hub import bundled

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "corruptions.json"
KEPT = ("errors", "doubt", "detection")  # pictures


def measured(name: str) -> dict[str, Any]:
    """The record of a bundled model, with its pictures in docs."""
    with tempfile.TemporaryDirectory() as folder:
        record = evaluate(name, suites="corruptions", options=Options(), out=folder, say=print).record
        for picture in KEPT:
            found = Path(folder) / "evaluation" / "corruptions" / f"{picture}.svg"
            shutil.copyfile(found, ROOT / "docs" / f"corruptions_{name}_{picture}.svg")
    suite = record["suites"]["corruptions"]
    return {
        "command": f"hybvit evaluate {name} --suites corruptions",
        "metrics": record["metrics"],
        "tables": record["tables"],
        "notes": record["notes"]["corruptions"],
        "seconds": suite["seconds"],
        "settings": suite["settings"],
        "environment": suite["environment"],
    }


def main(names: list[str]) -> None:
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for name in names:
        found[name] = measured(name)
        RESULT.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or bundled())
