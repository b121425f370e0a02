"""The configuration to train a model further on other images, so that nothing more needs to be chosen."""

from __future__ import annotations

from ..config import Config, override

STEPS = 1000
RATE = 0.2  # of the whole network, as a share of its learning rate before: more of it forgets more


def finetuning(cfg: Config, source: str, freeze: bool = False) -> Config:
    """The configuration to fine-tune a model, on images that are still to be named (``data.root``).

    Args:
        cfg: the configuration that the model was trained with. Network, objective, optimizer and augmentation stay the same,
            but the weight of the denoising loss, if it fell in training, stays where it ended.
        source: the model, as :func:`hybvit.load` takes it.
        freeze: train only what has a row per class, at the full learning rate.
    """
    rate = 1.0 if freeze else RATE
    alpha = cfg.objective.alpha if cfg.objective.alpha_end is None else cfg.objective.alpha_end
    return override(
        cfg,
        objective={"alpha": alpha, "alpha_end": None},
        data={"name": "folder", "classes": (), "fingerprint": "", "bits": None, "resize": False},
        optim={
            "lr": cfg.optim.lr * rate, "muon_lr": cfg.optim.muon_lr * rate, "warmup_steps": STEPS // 20, "freeze": freeze,
        },
        train={
            "steps": STEPS, "init": source, "ema_decay": 1 - 20 / STEPS, "ema_warmup": True, "precision": "auto",
            "compile": False, "log_every": 50, "checkpoint_every": STEPS // 4, "snapshot_every": 0,
        },
    )  # fmt: skip
