"""The two scales of a reproduction: the paper's settings, and the same presets reduced to minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from ..catalog import CATALOG
from ..config import Config, override
from ..evaluation.options import Options
from ..presets import preset
from ..training.cost import GPU, PEAK, UTILISATION, cost
from .published import rows_of


@dataclass(frozen=True)
class Scale:
    """A scale of a reproduction, and what it changes.

    Args:
        name, description: the name on the command line, and a short description.
        config: a preset's name -> its configuration at this scale, or None where the scale has no data for it.
        fewer_samples: data set -> number of samples, for those that get fewer.
        eval_options: evaluation options for each group of suites.
        outside: the paper's out-of-distribution set -> the set at this scale, where there is one.
        machine: the machine that time estimates assume.
        speed: its assumed speed in FLOP/s.
    """

    name: str
    description: str
    config: Callable[[str], Config | None]
    eval_options: Mapping[tuple[str, ...], Options]
    outside: dict[str, str]
    machine: str
    speed: float
    fewer_samples: Mapping[str, int] = field(default_factory=dict)

    def hours(self, cfg: Config) -> float:
        """The expected duration of a training."""
        price = cost(cfg)
        return price.gpu_hours if self.name == "full" else price.total_eflop * 1e18 / self.speed / 3600


POCKET_STEPS, POCKET_BATCH = 3000, 64
POCKET_LR = 3e-3  # three times the paper's, since the runs are short
STAND_INS = {"cifar10": "fashion_mnist", "stl10": "digits"}
PATCHES = {"fashion_mnist": {4: 7}, "digits": {12: 8, 8: 4, 6: 2, 4: 1}}


@cache
def pocket(name: str) -> Config | None:
    """The preset with a quarter of the width, two thirds of the depth, a third of the heads, on small gray images.

    CIFAR-10 becomes Fashion-MNIST and STL-10 becomes scikit-learn's digits; the other data sets have no stand-in. Training
    lengths keep their proportions: 100 of 500 epochs become 600 of 3,000 steps.
    """
    cfg = preset(name)
    data = STAND_INS.get(cfg.data.name)
    if data is None or not rows_of(name):  # it belongs to no row of the paper
        return None
    info = CATALOG[data]
    assert info.size is not None
    model = replace(
        cfg.model,
        image_size=info.size,
        channels=info.channels,
        num_classes=info.num_classes,
        patch_size=PATCHES[data].get(cfg.model.patch_size, 1),
        dim=cfg.model.dim // 4,
        depth=cfg.model.depth * 2 // 3,
        heads=-(-cfg.model.heads // 3),
    )
    cfg = override(
        replace(cfg, model=model), data={"name": data, "flip": data == "fashion_mnist", "crop_padding": info.size // 8}
    )
    if cfg.network.name == "vit":
        longest = preset(longest_of(name)).train.steps
        steps = round(POCKET_STEPS * min(1.0, cfg.train.steps / longest))
        cfg = override(
            cfg,
            train={"steps": steps, "batch_size": POCKET_BATCH, "ema_decay": 0.995, "ema_warmup": True},
            optim={"warmup_steps": steps // 50, "lr": POCKET_LR},
        )
    else:
        cfg = smaller_baseline(cfg)
    return override(cfg, train={"checkpoint_every": max(1, cfg.train.steps // 10), "preview_every": 0})


def longest_of(name: str) -> str:
    """The preset with the longest training on the same data; STL-10's short runs form a group of their own."""
    return "stl10_short_vit" if name.startswith("stl10_short") else name.split("_")[0]


def smaller_baseline(cfg: Config) -> Config:
    """The CNN baselines, thin enough to train in minutes; those that are slower per image get fewer images, not more time."""
    if cfg.objective.kind == "jem":
        steps, batch = 600, POCKET_BATCH
        cfg = override(cfg, network={"depth": 10, "width": 1}, jem={"replay": 2000})
        lr = {"adamw": 1e-3, "sgd": cfg.optim.lr}[cfg.optim.name]  # for far fewer steps than the preset has
        return override(cfg, train={"steps": steps, "batch_size": batch}, optim={"warmup_steps": 50, "lr": lr})
    if cfg.network.name == "unet":
        return override(
            cfg,
            network={"channels": (32, 64, 64), "layers": 1, "attention_at": 7, "dropout": 0.0},
            train={"steps": 1000, "batch_size": POCKET_BATCH, "ema_decay": 0.995, "ema_warmup": True},
            optim={"warmup_steps": 50, "lr": 1e-3},
        )
    return override(
        cfg,
        network={"depth": 10, "width": 1},
        train={"steps": POCKET_STEPS, "batch_size": POCKET_BATCH},
        optim={"warmup_steps": 0},
    )


FULL = Scale(
    "full",
    "the paper's settings, on GPUs",
    preset,
    {
        ("accuracy", "calibration"): Options(),
        ("fidelity", "quality"): Options(samples=10000, sampler="ddpm", steps=1000),
        ("ood",): Options(),
        ("robustness",): Options(attack_images=1000, autoattack_images=1000),
        ("likelihood",): Options(bound_images=1000, bound_draws=0),  # all times
    },
    {"svhn": "svhn", "interpolation": "interpolation", "cifar100": "cifar100", "celeba": "celeba"},
    f"one {GPU} at {UTILISATION:.0%}",
    PEAK["bf16"] * UTILISATION,
    {"stl10": 5000},
)
POCKET = Scale(
    "pocket",
    "small models on Fashion-MNIST and digits, minutes on a CPU",
    pocket,
    {
        ("accuracy", "calibration"): Options(),
        ("fidelity", "quality"): Options(samples=1000, sampler="ddim", steps=50),
        ("ood",): Options(limit=2000, bound_images=64, bound_draws=16),
        ("robustness",): Options(attack_images=256, autoattack_images=0),
        ("likelihood",): Options(bound_images=128, bound_draws=32),
    },
    {"svhn": "digits", "interpolation": "interpolation", "noise": "noise"},
    "two CPU cores at 60 GFLOP/s",
    6e10,
)
SCALES = {scale.name: scale for scale in (FULL, POCKET)}
