"""A trained network with all that it takes to classify, generate, score and edit images."""

from .answers import Images, Labels, Prediction
from .edits import Counterfactual, Edit
from .folders import export_folder
from .hybrid import ATTEMPT, HybridModel, Reading
from .sampling import image_noise, run_to_pixels

__all__ = [
    "ATTEMPT",
    "Counterfactual",
    "Edit",
    "HybridModel",
    "Images",
    "Labels",
    "Prediction",
    "Reading",
    "export_folder",
    "image_noise",
    "run_to_pixels",
]
