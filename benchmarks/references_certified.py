"""Certificates by the adversarial-robustness-toolbox -> tests/data/certified_reference.json, for tests/test_certified.py.

Needs adversarial-robustness-toolbox and statsmodels, which the tests do not.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "certified_reference.json"
SCALES, COUNTS, ALPHAS = (0.12, 0.25, 1.0), ((0, 10), (7, 10), (10, 10), (540, 1000), (870, 1000), (1000, 1000)), (0.05, 0.001)


def smoothed(scale: float, votes: int, alpha: float, share: float) -> PyTorchRandomizedSmoothing:
    """The library's classifier around fixed votes: class 1 for the first ``share`` of the copies, class 0 for the others."""

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = torch.arange(len(x)) < round(share * len(x))
            return torch.stack((~first, first), dim=1).float()

    return PyTorchRandomizedSmoothing(
        Fixed(), torch.nn.CrossEntropyLoss(), (1, 2, 2), 2, sample_size=votes, scale=scale, alpha=alpha
    )


def main() -> None:
    rows = []
    for alpha in ALPHAS:
        for hits, votes in COUNTS:
            for scale in SCALES:
                model = smoothed(scale, votes, alpha, hits / votes)
                bound = float(model._lower_confidence_bound(hits, votes))
                label, radius = model.certify(np.zeros((1, 1, 2, 2), np.float32), n=votes, batch_size=votes)
                rows.append({
                    "alpha": alpha, "hits": hits, "votes": votes, "scale": scale, "bound": bound,
                    "label": int(label[0]), "radius": float(radius[0]),
                })  # fmt: skip
    versions = {name: version(name) for name in ("adversarial-robustness-toolbox", "statsmodels", "torch", "scipy")}
    OUT.write_text(json.dumps({"script": Path(__file__).name, "versions": versions, "rows": rows}, indent=0) + "\n")


if __name__ == "__main__":
    main()
