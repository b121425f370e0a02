"""Time the commands of README.md, "Your own images", from a folder of photographs to the page.

    python benchmarks/first_model.py FOLDER [--steps 2000] [--write]     --write: results/first_model.json

The commands are read from README.md and run as they stand, in an empty folder with FOLDER as `photos` and one of its images as
`new.jpg`; only the training may be given fewer steps, and the page any port. Beside the seconds stand those of the processor,
which other programs on the machine hardly change.
"""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from recording import ROOT, keep, options

import hybvit
from hybvit.devices import cpu_name
from hybvit.presets import preset

ADDRESS = re.compile(r"http://\S+")


def commands() -> list[list[str]]:
    """The words of each command of the section."""
    section = re.search(r"^## Your own images\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    return [shlex.split(line, comments=True) for line in re.findall(r"^ {4}(hybvit .+)$", section, re.MULTILINE)]


def timed(words: list[str], folder: Path) -> dict[str, Any]:
    """Run a command to its end, a server until it answers -> its seconds, those of the processor, and its last line."""
    before, started, ready = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0.0
    command = [sys.executable, "-m", "hybvit.cli", *words[1:]]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if words[1] == "serve" and ADDRESS.search(line):
                ready = time.monotonic()
                process.send_signal(signal.SIGINT)
    seconds = (ready or time.monotonic()) - started
    if not ready if words[1] == "serve" else process.returncode:
        sys.exit(f"{shlex.join(words)}: failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"command": shlex.join(words), "seconds": round(seconds, 1), "processor_seconds": round(used, 1)}


def measure(photos: Path, steps: int) -> dict[str, Any]:
    changed = {"train": ["--train.steps", str(steps)], "serve": ["--port", "0"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").symlink_to(photos.resolve())
        shutil.copyfile(sorted(photos.glob("**/*.jpg"))[0], folder / "new.jpg")
        rows = [timed(words + changed.get(words[1], []), folder) for words in commands()]
        run = folder / "runs" / "photos"
        metrics = json.loads((run / "results.json").read_text(encoding="utf-8"))["metrics"]
        threads = json.loads((run / "environment.json").read_text(encoding="utf-8"))["threads"]  # by a trial of its first steps
    return {
        "steps": steps,
        "steps_of_preset": preset("photos_32").train.steps,
        "images": sum(1 for _ in photos.glob("**/*.jpg")),
        "rows": rows,
        "accuracy": metrics["test/accuracy"],
        "machine": cpu_name(),
        "threads": threads,
        "torch": torch.__version__,
        "version": hybvit.__version__,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("photos", type=Path, metavar="FOLDER", help="photographs (.jpg), in train/CLASS and test/CLASS")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (2000, the preset's)")
    args = parser.parse_args()
    keep("first_model", measure(args.photos, args.steps), args.write)


if __name__ == "__main__":
    main()
