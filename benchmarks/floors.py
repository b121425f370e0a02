"""How to read a Frechet distance on CIFAR-10: that of real images, of a JPEG copy, of blur and of noise
-> results/floors_cifar10.json.

    python benchmarks/floors.py --data DIR --lossless DIR --cache DIR [--write]

``--data`` is CIFAR-10 as JPEG files (train/CLASS/*.jpg, test/CLASS/*.jpg). ``--lossless`` has its first training images as they
were published (CLASS/train_NNNNN.png). ``--cache`` keeps features, so that a run can be continued.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from recording import keep, options
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import evenly_spaced
from hybvit.data.images import read_image
from hybvit.devices import environment, keep_freed_memory
from hybvit.evaluation.extractors import JUDGE, Extractor, open_extractor
from hybvit.metrics.fidelity import Statistics, frechet_distance
from hybvit.presets import preset

SEED, PART = 0, 1000
SIZES, FEW = (2000, 4000, 5000, 10_000), 2000  # test images; images of what is far away, where the bias matters less
REFERENCE = {"cnn-cifar10": 50_000, JUDGE: 20_000}  # training images; all of them would take the larger network half an hour


def extracted(extractor: Extractor, pixels: Tensor, cache: Path, name: str) -> tuple[Tensor, float, float]:
    """Features [N, D] of uint8 [N, 3, 32, 32], and the seconds that they took, on the clock and of the CPU."""
    found, seconds, cpu = [], 0.0, 0.0
    probe = hashlib.sha256(extractor.features(pixels[:2]).round(decimals=3).cpu().numpy()).hexdigest()  # of its weights
    for i, part in enumerate(pixels.split(PART)):
        images = hashlib.sha256(part.contiguous().numpy()).hexdigest()[:8]
        path = cache / f"{extractor.name}-{name}-{i}-{images}-{probe[:8]}.pt"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            before = time.perf_counter(), time.process_time()
            features = extractor.features(part)
            torch.save((features, time.perf_counter() - before[0], time.process_time() - before[1]), path)
            print(path.name, flush=True)
        features, wall, busy = torch.load(path)
        found.append(features)
        seconds, cpu = seconds + wall, cpu + busy
    return torch.cat(found), seconds, cpu


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(pixels, 2 * math.ceil(3 * sigma) + 1, sigma)


def lossless(folder: Path, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """The lossless images uint8 [N, 3, 32, 32], and the index of each one's copy among the 50,000 training images, which are
    sorted by class and, within a class, as they were published."""
    pixels, index = [], []
    for label, name in enumerate(classes):
        for place, path in enumerate(sorted((folder / name).glob("train_*.png"))):
            pixels.append(read_image(path, 3, 32))
            index.append(label * 5000 + place)
    return torch.stack(pixels), torch.tensor(index)


def measure(extractor: Extractor, sets: dict[str, Tensor], cache: Path) -> dict[str, Any]:
    """The distance of each set from the set ``reference``; of the set ``test`` at several n."""
    features, seconds, cpu = {}, 0.0, 0.0
    for name, pixels in sets.items():
        features[name], wall, cpu = extracted(extractor, pixels, cache, name)
        seconds += wall
    reference, test = Statistics.of(features.pop("reference")), features.pop("test")
    rows = {f"test_{n}": test[evenly_spaced(len(test), n)] for n in SIZES}
    rows |= {f"{name}_{len(found)}": found for name, found in features.items()}
    return {
        "reference_images": reference.n,
        "distances": {name: frechet_distance(Statistics.of(found), reference) for name, found in rows.items()},
        "images": sum(map(len, sets.values())),
        "seconds": round(seconds, 1),
        "cpu_ms_per_image": round(1000 * cpu / reference.n, 2),  # of the reference, the last set
    }


def main() -> None:
    parser = options(__doc__)
    for name in ("data", "lossless", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", choices=REFERENCE, help="compute and cache the features of this extractor alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    data = open_dataset(replace(preset("cifar10").data, root=str(args.data)), (3, 32, 32))
    train, test = (images.in_memory for images in (data.train, data.test))
    originals, index = lossless(args.lossless, data.classes)
    few = test[evenly_spaced(len(test), FEW)]
    noise = torch.randint(0, 256, few.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))
    off = (originals.int() - train[index].int()).abs().double()
    assert off.mean(dim=(1, 2, 3)).max() < 20, "the lossless images and the JPEG files are not the same ones"
    sets = {"test": test, "jpeg_train": train[index], "lossless_train": originals}
    sets |= {"blur_1": blurred(few, 1), "blur_2": blurred(few, 2), "noise": noise}
    found = {}
    for name in [args.only] if args.only else REFERENCE:
        reference = train[evenly_spaced(len(train), REFERENCE[name])]
        found[name] = measure(open_extractor(name, "cifar10"), {**sets, "reference": reference}, args.cache)
        print(name, json.dumps(found[name]), flush=True)
    record = {
        "data": "CIFAR-10, a JPEG copy (quality 75)",
        "extractors": found,
        "seed": SEED,
        "jpeg_mean_error_in_gray_levels": round(off.mean().item(), 3),
        "timm": timm.__version__,
        "environment": environment(),
    }
    keep("floors_cifar10", record, args.write)


if __name__ == "__main__":
    main()
