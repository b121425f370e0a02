"""The configuration to train a model further on other images, so that nothing more needs to be chosen."""

from __future__ import annotations

from ..config import Config, override

STEPS = 500
BATCH = 64  # images of each mini-batch at most
FROZEN_RATE = 10.0  # of what has a row per class, if that alone learns: as a multiple of the learning rate before


def finetuning(cfg: Config, source: str, freeze: bool = False, kind: str | None = None) -> Config:
    """The configuration to fine-tune a model, on images that are still to be named (``data.root``).

    Args:
        cfg: the configuration that the model was trained with. Network, objective, optimizer and augmentation stay the same,
            and so does the order of its classes where the images have the same ones. The weight of the denoising loss stays
            where it ended, if it fell in training.
        source: the model, as :func:`hybvit.load` takes it.
        freeze: train only what has a row per class.
        kind: what to train for; None keeps that of the model.
    """
    rate = FROZEN_RATE if freeze else 1.0
    labelled = cfg.train.batch_size if cfg.train.labelled_batch_size is None else cfg.train.labelled_batch_size
    alpha = cfg.objective.alpha if cfg.objective.alpha_end is None else cfg.objective.alpha_end
    return override(
        cfg,
        objective={"alpha": alpha, "alpha_end": None, "kind": kind or cfg.objective.kind},
        data={"name": "folder", "fingerprint": "", "bits": None, "resize": False, "labelled": 1.0},
        optim={"lr": cfg.optim.lr * rate, "warmup_steps": STEPS // 20, "freeze": freeze},
        train={
            "batch_size": min(cfg.train.batch_size, BATCH), "labelled_batch_size": min(labelled, BATCH),
            "steps": STEPS, "init": source, "ema_decay": 1 - 20 / STEPS, "ema_warmup": True, "precision": "auto",
            "compile": False, "accumulate": 1, "log_every": 50, "checkpoint_every": STEPS // 4, "snapshot_every": 0,
        },
    )  # fmt: skip
