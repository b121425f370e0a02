"""What the page and the API both hold: a model, the line before it, and what its images are compared with."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..data.image_set import to_x
from ..model import HybridModel
from . import familiar
from .familiar import Familiar
from .limits import Desk
from .nearest import Drawings, unit_features

COVERAGE = 0.95  # of the sets of labels, unless another is asked for
VOTES, NOISE = 1000, 0.25  # of a certificate


class Classified(NamedTuple):
    """The answers for one image.

    Attributes:
        label: number of the most probable class.
        probabilities: of all K classes.
        log_density: higher = more like the training images.
        abstains: whether it is too unsure for an answer, if at most ``RISK`` of the answers may be wrong; None without a
            calibration that can tell.
        held: numbers of the classes that hold the true one with the coverage that was asked for; None without a calibration.
        familiarity: share of the familiar images that have a lower log density; None where nothing was measured yet.
    """

    label: int
    probabilities: list[float]
    log_density: float
    abstains: bool | None
    held: list[int] | None
    familiarity: float | None


class Service:
    """A model to serve.

    Args:
        name: what the user called it.

    Attributes:
        familiar: what images are compared with; None until it was measured.
        drawings: among which the most similar ones are sought; None until somebody asks.
    """

    def __init__(self, model: HybridModel, name: str) -> None:
        self.model, self.name, self.desk = model, name, Desk()
        first = next(layer for layer in model.net.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        first.register_forward_pre_hook(lambda layer, given: self.desk.go_on())  # so each evaluation of the network is a step
        self.familiar: Familiar | None = None
        self.drawings: Drawings | None = None
        if model.has_classes:
            self.familiar = familiar.known(model)
            if self.familiar is None and model.has_samples:
                self.desk.spare(map(self._compare_with, familiar.measured(model)))

    def _compare_with(self, images: Familiar) -> Familiar:
        self.familiar = images
        return images

    def classify(self, pixels: Tensor, coverage: float = COVERAGE) -> list[Classified]:
        """Work for the desk. Errors are those of :meth:`HybridModel.predict` and :meth:`HybridModel.prediction_set`."""
        found = self.model.predict(pixels)
        abstains: list[bool | None] = [None] * len(pixels)
        held: list[list[int] | None] = [None] * len(pixels)
        if (calibration := self.model.calibration) is not None:
            held = [row.nonzero().flatten().tolist() for row in self.model.prediction_set(pixels, coverage)]
            if (risk := calibration.default_risk) is not None:
                abstains = (found.probabilities.max(dim=1).values < calibration.threshold(risk).score).tolist()
        compared = self.familiar
        return [
            Classified(label, row, score, unsure, classes, None if compared is None else compared.share_below(score))
            for label, row, score, unsure, classes in zip(*(part.tolist() for part in found), abstains, held, strict=True)
        ]

    def nearest(self, pixels: Tensor) -> list[tuple[Tensor, int, float]]:
        """Work for the desk: the most similar images that the model drew itself to one [1, C, H, W] -> pixels, label, cosine.

        They are drawn when this is asked for first.
        """
        if self.drawings is None:
            self.drawings = Drawings.of(self.model)
        found = self.drawings.nearest(unit_features(self.model, pixels))
        return [(self.drawings.pixels[i], int(self.drawings.labels[i]), cosine) for i, cosine in found]

    def bits_per_dim(self, pixels: Tensor) -> list[float]:
        """Work for the desk: the variational bound, of each image by itself, so that it does not depend on the others."""
        return [self.model.bits_per_dim(to_x(one[None])).item() for one in pixels]
