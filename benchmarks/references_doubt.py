"""Record what torch-uncertainty, TorchCP and MAPIE compute on random inputs -> tests/data/doubt_references.json.

    python benchmarks/references_doubt.py

It needs torch-uncertainty, torchcp and mapie, which hybvit does not: an environment of their own, with torch.
"""

from __future__ import annotations

import json
import runpy
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from torchcp.classification.predictor import SplitPredictor
from torchcp.classification.score import APS, LAC, RAPS

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "doubt_references.json"
N, K, SEED = 80, 6, 7
COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.995)  # the last is too much for N images: all classes


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 2N images, rounded to two decimals so that they can be stored, and labels that are drawn from them."""
    generator = torch.Generator().manual_seed(SEED)
    logits = (2 * torch.randn(2 * N, K, generator=generator, dtype=torch.float64)).mul(100).round() / 100
    return logits, logits.softmax(1).multinomial(1, generator=generator)[:, 0]


def selective(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    found = find_spec("torch_uncertainty")  # the file of these metrics alone: the package asks for many others
    assert found is not None
    assert found.origin is not None
    theirs = runpy.run_path(str(Path(found.origin).parent / "metrics" / "classification" / "risk_coverage.py"))
    metrics: dict[str, Any] = {"aurc": theirs["AURC"](), "augrc": theirs["AUGRC"]()}
    metrics |= {f"coverage_at_risk_{r}": theirs["CovAtxRisk"](risk_threshold=r) for r in (0.05, 0.1, 0.2)}
    metrics |= {f"risk_at_coverage_{c}": theirs["RiskAtxCov"](cov_threshold=c) for c in (0.3, 0.8, 1.0)}
    for metric in metrics.values():
        metric.update(logits.softmax(1), labels)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def torchcp_sets(logits: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """Thresholds and sets without random numbers: the first N images calibrate, the others are judged."""
    scores = {"thr": LAC(), "aps": APS(randomized=False), "raps": RAPS(randomized=False, penalty=0.1, kreg=1)}
    found = []
    for method, score in scores.items():
        for coverage in COVERAGES:
            predictor = SplitPredictor(score)
            predictor.calculate_threshold(logits[:N], labels[:N], 1 - coverage)
            quantile = float(predictor.q_hat)
            sets = predictor.predict_with_logits(logits[N:]).long()
            found.append(
                {
                    "method": method,
                    "coverage": coverage,
                    "quantile": quantile if np.isfinite(quantile) else None,
                    "sets": ["".join(map(str, row)) for row in sets.tolist()],
                }
            )
    return found


def torchcp_random(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, list[float]]:
    """Scores of the true classes with known random numbers, which are those that torch draws after this seed."""
    found: dict[str, list[float]] = {}
    for method, score in (("aps", APS()), ("raps", RAPS(penalty=0.1, kreg=1))):
        torch.manual_seed(SEED)
        found[method] = [round(value, 9) for value in score(logits[:N], labels[:N]).tolist()]
    torch.manual_seed(SEED)
    found["u"] = torch.rand(N, dtype=torch.float32).tolist()
    return found


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose input are the probabilities."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Given:
        self.classes_ = np.arange(K)
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(axis=1)


def mapie_sets(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, list[str]]:
    """Sets of the LAC score, which is thr."""
    probabilities, found = logits.softmax(1).numpy(), {}
    for coverage in COVERAGES[:-1]:
        model = Given().fit(probabilities, labels.numpy())
        conformal = SplitConformalClassifier(model, confidence_level=coverage, conformity_score="lac", prefit=True)
        conformal.conformalize(probabilities[:N], labels[:N].numpy())
        sets = conformal.predict_set(probabilities[N:])[1][:, :, 0].astype(int)
        found[str(coverage)] = ["".join(map(str, row)) for row in sets.tolist()]
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    logits, labels = inputs()
    record = {
        "versions": {name: version(name) for name in ("torch-uncertainty", "torchcp", "mapie")},
        "logits": logits.tolist(),
        "labels": labels.tolist(),
        "selective": selective(logits, labels),
        "torchcp": torchcp_sets(logits, labels),
        "torchcp_random": torchcp_random(logits, labels),
        "mapie_lac": mapie_sets(logits, labels),
    }
    OUT.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
