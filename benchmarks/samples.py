"""Samples of the bundled `cifar10` as two extractors see them, with and without guidance: their distance, and how many have the
class that they were drawn for, by class -> results/samples_cifar10.json, docs/samples_cifar10.png.

    python benchmarks/samples.py --data DIR --cache DIR [--write]

``--data`` and ``--cache`` are those of benchmarks/floors.py, which has the distances of other images to read these beside.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from floors import REFERENCE, SEED, extracted
from recording import ROOT, keep, options, share
from torch import Tensor

import hybvit
from hybvit.checkpoint import digest_of_weights
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import evenly_spaced
from hybvit.data.images import grid
from hybvit.devices import environment, keep_freed_memory
from hybvit.evaluation.extractors import open_extractor
from hybvit.metrics.fidelity import Statistics, frechet_distance
from hybvit.presets import preset

MODEL, NUMBER, STEPS, PART, SHOWN = "cifar10", 2000, 20, 100, 10
GUIDANCES = (0.0, 1.0, 2.0)


def drawn(model: hybvit.HybridModel, guidance: float, cache: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [NUMBER, 3, 32, 32], and their labels: each class in turn."""
    labels, parts = torch.arange(NUMBER) % len(model.classes), []
    for index in torch.arange(NUMBER).split(PART):
        path = cache / f"samples-{guidance:g}-{int(index[0])}.pt"
        if not path.exists():
            arguments = (index.tolist(), "dpmpp_2m", STEPS, SEED, guidance)
            torch.save(model.draw(*arguments, labels=labels[index]), path)
            print(path.name, flush=True)
        parts.append(torch.load(path))
    return torch.cat(parts), labels


def main() -> None:
    parser = options(__doc__)
    for name in ("data", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    keep_freed_memory()
    model = hybvit.load(MODEL, "cpu")
    of_model = args.cache / digest_of_weights(model.net.state_dict())[:12]
    of_model.mkdir(parents=True, exist_ok=True)
    train = open_dataset(replace(preset("cifar10").data, root=str(args.data)), (3, 32, 32)).train.in_memory
    samples = {guidance: drawn(model, guidance, of_model) for guidance in GUIDANCES}
    classifier, rows = open_extractor("cnn-cifar10", "cifar10"), {}
    for guidance, (pixels, labels) in samples.items():
        hits = classifier.logits(pixels).argmax(dim=1) == labels
        by_class = {name: share(hits[labels == k]) for k, name in enumerate(model.classes)}
        rows[f"{guidance:g}"] = {"distances": {}, "class_agreement": share(hits), "class_agreement_by_class": by_class}
    for name, number in REFERENCE.items():
        extractor = open_extractor(name, "cifar10")
        features, *_ = extracted(extractor, train[evenly_spaced(len(train), number)], args.cache, "reference")
        reference = Statistics.of(features)
        for guidance, (pixels, _) in samples.items():
            found, *_ = extracted(extractor, pixels, of_model, f"samples-{guidance:g}")
            rows[f"{guidance:g}"]["distances"][name] = frechet_distance(Statistics.of(found), reference)
    record = {
        "model": MODEL, "samples": NUMBER, "sampler": "dpmpp_2m", "steps": STEPS, "seed": SEED, "guidance": rows,
        "reference_images": REFERENCE, "seconds": round(time.perf_counter() - started), "environment": environment(),
    }  # fmt: skip
    keep("samples_cifar10", record, args.write)
    if args.write:
        pixels, labels = samples[1.0]
        shown = torch.cat([pixels[labels == k][:SHOWN] for k in range(len(model.classes))])
        grid(shown, columns=SHOWN, scale=2).save(ROOT / "docs" / "samples_cifar10.png")


if __name__ == "__main__":
    main()
