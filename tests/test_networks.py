from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hybvit.config import Config, DiffusionConfig, ObjectiveConfig
from hybvit.networks import alpha_at, build_network, losses_of
from hybvit.objective import Batch, hybrid_loss
from hybvit.vit import ViTConfig

SMALL = ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=4, dim=16, depth=2, heads=2)


def config(**objective) -> Config:
    return Config(model=SMALL, diffusion=DiffusionConfig(steps=20), objective=ObjectiveConfig(**objective))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch() -> Batch:
    clean, images = torch.rand(2, 6, 1, 8, 8, generator=seeded()) * 2 - 1
    return Batch(clean, images, torch.tensor([0, 1, 2, 3, 0, 1]))


def built(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    return build_network(cfg)


def test_alpha_moves_in_a_straight_line():
    assert [alpha_at(config(alpha=7.0), p) for p in (0.0, 0.3, 1.0)] == [7.0, 7.0, 7.0]
    moving = config(alpha=100.0, alpha_end=20.0)
    assert [alpha_at(moving, p) for p in (0.0, 0.25, 1.0)] == [100.0, 80.0, 20.0]
    assert alpha_at(config(alpha=2.0, alpha_end=0.0), 1.0) == 0.0


def test_progress_reaches_the_loss():
    cfg = config(alpha=100.0, alpha_end=20.0, label_smoothing=0.0)
    net, diffusion = built(cfg), cfg.diffusion.build()
    for arguments, alpha in (((), 100.0), ((0.5,), 60.0)):
        total, ce, denoising, *_ = losses_of(net, cfg, diffusion, batch(), seeded(), *arguments)
        torch.testing.assert_close(total, ce + alpha * denoising)


CLEAN_LABELS = torch.tensor([0, 0, 0, 2, 2, -1])
OPTIONS = {
    "norm": "huber",
    "target": "flow",
    "label_smoothing": 0.3,
    "times": "logit_normal",
    "weighting": "min_snr",
    "balance": "gradient_norm",
    "class_noise": 0.5,
    "noisy_labels": 0.5,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_reaches_the_objective(name):
    option = {name: OPTIONS[name]}
    cfg, plain = config(**{"label_smoothing": 0.0, **option}), config(label_smoothing=0.0)
    net, diffusion = built(cfg), cfg.diffusion.build()
    told = batch()._replace(clean_labels=CLEAN_LABELS)
    losses = losses_of(net, cfg, diffusion, told, seeded())
    assert torch.equal(losses.total, hybrid_loss(net, diffusion, told, generator=seeded(), **option).total)
    assert losses.total != losses_of(net, plain, diffusion, told, seeded()).total


def test_a_network_that_is_told_labels_learns_from_them():
    cfg = config(label_dropout=0.0)
    cfg = replace(cfg, model=replace(SMALL, label_conditioning=True, class_depth=1))
    net, diffusion = built(cfg), cfg.diffusion.build()
    told = batch()._replace(clean_labels=CLEAN_LABELS)
    losses_of(net, cfg, diffusion, told, seeded()).total.backward()
    used = net.label_embedding.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, False, True, False, True]
    net.zero_grad()
    losses_of(
        net, replace(cfg, objective=replace(cfg.objective, label_dropout=1.0)), diffusion, told, seeded()
    ).total.backward()
    assert (net.label_embedding.weight.grad.abs().sum(1) > 0).tolist() == [False] * 4 + [True]


def test_guidance_reaches_the_objective():
    cfg, model = config(), replace(SMALL, label_conditioning=True, class_depth=1)
    cfg = replace(cfg, model=model, objective=replace(cfg.objective, guidance=0.5))
    net, diffusion = built(cfg), cfg.diffusion.build()
    told = batch()._replace(clean_labels=CLEAN_LABELS)
    total = losses_of(net, cfg, diffusion, told, seeded()).total
    assert torch.equal(total, hybrid_loss(net, diffusion, told, label_smoothing=0.1, guidance=0.5, generator=seeded()).total)
    assert total != hybrid_loss(net, diffusion, told, label_smoothing=0.1, generator=seeded()).total


def test_log_variances_belong_to_the_network_only_if_they_are_learned():
    plain, cfg = built(config()), config(balance="uncertainty", alpha=2.0)
    net = built(cfg)
    state = net.state_dict()
    assert torch.equal(state.pop("log_variances"), torch.zeros(2))
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())  # no draw is spent on them
    total, ce, denoising, *_ = losses_of(net, cfg, cfg.diffusion.build(), batch(), seeded())
    torch.testing.assert_close(total, ce + 2 * denoising)  # they start at 0
    total.backward()
    torch.testing.assert_close(net.log_variances.grad, torch.stack((1 - ce, 1 - 2 * denoising)).detach())


@pytest.mark.parametrize("balance", ["uncertainty", "gradient_norm"])
@pytest.mark.parametrize("time", ["token_scalars", "adaln_zero"])
def test_all_options_train_together(balance, time):
    cfg = config(alpha=1.0, **{**OPTIONS, "balance": balance})
    cfg = replace(cfg, model=replace(SMALL, time=time))
    net, diffusion = built(cfg), cfg.diffusion.build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    first = last = None
    for step in range(30):
        losses = losses_of(net, cfg, diffusion, batch()._replace(clean_labels=CLEAN_LABELS), seeded(step % 3))
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = (losses.ce.item(), losses.denoising.item())
        first = first or last
    assert last[0] < first[0]
    assert last[1] < first[1]
