from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hybvit.config import Config, DiffusionConfig
from hybvit.method.objective import Batch, Losses, hybrid_loss
from hybvit.method.objective_config import Objective
from hybvit.method.vit import ViTConfig
from hybvit.networks import build_network

SMALL = ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=4, dim=16, depth=2, heads=2)


def config(**objective) -> Config:
    return Config(model=SMALL, diffusion=DiffusionConfig(steps=20), objective=Objective(**objective))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch() -> Batch:
    clean, images = torch.rand(2, 6, 1, 8, 8, generator=seeded()) * 2 - 1
    return Batch(clean, images, torch.tensor([0, 1, 2, 3, 0, 1]))


def built(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    return build_network(cfg)


X0_LABELS = torch.tensor([0, 0, 0, 2, 2, -1])
OPTIONS = {
    "norm": "l2",
    "target": "flow",
    "label_smoothing": 0.3,
    "weighting": "min_snr",
    "noisy_labels": 0.5,
}


def losses_of(net: nn.Module, cfg: Config, seed: int = 0, progress: float = 0.0) -> Losses:
    """The losses of a training step, with labels in both mini-batches."""
    both = batch()._replace(x0_labels=X0_LABELS)
    return hybrid_loss(net, cfg.diffusion.build(), both, cfg.objective, progress=progress, generator=seeded(seed))


def test_progress_reaches_the_loss():
    cfg = config(alpha=100.0, alpha_end=20.0, label_smoothing=0.0)
    net = built(cfg)
    for progress, alpha in ((0.0, 100.0), (0.5, 60.0)):
        losses = losses_of(net, cfg, progress=progress)
        torch.testing.assert_close(losses.total, losses.ce + alpha * losses.denoising)
        assert losses.denoising_weight == alpha


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_the_loss(name):
    cfg, plain = config(**{"label_smoothing": 0.0, name: OPTIONS[name]}), config(label_smoothing=0.0)
    net = built(cfg)
    assert losses_of(net, cfg).total != losses_of(net, plain).total


def test_a_network_that_takes_labels_learns_from_them():
    cfg = config(label_dropout=0.0)
    cfg = replace(cfg, model=replace(SMALL, label_conditioning=True, class_depth=1))
    net = built(cfg)
    losses_of(net, cfg).total.backward()
    used = net.label_embedding.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, False, True, False, True]
    net.zero_grad()
    losses_of(net, replace(cfg, objective=replace(cfg.objective, label_dropout=1.0))).total.backward()
    assert (net.label_embedding.weight.grad.abs().sum(1) > 0).tolist() == [False] * 4 + [True]
    some, guided = (replace(cfg, objective=Objective(guidance=strength)) for strength in (0.0, 0.5))
    assert losses_of(net, guided).total != losses_of(net, some).total


@pytest.mark.parametrize("time", ["token_scalars", "adaln_zero"])
def test_all_options_train_together(time):
    cfg = config(alpha=1.0, **OPTIONS)
    cfg = replace(cfg, model=replace(SMALL, time=time))
    net = built(cfg)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    first = last = None
    for step in range(30):
        losses = losses_of(net, cfg, step % 3)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = (losses.ce.item(), losses.denoising.item())
        first = first or last
    assert last[0] < first[0]
    assert last[1] < first[1]
