"""The scales of a reproduction: the paper's settings, and the same presets reduced to minutes or hours on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

from ..catalog import CATALOG
from ..config import Config, override
from ..devices import best_device, has_fast_bf16
from ..evaluation.options import Options
from ..presets import PRESETS, preset
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
        speed_fp32: the same where bf16 is not fast; None: as fast.
    """

    name: str
    description: str
    config: Callable[[str], Config | None]
    eval_options: Mapping[tuple[str, ...], Options]
    outside: dict[str, str]
    machine: str
    speed: float
    speed_fp32: float | None = None
    fewer_samples: Mapping[str, int] = field(default_factory=dict)

    @property
    def speed_here(self) -> float:
        """The assumed speed of a machine of this kind, FLOP/s."""
        return self.speed if self.speed_fp32 is None or has_fast_bf16(best_device()) else self.speed_fp32

    def hours(self, cfg: Config) -> float:
        """The expected duration of a training."""
        price = cost(cfg)
        return price.gpu_hours if self.name == "full" else price.total_eflop * 1e18 / self.speed_here / 3600


class StandIn(NamedTuple):
    """Images in the place of the paper's.

    ``patches`` has the patch size on these for each of the paper's, or None where it is left out. ``size`` is that of the
    images; None takes the data set's own.
    """

    data: str
    patches: Mapping[int, int | None]
    size: int | None = None


SMALL_STEPS, SMALL_BATCH = 3000, 64
SMALL_LR = 3e-3  # three times the paper's, since the runs are short
TO_DIGITS = StandIn("digits", {12: 8, 8: 4, 6: 2, 4: 1})
GRAY = {  # the start of a preset's name -> its images; the first that fits
    "cifar10": StandIn("fashion_mnist", {4: 7}),
    "stl10_short": TO_DIGITS,
    "stl10": TO_DIGITS,
}
COLOR = {
    "cifar10": StandIn("cifar10", {4: 4}),
    "stl10_short": StandIn("cifar10", {12: 8, 8: 4, 6: None, 4: 2}),  # 16, 64 and 256 tokens
    "celeba": StandIn("celeba", {8: 8}, size=64),
}


@cache
def pocket(name: str) -> Config | None:
    """A preset on small gray images: CIFAR-10 becomes Fashion-MNIST and STL-10 scikit-learn's digits; nothing else is there."""
    return small(name, GRAY)


@cache
def cifar(name: str) -> Config | None:
    """A preset on small color images: CIFAR-10 is itself, and stands for STL-10 where patch sizes are compared; CelebA-HQ
    becomes the aligned faces of CelebA."""
    return small(name, COLOR)


def small(name: str, images: Mapping[str, StandIn]) -> Config | None:
    """The preset with a quarter of the width, two thirds of the depth, a third of the heads, on other images; None if there
    are none for it.

    Training lengths keep their proportions: 100 of 500 epochs become 600 of 3,000 steps.
    """
    family = family_of(name, tuple(images))
    if family is None or not rows_of(name):  # it belongs to no row of the paper
        return None
    cfg, stand_in = preset(name), images[family]
    info = CATALOG[stand_in.data]
    size = stand_in.size or info.size
    assert size is not None
    patch = stand_in.patches.get(cfg.model.patch_size, 1)
    if patch is None:
        return None
    model = replace(
        cfg.model,
        image_size=size,
        channels=info.channels,
        num_classes=info.num_classes or cfg.model.num_classes,
        patch_size=patch,
        dim=cfg.model.dim // 4,
        depth=cfg.model.depth * 2 // 3,
        heads=-(-cfg.model.heads // 3),
    )
    flip = stand_in.data != "digits"
    cfg = override(replace(cfg, model=model), data={"name": stand_in.data, "flip": flip, "crop_padding": size // 8})
    if cfg.network.name == "vit":
        steps = round(SMALL_STEPS * cfg.train.steps / longest(family, tuple(images)))
        cfg = override(
            cfg,
            train={"steps": steps, "batch_size": SMALL_BATCH, "ema_decay": 0.995, "ema_warmup": True},
            optim={"warmup_steps": steps // 50, "lr": SMALL_LR},
        )
    else:
        cfg = smaller_baseline(cfg)
    return override(cfg, train={"checkpoint_every": max(1, cfg.train.steps // 10), "preview_every": 0})


def family_of(name: str, families: tuple[str, ...]) -> str | None:
    return next((family for family in families if f"{name}_".startswith(f"{family}_")), None)


@cache
def longest(family: str, families: tuple[str, ...]) -> int:
    """The steps of the longest training among a family's transformers."""
    own = (preset(name) for name in PRESETS if family_of(name, families) == family and rows_of(name))
    return max(cfg.train.steps for cfg in own if cfg.network.name == "vit")


def smaller_baseline(cfg: Config) -> Config:
    """The CNN baselines, thin enough to train in minutes; those that are slower per image get fewer images, not more time."""
    if cfg.objective.kind == "jem":
        steps, batch = 600, SMALL_BATCH
        cfg = override(cfg, network={"depth": 10, "width": 1}, jem={"replay": 2000})
        lr = {"adamw": 1e-3, "sgd": cfg.optim.lr}[cfg.optim.name]  # for far fewer steps than the preset has
        return override(cfg, train={"steps": steps, "batch_size": batch}, optim={"warmup_steps": 50, "lr": lr})
    if cfg.network.name == "unet":
        return override(
            cfg,
            network={"channels": (32, 64, 64), "layers": 1, "attention_at": cfg.model.image_size // 4, "dropout": 0.0},
            train={"steps": 1000, "batch_size": SMALL_BATCH, "ema_decay": 0.995, "ema_warmup": True},
            optim={"warmup_steps": 50, "lr": 1e-3},
        )
    return override(
        cfg,
        network={"depth": 10, "width": 1},
        train={"steps": SMALL_STEPS, "batch_size": SMALL_BATCH},
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
    fewer_samples={"stl10": 5000},
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
    "two CPU cores",
    6e10,
)
CIFAR_OUTSIDE = {
    "svhn": "mnist", "interpolation": "interpolation", "cifar100": "tiny_imagenet", "celeba": "celeba", "noise": "noise",
}  # fmt: skip
CIFAR = Scale(
    "cifar",
    "small models on CIFAR-10 itself, hours on a CPU",
    cifar,
    {
        suites: replace(options, out_of_distribution=tuple(CIFAR_OUTSIDE.values())) if "ood" in suites else options
        for suites, options in POCKET.eval_options.items()
    },
    CIFAR_OUTSIDE,
    "two CPU cores",
    1.3e11,  # as results/bench_cifar10_pocket_v2.json has it
    6e10,
)
SCALES = {scale.name: scale for scale in (FULL, POCKET, CIFAR)}
