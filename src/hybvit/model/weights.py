"""Which weights a model has, and whether results are of these."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..method.diffusion import Diffusion


class HasState(Protocol):
    """A model of which :func:`fingerprint_of` can tell one from another."""

    diffusion: Diffusion

    def state(self) -> list[Tensor]: ...


def fingerprint_of(model: HasState, identity: str = "") -> str:
    """SHA-256 of every tensor that a model's outputs depend on; a new random one for a model that does not know them.

    Args:
        identity: of an external model: the source it was built from.
    """
    state = model.state()
    digest = hashlib.sha256(identity.encode() if state or identity else os.urandom(16))
    for tensor in (*state, model.diffusion.alpha_bar):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_of_other_weights(results: Mapping[str, Any], model: HasState) -> bool:
    """Whether a suite of a results.json was measured on other weights, as before a model was trained further."""
    suites = results.get("suites")
    settings = (
        [suite.get("settings") for suite in suites.values() if isinstance(suite, dict)] if isinstance(suites, dict) else []
    )
    own = fingerprint_of(model)
    return any(isinstance(of_suite, dict) and of_suite.get("weights") not in (None, own) for of_suite in settings)
