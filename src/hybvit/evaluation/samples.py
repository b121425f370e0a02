"""Generated images for the suites that look at them: in shards on disk, the same however often the run was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..distributed import share_batches
from ..run_folder import temporary_name
from .context import Context

SHARD = 256


def folder_of(ctx: Context) -> Path:
    """One folder per (model, sampler, steps, seed, guidance): what is in it can be used again."""
    o = ctx.options
    key = hashlib.sha256(json.dumps([ctx.fingerprint, o.sampler, o.steps, o.seed, o.guidance]).encode()).hexdigest()[:12]
    return ctx.folder / "samples" / f"{o.sampler}-{o.steps}-seed{o.seed}-{key}"


def fingerprint(ctx: Context) -> str:
    """SHA-256 of what the model's answers depend on: nothing that another one gave is used.

    A model that does not tell what that is (functions without modules, and no file they came from) is another one each time.
    """
    state = ctx.model.state()
    digest = hashlib.sha256(ctx.identity.encode() if state or ctx.identity else os.urandom(16))
    for tensor in (*state, ctx.model.diffusion.alpha_bar):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sampled(ctx: Context) -> Tensor:
    """uint8 [n, C, H, W]."""
    folder, o = folder_of(ctx), ctx.options
    folder.mkdir(parents=True, exist_ok=True)

    def shard(index: Tensor) -> Tensor:
        path = folder / f"{int(index[0]):08d}-{int(index[-1]) + 1:08d}.safetensors"
        if path.is_file():
            return load_file(path)["pixels"]
        pixels = ctx.model.draw(index.tolist(), o.sampler, o.steps, o.seed, o.guidance)
        part = temporary_name(path)
        save_file({"pixels": pixels}, part)
        part.replace(path)
        return pixels

    return share_batches(o.samples, SHARD, shard, "samples")[0]
