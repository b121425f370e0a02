"""What the page and the API both hold: a model, the line before it, and what its images are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..data.image_set import to_x
from ..model import Classified, HybridModel, classify
from . import familiar
from .familiar import Familiar
from .limits import Desk
from .nearest import Drawings, unit_features

VOTES, NOISE = 1000, 0.25  # of a certificate


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

    def classify(self, pixels: Tensor, coverage: float | None = None) -> list[Classified]:
        """Work for the desk; a coverage is not asked for in vain of a model that is not calibrated."""
        return classify(self.model, pixels, coverage=None if self.model.calibration is None else coverage)

    def familiarity(self, densities: Sequence[float]) -> list[float | None]:
        """The share of the familiar images below each log density; None where nothing was measured yet."""
        return [None if self.familiar is None else self.familiar.share_below(density) for density in densities]

    def nearest(self, pixels: Tensor) -> list[tuple[Tensor, int, float]]:
        """Work for the desk: the most similar images that the model drew itself to one [1, C, H, W] -> pixels, label, cosine.

        They are drawn when this is asked for first.
        """
        if self.drawings is None:
            self.drawings = Drawings.of(self.model)
        found = self.drawings.nearest(unit_features(self.model, pixels))
        return [(self.drawings.pixels[i], int(self.drawings.labels[i]), cosine) for i, cosine in found]

    def bits_per_dim(self, pixels: Tensor) -> list[float]:
        """Work for the desk: the variational bound."""
        found: list[float] = self.model.bits_per_dim(to_x(pixels)).tolist()
        return found
