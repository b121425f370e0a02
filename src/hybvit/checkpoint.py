"""Weights on disk: atomic, verified checkpoints.

A checkpoint is a folder that is either complete or absent: it is written under a temporary name with a manifest of SHA-256
sums, flushed, then renamed. safetensors has no checksum of its own, so only folders whose manifest verifies are loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError, DataError
from .storage import flush, temporary_name

CONFIG, WEIGHTS, EMA = "config.yaml", "model", "ema"


MANIFEST = "manifest.json"


STEP_FOLDER = re.compile(r"step-(\d+)")


def write_folder(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str], **facts: Any) -> None:
    """Write a checkpoint folder, all or nothing: ``name.safetensors`` for each set of tensors, text files, and the manifest.

    An existing folder is replaced only once the new one is complete.

    Args:
        tensors: file name without suffix -> name of a tensor -> tensor.
        texts: file name -> content.
        facts: further entries of the manifest.

    Raises:
        DataError: the folder cannot be written.
    """
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            save_file({key: value.contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors")
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        sums = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({**facts, "sha256": sums}, indent=1) + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            flush(path)
        flush(temporary)
        if folder.exists():
            replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
            os.rename(folder, replaced)
            os.rename(temporary, folder)
            shutil.rmtree(replaced)
        else:
            os.rename(temporary, folder)
        flush(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest -> the manifest.

    Raises:
        CheckpointError: a file is missing or altered; the message names it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sums = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / MANIFEST}: missing or damaged") from None
    for name, expected in sums.items():
        path = folder / name
        if Path(name).name != name:
            raise CheckpointError(f"{folder / MANIFEST}: damaged: {name!r} is no file of this folder")
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if sha256(path) != expected:
            raise CheckpointError(f"{path}: damaged (its SHA-256 differs from the manifest's)")
    return manifest


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; CheckpointError where it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The training step of a checkpoint folder, from its name."""
    found = STEP_FOLDER.fullmatch(folder.name)
    assert found is not None, folder
    return int(found[1])


def step_folders(checkpoints: Path) -> list[Path]:
    """All checkpoint folders of a run, newest first."""
    if not checkpoints.is_dir():
        return []
    found = [entry for entry in checkpoints.iterdir() if entry.is_dir() and STEP_FOLDER.fullmatch(entry.name)]
    return sorted(found, key=step_of, reverse=True)


def newest(checkpoints: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest valid checkpoint -> its folder, its manifest, and a line for each damaged one that was skipped.

    Where there is no checkpoint yet: None, an empty manifest and no lines.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    problems: list[str] = []
    for folder in step_folders(checkpoints):
        try:
            return folder, verify(folder), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"no usable checkpoint: {'; '.join(problems)}")
    return None, {}, []


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and incomplete folders of a killed process."""
    for folder in step_folders(checkpoints)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)
    for leftover in (*checkpoints.glob(".*.part"), *checkpoints.glob(".*.replaced")):
        shutil.rmtree(leftover, ignore_errors=True)


def load_strictly(net: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a network; all names and shapes must be equal.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape; the message names the first.
    """
    check_fits(net, tensors, source)
    net.load_state_dict(dict(tensors))


def check_fits(net: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise CheckpointError for the first tensor that is missing, unknown, or of another shape, with its name."""
    own = net.state_dict()
    for key in own:
        if key not in tensors:
            raise CheckpointError(f"{source}: {key} is missing")
        if tensors[key].shape != own[key].shape:
            raise CheckpointError(
                f"{source}: {key} has shape {list(tensors[key].shape)}, this network needs {list(own[key].shape)}"
            )
    for key in tensors:
        if key not in own:
            raise CheckpointError(f"{source}: {key} is not a weight of this network")
