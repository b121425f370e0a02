"""What the studies compare: the paper's recipe, v2, and v2 with one thing changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..config import Config, override
from ..presets import preset


@dataclass(frozen=True)
class Variant:
    """One line of a study.

    Args:
        name: of its folder and of its line.
        words: what it changes.
        config: its recipe, whose ``train.steps`` the budget decides.
        fixed: keep the average of the recipe, and its warm-up up to a tenth of the run, instead of shares of the run.
    """

    name: str
    words: str
    config: Config
    fixed: bool = False


class Study(NamedTuple):
    """Recipes against each other.

    Attributes:
        minutes: of training that each has unless told otherwise.
        base: the variant that the others are held against.
        costs: names of variants whose joint step is timed beside a denoising-only step of the same batch.
    """

    title: str
    minutes: float
    base: str
    variants: dict[str, Variant]
    costs: tuple[str, ...] = ()


def _study(title: str, minutes: float, base: str, variants: Iterable[Variant], costs: tuple[str, ...] = ()) -> Study:
    return Study(title, minutes, base, {variant.name: variant for variant in variants}, costs)


PAPER = Variant(  # warmed up: in a run of minutes the average would otherwise still hold the random start
    "paper",
    "the paper's network and recipe, its average warmed up (images padded to 32x32, so its bits/dim include the black border)",
    override(preset("fashion_mnist_pocket"), train={"ema_warmup": True}),
    fixed=True,
)
V2 = preset("fashion_mnist_v2")
V2_RECIPE = Variant("v2", "the `fashion_mnist_v2` recipe", V2)


def _changed(name: str, words: str, **changes: dict[str, Any]) -> Variant:
    return Variant(name, words, override(V2, **changes))


ABLATION = _study(
    "What each choice brings",
    12.0,
    "v2",
    (
        PAPER,
        V2_RECIPE,
        # the network
        _changed("linear_readout", "read-out: linear, as published", model={"pixel_readout": "linear"}),
        _changed("linear_embedding", "patch embedding: linear, as published", model={"patch_embedding": "linear"}),
        _changed("patch4", "patches of 4 pixels", model={"patch_size": 4}),
        _changed("token_scalars", "time: token scalars, as published", model={"time": "token_scalars"}),
        _changed("adaln_zero", "time: a modulation of its own for every layer", model={"time": "adaln_zero"}),
        _changed("skips", "long skips", model={"long_skips": True}),
        _changed(
            "last_tap",
            "labels read after the last layer and not told, as published",
            model={"class_depth": None, "label_conditioning": False},
        ),
        _changed("early_tap", "labels read after half of the layers", model={"class_depth": V2.model.depth // 2}),
        _changed("gelu", "GELU, as published", model={"mlp": "gelu"}),
        _changed("no_rope", "no RoPE, as published", model={"rope": False}),
        _changed("no_qk_norm", "queries and keys not normalised, as published", model={"qk_norm": False}),
        _changed("untold", "denoising not told the labels, as published", model={"label_conditioning": False}),
        # the objective
        _changed("guidance", "guidance of 0.3 learned", objective={"guidance": 0.3}),
        _changed("eps", "target: eps, as published", objective={"target": "eps"}),
        _changed("x0", "target: x0", objective={"target": "x0"}),
        _changed("flow", "flow matching", objective={"target": "flow"}, diffusion={"schedule": "flow"}),
        _changed("l1", "loss: L1, as published", objective={"norm": "l1"}),
        _changed("min_snr", "weights: min-SNR", objective={"weighting": "min_snr"}),
        _changed("logit_normal", "times: logit-normal", objective={"times": "logit_normal"}),
        _changed("no_noisy_labels", "noisy images not labelled, as published", objective={"noisy_labels": 0.0}),
        _changed("noisy_labels_4", "noisy images labelled with weight 4", objective={"noisy_labels": 4.0}),
        _changed("alpha_10", "alpha from 10 to 1", objective={"alpha": 10.0, "alpha_end": 1.0}),
        _changed("alpha_20", "alpha from 20 to 2", objective={"alpha": 20.0, "alpha_end": 2.0}),
        _changed("alpha_stays", "alpha 2 throughout", objective={"alpha": 2.0, "alpha_end": None}),
        _changed("alpha_100", "alpha 100 throughout, as published", objective={"alpha": 100.0, "alpha_end": None}),
        # the optimiser and the batches
        _changed("muon_slower", "Muon's learning rate halved", optim={"muon_lr": V2.optim.muon_lr / 2}),
        _changed("muon_faster", "Muon's learning rate doubled", optim={"muon_lr": V2.optim.muon_lr * 2}),
        _changed("adamw", "AdamW for all weights, as published", optim={"name": "adamw"}),
        _changed("usual_betas", "beta2 0.999", optim={"beta2": 0.999}),
        _changed("half_batches", "batches of 64 and 32", train={"batch_size": 64, "labelled_batch_size": 32}),
        _changed("full_labelled_batch", "as many labelled images, as published", train={"labelled_batch_size": None}),
        _changed("no_augmentation", "labelled images not augmented", data={"augment": "none"}),
        _changed("flipped", "all images mirrored half of the time", data={"flip": True, "clean_flip": True}),
    ),
)
COMPARISON = _study(
    "The paper's recipe and v2, and what being hybrid costs",
    1825 / 60,  # what the published code was given when it reached 76.0 % on such a machine
    "v2",
    (
        PAPER,
        V2_RECIPE,
        _changed("v2_vit", "the same network, labels only", objective={"kind": "vit"}),
        _changed(
            "v2_genvit", "the same network, images only", objective={"kind": "genvit"}, model={"label_conditioning": False}
        ),
        _changed("v2_told", "the same network, images only, told their labels", objective={"kind": "genvit"}),
    ),
    costs=("paper", "v2"),
)
STUDIES = {"ablation": ABLATION, "v2": COMPARISON}
