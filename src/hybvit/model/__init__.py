"""A trained network with all that it takes to classify, generate, score and edit images."""

from .answers import COVERAGE, Classified, Images, Labels, Prediction, classify
from .edits import Counterfactual, Edit
from .folders import export_folder
from .hybrid import ATTEMPT, HybridModel, Reading
from .sampling import image_noise, run_to_pixels

__all__ = [
    "ATTEMPT",
    "COVERAGE",
    "Classified",
    "Counterfactual",
    "Edit",
    "HybridModel",
    "Images",
    "Labels",
    "Prediction",
    "Reading",
    "classify",
    "export_folder",
    "image_noise",
    "run_to_pixels",
]
