"""Weights on disk: atomic, verified checkpoints of a run, and the paper's published files.

A checkpoint is a folder, complete or absent: it is written under a temporary name with a manifest of SHA-256 sums, flushed,
then renamed. safetensors has no checksum of its own, so nothing is loaded whose manifest does not verify.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
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
from .vit import HybViT, ViTConfig

MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step-(\d+)")


def write_folder(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str], **facts: Any) -> None:
    """Write ``name.safetensors`` for each set of tensors, the text files, and the manifest, all or nothing.

    An existing folder of that name is replaced only once the new one is complete.
    """
    temporary = folder.with_name(f".{folder.name}.{platform.node()}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            save_file({key: value.contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors")
        for name, text in texts.items():
            (temporary / name).write_text(text)
        sums = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({**facts, "sha256": sums}, indent=1) + "\n")
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
    """The manifest of a folder whose every file is as it was written.

    Raises:
        CheckpointError: names the file that is missing or altered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
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
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """fsync a file or a folder, so that a rename that follows cannot outrun the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def step_folders(checkpoints: Path) -> list[Path]:
    """All checkpoint folders of a run, newest first."""
    if not checkpoints.is_dir():
        return []
    found = [entry for entry in checkpoints.iterdir() if entry.is_dir() and STEP_FOLDER.fullmatch(entry.name)]
    return sorted(found, key=lambda entry: int(entry.name.removeprefix("step-")), reverse=True)


def newest(checkpoints: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """(folder, manifest, complaints): the newest checkpoint that verifies; complaints name the damaged ones passed over.

    Raises:
        CheckpointError: there are checkpoints, and every one of them is damaged.
    """
    complaints: list[str] = []
    for folder in step_folders(checkpoints):
        try:
            return folder, verify(folder), complaints
        except CheckpointError as error:
            complaints.append(str(error))
    if complaints:
        raise CheckpointError(f"no usable checkpoint: {'; '.join(complaints)}")
    return None, {}, []


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what a killed process left half-written."""
    for folder in step_folders(checkpoints)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)
    for leftover in (*checkpoints.glob(".*.part"), *checkpoints.glob(".*.replaced")):
        shutil.rmtree(leftover, ignore_errors=True)


def load_strictly(net: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a network; every key and every shape must fit.

    Raises:
        CheckpointError: names the first key that is missing, unknown, or of another shape.
    """
    check_fits(net, tensors, source)
    net.load_state_dict(dict(tensors))


def check_fits(net: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises CheckpointError, with its name, for the first key that is missing, unknown, or of another shape."""
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


# In which a network of the paper's form may differ from its network for CIFAR-10.
OWN_SIZES = {
    "image_size", "patch_size", "channels", "num_classes", "dim", "depth", "heads", "mlp_ratio", "ffn_time", "position_std",
}  # fmt: skip
# The published names of our weights; K is the layer.
PUBLISHED = {
    "patch_embedding": "to_patch_embedding.1",
    "class_token": "cls_token",
    "positions": "pos_embedding",
    "time_embedding.mlp.0": "time_mlp.1",
    "time_embedding.mlp.2": "time_mlp.3",
    "class_readout.0": "mlp_head.0",
    "class_readout.1": "mlp_head.1",
    "pixel_readout.to_pixels": "recon_head.0",
    "layers.K.modulation": "transformer.time_layers.K.1",
    "layers.K.norm_attention": "transformer.layers.K.0.norm",
    "layers.K.attention.qkv": "transformer.layers.K.0.fn.to_qkv",
    "layers.K.attention.out": "transformer.layers.K.0.fn.to_out.0",
    "layers.K.norm_mlp": "transformer.layers.K.1.norm",
    "layers.K.mlp.0": "transformer.layers.K.1.fn.net.0",
    "layers.K.mlp.2": "transformer.layers.K.1.fn.net.3",
}
PUBLISHED_BUFFERS = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
}  # fmt: skip


def published_name(key: str) -> str:
    """``layers.3.attention.qkv.weight`` -> ``transformer.layers.3.0.fn.to_qkv.weight``."""
    layer = re.search(r"layers\.(\d+)", key)
    general = re.sub(r"layers\.\d+", "layers.K", key)
    stem, dot, leaf = general.rpartition(".")
    name = PUBLISHED[general] if general in PUBLISHED else PUBLISHED[stem] + dot + leaf
    return name.replace("K", layer[1]) if layer else name


def read_published(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights and buffers of a file in the paper's format, whichever wrapping and prefix it has.

    Raises:
        DataError: there is no such file.
        CheckpointError: it is no PyTorch file of plain tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # torch.load raises many types on a damaged file
        raise CheckpointError(f"{path}: not a PyTorch file of plain tensors ({str(error).splitlines()[0]})") from None
    while isinstance(content, Mapping):
        inner = next((content[k] for k in ("model_state_dict", "state_dict") if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no state dict (a mapping from names to tensors)")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key} is of type {type(value).__name__}, not a tensor")
        name = re.sub(r"^(module\.)?(denoise_fn\.)?(module\.)?", "", str(key))
        if name in tensors:
            raise CheckpointError(f"{path}: {name} is there twice, with and without a prefix")
        tensors[name] = value
    return tensors


def load_published_weights(net: HybViT, path: str | os.PathLike[str]) -> Tensor | None:
    """Copy the weights of a published file into a network of the paper's form -> its ``betas`` [T], if it has them.

    Raises:
        CheckpointError: names the published key that is missing, unknown, or of another shape.
    """
    for name, published in dataclasses.asdict(ViTConfig()).items():
        if name not in OWN_SIZES and getattr(net.cfg, name) != published:
            raise CheckpointError(f"{path}: published weights need model.{name} = {published}, not {getattr(net.cfg, name)}")
    tensors = read_published(path)
    own = net.state_dict()
    names = {published_name(key): key for key in own}
    for name, key in names.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: {name} is missing")
        if tensors[name].shape != own[key].shape:
            found, needed = list(tensors[name].shape), list(own[key].shape)
            raise CheckpointError(f"{path}: {name} has shape {found}, the given configuration needs {needed}")
        if not bool(tensors[name].isfinite().all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    for name in tensors:
        if name not in names and name not in PUBLISHED_BUFFERS:
            raise CheckpointError(f"{path}: {name} has no place in the given configuration")
    net.load_state_dict({names[name]: value for name, value in tensors.items() if name in names})
    return tensors.get("betas")
