"""The configuration of a run: frozen, typed dataclasses.

``config.yaml`` in a run folder is such a configuration, complete; :func:`load_config` reads it back and checks it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
import textwrap
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from . import __version__, versions
from .catalog import CATALOG, OWN_IMAGES
from .errors import ConfigError, did_you_mean
from .method.objective_config import Objective
from .method.vit_config import ViTConfig, check_choices
from .storage import read_bytes

if TYPE_CHECKING:
    from .method.diffusion import Diffusion


@dataclass(frozen=True)
class NetworkConfig:
    """The network, and the settings of the baselines that the paper compares with.

    Every network takes image size, channels and classes from ``model``, whose other fields are for the ViT only.

    Args:
        name: vit, wide_resnet (Zagoruyko & Komodakis 2016), preact_resnet18 (He et al. 2016), or unet (DDPM, Ho et al. 2020).
        depth: of the wide ResNet: number of layers.
        width: of the wide ResNet: channels as a multiple of 16.
        dropout: inside the blocks of the wide ResNet and the U-Net.
        batch_norm: of the wide ResNet; JEM uses none.
        channels: of the U-Net: one number per level; each level has half the resolution of the one before.
        layers: of the U-Net: residual blocks per level.
        attention_at: of the U-Net: side, in pixels, of the level with self-attention.
    """

    name: Literal["vit", "wide_resnet", "preact_resnet18", "unet"] = "vit"
    depth: int = 28
    width: int = 10
    dropout: float = 0.0
    batch_norm: bool = True
    channels: tuple[int, ...] = (128, 256, 256, 256)
    layers: int = 2
    attention_at: int = 16


@dataclass(frozen=True)
class JEMConfig:
    """Joint energy-based training (objective jem; Grathwohl et al. 2020), and what JEM++ (Yang & Ji 2021) changes.

    Args:
        steps: K, Langevin steps per training step.
        step_size: of a Langevin step, on pixels in [-1, 1].
        noise: standard deviation of the noise of a Langevin step.
        replay: M, images in the replay buffer (the persistent chains of Tieleman 2008).
        restart: share of the chains that are restarted.
        input_noise: standard deviation of the noise added to real images where their energy is lowered.
        weight: of log p(x) relative to log p(y|x).
        informative: chains start from a Gaussian per class, fitted to the training images (JEM++), instead of uniform noise.
        proximal: bound on every element of the gradient of a Langevin step, so that a step, apart from its noise, stays in an
            L-infinity ball of radius step_size * proximal (proximal SGLD of JEM++); 0 for none.
        limit: largest difference between the energies of real and generated images; beyond it the run counts as diverged.
    """

    steps: int = 20
    step_size: float = 1.0
    noise: float = 0.01
    replay: int = 10_000
    restart: float = 0.05
    input_noise: float = 0.03
    weight: float = 1.0
    informative: bool = False
    proximal: float = 0.0
    limit: float = 1000.0


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process.

    Args:
        schedule: cosine (default), linear, or flow: the straight path of rectified flow, scaled to unit variance (with
            ``objective.target`` flow this is flow matching).
        steps: T, the number of diffusion steps.
    """

    schedule: Literal["cosine", "linear", "flow"] = "cosine"
    steps: int = 1000

    def build(self) -> Diffusion:
        from .method.diffusion import SCHEDULES  # torch, which takes two seconds and which settings do not need

        return SCHEDULES[self.schedule](self.steps)


@dataclass(frozen=True)
class DataConfig:
    """The data: where the images come from, and how they are prepared.

    Args:
        name: a data set's name (`hybvit datasets` lists them), or the form of your own images: folder (a sub-folder per class,
            or none), manifest (CSV or JSONL), huggingface (hub name or parquet), shards (WebDataset tar files).
        root: the folder of the images; None searches the usual places.
        test_root: for your own images: the folder of the test images, if it is not inside ``root``.
        split: how your own images are divided without a test split: hash (by a hash of each file's name, one in five),
            every_fifth (by position, as in 0.1.0), or none (all are test images, to evaluate a model of other images).
        resize: resample the images of a named set to the model's size; otherwise smaller ones get a black border.
        augment: augmentation of the labeled mini-batch: none; weak (random crop after padding by ``crop_padding``, flip if
            ``flip``); or strong (weak, AutoAugment and random erasing, then MixUp or CutMix).
        flip: mirror half of the labeled images; leave it off where mirroring changes the meaning (digits).
        crop_padding: pixels added on each side before a random crop of the original size.
        policy: AutoAugment policy; auto takes that of the data set (for your own images, of the one with the same class
            names), else imagenet's.
        erasing: probability of random erasing in strong augmentation.
        mixing: probability that a batch is mixed by MixUp or CutMix in strong augmentation.
        repeats: repeated augmentation: how many times each image appears in an epoch (3 in the published runs).
        clean_flip: mirror half of the denoising mini-batch, which has no other augmentation.
        held_out: share of the training images that are held out, to calibrate the probabilities on: every n-th of each class,
            with n = 1/share, rounded; in 0..0.5.
        bits: depth of grayscale images that are stored with 16 or 32 bits but use fewer, such as 12; None takes the full range.
            It is one for all images, and a file that declares fewer than 16 keeps its own.
        labelled: share of the training images whose labels are used, the same of each class, in 0..1; all of them are denoised.
        unlabelled: denoise the data set's unlabeled images too (STL-10, Tiny-ImageNet).
        max_bad_files: unreadable image files that are skipped, each with a warning, before the run stops.
        memory_gib: image files are decoded once and kept if those of a split fit into this much memory, else whenever needed.
        shuffle_buffer: encoded images that a stream of shards keeps in memory for shuffling, in ``lanes`` times eight blocks.
        lanes: parts of a stream of shards that supply the rows of a batch in turn; each process reads only its own lanes if
            the number of lanes is a multiple of the number of processes.
        workers: background processes that prepare batches; None means none on a CPU, and up to eight with a GPU.
        classes: names of the classes in label order; set from the data when training starts.
        fingerprint: numbers and digests of your own images; set from the data when training starts. A run is not resumed on
            other images, except with any.
    """

    name: str = "folder"
    root: str | None = None
    test_root: str | None = None
    split: Literal["hash", "every_fifth", "none"] = "hash"
    resize: bool = False
    augment: Literal["none", "weak", "strong"] = "none"
    flip: bool = False
    crop_padding: int = 4
    policy: Literal["auto", "cifar10", "svhn", "imagenet"] = "auto"
    erasing: float = 0.25
    mixing: float = 0.5
    repeats: int = 1
    clean_flip: bool = False
    held_out: float = 0.0
    bits: int | None = None
    labelled: float = 1.0
    unlabelled: bool = False
    max_bad_files: int = 0
    memory_gib: float = 4.0
    shuffle_buffer: int = 8192
    lanes: int = 8
    workers: int | None = None
    classes: tuple[str, ...] = ()
    fingerprint: str = ""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate: a linear warm-up, then a schedule, both per step.

    Args:
        name: adamw (published commands and logs), sgd (Table 9 of the paper, with lr 0.1), or muon (Jordan et al. 2024): the
            matrices of a ViT's layers are updated by orthogonalized Nesterov momentum (0.95), all else by adamw.
        lr: peak learning rate.
        muon_lr: peak learning rate of muon's matrices, on the same schedule; their weight decay per step is that of all else.
        weight_decay: decoupled for adamw and muon.
        beta1: momentum of adamw and sgd.
        beta2: of adamw.
        warmup_steps: steps of the linear warm-up from 0.
        schedule: cosine decays to ``min_lr``; steps multiplies by ``drop`` at each of the ``milestones``.
        min_lr: learning rate at the end of the cosine.
        milestones: shares of the run in 0..1; 0.3, 0.6, 0.8 are those of the wide ResNet.
        drop: factor at a milestone.
        nesterov: use Nesterov momentum, for sgd.
        clip: bound on the global gradient norm; 0 for none.
        freeze: train only the weights with a row per class: the linear map of the label read-out, and the label embedding. All
            others stay as they are (`hybvit finetune --freeze`).
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.02
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    warmup_steps: int = 0
    schedule: Literal["cosine", "steps"] = "cosine"
    min_lr: float = 1e-6
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    drop: float = 0.2
    nesterov: bool = False
    clip: float = 1.0
    freeze: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Args:
        steps: optimizer steps.
        batch_size: images of the denoising mini-batch, and of the labeled one unless ``labelled_batch_size`` is given.
        labelled_batch_size: images of the labeled mini-batch; None takes ``batch_size``.
        ema_decay: decay of the exponential moving average of the weights, which is what is evaluated.
        ema_warmup: use the decay (1 + step)/(10 + step) where that is smaller.
        seed: of weights, order, augmentation and noise.
        precision: auto takes bf16 where the device is faster with it, else fp32.
        log_every: steps between two lines of metrics.jsonl.
        preview_every: steps between two sample grids; 0 for none.
        checkpoint_every: steps between two checkpoints; the last step always has one.
        keep_checkpoints: number of checkpoints to keep, the newest ones.
        snapshot_every: steps between two copies of the averaged weights that are kept permanently; 0 for none.
        init: a model (whatever `hybvit.load` takes) whose averaged weights the run starts from. It must have the same ``model``
            fields. With another number of classes, label read-out and label embedding are initialized at random.
        accumulate: number of parts of a batch that are computed one after the other, to save memory. The gradient is that of
            the whole batch.
        recompute: compute the layers again in the backward pass instead of keeping what is inside them (activation
            checkpointing): a forward pass more, much less memory.
        parallel: how several processes (torchrun) share a network: ddp, each with all weights; fsdp, each with a part of them;
            auto takes fsdp for a network of over a billion parameters.
        compile: use torch.compile: the start of a run takes a minute or more longer, then steps are faster. On a CPU it needs
            a C++ compiler; on a GPU it also uses CUDA graphs. auto tries it where a run would take over an hour, and compiles
            if that pays within the run.
        track: where to log metrics and previews too, by names and commas: tensorboard, wandb, mlflow, trackio (extra `track`;
            docs/tracking.md).
    """

    steps: int = 585_000
    batch_size: int = 128
    labelled_batch_size: int | None = None
    ema_decay: float = 0.999
    ema_warmup: bool = False
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = 50
    preview_every: int = 0
    checkpoint_every: int = 5000
    keep_checkpoints: int = 2
    snapshot_every: int = 0
    init: str | None = None
    accumulate: int = 1
    recompute: bool = False
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    track: str = ""


@dataclass(frozen=True)
class Config:
    """A whole run. Fields of a group are named ``group.field`` on the command line."""

    model: ViTConfig = field(default_factory=ViTConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    objective: Objective = field(default_factory=Objective)
    jem: JEMConfig = field(default_factory=JEMConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_sizes(self)
        _check_bounds(self)
        _check_ranges(self)
        _check_network(self)
        _check_combinations(self)


OF_IMAGES = ("image_size", "channels", "num_classes")  # the fields of ``model`` that every network uses


SMALLEST, LARGEST = 1e-30, 1e38  # of the numbers in a configuration


AT_LEAST = {
    "diffusion.steps": 2, "objective.alpha": 0, "objective.noisy_labels": 0, "objective.guidance": 0,
    "data.crop_padding": 0, "data.repeats": 1, "data.max_bad_files": 0, "data.memory_gib": 0, "data.shuffle_buffer": 1,
    "data.lanes": 1, "data.bits": 8, "data.workers": 0, "data.erasing": 0, "data.mixing": 0, "optim.lr": 0,
    "optim.weight_decay": 0, "optim.warmup_steps": 0, "optim.min_lr": 0, "optim.clip": 0, "optim.drop": 0, "train.steps": 1,
    "train.batch_size": 1, "train.labelled_batch_size": 1, "train.accumulate": 1, "train.log_every": 1,
    "train.preview_every": 0, "train.checkpoint_every": 1, "train.keep_checkpoints": 1, "train.snapshot_every": 0,
    "network.width": 1, "network.layers": 1, "network.dropout": 0, "jem.steps": 1, "jem.step_size": 0, "jem.noise": 0,
    "jem.replay": 1, "jem.restart": 0, "jem.input_noise": 0, "jem.weight": 0, "jem.proximal": 0, "jem.limit": 0,
}  # fmt: skip


AT_MOST = {  # more than any machine has memory or time for: a configuration may come from an untrusted source
    "diffusion.steps": 1_000_000, "data.crop_padding": 4096, "data.repeats": 1000, "data.shuffle_buffer": 10**9,
    "data.lanes": 256, "data.memory_gib": 2**20, "data.bits": 16, "data.workers": 1024, "train.batch_size": 2**20,
    "train.labelled_batch_size": 2**20, "train.accumulate": 2**20, "train.steps": 10**12,
    "network.depth": 1024, "network.width": 1024, "network.channels": 65_536, "network.layers": 1024,
    "jem.steps": 100_000, "jem.replay": 10**8,
}  # fmt: skip


LARGEST_CONVOLVED = 1024  # pixels a side: a convolutional network keeps whole images, and its weights do not bound them
MOST_BLOCKS = 128  # of the U-Net's encoder; DDPM's have 8 to 12


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


FINGERPRINT = r"|any|\d{1,12}\+\d{1,12} [0-9a-f]{16} [0-9a-f.]{,207}"  # data/fingerprint.py writes it


RANGES: list[tuple[str, Callable[[Any], bool], str]] = [  # fields, whether a value fits, and what it must be
    ("objective.alpha_end", lambda value: value is None or value >= 0, "it must be at least 0, or None"),
    ("objective.guidance", lambda value: value < math.inf, "it must be finite"),
    ("objective.label_dropout", lambda value: 0 <= value <= 1, "a share, it must be in [0, 1]"),
    ("optim.milestones", lambda value: all(0 <= share <= 1 for share in value), "shares of the run, each in [0, 1]"),
    (
        "train.track",
        lambda value: not value or set(value.split(",")) <= set(TRACKERS),
        f"it must be names from {', '.join(TRACKERS)}, with commas between them",
    ),
    ("data.fingerprint", lambda value: re.fullmatch(FINGERPRINT, value) is not None, "it must be empty, or any"),
    ("train.compile", lambda value: value in ("auto", True, False), "it must be auto, true or false"),
    ("data.erasing data.mixing jem.restart", lambda value: value <= 1, "a probability is at most 1"),
    ("data.labelled", lambda value: 0 < value <= 1, "a share of the labels, above 0 and at most 1"),
    ("data.held_out", lambda value: 0 <= value <= 0.5, "a share of the training images, at most 0.5"),
    (
        "objective.pseudo_labels objective.label_smoothing optim.beta1 optim.beta2 train.ema_decay network.dropout",
        lambda value: 0 <= value < 1,
        "it must be in [0, 1)",
    ),
]


FITTING = {  # network -> the objectives that it can be trained for
    "vit": ("vit", "genvit", "hybvit", "jem"),
    "wide_resnet": ("vit", "jem"),
    "preact_resnet18": ("vit", "jem"),
    "unet": ("genvit",),
}


_LABELLING, _DENOISING = ("vit", "hybvit", "jem"), ("genvit", "hybvit")


USED_WITH: list[tuple[str, str, tuple[Any, ...]]] = [  # fields of a group, the one that decides whether they are used, and when
    ("objective: alpha alpha_end noisy_labels pseudo_labels", "objective.kind", ("hybvit",)),
    ("objective: norm target weighting guidance label_dropout", "objective.kind", _DENOISING),
    ("objective: label_smoothing", "objective.kind", _LABELLING),
    ("objective: label_dropout guidance", "model.label_conditioning", (True,)),
    ("diffusion: schedule", "objective.kind", _DENOISING),
    ("train: labelled_batch_size", "objective.kind", _LABELLING),
    ("data: augment labelled", "objective.kind", _LABELLING),
    ("data: flip crop_padding", "data.augment", ("weak", "strong")),
    ("data: policy erasing mixing", "data.augment", ("strong",)),
    ("data: shuffle_buffer lanes", "data.name", ("shards",)),
    ("data: unlabelled resize", "data.name", tuple(CATALOG)),
    ("data: repeats", "objective.kind", _LABELLING),
    ("data: clean_flip", "objective.kind", ("genvit", "hybvit", "jem")),
    ("optim: muon_lr", "optim.name", ("muon",)),
    ("optim: beta2", "optim.name", ("adamw", "muon")),
    ("optim: nesterov", "optim.name", ("sgd",)),
    ("optim: milestones drop", "optim.schedule", ("steps",)),
    ("optim: min_lr", "optim.schedule", ("cosine",)),
    ("model: stem_width", "model.patch_embedding", ("conv",)),
    ("model: readout_width", "model.pixel_readout", ("conv",)),
    ("model: pixel_readout readout_width label_conditioning", "objective.kind", _DENOISING),
    ("model: ffn_time", "model.time", ("token_scalars",)),
    (
        f"model: {' '.join(f.name for f in dataclasses.fields(ViTConfig) if f.name not in OF_IMAGES)}",
        "network.name",
        ("vit",),
    ),
    (f"jem: {' '.join(f.name for f in dataclasses.fields(JEMConfig))}", "objective.kind", ("jem",)),
    ("network: depth width batch_norm", "network.name", ("wide_resnet",)),
    ("network: dropout", "network.name", ("wide_resnet", "unet")),
    ("network: channels layers attention_at", "network.name", ("unet",)),
]


GROUPS = {f.name: f.default_factory for f in dataclasses.fields(Config)}


def value_of(cfg: Config, name: str) -> Any:
    """The value of ``group.field``."""
    group, leaf = name.split(".")
    return getattr(getattr(cfg, group), leaf)


def _check_choices(cfg: Config) -> None:
    """Fields that take one of several words."""
    for group in GROUPS:
        try:
            check_choices(group, getattr(cfg, group))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    known = (*CATALOG, *OWN_IMAGES)
    if cfg.data.name not in known:
        raise ConfigError(f"data.name is {cfg.data.name!r}: it must be one of {', '.join(known)}")


def _check_bounds(cfg: Config) -> None:
    """AT_LEAST and AT_MOST. None is always within bounds; of a tuple, every number must be."""
    for name, low in AT_LEAST.items():
        value = value_of(cfg, name)
        if value is not None and not value >= low:
            raise ConfigError(f"{name} is {value}: it must be at least {low}")
    for name, high in AT_MOST.items():
        value = value_of(cfg, name)
        if value is not None and not max(value if isinstance(value, tuple) else (value,), default=0) <= high:
            raise ConfigError(f"{name} is {value}: it must be at most {high:,}")


def _check_sizes(cfg: Config) -> None:
    """Numbers with which arithmetic stays finite."""
    for group in GROUPS:
        for name, value in vars(getattr(cfg, group)).items():
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, (int, float)) or number in (0, math.inf, -math.inf) or number != number:
                    continue  # RANGES says which must be finite
                if not SMALLEST <= abs(number) <= LARGEST:
                    shown = f"{number:g}" if isinstance(number, float) else "an integer of many digits"
                    raise ConfigError(f"{group}.{name} is {shown}: it must be 0, or from {SMALLEST:g} to {LARGEST:g} in size")


def _check_ranges(cfg: Config) -> None:
    """RANGES."""
    for names, fits, must_be in RANGES:
        for name in names.split():
            if not fits(value_of(cfg, name)):
                raise ConfigError(f"{name} is {value_of(cfg, name)}: {must_be}")


def _check_network(cfg: Config) -> None:
    """What the network can be trained for, and with which optimizer."""
    network, fitting = cfg.network.name, FITTING[cfg.network.name]
    if cfg.objective.kind not in fitting:
        raise ConfigError(f"objective.kind is {cfg.objective.kind}: a {network} takes {' or '.join(fitting)}")
    if network != "vit" and cfg.model.image_size > LARGEST_CONVOLVED:
        raise ConfigError(
            f"model.image_size is {cfg.model.image_size}: for a {network} it must be at most {LARGEST_CONVOLVED:,}"
        )
    if cfg.network.layers * len(cfg.network.channels) > MOST_BLOCKS:
        raise ConfigError(
            f"network.channels has {len(cfg.network.channels):,} levels, and network.layers is {cfg.network.layers:,}: "
            f"there must be at most {MOST_BLOCKS} blocks together"
        )
    if cfg.optim.name == "muon" and network != "vit":
        raise ConfigError(f"optim.name is muon: it is for the layers of a vit, not for a {network}")
    if cfg.optim.freeze and (network != "vit" or cfg.objective.kind not in ("vit", "hybvit")):
        raise ConfigError("optim.freeze is for network.name vit with objective.kind vit or hybvit, whose classes it trains")
    if cfg.model.label_conditioning and network != "vit":
        raise ConfigError(f"model.label_conditioning is for network.name vit, not for a {network}")


def _check_combinations(cfg: Config) -> None:
    """Settings that require or exclude another setting."""
    if cfg.optim.name == "muon" and not (cfg.optim.lr > 0 and cfg.optim.muon_lr > 0):
        raise ConfigError(f"optim.lr is {cfg.optim.lr}, optim.muon_lr {cfg.optim.muon_lr}: muon needs both above 0")
    if cfg.optim.name == "sgd" and cfg.optim.nesterov and not cfg.optim.beta1 > 0:
        raise ConfigError(f"optim.beta1 is {cfg.optim.beta1}: optim.nesterov needs a momentum above 0")
    if cfg.objective.guidance > 0 and not (cfg.model.label_conditioning and cfg.objective.label_dropout > 0):
        raise ConfigError(
            f"objective.guidance is {cfg.objective.guidance}: it needs model.label_conditioning, and an "
            "objective.label_dropout above 0, since it compares with what is predicted without a label"
        )
    surest = 1 - cfg.objective.label_smoothing * (1 - 1 / cfg.model.num_classes)
    if cfg.objective.pseudo_labels >= surest:
        raise ConfigError(
            f"objective.pseudo_labels is {cfg.objective.pseudo_labels}: with objective.label_smoothing "
            f"{cfg.objective.label_smoothing} the network is never surer than {surest:.3g}; set one of them lower"
        )
    if needs_x0_augmented(cfg) and cfg.data.augment != "strong":
        raise ConfigError(
            f"objective.pseudo_labels is {cfg.objective.pseudo_labels}, and data.augment {cfg.data.augment}: set it to strong, "
            "since the network's own label of an image is for a strongly augmented copy"
        )
    if cfg.train.compile is True and cfg.objective.kind == "jem":
        raise ConfigError("train.compile does not go with objective.kind jem, whose steps are Langevin chains")
    for name in ("data.root", "data.test_root"):
        if value_of(cfg, name) is not None and not str(value_of(cfg, name)).strip():
            raise ConfigError(f"{name} is empty: leave it out, or name a place")
    if cfg.train.accumulate > 1:
        if cfg.objective.kind == "jem":
            raise ConfigError("train.accumulate does not go with objective.kind jem, whose replay buffer is of the whole batch")
        if cfg.network.name == "preact_resnet18" or (cfg.network.name == "wide_resnet" and cfg.network.batch_norm):
            raise ConfigError(
                f"train.accumulate does not go with network.name {cfg.network.name}, whose batch norm is of the whole batch"
            )
        for size in minibatches(cfg):
            if size % cfg.train.accumulate:
                raise ConfigError(f"train.accumulate is {cfg.train.accumulate}, which does not divide a batch of {size}")


def minibatches(cfg: Config) -> tuple[int, int]:
    """Images of one training step: (denoising, labeled), 0 where the objective has none; a JEM models the first."""
    kind, size, labelled = cfg.objective.kind, cfg.train.batch_size, cfg.train.labelled_batch_size
    return 0 if kind == "vit" else size, 0 if kind == "genvit" else size if labelled is None else labelled


def needs_x0_labels(cfg: Config) -> bool:
    """Whether the objective needs the labels of the images that are denoised."""
    used = cfg.objective.noisy_labels > 0 or needs_x0_augmented(cfg)
    return cfg.model.label_conditioning or (cfg.objective.kind == "hybvit" and used)


def needs_x0_augmented(cfg: Config) -> bool:
    """Whether the network labels the images that are denoised itself, for strongly augmented copies of them."""
    return cfg.objective.kind == "hybvit" and cfg.objective.pseudo_labels > 0


def is_line(text: str) -> bool:
    """Whether a name has no control characters, no line breaks, and no bytes that are not UTF-8 (surrogates)."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def describe_data(data: DataConfig) -> str:
    """The name of a data set, or the classes of the user's own images."""
    if data.name not in OWN_IMAGES:
        return data.name
    few = list(data.classes) if len(data.classes) <= 4 else [*data.classes[:3], f"{len(data.classes) - 3:,} other classes"]
    return " and ".join(filter(None, [", ".join(few[:-1]), *few[-1:]])) or "images without labels"


def describe_batch(cfg: Config) -> str:
    """``128``, or ``128 + 64`` where the labeled mini-batch has another size."""
    denoising, labelled = minibatches(cfg)
    return f"{denoising} + {labelled}" if denoising and labelled and denoising != labelled else str(denoising or labelled)


FREE_TO_CHANGE = {  # what is written or where, not what is computed: a run may be resumed with other values
    "train.log_every", "train.preview_every", "train.checkpoint_every", "train.keep_checkpoints", "train.snapshot_every",
    "train.track", "train.accumulate", "train.recompute", "train.parallel",
    "data.root", "data.test_root", "data.workers", "data.memory_gib", "data.fingerprint",
}  # fmt: skip


PLACES = ("data.root", "data.test_root", "train.init")  # fields that hold a path, an address or a name


def override(cfg: Config, **changes: Any) -> Config:
    """``override(cfg, optim={"lr": 1e-4})``: a copy with some fields of some groups changed."""
    return replace(cfg, **{group: replace(getattr(cfg, group), **fields) for group, fields in changes.items()})


def without_addresses(cfg: Config) -> Config:
    """The configuration without the files and addresses that the model was trained from. What comes with a model must not open
    them; only the user's own command may."""
    return override(cfg, data={"root": None, "test_root": None}, train={"init": None})


def differences(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Field name -> (value in a, value in b) for every field in which two configurations differ."""
    names = [f"{group}.{f.name}" for group in GROUPS for f in dataclasses.fields(getattr(a, group))]
    return {name: (value_of(a, name), value_of(b, name)) for name in names if value_of(a, name) != value_of(b, name)}


def without_effect(cfg: Config, given: Collection[str]) -> list[str]:
    """A warning for each of the fields ``given`` that has no effect with the values of the others."""
    found: dict[str, str] = {}
    for fields, decisive, values in USED_WITH:
        group, names = fields.split(": ")
        for name in (f"{group}.{leaf}" for leaf in names.split()):
            if name in given and value_of(cfg, decisive) not in values:
                found.setdefault(name, f"--{name} does nothing with {decisive} {value_of(cfg, decisive)}")
    if "train.batch_size" in given and cfg.objective.kind == "vit" and cfg.train.labelled_batch_size is not None:
        size = cfg.train.labelled_batch_size
        found["train.batch_size"] = (
            f"--train.batch_size does nothing with objective.kind vit and train.labelled_batch_size {size}"
        )
    return list(found.values())


@cache
def field_options() -> dict[str, Any]:
    """Every field as an option, such as ``--optim.lr`` -> its type."""
    groups = get_type_hints(Config)
    return {f"--{group}.{name}": kind for group in GROUPS for name, kind in get_type_hints(groups[group]).items()}


def fields_in(arguments: list[str]) -> list[str]:
    """The names in ``["--optim.lr", "1e-4", "--train.steps=7"]``."""
    return [word.removeprefix("--").split("=")[0] for word in arguments if word.startswith("--")]


def parse(arguments: list[str], base: Config) -> Config:
    """Apply arguments such as ``["--optim.lr", "1e-4"]`` to a base configuration.

    Raises:
        ConfigError: a field is unknown (the message names the nearest one) or a value does not fit.
    """
    known = field_options()
    for word in arguments:
        name = word.split("=")[0]
        if name.startswith("--") and name not in known:
            raise ConfigError(f"unknown field {name}{did_you_mean(name, known)}")
    if not arguments:
        return base  # without the import of a parser
    changes = dict[str, dict[str, Any]]()
    with _errors_of_fields():
        values = _values_of(tuple(with_home(arguments)))
        for group, leaf in (name.split(".") for name in dict.fromkeys(fields_in(arguments))):
            changes.setdefault(group, {})[leaf] = values[f"{group}.{leaf}"]
        return override(base, **changes)


@lru_cache(maxsize=16)  # a parse takes a tenth of a second, and a plan changes the same fields of dozens of presets
def _values_of(arguments: tuple[str, ...]) -> Any:
    return _parser().parse_args(arguments)


def with_home(arguments: list[str]) -> list[str]:
    """Arguments with ~ as the user's home in those that are places: a shell expands it only in some of their forms, and to the
    parser, which reads YAML, ~ alone would be nothing."""
    found, places = list[str](), tuple(f"--{name}" for name in PLACES)
    for word in arguments:
        name, equals, value = word.partition("=")
        if equals and name in places:
            word = f"{name}={os.path.expanduser(value)}"
        elif found and found[-1] in places:
            word = os.path.expanduser(word)
        found.append(word)
    return found


def to_dict(cfg: Config) -> dict[str, Any]:
    """The configuration as plain containers, for YAML and JSON."""
    content = dataclasses.asdict(cfg)
    return {group: {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()} for group, fields in content.items()}


def to_yaml(cfg: Config) -> str:
    """The configuration as it is stored: the version that writes it, and every field."""
    return yaml.safe_dump({versions.KEY: __version__, **to_dict(cfg)}, sort_keys=False, allow_unicode=True)


def load_config(path: Path) -> Config:
    """Read a stored configuration, such as the config.yaml of a run or an export. It must be complete: every field of the
    version that wrote it is there, once. Those of older versions are migrated.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, a field is missing, unknown or twice there, or a value does not
            fit.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    return read_config(content, path)


def read_config(text: bytes, path: Path) -> Config:
    """:func:`load_config` for the content of a file; ``path`` is used in messages."""
    try:
        return _config_of(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


@lru_cache(maxsize=16)  # reading takes a tenth of a second, and a command comes to the same configuration up to three times
def _config_of(text: bytes) -> Config:
    try:
        content = yaml.load(text.decode("utf-8"), versions.Loader)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # PyYAML lets some errors of Python through
        raise ConfigError(f"not a YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"not a configuration (a mapping with {', '.join(GROUPS)} is expected)")
    fields = {group: [f.name for f in dataclasses.fields(getattr(Config(), group))] for group in GROUPS}
    complete = versions.migrate(content, fields)
    with _errors_of_fields():
        groups = _parser().instantiate(_parser().parse_object(complete))
        return Config(**{group: groups[group] for group in GROUPS})


def field_help(base: Config) -> str:
    """Every field with its value in ``base`` and its description from the docstring of its group."""
    lines = []
    for group in GROUPS:
        settings = getattr(base, group)
        text = inspect.getdoc(type(settings)) or ""
        for f in dataclasses.fields(settings):
            entry = rf"^    (?:\w+, )*{f.name}(?:, \w+)*: (.*?)(?=\n    \w+(?:, \w+)*: |\n\n|\Z)"
            found = re.search(entry, text, re.DOTALL | re.MULTILINE)
            words = " ".join(found[1].split()).replace("``", "") if found else ""
            lines.append(f"  --{group}.{f.name} {as_typed(getattr(settings, f.name))}")
            lines += textwrap.wrap(words, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def as_typed(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


@cache  # building it takes as long as a parse
def _parser() -> Any:
    """A parser of the fields, with their defaults."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, prog="hybvit train PRESET", add_help=False)
    defaults = Config()
    for group in GROUPS:
        parser.add_argument(f"--{group}", type=type(getattr(defaults, group)), default=getattr(defaults, group))
    return parser


@contextmanager
def _errors_of_fields() -> Iterator[None]:
    """Whatever the parser or a group says of a value becomes a ConfigError."""
    from jsonargparse import ArgumentError

    try:
        yield
    except ConfigError:
        raise
    except (ArgumentError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        unfit = re.search(r'Parser key "(\w+)\.(\w+)":.* (?:Got value|Given value): (.*)', text)
        if unfit and unfit[1] in GROUPS:
            kind = get_type_hints(type(getattr(Config(), unfit[1])))[unfit[2]]
            text = f"{unfit[1]}.{unfit[2]} is {unfit[3]}: it must be {describe_type(kind)}"
        raise ConfigError(text) from None


def describe_type(kind: Any) -> str:
    """What a field of this type takes on the command line."""
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if kind in simple:
        return simple[kind]
    if get_origin(kind) is Literal:
        words = ", ".join(map(str, get_args(kind)))
        return f"one of {words}" if len(get_args(kind)) > 1 else words
    if get_origin(kind) is tuple:
        return f"a list such as {LISTS[get_args(kind)[0]]}"
    return " or ".join(map(describe_type, get_args(kind)))


LISTS = {float: "[0.05,0.1]", int: "[128,256]", str: "[cat,dog]"}
