"""What a classifier needs to know of images that it was not trained on, to say how sure it is of new ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .calibration import Scaling, choose_scaling
from .conformal import Method, Ranked, conformal_quantile, nonconformity, prediction_sets, ranked
from .selective import Threshold, max_probability, threshold_for_risk

RISK = 0.05


@dataclass(frozen=True)
class Calibration:
    """A calibration by n images: how to scale the logits, and how well each image did after that.

    Thresholds and quantiles are computed from these for any risk and coverage that is asked for. Probabilities, confidences and
    ranks are those of the logits by a vector scaling that was fitted without the image (``metrics/calibration.py: Chosen``):
    the one that was fitted to it flatters it, and sets would hold the true class less often than promised.

    Attributes:
        scaling: the change of the logits.
        labels: of the images, in the words of :func:`hybvit.metrics.conformal.ranked`: probability of the true class, of those
            ranked above it, and its rank; each [n].
        confidence: float64 [n], the largest probability.
        images: int64 [n], a digest of each image, so that none of them is taken to judge the calibration.
        source: which images they are, for the record.
        weights: digest of the weights that it was made for; it fits no others.
    """

    scaling: Scaling
    labels: Ranked
    confidence: Tensor
    images: Tensor
    source: str = ""
    weights: str = ""

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, images: Tensor, source: str = "", weights: str = "") -> Calibration:
        """A calibration by images that the network was not trained on.

        Args:
            logits: float [n, K]; labels: int64 [n].
            images: int64 [n], a digest of each.

        Raises:
            ValueError: there is no image, or a logit is not finite.
        """
        if len(logits) < 1 or not bool(logits.isfinite().all()):
            raise ValueError("a calibration needs at least one image, and finite logits")
        scaling, scaled = choose_scaling(logits, labels)
        return cls(scaling, ranked(scaled).of(labels), max_probability(scaled), images, source, weights)

    def __len__(self) -> int:
        return len(self.confidence)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities, float64 [N, K]."""
        return self.scaling.apply(logits).softmax(dim=1)

    def threshold(self, risk: float) -> Threshold:
        """The confidence from which on the risk is at most ``risk``, in 95 % of cases (:func:`threshold_for_risk`)."""
        return threshold_for_risk(self.confidence, self.labels.rank == 1, risk)

    @property
    def default_risk(self) -> float | None:
        """The risk to keep to where none is asked for: :data:`RISK`, if these images can vouch for it."""
        return RISK if self.threshold(RISK).bound <= RISK else None

    def quantile(self, coverage: float, method: Method = "thr", u: Tensor | float = 1.0) -> float:
        """The largest nonconformity of a class in a set; ``u`` [n] as in :func:`nonconformity`."""
        return conformal_quantile(nonconformity(self.labels, method, u), coverage)

    def sets(self, logits: Tensor, coverage: float, method: Method = "thr") -> Tensor:
        """The classes that hold the true one with this probability, bool [N, K]; without random numbers.

        The most probable class is always one of them: an empty set says nothing of an image, and a class more covers no less.
        """
        scaled = self.scaling.apply(logits)
        held = prediction_sets(nonconformity(ranked(scaled), method), self.quantile(coverage, method))
        return held.scatter(1, scaled.argmax(dim=1, keepdim=True), True)

    def used(self, images: Tensor) -> Tensor:
        """Which of some images, by their digests int64 [N], the calibration was made with: bool [N]."""
        return torch.isin(images, self.images)

    def to_bytes(self) -> bytes:
        """The content of a safetensors file that holds all of it, with a digest."""
        tensors = {"scale": self.scaling.scale, "bias": self.scaling.bias, **self.labels._asdict()}
        tensors = {name: value.contiguous() for name, value in (tensors | {"confidence": self.confidence}).items()}
        tensors["images"] = self.images.contiguous()
        about = {"kind": self.scaling.kind, "source": self.source, "weights": self.weights}
        text = json.dumps(about | {"sha256": _digest(tensors, about)}).encode()
        return save(tensors | {"about": torch.tensor(list(text), dtype=torch.uint8)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Calibration:
        """What :meth:`to_bytes` gave.

        Raises:
            ValueError: it is damaged.
        """
        try:
            tensors = load(content)
            about = json.loads(bytes(tensors.pop("about").tolist()).decode())
            intact = about.pop("sha256") == _digest(tensors, about)
            scaling = Scaling(about["kind"], tensors["scale"], tensors["bias"])
            labels = Ranked(*(tensors[name] for name in Ranked._fields))
            found = cls(scaling, labels, tensors["confidence"], tensors["images"], about["source"], about["weights"])
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise ValueError("damaged")
        return found


def _digest(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    return hashlib.sha256(save(tensors) + json.dumps(about, sort_keys=True).encode()).hexdigest()
