"""Twenty steps of every kind of training, to the last bit: a refactor must leave them as they are.

    python -m tests.traces FILE.json          the losses, gradient norms and a digest of the averaged weights of each kind
    python -m tests.traces --resume RUN FILE  also of a run folder that goes on to its end, as `resumed`

The arithmetic is pinned (one thread, fp32 and bf16 for Muon's products, kernels that every x86-64 CPU since 2013 has), so that
the bits are those of the torch version alone. Only LAPACK, which `jempp` begins with, rounds differently on some CPUs.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = 20
PINNED = {  # of the environment, before torch is imported
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",
}
DIGITS = {"image_size": 8, "channels": 1, "num_classes": 10}
ROOT = Path(__file__).resolve().parent.parent


def configurations() -> dict[str, Any]:
    """Kind of training -> a small configuration of it, on scikit-learn's digits."""
    from hybvit.config import override
    from hybvit.presets import preset

    def small(name: str, steps: int = STEPS, **changes: dict[str, Any]) -> Any:
        cfg = preset(name)
        warmup = {"warmup_steps": 4} if cfg.optim.warmup_steps else {}
        train = {
            "steps": steps, "batch_size": 8, "precision": "fp32", "log_every": 1, "checkpoint_every": steps, "preview_every": 0,
        }  # fmt: skip
        labelled = {"labelled_batch_size": 4} if cfg.train.labelled_batch_size else {}
        model = {**DIGITS, **changes.pop("model", {})}
        data = {"name": "digits", "crop_padding": 1, **changes.pop("data", {})}
        cfg = override(cfg, model=model, data=data, train=train | labelled, optim=warmup)
        return override(cfg, **changes)

    vit = {"patch_size": 2, "dim": 16, "depth": 4, "heads": 2}
    return {
        "vit": small("cifar10_vit", model=vit),
        "genvit": small("cifar10_genvit", model=vit),
        "hybvit": small("cifar10", model=vit),
        "weak": small("cifar10_weak", model=vit, optim={"name": "sgd", "lr": 0.1}),
        "digits": small("digits", model={"dim": 16, "heads": 2, "readout_width": 8}),
        "v2": small("fashion_mnist_v2", model=vit | {"class_depth": 2, "stem_width": 4, "readout_width": 4}),
        "v2_natural": small(
            "cifar10_v2",
            model=vit | {"class_depth": 3, "stem_width": 4, "readout_width": 4},
            objective={"weighting": "min_snr", "label_smoothing": 0.1},
        ),
        "flow": small(
            "fashion_mnist_v2",
            model=vit | {"class_depth": 2, "stem_width": 4, "readout_width": 4},
            objective={"target": "flow", "guidance": 0.3},
            diffusion={"schedule": "flow"},
        ),
        "x0_told": small(
            "fashion_mnist_v2",
            model=vit | {"class_depth": 2, "stem_width": 4, "readout_width": 4},
            objective={"target": "x0", "kind": "genvit", "guidance": 0.3},
        ),
        "wide_resnet": small("cifar10_wrn28_10", network={"depth": 10, "width": 1}),
        "jem": small("cifar10_jem", network={"depth": 10, "width": 1}, jem={"steps": 2, "replay": 20}),
        "jempp": small(
            "cifar10_jempp", network={"depth": 10, "width": 1}, jem={"steps": 2, "replay": 20, "limit": 1e9}, optim={"lr": 1e-3}
        ),
        "ddpm": small("cifar10_ddpm", network={"channels": (32, 32), "layers": 1, "attention_at": 4}),
    }  # fmt: skip


def of_run(folder: Path) -> dict[str, Any]:
    """The trace that a run folder holds."""
    from hybvit.checkpoint import newest, read_tensors
    from hybvit.training.run_folder import read_metrics

    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    checkpoint = newest(folder / "checkpoints")[0]
    assert checkpoint is not None
    digest = hashlib.sha256()
    for _, tensor in sorted(read_tensors(checkpoint / "ema.safetensors").items()):
        digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "loss": [line["loss"] for line in lines],
        "gradient_norm": [line["gradient_norm"] for line in lines],
        "averaged_weights": digest.hexdigest()[:16],
    }


def trace() -> dict[str, Any]:
    from hybvit.training.loop import train

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, cfg in configurations().items():
            train(cfg, Path(folder) / name, lambda line: None)
            found[name] = of_run(Path(folder) / name)
    return found


def resumed(run: Path) -> dict[str, Any]:
    """Go on with a run as its own configuration says -> its whole trace."""
    from hybvit.config import load_config
    from hybvit.training.loop import train

    train(load_config(run / "config.yaml"), run, lambda line: None)
    return of_run(run)


def pinned(*arguments: str | Path) -> None:
    """This module in a process with the pinned arithmetic."""
    subprocess.run(
        [sys.executable, "-m", "tests.traces", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **PINNED}, check=True, timeout=300,
    )  # fmt: skip


def main(arguments: list[str]) -> None:
    import torch

    from hybvit.training import optim

    torch.backends.mkldnn.enabled = False  # its kernels are chosen by the CPU
    optim.has_fast_bf16 = lambda device: True  # as on the CPU of the recording, else Muon takes float32
    found = trace()
    if arguments[0] == "--resume":
        found["resumed"] = resumed(Path(arguments[1]))
    Path(arguments[-1]).write_text(json.dumps({"torch": torch.__version__.partition("+")[0], "traces": found}, indent=1) + "\n")


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in PINNED.items()):
        pinned(*sys.argv[1:])
    else:
        main(sys.argv[1:])
