"""Judge the samples of `hybvit reproduce own_images` by a second extractor -> results/own_images_judged.json.

    python benchmarks/own_images.py OUT FOLDER [--runs photos_32,digits,alpha_5]

OUT is the `--out` of that study, and FOLDER its `--data.root`. The same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hybvit.cli import main as hybvit

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "own_images_judged.json"
EXTRACTOR = "efficientnet-lite0"
PROTOCOL = (
    "--suites", "fidelity", "--limit", "2000", "--samples", "1000", "--sampler", "dpmpp_2m", "--steps", "25",
    "--extractor", EXTRACTOR,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--runs", default="photos_32,digits,alpha_5")
    args = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"extractor": EXTRACTOR, "runs": {}}
    for name in args.runs.split(","):
        run = args.out / "pocket" / "own_images" / name
        if code := hybvit(["evaluate", str(run), "--data", str(args.folder), *PROTOCOL, "--out", str(run / "judged")]):
            raise SystemExit(code)
        record = json.loads((run / "judged" / "results.json").read_text())
        facts = {key: record[key] for key in ("metrics", "options", "environment", "seconds", "seed")}
        found["runs"][name] = {"steps": record["training"]["steps"], **facts}
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
