"""How familiar an image is: its log density among those of images that are known to be familiar."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from ..checkpoint import digest_of_weights
from ..model import HybridModel
from ..storage import ASSETS, read_json
from .drawing import SAMPLER

BUNDLED = ASSETS / "familiar.json"  # written by benchmarks/familiar.py
SAMPLES, AT_ONCE, STEPS = 64, 8, 20  # of a model that nothing is known of
UNUSUAL = 0.05  # share of familiar images below which an image is called unusual


class Familiar(NamedTuple):
    """Log densities of familiar images.

    Attributes:
        densities: in ascending order; quantiles where there are very many.
        images: which they are, as in "the 10,000 test images of Fashion-MNIST".
    """

    densities: list[float]
    images: str

    def share_below(self, density: float) -> float:
        """The share of them that are less familiar than an image of this log density, in 0..1."""
        return bisect_left(self.densities, density) / len(self.densities)


def known(model: HybridModel) -> Familiar | None:
    """What was measured on the test images of a bundled model; None for all others."""
    found = read_json(BUNDLED).get(digest_of_weights(model.net.state_dict()))
    return Familiar(found["quantiles"], found["images"]) if found else None


def measured(model: HybridModel) -> Iterator[Familiar]:
    """The log densities of images that the model draws itself, of a few more each time."""
    densities: list[float] = []
    for start in range(0, SAMPLES, AT_ONCE):
        pixels = model.draw(range(start, start + AT_ONCE), SAMPLER, min(STEPS, model.diffusion.T), seed=0)
        densities = sorted(densities + model.predict(pixels).score.tolist())
        yield Familiar(densities, f"{len(densities)} images that the model drew itself")
