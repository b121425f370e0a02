from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybvit import checkpoint
from hybvit.config import Config, DiffusionConfig, NetworkConfig, ObjectiveConfig, load_config, to_yaml
from hybvit.diffusion import Diffusion
from hybvit.errors import ConfigError
from hybvit.objective import (
    MAX_GRADIENT_RATIO,
    Batch,
    balanced_sum,
    denoising_loss,
    draw_times,
    guided_target,
    hybrid_loss,
    lightly_noised,
    time_weights,
    with_dropped,
)
from hybvit.seeds import normal_like
from hybvit.vit import HybViT, Output, ViTConfig

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
    net, (clean, images, labels, _) = HybViT(SMALL), batch()
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
    net, (clean, images, labels, _) = HybViT(SMALL), batch()
    vit = hybrid_loss(net, COSINE, Batch(None, images, labels))
    assert vit.denoising is None
    assert vit.total is vit.ce
    genvit = hybrid_loss(net, COSINE, Batch(clean, None, None), generator=torch.Generator().manual_seed(0))
    assert genvit.ce is None
    assert genvit.total is genvit.denoising


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
def test_a_perfect_prediction_costs_nothing(target):
    clean = batch().clean
    noise, t = torch.randn(clean.shape), torch.tensor([1, 10, 100, 500, 900, 1000])
    wanted = COSINE.target(target, clean, t, noise)

    class Oracle(HybViT):
        def denoise(self, x_t, t):
            return wanted

    net = Oracle(SMALL)
    assert hybrid_loss(net, COSINE, Batch(clean, None, None), target=target, t=t, noise=noise).total == 0
    other = {"eps": "v", "x0": "eps", "v": "flow", "flow": "x0"}[target]
    assert hybrid_loss(net, COSINE, Batch(clean, None, None), target=other, t=t, noise=noise).total > 0.1


def test_norms():
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0])
    assert denoising_loss(a, b, "l1") == 1.5
    assert denoising_loss(a, b, "l2") == 2.5
    near = torch.tensor([0.0, 1.95])  # 1 from a, and 0.05 at the end of the parabola's half
    assert denoising_loss(torch.tensor([1.0, 2.0]), near, "huber").item() == pytest.approx((1 - 0.05 + 0.05**2 / 0.2) / 2)
    with pytest.raises(ValueError, match="L1"):
        denoising_loss(a, b, "L1")
    with pytest.raises(ValueError, match="score"):
        COSINE.target("score", a, torch.tensor([1, 1]), b)


def test_label_smoothing_and_class_shares():
    net, (_, images, labels, _) = HybViT(SMALL), batch()
    log_p = net(images).logits.log_softmax(1)
    smoothed = hybrid_loss(net, COSINE, Batch(None, images, labels), label_smoothing=0.1).ce
    target = torch.nn.functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(smoothed, -(target * log_p).sum(1).mean())
    torch.testing.assert_close(hybrid_loss(net, COSINE, Batch(None, images, target)).ce, smoothed)


def test_draws_follow_the_generator_and_cover_all_steps():
    net, (clean, *_) = HybViT(SMALL), batch()
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
    net, (clean, images, labels, _) = HybViT(SMALL), batch()
    with pytest.raises(ValueError, match="empty"):
        hybrid_loss(net, COSINE, Batch(None, None, None))
    with pytest.raises(ValueError, match="come together"):
        hybrid_loss(net, COSINE, Batch(clean, images, None))
    with pytest.raises(ValueError, match="come together"):
        hybrid_loss(net, COSINE, Batch(clean, None, labels))


# options, all of them off by default

FLOW_3 = Diffusion.flow(3)  # abar = 1, 0.9, 0.5, 0.1; snr = 9, 1, 1/9 for t = 1, 2, 3
CLEAN_LABELS = torch.tensor([0, 1, 2, 3, -1, -1])


class Stub(nn.Module):
    """One shared weight and two read-outs; it keeps what it was asked, and takes no more than the protocol says."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(7)
        self.null_label: int | None = None
        self.last_shared_weight = nn.Parameter(torch.randn(64, 64, generator=g, dtype=torch.float64) / 8)
        self.to_class = nn.Parameter(torch.randn(64, 4, generator=g, dtype=torch.float64) / 8)
        self.to_pixels = nn.Parameter(torch.randn(64, 64, generator=g, dtype=torch.float64) / 8)
        self.asked: list[tuple] = []

    def features(self, x):
        return (x.double().flatten(1) @ self.last_shared_weight).tanh()

    def classify(self, *args):
        self.asked.append(args)
        return self.features(args[0]) @ self.to_class

    def denoise(self, x_t, t, **options):
        self.asked.append((x_t, t, options))
        return (self.features(x_t) @ self.to_pixels).reshape(x_t.shape)

    def denoise_with_and_without(self, x_t, t, y):
        untold = self.denoise(x_t, t, y=y)
        return untold + self.of_label(y), untold

    def joint(self, images, x_t, t, **options):
        self.asked.append((images, x_t, t, options))
        labelled = torch.cat((images, x_t)) if options.get("label_all") else images
        logits, untold = self.features(labelled) @ self.to_class, (self.features(x_t) @ self.to_pixels).reshape(x_t.shape)
        return Output(logits, untold + self.of_label(options["y"]), untold) if options.get("untold") else Output(logits, untold)

    def of_label(self, y):
        """What the label adds: nothing for the label 4, which stands for none."""
        return torch.where(y == 4, 0.0, 1.0 + y)[:, None, None, None] * self.last_shared_weight.mean()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_without_options_nothing_but_the_paper_is_computed_and_drawn(norm):
    net, (clean, images, labels, _), g, reference = Stub(), batch(), seeded(), seeded()
    losses = hybrid_loss(net, COSINE, Batch(clean, images, labels), norm=norm, generator=g)
    t = torch.randint(1, 1001, (6,), generator=reference)
    noise = torch.randn(clean.shape, generator=reference)
    x_t = COSINE.q_sample(clean, t, noise)
    logits, eps, _ = net.joint(images, x_t, t)
    ce = F.cross_entropy(logits, labels)
    denoising = {"l1": F.l1_loss, "l2": F.mse_loss}[norm](eps, noise)
    assert torch.equal(losses.total, ce + 100 * denoising)
    assert torch.equal(losses.ce, ce)
    assert torch.equal(losses.denoising, denoising)
    assert torch.equal(g.get_state(), reference.get_state())
    assert net.asked[0][3] == {}
    hybrid_loss(net, COSINE, Batch(None, images, labels), generator=g)
    assert len(net.asked[-1]) == 1
    hybrid_loss(net, COSINE, Batch(clean, None, None), t=t, noise=noise, generator=g)
    assert net.asked[-1][2] == {}
    assert torch.equal(g.get_state(), reference.get_state())


@pytest.mark.parametrize(
    ("option", "value"), [("norm", "L2"), ("times", "late"), ("weighting", "snr"), ("balance", "even"), ("target", "score")]
)
def test_unknown_options_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is '{value}'"):
        hybrid_loss(Stub(), COSINE, batch(), **{option: value})


def test_every_image_has_its_weight():
    g = seeded()
    a, b = torch.randn(2, 3, 1, 4, 4, generator=g)
    weights = torch.tensor([0.0, 1.0, 4.0])
    for norm in ("l1", "l2", "huber"):
        each = torch.stack([denoising_loss(a[i], b[i], norm) for i in range(3)])
        torch.testing.assert_close(denoising_loss(a, b, norm, weights), (each[1] + 4 * each[2]) / 3)
        torch.testing.assert_close(denoising_loss(a, b, norm, torch.ones(3)), denoising_loss(a, b, norm))


A, S = math.sqrt(0.9), math.sqrt(0.1)


@pytest.mark.parametrize(
    ("weighting", "target", "expected"),
    [
        ("uniform", "x0", [1, 1, 1]),
        ("min_snr", "eps", [5 / 9, 1, 1]),
        ("min_snr", "x0", [5, 1, 1 / 9]),
        ("min_snr", "v", [5 / 10, 1 / 2, 1 / 10]),
        ("min_snr", "flow", [5 * (S / (A + S)) ** 2, 1 / 4, 1 / 9 * (A / (A + S)) ** 2]),
        ("p2", "eps", [1 / 10, 1 / 2, 9 / 10]),
        ("p2", "x0", [9 / 10, 1 / 2, 1 / 10]),
        ("p2", "v", [9 / 100, 1 / 4, 9 / 100]),
        ("p2", "flow", [1 / 10 * (A / (A + S)) ** 2, 1 / 8, 9 / 10 * (S / (A + S)) ** 2]),
    ],
)
def test_time_weights_by_hand(weighting, target, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    weights = time_weights(FLOW_3, weighting, target)
    torch.testing.assert_close(weights, torch.cat((torch.zeros(1), 3 * expected / expected.sum())))
    assert time_weights(COSINE, weighting, target)[1:].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
@pytest.mark.parametrize("diffusion", [Diffusion.cosine(50), Diffusion.flow(50)], ids=["cosine", "flow"])
def test_a_weighted_denoiser_is_judged_alike_whatever_it_predicts(weighting, diffusion):
    g, t = seeded(), torch.arange(1, 51)
    x0, noise, error = torch.randn(3, 50, 1, 2, 2, generator=g, dtype=torch.float64)
    x_t = diffusion.q_sample(x0, t, noise)
    eps = noise + error
    guess = diffusion.predict_x0(x_t, t, eps)

    def losses(kind, of):
        """The weighted squared error at each t of the one denoiser, when it predicts ``kind``."""
        error = (diffusion.target(kind, guess, t, eps) - diffusion.target(kind, x0, t, noise)).square().flatten(1).mean(1)
        return time_weights(diffusion, of, kind)[t] * error

    for kind in ("x0", "v", "flow"):
        ratio = losses(kind, weighting) / losses("eps", weighting)
        torch.testing.assert_close(ratio, ratio.mean().expand(50), rtol=1e-6, atol=0)
        ratio = losses(kind, "uniform") / losses("eps", "uniform")
        assert ratio.max() > 2 * ratio.min()


def test_the_objective_weighs_each_image_by_its_time():
    net, clean, t = Stub(), batch().clean, torch.tensor([1, 2, 3, 1, 2, 3])
    noise = torch.randn(clean.shape, generator=seeded())
    losses = hybrid_loss(net, FLOW_3, Batch(clean, None, None), norm="l2", target="v", weighting="min_snr", t=t, noise=noise)
    prediction = net.denoise(FLOW_3.q_sample(clean, t, noise), t)
    each = (prediction - FLOW_3.target("v", clean, t, noise)).square().flatten(1).mean(1)
    expected = (torch.tensor([0.5, 0.5, 0.1] * 2) * 3 / 1.1 * each).mean()
    torch.testing.assert_close(losses.total, expected)


def test_logit_normal_times_have_its_quantiles():
    n = 40_000
    t = draw_times(n, 1000, "logit_normal", seeded())
    assert t.dtype == torch.int64
    for k in (50, 200, 500, 700, 950):
        share = NormalDist().cdf(math.log(k / 1000 / (1 - k / 1000)))
        assert (t <= k).double().mean().item() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))
    few = draw_times(n, 3, "logit_normal", seeded()).bincount(minlength=4)
    assert few[0] == 0
    assert len(few) == 4
    assert few[2] > 1.5 * few[1]
    net = Stub()
    hybrid_loss(net, COSINE, Batch(batch().clean, None, None), times="logit_normal", generator=seeded())
    assert torch.equal(net.asked[0][1], draw_times(6, 1000, "logit_normal", seeded()))


def test_uncertainty_learns_the_logarithm_of_each_loss():
    net = Stub()
    net.log_variances = nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))
    ce, denoising = torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    total, weight = balanced_sum(net, ce, denoising, 10.0, "uncertainty")
    assert weight.item() == pytest.approx(10 * math.exp(0.7) / math.exp(-0.3))
    assert not weight.requires_grad
    assert total.item() == pytest.approx(2 * math.exp(-0.3) + 0.3 + 2 * math.exp(0.7) - 0.7)
    total.backward()
    assert net.log_variances.grad.tolist() == pytest.approx([1 - 2 * math.exp(-0.3), 1 - 2 * math.exp(0.7)])
    net.log_variances = nn.Parameter(torch.tensor([2.0, 2.0]).log())  # where each is at its best
    balanced_sum(net, ce, denoising, 10.0, "uncertainty")[0].backward()
    torch.testing.assert_close(net.log_variances.grad, torch.zeros(2))
    with pytest.raises(ValueError, match="has no log_variances"):
        balanced_sum(Stub(), ce, denoising, 10.0, "uncertainty")


def gradient(loss, *weights):
    return torch.autograd.grad(loss, weights, retain_graph=True)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_gradient_norm_keeps_the_ratio_of_the_two_gradients(alpha):
    net = Stub()
    losses = hybrid_loss(net, COSINE, batch(), alpha=alpha, target="v", balance="gradient_norm", generator=seeded())
    total, ce, denoising = losses.total, losses.ce, losses.denoising
    (of_ce,), (of_total,) = (gradient(loss, net.last_shared_weight) for loss in (ce, total))
    assert (of_total - of_ce).norm().item() == pytest.approx(alpha * of_ce.norm().item(), rel=1e-5)
    of_denoising, pixels = gradient(denoising, net.last_shared_weight, net.to_pixels)
    weight = alpha * of_ce.norm() / of_denoising.norm()
    torch.testing.assert_close(total, ce + weight * denoising, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.denoising_weight, weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(total, net.to_pixels)[0], weight * pixels, rtol=1e-6, atol=1e-12)  # w is a constant


def test_gradient_norm_stays_bounded_and_starts_at_alpha():
    net = Stub()
    ce, denoising = net.last_shared_weight.square().sum(), net.last_shared_weight.sum()
    weight = MAX_GRADIENT_RATIO * 2.0
    for small, factor in ((ce, weight), (1e-30 * ce, 2.0 / MAX_GRADIENT_RATIO)):
        scale = 1e-12 if small is ce else 1.0
        total, _ = balanced_sum(net, small, scale * denoising, 2.0, "gradient_norm")
        torch.testing.assert_close(total, small + factor * scale * denoising)
    closed = 0 * denoising  # neither gradient is there yet
    assert balanced_sum(net, closed + 1, closed + 1, 2.0, "gradient_norm")[0].item() == pytest.approx(3)


def test_labels_are_dropped_by_share_and_unknown_ones_always():
    labels = torch.arange(4).repeat(5000)
    labels[:100] = -1
    told = with_dropped(labels, 4, 0.1, seeded())
    assert told.dtype == torch.int64
    assert bool((told[:100] == 4).all())
    kept = told[100:] == labels[100:]
    assert bool((told[100:][~kept] == 4).all())
    assert (~kept).double().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 19_900))
    assert torch.equal(told, with_dropped(labels, 4, 0.1, seeded()))
    assert torch.equal(with_dropped(labels, 4, 0.0)[100:], labels[100:])
    assert bool((with_dropped(labels, 4, 1.0) == 4).all())


@pytest.mark.parametrize("labelled", [True, False])
def test_the_network_is_told_the_label_it_denoises_towards(labelled):
    clean, images, labels, _ = batch()
    told = Batch(clean, *((images, labels) if labelled else (None, None)), CLEAN_LABELS)
    net, plain = Stub(), Stub()
    net.null_label = 4
    for share, expected in ((0.0, [0, 1, 2, 3, 4, 4]), (1.0, [4] * 6)):
        hybrid_loss(net, COSINE, told, label_dropout=share, generator=seeded())
        assert list(net.asked[-1][-1]) == ["y"]
        assert net.asked[-1][-1]["y"].tolist() == expected
    hybrid_loss(plain, COSINE, told._replace(clean_labels=None), generator=seeded())
    assert torch.equal(net.asked[-1][-3], plain.asked[-1][-3])  # the same x_t: t and eps are drawn before
    assert torch.equal(net.asked[-1][-2], plain.asked[-1][-2])


@pytest.mark.parametrize("labelled", [True, False])
def test_guidance_is_learned_from_what_the_label_changes(labelled):
    clean, images, labels, _ = batch()
    told = Batch(clean, *((images, labels) if labelled else (None, None)), CLEAN_LABELS)
    net, t, noise = Stub(), torch.tensor([1, 100, 300, 500, 900, 2]), torch.randn(clean.shape, generator=seeded(5))
    net.null_label = 4
    losses = hybrid_loss(
        net, COSINE, told, norm="l2", target="v", guidance=0.25, label_dropout=0.0, t=t, noise=noise, generator=seeded()
    )
    x_t = COSINE.q_sample(clean, t, noise)
    y = CLEAN_LABELS.clone()
    y[y < 0] = 4
    prediction, untold = net.denoise_with_and_without(x_t, t, y)
    wanted = COSINE.target("v", clean, t, noise) + 0.2 * (prediction - untold).detach()
    assert torch.equal(losses.denoising, F.mse_loss(prediction, wanted))
    expected = torch.autograd.grad(F.mse_loss(prediction, wanted), net.to_pixels)[0]
    assert torch.equal(torch.autograd.grad(losses.denoising, net.to_pixels)[0], expected)
    with pytest.raises(ValueError, match="guidance needs"):
        hybrid_loss(net, COSINE, told._replace(clean_labels=None), guidance=0.25)


def test_learned_guidance_is_classifier_free_guidance():
    of_label, untold = torch.randn(2, 3, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    guided = 1.7 * of_label - 0.7 * untold
    torch.testing.assert_close(guided_target(of_label, guided, untold, 0.7), guided, rtol=0, atol=1e-12)
    assert torch.equal(guided_target(of_label, untold, untold, 0.7), of_label)  # no label was told


def test_half_of_the_labelled_images_are_lightly_noised():
    images = torch.rand(401, 1, 2, 2, generator=seeded(3)) * 2 - 1
    noisy, t = lightly_noised(COSINE, images, 0.0091, seeded())
    assert (t == 0).sum() == 201
    assert set(t.tolist()) == set(range(11))  # ceil(9.1) = 10
    assert t[:200].count_nonzero() > 60  # at random places
    assert t[201:].count_nonzero() > 60
    assert torch.equal(noisy[t == 0], images[t == 0])
    at = t.clamp(min=1)
    eps = COSINE.predict_eps(noisy, at, images)[t > 0]
    assert eps.std().item() == pytest.approx(1, abs=0.1)
    assert eps.mean().item() == pytest.approx(0, abs=0.15)
    assert lightly_noised(COSINE, images, 1e-9, seeded())[1].max() == 1


def test_class_noise_reaches_both_ways_of_classifying():
    clean, images, labels, _ = batch()
    net, plain = Stub(), Stub()
    vit = hybrid_loss(net, COSINE, Batch(None, images, labels), class_noise=0.2, generator=seeded())
    noisy, t = lightly_noised(COSINE, images, 0.2, seeded())
    assert torch.equal(net.asked[-1][0], noisy)
    assert torch.equal(net.asked[-1][1], t)
    assert torch.equal(vit.ce, F.cross_entropy(net.classify(noisy), labels))
    both = hybrid_loss(net, COSINE, Batch(clean, images, labels), class_noise=0.2, generator=seeded())
    seen, x_t, t, options = net.asked[-1]
    assert list(options) == ["t_images"]
    assert (options["t_images"] == 0).sum() == 3
    assert torch.equal(seen[options["t_images"] == 0], images[options["t_images"] == 0])
    assert bool((seen != images)[options["t_images"] > 0].any(dim=(1, 2, 3)).all())
    without = hybrid_loss(plain, COSINE, Batch(clean, images, labels), generator=seeded())
    assert torch.equal(x_t, plain.asked[-1][1])
    assert torch.equal(both.denoising, without.denoising)
    assert both.ce != without.ce


def test_noisy_images_are_labelled_by_what_is_left_of_them():
    net, (clean, images, labels, _), t = Stub(), batch(), torch.tensor([1, 100, 300, 500, 900, 2])
    told = Batch(clean, images, labels, CLEAN_LABELS)
    with_it, without = (hybrid_loss(net, COSINE, told, noisy_labels=w, t=t, generator=seeded(), alpha=3.0) for w in (0.5, 0.0))
    assert with_it.ce == without.ce
    assert with_it.denoising == without.denoising
    seen, x_t, _, options = net.asked[0]
    assert list(options) == ["label_all"]
    assert torch.equal(seen, images)
    log_p = (net.features(x_t) @ net.to_class).log_softmax(dim=1)
    known = CLEAN_LABELS >= 0
    of_each = -log_p[torch.arange(6), CLEAN_LABELS.clamp(min=0)] * known
    expected = (COSINE.alpha_bar[t] * of_each).sum() / 6
    assert expected > 0.1
    torch.testing.assert_close(with_it.total - without.total, 0.5 * expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="needs `clean_labels`"):
        hybrid_loss(net, COSINE, told._replace(clean_labels=None), noisy_labels=0.5)


# the same options in a configuration


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"alpha_end": -1.0}, r"objective\.alpha_end is -1\.0: it must be at least 0"),
        ({"class_noise": 1.5}, r"objective\.class_noise is 1\.5: .*\[0, 1\]"),
        ({"noisy_labels": -1.0}, r"objective\.noisy_labels is -1\.0: it must be at least 0"),
        ({"class_noise": -0.1}, r"objective\.class_noise is -0\.1"),
        ({"label_dropout": math.nan}, r"objective\.label_dropout is nan"),
        ({"kind": "vit", "balance": "uncertainty"}, r"objective\.balance is uncertainty: .* hybvit"),
        ({"kind": "genvit", "balance": "gradient_norm"}, r"objective\.balance is gradient_norm: .* genvit"),
        ({"kind": "jem", "class_noise": 0.1}, r"objective\.class_noise is 0\.1: .*jem\.input_noise"),
        ({"guidance": -0.1}, r"objective\.guidance is -0\.1: it must be at least 0"),
        ({"guidance": math.inf}, r"objective\.guidance is inf: it must be finite"),
        ({"guidance": 0.3}, r"objective\.guidance is 0\.3: it needs model\.label_conditioning"),
        ({"times": "late"}, r"objective\.times is 'late': it must be one of uniform, logit_normal"),
        ({"weighting": "snr"}, r"objective\.weighting is 'snr'"),
        ({"balance": "even"}, r"objective\.balance is 'even'"),
    ],
)
def test_options_that_do_not_fit_are_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        Config(objective=ObjectiveConfig(**fields))


def test_a_network_without_time_takes_no_class_noise():
    network = NetworkConfig(name="wide_resnet")
    Config(network=network, objective=ObjectiveConfig(kind="vit"))
    with pytest.raises(ConfigError, match=r"objective\.class_noise is 0\.1: only network\.name vit"):
        Config(network=network, objective=ObjectiveConfig(kind="vit", class_noise=0.1))


def test_guidance_needs_images_without_a_label_too():
    model = ViTConfig(label_conditioning=True, class_depth=6)
    Config(model=model, objective=ObjectiveConfig(guidance=0.3))
    with pytest.raises(ConfigError, match=r"label_dropout above 0"):
        Config(model=model, objective=ObjectiveConfig(guidance=0.3, label_dropout=0.0))


def test_options_survive_the_file(tmp_path):
    objective = ObjectiveConfig(
        alpha_end=1.0, balance="gradient_norm", norm="huber", target="flow", times="logit_normal", weighting="p2",
        class_noise=0.1, label_dropout=0.2, noisy_labels=1.0, guidance=0.3,
    )  # fmt: skip
    cfg = Config(ViTConfig(label_conditioning=True, class_depth=6), objective=objective, diffusion=DiffusionConfig("flow", 100))
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    assert cfg.diffusion.build().alpha_bar[50] == Diffusion.flow(100).alpha_bar[50]
    assert ObjectiveConfig() == ObjectiveConfig(
        "hybvit", 100.0, None, "fixed", "l1", "eps", "uniform", "uniform", 0, 0, 0.1, 0.1, 0
    )


def test_on_a_cpu_noise_is_what_its_generator_draws():
    x = torch.empty(3, 2, dtype=torch.float64)
    drawn = normal_like(x, torch.Generator().manual_seed(7))
    assert torch.equal(drawn, torch.randn(3, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    assert normal_like(torch.empty(3, 2, device="meta"), torch.Generator()).is_meta  # only counted, never computed
