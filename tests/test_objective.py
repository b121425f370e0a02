from __future__ import annotations

import math

import pytest
import torch

from hybvit import checkpoint
from hybvit.diffusion import Diffusion
from hybvit.objective import Batch, denoising_loss, hybrid_loss
from hybvit.vit import HybViT, ViTConfig

COSINE = Diffusion.cosine(1000)
SMALL = ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=4, dim=16, depth=2, heads=2)


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        torch.rand(6, 1, 8, 8, generator=g) * 2 - 1,
        torch.rand(5, 1, 8, 8, generator=g) * 2 - 1,
        torch.tensor([0, 1, 2, 3, 0]),
    )


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_golden_losses(golden, golden_config, golden_file, norm):
    net = HybViT(golden_config)
    checkpoint.load_published_weights(net, golden_file)
    with torch.no_grad():
        only_images = Batch(golden["x"], None, None)
        losses = hybrid_loss(net, COSINE, only_images, norm=norm, t=golden["t"] + 1, noise=golden["noise"])
    assert losses.denoising.item() == pytest.approx(golden[f"loss_{norm}"].item(), rel=1e-6)


def test_hybvit_is_cross_entropy_plus_alpha_times_denoising():
    net, (clean, images, labels) = HybViT(SMALL), batch()
    t, noise = (
        torch.tensor([1, 10, 100, 500, 900, 1000]),
        torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)),
    )
    losses = hybrid_loss(net, COSINE, Batch(clean, images, labels), alpha=7.0, t=t, noise=noise)
    logits, eps = net(images).logits, net(COSINE.q_sample(clean, t, noise), t).eps
    ce = -logits.log_softmax(1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(losses.ce, ce)
    torch.testing.assert_close(losses.denoising, (eps - noise).abs().mean())
    torch.testing.assert_close(losses.total, ce + 7 * (eps - noise).abs().mean())


def test_vit_and_genvit_minimise_one_term():
    net, (clean, images, labels) = HybViT(SMALL), batch()
    vit = hybrid_loss(net, COSINE, Batch(None, images, labels))
    assert vit.denoising is None
    assert vit.total is vit.ce
    genvit = hybrid_loss(net, COSINE, Batch(clean, None, None), generator=torch.Generator().manual_seed(0))
    assert genvit.ce is None
    assert genvit.total is genvit.denoising


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_a_perfect_prediction_costs_nothing(target):
    clean = batch().clean
    noise, t = torch.randn(clean.shape), torch.tensor([1, 10, 100, 500, 900, 1000])
    wanted = COSINE.target(target, clean, t, noise)

    class Oracle(HybViT):
        def denoise(self, x_t, t):
            return wanted

    net = Oracle(SMALL)
    assert hybrid_loss(net, COSINE, Batch(clean, None, None), target=target, t=t, noise=noise).total == 0
    other = {"eps": "v", "x0": "eps", "v": "x0"}[target]
    assert hybrid_loss(net, COSINE, Batch(clean, None, None), target=other, t=t, noise=noise).total > 0.1


def test_norms():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0])
    assert denoising_loss(a, b, "l1") == 1.5
    assert denoising_loss(a, b, "l2") == 2.5
    with pytest.raises(ValueError, match="L1"):
        denoising_loss(a, b, "L1")
    with pytest.raises(ValueError, match="score"):
        COSINE.target("score", a, torch.tensor([1, 1]), b)


def test_label_smoothing_and_class_shares():
    net, (_, images, labels) = HybViT(SMALL), batch()
    log_p = net(images).logits.log_softmax(1)
    smoothed = hybrid_loss(net, COSINE, Batch(None, images, labels), label_smoothing=0.1).ce
    target = torch.nn.functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(smoothed, -(target * log_p).sum(1).mean())
    torch.testing.assert_close(hybrid_loss(net, COSINE, Batch(None, images, target)).ce, smoothed)


def test_draws_follow_the_generator_and_cover_all_steps():
    net, (clean, _, _) = HybViT(SMALL), batch()
    first, again, other = (
        hybrid_loss(net, COSINE, Batch(clean, None, None), generator=torch.Generator().manual_seed(s)).total for s in (0, 0, 1)
    )
    assert first == again
    assert first != other
    seen = []

    class Spy(HybViT):
        def denoise(self, x_t, t):
            seen.append(t)
            return super().denoise(x_t, t)

    few, g = Diffusion.cosine(4), torch.Generator().manual_seed(0)
    for _ in range(40):
        hybrid_loss(Spy(SMALL), few, Batch(clean, None, None), generator=g)
    counts = torch.cat(seen).bincount(minlength=5)
    assert len(counts) == 5
    assert counts[0] == 0
    assert counts[1:].min() > 60 - 4 * math.sqrt(240 * 0.25 * 0.75)


def test_incomplete_batches_are_refused():
    net, (clean, images, labels) = HybViT(SMALL), batch()
    with pytest.raises(ValueError, match="empty"):
        hybrid_loss(net, COSINE, Batch(None, None, None))
    with pytest.raises(ValueError, match="come together"):
        hybrid_loss(net, COSINE, Batch(clean, images, None))
    with pytest.raises(ValueError, match="come together"):
        hybrid_loss(net, COSINE, Batch(clean, None, labels))
