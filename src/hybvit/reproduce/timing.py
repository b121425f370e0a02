"""Tables 8 and 13: the cost of a training step of every system, timed alternately on this machine."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..baselines.jem import JEM
from ..catalog import CATALOG
from ..config import Config, differences, minibatches, override
from ..data.batches import random_batch
from ..devices import alternating, autocast, best_device, environment, keep_freed_memory, resolve_precision
from ..errors import ConfigError
from ..method.objective import hybrid_loss
from ..method.seeds import generator
from ..networks import build_network, number_of_parameters
from ..presets import STRONG
from ..storage import read_json
from ..training.loop import compile_step
from ..training.optim import build_optimizers

FILE = "timing.json"
REPEATS = 5
SPAN = 1.0  # seconds per repeat
WARM_UP = 3  # steps; the second step of a compiled network is still slower than the later ones


def epoch_images(cfg: Config) -> int:
    """Images of one mini-batch (the labeled one, if there is one) in what the paper calls an epoch.

    On CIFAR-10 an epoch has 1170 steps of 128 for a ViT and 390 for a CNN.

    Raises:
        ConfigError: the data set is not a published one.
    """
    if (info := CATALOG.get(cfg.data.name)) is None:
        raise ConfigError(
            f"data.name is {cfg.data.name}: the hours of an epoch are those of a published data set, such as cifar10"
        )
    return info.splits["train"] * (STRONG.repeats if cfg.network.name == "vit" else 1)


def one_step(cfg: Config, device: torch.device) -> Callable[[], None]:
    """A closure that takes one training step on random images; its learning rate is 0, so that nothing diverges."""
    cfg = override(cfg, jem={"limit": math.inf})
    torch.manual_seed(0)
    batch = random_batch(cfg, device)
    net = build_network(cfg).to(device)
    if isinstance(net, JEM) and cfg.jem.informative:
        assert batch.images is not None
        assert batch.labels is not None
        net.fit_initial(batch.images, batch.labels)
    diffusion, optimizers = cfg.diffusion.build(), build_optimizers(net, cfg.optim)
    if cfg.train.compile is True:
        compile_step(net, optimizers)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    precision, count = resolve_precision(cfg.train.precision, device), iter(range(10**9))

    def step() -> None:
        with autocast(device, precision):
            total = hybrid_loss(net, diffusion, batch, cfg.objective, generator=generator(0, "noise", next(count))).total
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def warmed_up(configs: dict[str, Config], device: torch.device) -> dict[str, Callable[[], None]]:
    """:func:`one_step` of each configuration, after compilation and warm-up."""
    steps = {name: one_step(cfg, device) for name, cfg in configs.items()}
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    return steps


def measure(configs: dict[str, Config], say: Callable[[str], None], repeats: int = REPEATS) -> dict[str, Any]:
    """Time the steps of each configuration alternately; medians of the repeats -> a record per run, with the environment."""
    device = best_device()
    keep_freed_memory()
    times = alternating(warmed_up(configs, device), repeats, SPAN, say)
    found = {}
    for name, cfg in configs.items():
        seconds, (denoising, labelled) = statistics.median(times[name]), minibatches(cfg)
        found[name] = {
            "seconds_per_step": seconds,
            "spread": (max(times[name]) - min(times[name])) / seconds,
            "minutes_per_epoch": seconds * epoch_images(cfg) / (labelled or denoising) / 60,
            "hours": seconds * cfg.train.steps / 3600,
            "batch_size": cfg.train.batch_size,
            "configuration": digest(cfg),
            "parameters": number_of_parameters(build_network(cfg)),
        }
    return {"runs": found, "repeats": repeats, "device": device.type, "environment": environment()}


def stored(folder: Path) -> dict[str, Any]:
    """The stored result of :func:`measure` in this folder, or one without runs."""
    return read_json(folder / FILE) if (folder / FILE).is_file() else {"runs": {}}


def covers(found: dict[str, Any], configs: dict[str, Config]) -> bool:
    """Whether all of these were measured with their current configuration."""
    return all(found["runs"].get(name, {}).get("configuration") == digest(cfg) for name, cfg in configs.items())


def digest(cfg: Config) -> str:
    """A digest of the settings that a figure was measured with; a field added later does not change it at its default.

    ``train.compile`` auto counts as false, the default when the stored ones were made: nothing is tried here.
    """
    default, cfg = (override(each, train={"compile": each.train.compile is True}) for each in (Config(), cfg))
    return hashlib.sha256(repr(sorted(differences(default, cfg).items())).encode()).hexdigest()[:16]
