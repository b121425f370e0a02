"""Three readings of one image: the label read-out, the diffusion classifier, and the label read-out after a denoising step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hybvit.config import Config, override
from hybvit.data.image_set import Dataset, ImageSet
from hybvit.errors import ConfigError
from hybvit.evaluation import readings
from hybvit.evaluation.context import Context
from hybvit.evaluation.options import Options
from hybvit.evaluation.readings import run, together
from hybvit.evaluation.report import meaning
from hybvit.method.diffusion import Diffusion
from hybvit.method.readings import DenoisedReading, DiffusionClassifier, Round
from hybvit.method.vit import HybViT
from hybvit.metrics.agreement import agreement
from hybvit.model import HybridModel

from .test_vit import SMALL, VARIANTS

LABELED = {name: parts for name, parts in VARIANTS.items() if name in ("tap", "conv stem", "adaln_zero", "llama", "early tap")}
LINEAR = Diffusion.linear(50)


def network(**changes) -> HybViT:
    torch.manual_seed(0)
    net = HybViT(replace(SMALL, label_conditioning=True, **{"class_depth": 2, **changes}))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.double()


def model(**objective) -> HybridModel:
    net = network(channels=1)
    cfg = Config(net.cfg, diffusion=override(Config(), diffusion={"steps": 50}).diffusion)
    return HybridModel(net.float(), override(cfg, objective={"target": "v", **objective}), "cpu")


@pytest.mark.parametrize("name", LABELED)
def test_denoising_for_many_labels_at_once_is_denoising_for_each(name):
    net = network(**LABELED[name])
    x_t, t = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 400, 900])
    y = torch.tensor([[0, 3, 5], [4, 4, 1], [2, 0, 3]])  # 5 is no label
    together = net.denoise_labels(x_t, t, y)
    apart = torch.stack([net.denoise(x_t, t, column) for column in y.unbind(1)], dim=1)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    assert (together[:, 0] - together[:, 1]).abs().amax(dim=(1, 2, 3))[[0, 2]].min() > 1e-4


def test_all_classes_cost_one_trunk_and_a_tail_for_each():
    net, rows = network(), [0] * 3
    for k, layer in enumerate(net.layers):
        layer.register_forward_pre_hook(lambda _, inputs, k=k: rows.__setitem__(k, rows[k] + len(inputs[0])))
    net.denoise_labels(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.full((4,), 7), torch.arange(5).expand(4, -1))
    assert rows == [4, 4, 20]  # the tap is after two of three layers: 2/3 + 5/3 passes for 5 classes


MEANS = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
VARIANCE = 0.3


def gaussian_denoiser(x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """E[x_0 | x_t, y] where x_0 of class y is N(MEANS[y], VARIANCE I)."""
    abar = LINEAR.alpha_bar[t][:, None, None, None, None]
    gain = abar.sqrt() * VARIANCE / (abar * VARIANCE + 1 - abar)
    return MEANS[y] + gain * (x_t[:, None] - abar.sqrt() * MEANS[y])


def toy(rounds, scale: float = 1.0) -> DiffusionClassifier:
    return DiffusionClassifier(gaussian_denoiser, LINEAR, 4, rounds, scale)


def test_the_diffusion_classifier_is_bayes_where_the_denoiser_is_exact():
    """A draw of noise and its negative make the error exact, so the logits are those of Bayes' rule at the right scale."""
    x = torch.randn(20, 1, 3, 3, dtype=torch.float64)
    times = (0.2, 0.2, 0.5, 0.5, 0.9, 0.9)
    abar = LINEAR.alpha_bar[[10, 25, 45]]
    lost = 1 - abar * VARIANCE / (abar * VARIANCE + 1 - abar)  # of x_0 - mean, in the posterior mean
    scale = 9 / (2 * VARIANCE) / (lost**2 * abar.sqrt() / (1 - abar)).mean().item()
    reading = toy([Round(times, 4)], scale)
    noise = reading.draw_noise((1, 3, 3), torch.Generator().manual_seed(0)).double()
    noise[1::2] = -noise[::2]
    posterior = (-(x[:, None] - MEANS).square().flatten(2).sum(2) / (2 * VARIANCE)).softmax(1)
    torch.testing.assert_close(reading(x, noise).softmax(1), posterior, rtol=1e-9, atol=1e-12)


def test_a_class_that_was_left_out_keeps_its_distance_to_the_best():
    x = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    first, second = (0.3, 0.6), (0.8,)
    eliminating, plain = toy([Round(first, 0), Round(second, 2)]), toy([Round((*first, *second), 0)])
    noise = plain.draw_noise((1, 3, 3), torch.Generator().manual_seed(1)).double()
    found, every, early = eliminating(x, noise), plain(x, noise), toy([Round(first, 0)])(x, noise[:2])
    kept = early.topk(2, dim=1).indices
    best = every.gather(1, kept).amax(1)
    for i in range(len(x)):
        for k in range(4):
            wanted = every[i, k] if k in kept[i] else best[i] + early[i, k] - early[i].max()
            assert found[i, k] == pytest.approx(wanted.item())
    everyone = toy([Round(first, 0), Round(second, 4)])
    torch.testing.assert_close(everyone(x, noise), every)


def test_gradients_through_the_whole_chain_are_exact():
    x = 0.5 * torch.randn(2, 1, 3, 3, dtype=torch.float64)
    reading = toy([Round((0.3, 0.6), 0), Round((0.8,), 2)], 5.0)
    noise = reading.draw_noise((1, 3, 3), torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradcheck(lambda x: reading(x, noise), x.requires_grad_())
    net = network(channels=1)
    denoised = DenoisedReading(lambda x_t, t: 0.02 * net.denoise(x_t, t), net.classify, LINEAR, 0.3, 2)
    draws = denoised.draw_noise((1, 8, 8), torch.Generator().manual_seed(1)).double()
    image = (0.1 * torch.randn(1, 1, 8, 8, dtype=torch.float64)).requires_grad_()
    assert denoised.denoised(image, draws[0]).abs().max() < 1  # else the clip would hide the gradient
    assert torch.autograd.gradcheck(lambda x: denoised(x, draws), image)


def test_the_denoised_reading_averages_the_probabilities_of_its_draws():
    net, x = network(channels=1), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    predict = lambda x_t, t: LINEAR.to_x0("v", net.denoise(x_t, t), x_t, t)  # noqa: E731
    reading = DenoisedReading(predict, net.classify, LINEAR, 0.3, 2)
    noise, at = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.full((3,), 15)
    each = [net.classify(predict(LINEAR.q_sample(x, at, draw.expand_as(x)), at).clamp(-1, 1)).softmax(1) for draw in noise]
    torch.testing.assert_close(reading(x, noise).exp(), (each[0] + each[1]) / 2)


def test_read_gives_each_reading_and_refuses_what_the_network_cannot():
    m, pixels = model(), torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(m.read(pixels).probabilities, m.predict(pixels).probabilities)
    for by in ("diffusion", "denoised"):
        found = m.read(pixels, by=by)
        torch.testing.assert_close(found.probabilities.sum(1), torch.ones(70))
        assert torch.equal(found.labels, found.probabilities.argmax(1))
        assert torch.equal(found.probabilities, m.read(pixels, by=by).probabilities)
        torch.testing.assert_close(m.read(pixels[66:], by=by).probabilities, found.probabilities[66:], rtol=1e-3, atol=1e-4)
        assert not torch.equal(m.read(pixels, by=by, seed=1).probabilities, found.probabilities)
    with pytest.raises(ValueError, match="label, diffusion, denoised"):
        m.read(pixels, by="both")
    with pytest.raises(ConfigError, match="objective vit: it cannot be read by denoised"):
        model(kind="vit").read(pixels, by="denoised")
    unlabeled = HybViT(replace(SMALL, channels=1))
    with pytest.raises(ConfigError, match="label_conditioning"):
        HybridModel(unlabeled, Config(unlabeled.cfg), "cpu").read(pixels, by="diffusion")


def test_agreement_is_the_mean_probability_of_the_first_label():
    first, second = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]), torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.2, 0.8]])
    torch.testing.assert_close(agreement([first.log(), second.log()]), torch.tensor([0.4, 0.6], dtype=torch.float64))


def test_together_is_the_log_of_the_mean_probabilities():
    first, second = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.9, 0.0]])
    torch.testing.assert_close(together([first.log() + 3, second.log()]).exp(), torch.tensor([[0.4, 0.55, 0.05]]))


@pytest.mark.slow
def test_the_suite_measures_every_reading_and_attacks_each(tmp_path):
    g = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(256, (24, 1, 8, 8), generator=g).to(torch.uint8), torch.arange(24) % 5)
    options = Options(reading_images=20, reading_attacks=4, attack_steps=2)
    ctx = Context(model(), Dataset(images, images, tuple("abcde")), "tiny", options, tmp_path)
    found = run(ctx)
    names = {name.removeprefix("readings/") for name in found.metrics}
    for reading in ("label", "diffusion", "denoised", "together"):
        assert {f"{reading}_accuracy", f"{reading}_nll", f"{reading}_ece_15"} <= names
    for what in ("aurc", "augrc", "coverage_at_5_risk", "risk_at_80_coverage"):
        assert {f"{what}_agreement", f"{what}_max_prob"} <= names
    attacks = {f"{by}_{how}_linf_8" for by in ("diffusion", "denoised", "together") for how in ("fixed", "eot", "transfer")}
    assert attacks | {"label_attacked_linf_8", "all_agree", "aurc_agreement", "aurc_lowered_by"} <= names
    assert all(meaning(name) for name in found.metrics)
    assert found.metrics["readings/diffusion_accuracy"].n == 20
    pixels = images.subsample(20).in_memory
    by_hand = (ctx.model.read(pixels, by="diffusion").labels == images.subsample(20).labels).double().mean().item()
    assert found.metrics["readings/diffusion_accuracy"].value == by_hand
    mean = sum(ctx.model.read(pixels, by=by).probabilities for by in ("label", "diffusion", "denoised")) / 3
    right = (mean.argmax(dim=1) == images.subsample(20).labels).double().mean().item()
    assert found.metrics["readings/together_accuracy"].value == right
    assert set(found.pictures) >= {"risk_coverage", "attacked", "reliability_diffusion"}


def test_noise_that_is_drawn_anew_is_that_of_its_batch_whoever_attacks_it(tmp_path, monkeypatch):
    images = ImageSet(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 5)
    ctx = Context(model(), Dataset(images, images, tuple("abcde")), "tiny", Options(attack_steps=1), tmp_path)

    def noise_of_batches(order: int) -> list[float]:
        seen = []

        def by_noise(fresh: torch.Generator) -> readings.Logits:
            seen.append(torch.randn((), generator=fresh).item())
            return ctx.model.logits

        def in_turn(n, size, work, what):
            return (torch.cat([work(index) for index in torch.arange(n).tensor_split(-(-n // size))[::order]]),)

        monkeypatch.setattr(readings, "share_batches", in_turn)
        readings.attack(ctx, images, by_noise, by_noise, 50)
        return seen

    forward = noise_of_batches(1)
    assert len(set(forward)) == 3
    assert noise_of_batches(-1) == forward[::-1]
