"""A model as a folder, on this machine or on the Hugging Face hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import checkpoint
from ..catalog import CATALOG
from ..checkpoint import CALIBRATION, CONFIG, GRAPHS, WEIGHTS
from ..config import load_config, to_dict, to_yaml, without_addresses
from ..data.trained_on import DIGESTS, TRAINED_ON, checked
from ..errors import CheckpointError, ConfigError, DataError
from ..hub import CONFIG_JSON, config_json, download, local_folder, model_card, refuse_pickles, upload
from ..metrics.doubt import Calibration
from ..networks import load_network
from ..storage import read_bytes

if TYPE_CHECKING:
    from .hybrid import HybridModel


def export_folder(folder: str | os.PathLike[str]) -> Path:
    """The path of a folder to export to.

    Raises:
        ConfigError: it exists and is not an exported model, or holds more than that.
    """
    path = Path(folder)
    checkpoint.check_replaceable(path, CONFIG, "is not an exported model")
    return path


def save_pretrained(
    model: HybridModel, folder: str | os.PathLike[str], *, repo_id: str | None = None, results: Mapping[str, Any] | None = None
) -> None:
    """Write weights (safetensors), config.yaml, the calibration if there is one, and a manifest of SHA-256 sums, all or
    nothing; for the hub also config.json and a model card.

    Args:
        repo_id: the model's name on the hub, for the card.
        results: the content of a results.json of `hybvit evaluate`, for the card.

    Raises:
        ConfigError: the folder exists and is not an exported model, or holds a file that is not of the export, or the weights
            were changed after the calibration.
        DataError: it cannot be written.
    """
    path = export_folder(folder)
    weights = {key: value.cpu() for key, value in model.net.state_dict().items()}
    known = {} if model.trained_on is None else {TRAINED_ON: {DIGESTS: model.trained_on}}
    cfg = without_addresses(model.cfg)
    title = CATALOG[cfg.data.name].title if cfg.data.name in CATALOG else "images of its author"
    found = model.calibration
    calibrated = None if found is None else f"{len(found):,} images ({found.source or 'of its author'})"
    files: dict[str, str | bytes] = {
        CONFIG: to_yaml(cfg),
        CONFIG_JSON: config_json(to_dict(cfg)),
        checkpoint.CARD: model_card(to_dict(cfg), title, repo_id, results, calibrated),
    }
    if model.calibration is not None:
        if model.calibration.weights != checkpoint.digest_of_weights(weights):
            raise ConfigError("the weights were changed after the calibration: calibrate again, or set calibration to None")
        files[CALIBRATION] = model.calibration.to_bytes()
    checkpoint.write_folder(path, {WEIGHTS: weights, **known}, files)


def push_to_hub(model: HybridModel, repo_id: str, *, results: Mapping[str, Any] | None = None, **options: Any) -> str:
    """Upload what :meth:`save_pretrained` writes to the Hugging Face hub, in one commit -> its address.

    Args:
        repo_id: OWNER/NAME, created if need be.
        options: commit_message, branch, private and token, as :func:`hybvit.hub.upload` has them.

    Raises:
        DataError: the hub refuses, or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(Path(place) / "model", repo_id=repo_id, results=results)
        return upload(Path(place) / "model", repo_id, **options)


def from_pretrained(
    cls: type[HybridModel], source: str | os.PathLike[str], device: torch.device | str | None = None, **options: Any
) -> HybridModel:
    """Read what :meth:`save_pretrained` wrote, from a folder or the Hugging Face hub. Nothing is unpickled.

    Args:
        source: a folder, the name of a bundled model, or OWNER/NAME, or OWNER/NAME@REVISION.
        options: revision, cache_dir, local_files_only, force_download and token, for the hub, as
            :func:`hybvit.hub.download` has them.

    Raises:
        DataError: there is no such folder, nor such a model on the hub, or it holds exported graphs.
        CheckpointError: a file is missing or altered, a weight does not fit, the calibration is of other weights, or there
            are pickles in the folder.
    """
    folder = Path(source) if options.get("revision") else local_folder(source)
    checkpoint.recover(folder)
    if not folder.is_dir():
        folder = download(str(source), **options)
    refuse_pickles(folder)
    if (folder / GRAPHS).is_file() and not (folder / CONFIG).exists():
        raise DataError(
            f"{source}: this folder holds exported graphs, not a model: they run without hybvit (docs/export.md); "
            "`hybvit export MODEL --format safetensors` writes a model"
        )
    manifest = checkpoint.verify(folder, (CONFIG, f"{WEIGHTS}.safetensors"))
    model = cls(*load_network(load_config(folder / CONFIG), folder / f"{WEIGHTS}.safetensors"), device)
    kept = folder / f"{TRAINED_ON}.safetensors"
    if kept.name in manifest["sha256"]:
        model.trained_on = checked(checkpoint.read_tensors(kept), kept)
    if CALIBRATION in manifest["sha256"] and not model.take_calibration(folder):
        raise CheckpointError(f"{folder / CALIBRATION}: was made for other weights: run `hybvit calibrate` again")
    return model


def take_calibration(model: HybridModel, folder: Path) -> bool:
    """Use the calibration that a folder holds -> whether it is of these weights; another is not used.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / CALIBRATION
    try:
        found = Calibration.from_bytes(read_bytes(path))
    except OSError as error:
        raise CheckpointError(f"{path}: unreadable ({error.strerror})") from None
    except ValueError:
        raise CheckpointError(f"{path}: damaged; delete it, and run `hybvit calibrate` again") from None
    fits = found.weights == checkpoint.digest_of_weights(model.net.state_dict())
    model.calibration = found if fits else None
    return fits
