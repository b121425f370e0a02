from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybvit import loading
from hybvit.config import Config, DataConfig, DiffusionConfig, load_config, to_yaml
from hybvit.errors import ConfigError
from hybvit.method.diffusion import Diffusion
from hybvit.method.objective import (
    Batch,
    alpha_at,
    denoising_loss,
    draw_times,
    drop_labels,
    guided_target,
    hybrid_loss,
    time_weights,
)
from hybvit.method.objective_config import Objective
from hybvit.method.seeds import normal_like
from hybvit.method.vit import HybViT, Output, ViTConfig

COSINE = Diffusion.cosine(1000)
SMALL = ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=4, dim=16, depth=2, heads=2)
PLAIN = Objective(label_smoothing=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(clean: Tensor, diffusion: Diffusion = COSINE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """t and eps as :func:`hybrid_loss` draws them from a generator of this seed."""
    generator = seeded(seed)
    return draw_times(len(clean), diffusion.T, generator=generator), normal_like(clean, generator)


def plain(**fields) -> Objective:
    return replace(PLAIN, **fields)


def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(
        torch.rand(6, 1, 8, 8, generator=g) * 2 - 1,
        torch.rand(5, 1, 8, 8, generator=g) * 2 - 1,
        torch.tensor([0, 1, 2, 3, 0]),
    )


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_golden_losses(golden, golden_config, golden_file, norm, monkeypatch):
    monkeypatch.setattr("hybvit.method.objective.draw_times", lambda *_: golden["t"] + 1)  # the file counts steps from 0
    monkeypatch.setattr("hybvit.method.objective.normal_like", lambda *_: golden["noise"])
    net = HybViT(golden_config)
    loading.load_published_weights(net, golden_file)
    with torch.no_grad():
        losses = hybrid_loss(net, COSINE, Batch(golden["x"], None, None), Objective(norm=norm))
    assert losses.denoising.item() == pytest.approx(golden[f"loss_{norm}"].item(), rel=1e-6)


def test_hybvit_is_cross_entropy_plus_alpha_times_denoising():
    net, (clean, images, labels, *_) = HybViT(SMALL), batch()
    t, noise = drawn(clean)
    losses = hybrid_loss(net, COSINE, Batch(clean, images, labels), plain(alpha=7.0), generator=seeded())
    logits, eps = net(images).logits, net(COSINE.q_sample(clean, t, noise), t).prediction
    ce = -logits.log_softmax(1)[torch.arange(5), labels].mean()
    torch.testing.assert_close(losses.ce, ce)
    torch.testing.assert_close(losses.denoising, (eps - noise).abs().mean())
    torch.testing.assert_close(losses.total, ce + 7 * (eps - noise).abs().mean())


def test_vit_and_genvit_minimize_one_term():
    net, (clean, images, labels, *_) = HybViT(SMALL), batch()
    vit = hybrid_loss(net, COSINE, Batch(None, images, labels), PLAIN)
    assert vit.denoising is None
    assert vit.total is vit.ce
    genvit = hybrid_loss(net, COSINE, Batch(clean, None, None), PLAIN, generator=seeded())
    assert genvit.ce is None
    assert genvit.total is genvit.denoising


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow"])
def test_a_perfect_prediction_costs_nothing(target):
    clean = batch().x0
    t, noise = drawn(clean)
    wanted = COSINE.target(target, clean, t, noise)

    class Oracle(HybViT):
        def denoise(self, x_t, t):
            return wanted

    net = Oracle(SMALL)
    assert hybrid_loss(net, COSINE, Batch(clean, None, None), plain(target=target), generator=seeded()).total == 0
    other = {"eps": "v", "x0": "eps", "v": "flow", "flow": "x0"}[target]
    assert hybrid_loss(net, COSINE, Batch(clean, None, None), plain(target=other), generator=seeded()).total > 0.1


def test_norms():
    a, b, t = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 0.0]), torch.tensor([1, 1])
    assert denoising_loss(COSINE, a, b, t, Objective(norm="l1")) == 1.5
    assert denoising_loss(COSINE, a, b, t, Objective(norm="l2")) == 2.5
    with pytest.raises(ValueError, match="L1"):
        denoising_loss(COSINE, a, b, t, Objective(norm="L1"))
    with pytest.raises(ValueError, match="score"):
        COSINE.target("score", a, t, b)


def test_label_smoothing_and_soft_labels():
    net, (_, images, labels, *_) = HybViT(SMALL), batch()
    log_p = net(images).logits.log_softmax(1)
    smoothed = hybrid_loss(net, COSINE, Batch(None, images, labels), Objective(label_smoothing=0.1)).ce
    target = torch.nn.functional.one_hot(labels, 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(smoothed, -(target * log_p).sum(1).mean())
    torch.testing.assert_close(hybrid_loss(net, COSINE, Batch(None, images, target), PLAIN).ce, smoothed)


def test_random_numbers_follow_the_generator_and_cover_all_steps():
    net, (clean, *_) = HybViT(SMALL), batch()
    first, again, other = (
        hybrid_loss(net, COSINE, Batch(clean, None, None), PLAIN, generator=seeded(s)).total for s in (0, 0, 1)
    )
    assert first == again
    assert first != other
    seen = []

    class Spy(HybViT):
        def denoise(self, x_t, t):
            seen.append(t)
            return super().denoise(x_t, t)

    few, g = Diffusion.cosine(4), seeded()
    for _ in range(40):
        hybrid_loss(Spy(SMALL), few, Batch(clean, None, None), PLAIN, generator=g)
    counts = torch.cat(seen).bincount(minlength=5)
    assert len(counts) == 5
    assert counts[0] == 0
    assert counts[1:].min() > 60 - 4 * math.sqrt(240 * 0.25 * 0.75)


def test_incomplete_batches_are_refused():
    net, (clean, images, labels, *_) = HybViT(SMALL), batch()
    with pytest.raises(ValueError, match="empty"):
        hybrid_loss(net, COSINE, Batch(None, None, None), PLAIN)
    with pytest.raises(ValueError, match="belong together"):
        hybrid_loss(net, COSINE, Batch(clean, images, None), PLAIN)
    with pytest.raises(ValueError, match="belong together"):
        hybrid_loss(net, COSINE, Batch(clean, None, labels), PLAIN)


# options, all of them off by default

FLOW_3 = Diffusion.flow(3)  # abar = 1, 0.9, 0.5, 0.1; snr = 9, 1, 1/9 for t = 1, 2, 3
X0_LABELS = torch.tensor([0, 1, 2, 3, -1, -1])


class Stub(nn.Module):
    """One shared weight and two read-outs; it records its calls and takes only the arguments of the protocol."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(7)
        self.null_label: int | None = None
        self.shared = nn.Parameter(torch.randn(64, 64, generator=g, dtype=torch.float64) / 8)
        self.to_class = nn.Parameter(torch.randn(64, 4, generator=g, dtype=torch.float64) / 8)
        self.to_pixels = nn.Parameter(torch.randn(64, 64, generator=g, dtype=torch.float64) / 8)
        self.asked: list[tuple] = []

    def features(self, x):
        return (x.double().flatten(1) @ self.shared).tanh()

    def classify(self, *args):
        self.asked.append(args)
        return self.features(args[0]) @ self.to_class

    def denoise(self, x_t, t, **options):
        self.asked.append((x_t, t, options))
        return (self.features(x_t) @ self.to_pixels).reshape(x_t.shape)

    def denoise_cond_uncond(self, x_t, t, y):
        uncond = self.denoise(x_t, t, y=y)
        return uncond + self.of_label(y), uncond

    def joint(self, images, x_t, t, **options):
        self.asked.append((images, x_t, t, options))
        labelled = torch.cat((images, x_t)) if options.get("classify_noisy") else images
        logits, uncond = self.features(labelled) @ self.to_class, (self.features(x_t) @ self.to_pixels).reshape(x_t.shape)
        return Output(logits, uncond + self.of_label(options["y"]), uncond) if options.get("uncond") else Output(logits, uncond)

    def of_label(self, y):
        """The contribution of the label: 0 for the label 4, which means "no label"."""
        return torch.where(y == 4, 0.0, 1.0 + y)[:, None, None, None] * self.shared.mean()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_without_options_only_the_papers_terms_are_computed(norm):
    net, (clean, images, labels, *_), g, reference = Stub(), batch(), seeded(), seeded()
    losses = hybrid_loss(net, COSINE, Batch(clean, images, labels), plain(norm=norm), generator=g)
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
    hybrid_loss(net, COSINE, Batch(None, images, labels), PLAIN, generator=g)
    assert len(net.asked[-1]) == 1
    assert torch.equal(g.get_state(), reference.get_state())
    hybrid_loss(net, COSINE, Batch(clean, None, None), PLAIN, generator=g)
    assert net.asked[-1][2] == {}
    torch.randint(1, 1001, (6,), generator=reference)
    torch.randn(clean.shape, generator=reference)
    assert torch.equal(g.get_state(), reference.get_state())


@pytest.mark.parametrize(("option", "value"), [("norm", "L2"), ("weighting", "snr"), ("target", "score")])
def test_unknown_options_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is '{value}'"):
        hybrid_loss(Stub(), COSINE, batch(), plain(**{option: value}))


def test_every_image_has_its_weight():
    a, b = torch.randn(2, 3, 1, 4, 4, generator=seeded())
    t, weights = torch.tensor([1, 2, 3]), torch.tensor([5.0, 1.0, 1 / 9]) * 3 / (5 + 1 + 1 / 9)
    for norm in ("l1", "l2"):
        even, weighted = (Objective(norm=norm, target="x0", weighting=of) for of in ("uniform", "min_snr"))
        each = torch.stack([denoising_loss(FLOW_3, a[i], b[i], t[i : i + 1], even) for i in range(3)])
        torch.testing.assert_close(denoising_loss(FLOW_3, a, b, t, weighted), (weights * each).mean())
        torch.testing.assert_close(denoising_loss(FLOW_3, a, b, t, even), each.mean())


A, S = math.sqrt(0.9), math.sqrt(0.1)


@pytest.mark.parametrize(
    ("weighting", "target", "expected"),
    [
        ("uniform", "x0", [1, 1, 1]),
        ("min_snr", "eps", [5 / 9, 1, 1]),
        ("min_snr", "x0", [5, 1, 1 / 9]),
        ("min_snr", "v", [5 / 10, 1 / 2, 1 / 10]),
        ("min_snr", "flow", [5 * (S / (A + S)) ** 2, 1 / 4, 1 / 9 * (A / (A + S)) ** 2]),
    ],
)
def test_time_weights_by_hand(weighting, target, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    weights = time_weights(FLOW_3, weighting, target)
    torch.testing.assert_close(weights, torch.cat((torch.zeros(1), 3 * expected / expected.sum())))
    assert time_weights(COSINE, weighting, target)[1:].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("diffusion", [Diffusion.cosine(50), Diffusion.flow(50)], ids=["cosine", "flow"])
def test_the_weighted_loss_does_not_depend_on_the_parametrization(diffusion):
    g, t = seeded(), torch.arange(1, 51)
    x0, noise, error = torch.randn(3, 50, 1, 2, 2, generator=g, dtype=torch.float64)
    x_t = diffusion.q_sample(x0, t, noise)
    eps = noise + error
    guess = diffusion.predict_x0(x_t, t, eps)

    def losses(kind, of):
        """The weighted squared error at each t of the same denoiser when it predicts ``kind``."""
        error = (diffusion.target(kind, guess, t, eps) - diffusion.target(kind, x0, t, noise)).square().flatten(1).mean(1)
        return time_weights(diffusion, of, kind)[t] * error

    for kind in ("x0", "v", "flow"):
        ratio = losses(kind, "min_snr") / losses("eps", "min_snr")
        torch.testing.assert_close(ratio, ratio.mean().expand(50), rtol=1e-6, atol=0)
        ratio = losses(kind, "uniform") / losses("eps", "uniform")
        assert ratio.max() > 2 * ratio.min()


def test_the_objective_weights_each_image_by_its_time():
    net, clean = Stub(), batch().x0
    t, noise = drawn(clean, FLOW_3)
    assert set(t.tolist()) == {1, 2, 3}
    objective = plain(norm="l2", target="v", weighting="min_snr")
    losses = hybrid_loss(net, FLOW_3, Batch(clean, None, None), objective, generator=seeded())
    prediction = net.denoise(FLOW_3.q_sample(clean, t, noise), t)
    each = (prediction - FLOW_3.target("v", clean, t, noise)).square().flatten(1).mean(1)
    expected = (torch.tensor([0.0, 0.5, 0.5, 0.1])[t] * 3 / 1.1 * each).mean()
    torch.testing.assert_close(losses.total, expected)


def test_labels_are_dropped_at_random_and_unknown_ones_always():
    labels = torch.arange(4).repeat(5000)
    labels[:100] = -1
    found = drop_labels(labels, 4, 0.1, seeded())
    assert found.dtype == torch.int64
    assert bool((found[:100] == 4).all())
    kept = found[100:] == labels[100:]
    assert bool((found[100:][~kept] == 4).all())
    assert (~kept).double().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 19_900))
    assert torch.equal(found, drop_labels(labels, 4, 0.1, seeded()))
    assert torch.equal(drop_labels(labels, 4, 0.0)[100:], labels[100:])
    assert bool((drop_labels(labels, 4, 1.0) == 4).all())


@pytest.mark.parametrize("labelled", [True, False])
def test_the_network_gets_the_labels_of_the_noisy_images(labelled):
    clean, images, labels, *_ = batch()
    known = Batch(clean, *((images, labels) if labelled else (None, None)), X0_LABELS)
    net, other = Stub(), Stub()
    net.null_label = 4
    for share, expected in ((0.0, [0, 1, 2, 3, 4, 4]), (1.0, [4] * 6)):
        hybrid_loss(net, COSINE, known, plain(label_dropout=share), generator=seeded())
        assert list(net.asked[-1][-1]) == ["y"]
        assert net.asked[-1][-1]["y"].tolist() == expected
    hybrid_loss(other, COSINE, known._replace(x0_labels=None), PLAIN, generator=seeded())
    assert torch.equal(net.asked[-1][-3], other.asked[-1][-3])  # the same x_t: t and eps are sampled first
    assert torch.equal(net.asked[-1][-2], other.asked[-1][-2])


@pytest.mark.parametrize("labelled", [True, False])
def test_guidance_is_learned_from_the_effect_of_the_label(labelled):
    clean, images, labels, *_ = batch()
    known = Batch(clean, *((images, labels) if labelled else (None, None)), X0_LABELS)
    net, (t, noise) = Stub(), drawn(clean)
    net.null_label = 4
    objective = plain(norm="l2", target="v", guidance=0.25, label_dropout=0.0)
    losses = hybrid_loss(net, COSINE, known, objective, generator=seeded())
    x_t = COSINE.q_sample(clean, t, noise)
    y = X0_LABELS.clone()
    y[y < 0] = 4
    prediction, uncond = net.denoise_cond_uncond(x_t, t, y)
    wanted = COSINE.target("v", clean, t, noise) + 0.2 * (prediction - uncond).detach()
    assert torch.equal(losses.denoising, F.mse_loss(prediction, wanted))
    expected = torch.autograd.grad(F.mse_loss(prediction, wanted), net.to_pixels)[0]
    assert torch.equal(torch.autograd.grad(losses.denoising, net.to_pixels)[0], expected)
    with pytest.raises(ValueError, match="guidance needs"):
        hybrid_loss(net, COSINE, known._replace(x0_labels=None), plain(guidance=0.25))


def test_learned_guidance_is_classifier_free_guidance():
    cond, uncond = torch.randn(2, 3, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    guided = 1.7 * cond - 0.7 * uncond
    torch.testing.assert_close(guided_target(cond, guided, uncond, 0.7), guided, rtol=0, atol=1e-12)
    assert torch.equal(guided_target(cond, uncond, uncond, 0.7), cond)  # without a label


def test_the_loss_of_noisy_labels_is_weighted_by_the_signal():
    net, (clean, images, labels, *_) = Stub(), batch()
    t, _ = drawn(clean)
    both = Batch(clean, images, labels, X0_LABELS)
    with_it, without = (
        hybrid_loss(net, COSINE, both, plain(noisy_labels=w, alpha=3.0), generator=seeded()) for w in (0.5, 0.0)
    )
    assert with_it.ce == without.ce
    assert with_it.denoising == without.denoising
    seen, x_t, _, options = net.asked[0]
    assert list(options) == ["classify_noisy"]
    assert torch.equal(seen, images)
    log_p = (net.features(x_t) @ net.to_class).log_softmax(dim=1)
    known = X0_LABELS >= 0
    of_each = -log_p[torch.arange(6), X0_LABELS.clamp(min=0)] * known
    expected = (COSINE.alpha_bar[t] * of_each).sum() / 6
    assert expected > 0.1
    torch.testing.assert_close(with_it.total - without.total, 0.5 * expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="needs `x0_labels`"):
        hybrid_loss(net, COSINE, both._replace(x0_labels=None), plain(noisy_labels=0.5))


def test_alpha_changes_linearly():
    assert [alpha_at(Objective(alpha=7.0), p) for p in (0.0, 0.3, 1.0)] == [7.0, 7.0, 7.0]
    moving = Objective(alpha=100.0, alpha_end=20.0)
    assert [alpha_at(moving, p) for p in (0.0, 0.25, 1.0)] == [100.0, 80.0, 20.0]
    assert alpha_at(Objective(alpha=2.0, alpha_end=0.0), 1.0) == 0.0
    halfway = hybrid_loss(Stub(), COSINE, batch(), moving, progress=0.5, generator=seeded())
    assert halfway.denoising_weight == 60.0
    torch.testing.assert_close(halfway.total, halfway.ce + 60.0 * halfway.denoising)


def test_the_objective_stays_short():
    """A new option is a field of Objective and a function of its own, not an argument and a branch here."""
    assert len(inspect.signature(hybrid_loss).parameters) <= 6
    assert len(inspect.getsource(hybrid_loss).splitlines()) <= 60


# the same options in a configuration


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"alpha_end": -1.0}, r"objective\.alpha_end is -1\.0: it must be at least 0"),
        ({"noisy_labels": -1.0}, r"objective\.noisy_labels is -1\.0: it must be at least 0"),
        ({"label_dropout": math.nan}, r"objective\.label_dropout is nan"),
        ({"guidance": -0.1}, r"objective\.guidance is -0\.1: it must be at least 0"),
        ({"guidance": math.inf}, r"objective\.guidance is inf: it must be finite"),
        ({"guidance": 0.3}, r"objective\.guidance is 0\.3: it needs model\.label_conditioning"),
        ({"weighting": "snr"}, r"objective\.weighting is 'snr'"),
        ({"norm": "huber"}, r"objective\.norm is 'huber': it must be one of l1, l2"),
    ],
)
def test_options_that_do_not_fit_are_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        Config(objective=Objective(**fields))


def test_guidance_needs_label_dropout():
    model = ViTConfig(label_conditioning=True, class_depth=6)
    Config(model=model, objective=Objective(guidance=0.3))
    with pytest.raises(ConfigError, match=r"label_dropout above 0"):
        Config(model=model, objective=Objective(guidance=0.3, label_dropout=0.0))


def test_options_survive_the_file(tmp_path):
    objective = Objective(
        alpha_end=1.0, norm="l2", target="flow", weighting="min_snr", label_dropout=0.2,
        noisy_labels=1.0, label_smoothing=0.2, guidance=0.3, pseudo_labels=0.8,
    )  # fmt: skip
    model, strong = ViTConfig(label_conditioning=True, class_depth=6), DataConfig(augment="strong")
    cfg = Config(model, objective=objective, diffusion=DiffusionConfig("flow", 100), data=strong)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    assert cfg.diffusion.build().alpha_bar[50] == Diffusion.flow(100).alpha_bar[50]
    assert Objective() == Objective("hybvit", 100.0, None, "l1", "eps", "uniform", 0, 0.1, 0.1, 0)


def test_on_a_cpu_noise_comes_from_the_generator_itself():
    x = torch.empty(3, 2, dtype=torch.float64)
    drawn = normal_like(x, torch.Generator().manual_seed(7))
    assert torch.equal(drawn, torch.randn(3, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    assert normal_like(torch.empty(3, 2, device="meta"), torch.Generator()).is_meta  # only counted, never computed
