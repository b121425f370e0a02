"""hybvit: one Vision Transformer that classifies images, generates them, and tells how likely they are."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config, load_config
    from .data.image_set import to_pixels, to_x
    from .errors import CheckpointError, ConfigError, DataError, DivergedError, Interrupted
    from .evaluation import EvaluationOptions, Results, evaluate
    from .evaluation.adapters import Adapted
    from .integrations.estimator import HybViTClassifier
    from .loading import load, load_published
    from .method.diffusion import Diffusion
    from .method.objective import Batch, Losses, hybrid_loss
    from .method.objective_config import Objective
    from .method.vit import HybViT, Output
    from .method.vit_config import ViTConfig
    from .metrics.certified import Certificates
    from .model import HybridModel, Prediction
    from .presets import PRESETS, preset
    from .training.loop import train

__version__ = "0.2.0.dev3"

if "torch" not in sys.modules:
    # Threads that wait by spinning slow each other down by a factor of 50 where other programs keep the cores busy.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch is imported

# Imported when first asked for, so that `hybvit --help` does not wait for torch.
_MODULE_OF = {
    "Adapted": "evaluation.adapters",
    "Config": "config", "load_config": "config",
    "to_pixels": "data.image_set", "to_x": "data.image_set",
    "Diffusion": "method.diffusion",
    "CheckpointError": "errors", "ConfigError": "errors", "DataError": "errors", "DivergedError": "errors",
    "Interrupted": "errors",
    "EvaluationOptions": "evaluation", "Results": "evaluation", "evaluate": "evaluation",
    "Certificates": "metrics.certified",
    "HybViTClassifier": "integrations.estimator",
    "HybridModel": "model", "Prediction": "model", "load": "loading", "load_published": "loading",
    "Batch": "method.objective", "Losses": "method.objective", "hybrid_loss": "method.objective",
    "Objective": "method.objective_config",
    "PRESETS": "presets", "preset": "presets",
    "HybViT": "method.vit", "Output": "method.vit", "ViTConfig": "method.vit_config",
    "train": "training.loop",
}  # fmt: skip

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hybvit' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
