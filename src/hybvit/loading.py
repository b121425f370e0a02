"""Load models: run folders, checkpoints, exported folders, the hub, and the paper's published weights."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .checkpoint import CALIBRATION, CONFIG, EMA
from .config import Config, DiffusionConfig, load_config, read_config
from .data.trained_on import TRAINED_ON, checked
from .errors import CheckpointError, ConfigError, DataError
from .hub import local_folder, refuse_pickles
from .method.vit import HybViT, ViTConfig
from .model import HybridModel
from .networks import check_config, fill_network
from .storage import atomic_write

READ = (f"{EMA}.safetensors", CONFIG, f"{TRAINED_ON}.safetensors")  # of a checkpoint


def load(source: str | os.PathLike[str], device: torch.device | str | None = None) -> HybridModel:
    """Load a model from a run folder (the EMA weights of its newest valid checkpoint), one of its checkpoints, an exported
    folder, the name of a bundled model (:func:`bundled`), or a hub id, OWNER/NAME or OWNER/NAME@REVISION ->
    :class:`HybridModel`.

    A folder takes precedence over a bundled model of the same name.

    Raises:
        DataError: the source does not exist.
        CheckpointError: the source cannot be used; the message names the file.
    """
    path = local_folder(source)
    if path.is_file():
        raise DataError(f"{path}: a file, not a model: give the folder that it lies in")
    checkpoint.recover(path)
    if (path / f"{EMA}.safetensors").is_file():
        return load_checkpoint(path, device)
    if (path / checkpoint.MANIFEST).is_file() or not path.is_dir():
        return HybridModel.from_pretrained(source, device)
    if not (path / CONFIG).is_file():
        refuse_pickles(path)
        raise DataError(f"{path}: neither a run folder nor an exported model (no {CONFIG} in it)")
    load_config(path / CONFIG)  # report an invalid configuration before an invalid checkpoint
    return load_newest(path, device)


def load_newest(run: Path, device: torch.device | str | None = None) -> HybridModel:
    """Load the newest valid checkpoint of a run, which may be in training: one that is deleted meanwhile is not missed.

    Raises:
        CheckpointError: there is no checkpoint, or none that is valid.
    """
    for _ in range(checkpoint.ATTEMPTS):
        problems, deleted = [], False
        for folder in checkpoint.step_folders(run / "checkpoints"):
            try:
                manifest, contents = checkpoint.read_verified(folder, *READ)
            except CheckpointError as error:
                deleted = deleted or not folder.is_dir()
                problems += [str(error)] if folder.is_dir() else []
                continue
            for problem in problems:
                warnings.warn(f"using an older checkpoint, because {problem}", stacklevel=3)
            return of_run(run, folder, manifest, contents, device)
        if problems:
            raise CheckpointError(f"no usable checkpoint: {'; '.join(problems)}")
        if not deleted:
            if any(run.glob("*.safetensors")):
                raise CheckpointError(f"{run}: an exported model without its {checkpoint.MANIFEST}; export it again")
            raise CheckpointError(f"{run}: this run has no checkpoint yet; continue its training until it writes one")
    raise CheckpointError(f"{run}: its checkpoints are deleted faster than they are read; try again, or with more to keep")


def load_checkpoint(folder: Path, device: torch.device | str | None = None) -> HybridModel:
    """Load the EMA weights of one checkpoint folder of a run."""
    folder = Path(os.path.abspath(folder))  # "." has no parent
    checkpoint.verify(folder, (f"{EMA}.safetensors",))
    return of_run(folder.parent.parent, folder, *checkpoint.read_verified(folder, *READ), device)


def of_run(
    run: Path, folder: Path, manifest: Mapping[str, Any], contents: Mapping[str, bytes], device: torch.device | str | None
) -> HybridModel:
    """The model of a verified checkpoint. In a run folder it must be of that run, with its configuration, and has the run's
    calibration, unless training went on after that.

    Raises:
        CheckpointError: it is of another run, or does not fit.
    """
    kept = contents.get(CONFIG)
    in_run = (run / CONFIG).is_file()
    if in_run or kept is None:
        cfg = load_config(run / CONFIG)
        checkpoint.check_run(folder, manifest, run)
        check_config(folder, kept, cfg)
    else:  # a checkpoint that was copied without its run
        cfg = read_config(kept, folder / CONFIG)
    weights, known = folder / f"{EMA}.safetensors", folder / f"{TRAINED_ON}.safetensors"
    model = HybridModel(*fill_network(cfg, checkpoint.tensors_of(contents[weights.name], weights), weights), device)
    if known.name in contents:
        model.trained_on = checked(checkpoint.tensors_of(contents[known.name], known), known)
    if in_run and (run / CALIBRATION).exists() and not model.take_calibration(run):
        warnings.warn(
            f"{run / CALIBRATION}: not used, since it was made for other weights than those of {folder.name}: run "
            "`hybvit calibrate` again",
            stacklevel=3,
        )
    return model


def calibration_folder(source: str | os.PathLike[str]) -> Path:
    """The folder to store a calibration in, for a model that was loaded from there: an exported folder, or that of a run.

    Raises:
        ConfigError: the model is a bundled one, on the hub, or a checkpoint without its run.
    """
    path = Path(os.path.abspath(source))
    is_checkpoint = (path / f"{EMA}.safetensors").is_file()
    folder = path.parent.parent if is_checkpoint else path
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{source}: no folder of your own to store a calibration in: give --out DIR for a calibrated copy")
    return folder


def save_calibration(model: HybridModel, folder: Path) -> Path:
    """Store a model's calibration in its :func:`calibration_folder` -> the file.

    In an exported folder it becomes a file of the manifest. In a run folder it is for the checkpoint that was loaded only, and
    training leaves it there.

    Raises:
        DataError: it cannot be written.
    """
    assert model.calibration is not None
    content = model.calibration.to_bytes()
    if (folder / checkpoint.MANIFEST).is_file():
        checkpoint.add_file(folder, CALIBRATION, content)
    else:
        with atomic_write(folder / CALIBRATION) as temporary:
            temporary.write_bytes(content)
    return folder / CALIBRATION


def load_published(
    path: str | os.PathLike[str],
    cfg: ViTConfig,
    diffusion: DiffusionConfig | None = None,
    device: torch.device | str | None = None,
) -> HybridModel:
    """Read weights in the paper's published format, with or without the ``denoise_fn.`` prefix and the schedule's buffers.

    Args:
        diffusion: the schedule; None takes that of the file's buffers, or the paper's (cosine, 1000 steps) without any.

    Raises:
        DataError: there is no such file.
        CheckpointError: a key or shape does not fit ``cfg`` (it is named), or its schedule is neither cosine nor linear.
    """
    net = HybViT(cfg)
    betas = load_published_weights(net, path)
    if betas is not None and diffusion is None:
        if betas.ndim != 1 or len(betas) < 2:
            raise CheckpointError(f"{path}: betas has shape {list(betas.shape)}, it must be [T]")
        candidates: Iterator[DiffusionConfig] = (DiffusionConfig(schedule, len(betas)) for schedule in ("cosine", "linear"))
        matching = [c for c in candidates if torch.allclose(c.build().beta[1:].float(), betas.float(), atol=1e-6)]
        if not matching:
            raise CheckpointError(
                f"{path}: its betas are neither the cosine nor the linear schedule with {len(betas)} steps: pass `diffusion`"
            )
        diffusion = matching[0]
    return HybridModel(net, Config(model=cfg, diffusion=diffusion or DiffusionConfig()), device)


# The fields that vary between the paper's networks; all others have the values of its CIFAR-10 network.
FREE_FIELDS = {
    "image_size", "patch_size", "channels", "num_classes", "dim", "depth", "heads", "mlp_ratio", "ffn_time", "position_std",
}  # fmt: skip


# Our parameter names -> the published ones; K is the layer.
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
    """The weights and buffers of a file in the paper's format, in any of its key layouts.

    Raises:
        DataError: the file does not exist.
        CheckpointError: it is not a PyTorch file of plain tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # torch.load raises many types of exception for a damaged file
        raise CheckpointError(f"{path}: not a PyTorch file of plain tensors ({str(error).splitlines()[0]})") from None
    while isinstance(content, Mapping):
        inner = next((content[k] for k in ("model_state_dict", "state_dict") if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: contains no state dict (a mapping from names to tensors)")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key} is of type {type(value).__name__}, not a tensor")
        name = re.sub(r"^(module\.)?(denoise_fn\.)?(module\.)?", "", str(key))
        if name in tensors:
            raise CheckpointError(f"{path}: {name} occurs twice, with and without a prefix")
        tensors[name] = value
    return tensors


def load_published_weights(net: HybViT, path: str | os.PathLike[str]) -> Tensor | None:
    """Copy the weights of a published file into a network with the paper's architecture -> its ``betas`` [T], or None.

    Raises:
        CheckpointError: a published key is missing, unexpected, not finite, or has the wrong shape; the message names it.
    """
    for name, published in dataclasses.asdict(ViTConfig()).items():
        if name not in FREE_FIELDS and getattr(net.cfg, name) != published:
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
            raise CheckpointError(f"{path}: {name} contains values that are not finite")
    for name in tensors:
        if name not in names and name not in PUBLISHED_BUFFERS:
            raise CheckpointError(f"{path}: {name} is unexpected: the given configuration has no such parameter")
    net.load_state_dict({names[name]: value for name, value in tensors.items() if name in names})
    return tensors.get("betas")
