"""hybvit: one Vision Transformer that classifies images, generates them, and tells how likely they are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Adapted
    from .config import Config, load_config
    from .data.image_set import to_pixels, to_x
    from .diffusion import Diffusion
    from .errors import CheckpointError, ConfigError, DataError, DivergedError, Interrupted
    from .evaluation import EvaluationOptions, Results, evaluate
    from .hybrid import HybridModel, Prediction, load, load_published
    from .objective import Batch, Losses, Objective, hybrid_loss
    from .recipes import PRESETS, preset
    from .vit import HybViT, Output, ViTConfig

__version__ = "0.1.0"

# Imported when first asked for, so that `hybvit --help` does not wait for torch.
_HOME = {
    "Adapted": "adapters",
    "Config": "config", "load_config": "config",
    "to_pixels": "data.image_set", "to_x": "data.image_set",
    "Diffusion": "diffusion",
    "CheckpointError": "errors", "ConfigError": "errors", "DataError": "errors", "DivergedError": "errors",
    "Interrupted": "errors",
    "EvaluationOptions": "evaluation", "Results": "evaluation", "evaluate": "evaluation",
    "HybridModel": "hybrid", "Prediction": "hybrid", "load": "hybrid", "load_published": "hybrid",
    "Batch": "objective", "Losses": "objective", "Objective": "objective", "hybrid_loss": "objective",
    "PRESETS": "recipes", "preset": "recipes",
    "HybViT": "vit", "Output": "vit", "ViTConfig": "vit",
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hybvit' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
