"""Does training on a stream of tar shards ten times larger than its buffer keep its memory?

    python benchmarks/stream_memory.py [--write]     --write: results/stream_memory.json

Images are noise, which no format compresses: 12 KB each, so that a leak of encoded samples would show.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image
from recording import keep, options

from hybvit.config import Config, DataConfig, TrainConfig
from hybvit.devices import environment
from hybvit.method.vit import ViTConfig
from hybvit.training import loop, progress

BUFFER, SHARDS, SIDE, EPOCHS, BATCH = 1024, 16, 64, 2, 64
SAMPLES = 10 * BUFFER


def write(folder: Path, samples: int, shards: int, seed: int) -> int:
    """Write the shards -> their size in bytes."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:03d}.tar")) as writer:
            for i in range(shard, samples, shards):
                file = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "PNG")
                writer.write({"__key__": f"{i:06d}", "png": file.getvalue(), "cls": i % 10})
    return sum(path.stat().st_size for path in folder.iterdir())


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def training(root: Path, buffer: int) -> list[tuple[int, float]]:
    """Train in this process -> (step, MiB in memory) along the way."""
    steps = EPOCHS * SAMPLES // BATCH
    cfg = Config(
        model=ViTConfig(image_size=32, patch_size=8, dim=48, depth=2, heads=4),
        data=DataConfig(name="shards", root=str(root / "data"), augment="strong", flip=True, shuffle_buffer=buffer),
        train=TrainConfig(steps=steps, batch_size=BATCH, log_every=steps // 40, checkpoint_every=steps),
    )
    measured: list[tuple[int, float]] = []

    def watch(line: str) -> None:
        if line.startswith("step"):
            measured.append((int(line.split()[1].split("/")[0]), round(resident(), 1)))

    progress.LINE_SECONDS = 0.0  # a line, and a measurement, at every log step
    loop.train(cfg, root / f"run-{buffer}", say=watch)
    return measured


def in_its_own_process(root: Path, buffer: int) -> dict[str, Any]:
    started = time.perf_counter()
    command = [sys.executable, __file__, "--train", str(root), str(buffer)]
    measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    settled = [mib for step, mib in measured if step >= measured[-1][0] / 4]
    return {
        "buffer_samples": buffer,
        "seconds": round(time.perf_counter() - started, 1),
        "resident_mib": measured,
        "growth_after_first_quarter_mib": round(settled[-1] - settled[0], 1),
        "largest_mib": max(mib for _, mib in measured),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--train", nargs=2, metavar=("DIR", "BUFFER"), help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.train:
        print(json.dumps(training(Path(args.train[0]), int(args.train[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        size = write(root / "data" / "train", SAMPLES, SHARDS, 0)
        write(root / "data" / "test", 64, 1, 1)
        record = {
            "samples": SAMPLES,
            "shards": SHARDS,
            "stream_mib": round(size / 2**20, 1),
            "epochs": EPOCHS,
            "streams": "two, one for each mini-batch, each with its own buffer",
            "small_buffer": in_its_own_process(root, BUFFER),
            "buffer_of_everything": in_its_own_process(root, SAMPLES),  # what it would cost without
            "environment": environment(),
        }
    for kind in ("small_buffer", "buffer_of_everything"):
        print(kind, {key: value for key, value in record[kind].items() if key != "resident_mib"})
    keep("stream_memory", record, args.write)


if __name__ == "__main__":
    main()
