"""Measure how familiar the test images are to the bundled models, which the page compares pictures with.

    python benchmarks/familiar.py

It writes src/hybvit/assets/familiar.json: quantiles of the log density of all test images, by the digest of the weights.
"""

from __future__ import annotations

import json

import torch

from hybvit import load
from hybvit.catalog import CATALOG
from hybvit.checkpoint import digest_of_weights
from hybvit.data.datasets import open_dataset
from hybvit.hub import bundled
from hybvit.serving.familiar import BUNDLED
from hybvit.storage import write_text

QUANTILES = 201


def main() -> None:
    found = {}
    for name in bundled():
        model = load(name, "cpu")
        cfg = model.cfg
        test = open_dataset(cfg.data, cfg.model.image_shape, cfg.model.num_classes).test
        pixels, _ = test.take(torch.arange(len(test)))
        quantiles = torch.quantile(model.predict(pixels).score.double(), torch.linspace(0, 1, QUANTILES, dtype=torch.float64))
        found[digest_of_weights(model.net.state_dict())] = {
            "images": f"the {len(test):,} test images of {CATALOG[cfg.data.name].title}",
            "quantiles": [round(value, 3) for value in quantiles.tolist()],
        }
        print(f"{name}: {found[digest_of_weights(model.net.state_dict())]['images']}")
    write_text(BUNDLED, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
