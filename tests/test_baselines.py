"""The baselines: sizes against the literature, JEM's sampler against distributions known in closed form."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hybvit.baselines import jem as jem_room
from hybvit.baselines.jem import JEM, JEMConfig, eval_mode, gaussian
from hybvit.baselines.preact_resnet import PreActBlock, PreActResNet18
from hybvit.baselines.unet import DenoisingUNet
from hybvit.baselines.wide_resnet import WideResNet
from hybvit.data.image_set import to_pixels
from hybvit.errors import ConfigError, DivergedError
from hybvit.method.diffusion import Diffusion
from hybvit.method.objective import Batch, hybrid_loss
from hybvit.method.objective_config import Objective
from hybvit.method.vit import HybViT, ViTConfig
from hybvit.networks import number_of_parameters

SHAPE = (1, 8, 8)
PLAIN = Objective("jem", label_smoothing=0.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=rng(seed)) * 2 - 1


def wrn_parameters(channels: int, classes: int, depth: int, width: int) -> int:
    """From the table of Zagoruyko & Komodakis: convolutions without bias, BN's scale and shift, the linear read-out."""
    total, before = channels * 16 * 9, 16
    for after in (16 * width, 32 * width, 64 * width):
        for k in range((depth - 4) // 6):
            total += 2 * before + before * after * 9 + 2 * after + after * after * 9
            total += before * after if k == 0 else 0
            before = after
    return total + 2 * before + before * classes + classes


# Classifiers


@pytest.mark.parametrize(("depth", "width", "known"), [(28, 10, 36_479_194), (16, 8, 10_961_370)])
def test_wide_resnet_has_the_published_size(depth, width, known):
    with torch.device("meta"):
        net = WideResNet((3, 32, 32), 10, depth, width)
    assert number_of_parameters(net) == known == wrn_parameters(3, 10, depth, width)


def test_wide_resnet_counts_its_layers():
    net = WideResNet(SHAPE, 10, depth=16, width=1)
    along = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(along) == 13  # 16 less the three 1x1 convolutions that the name counts
    assert [m.stride[0] for m in along if m.stride[0] > 1] == [2, 2]
    shortcuts = [m.shortcut is not None for m in net.modules() if isinstance(m, PreActBlock)]
    assert shortcuts == [False, False, True, False, True, False]  # width 1: the first stage changes no shape
    for depth in (4, 12, 27):
        with pytest.raises(ValueError, match=rf"network\.depth is {depth}: .*6n \+ 4"):
            WideResNet(SHAPE, 10, depth)


def test_preact_resnet_has_the_common_size_and_a_last_batch_norm():
    with torch.device("meta"):
        net = PreActResNet18((3, 32, 32), 10)
    total, before = 3 * 64 * 9, 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for k in range(2):
            total += 2 * before + before * after * 9 + 2 * after + after * after * 9
            total += before * after if k == 0 and stride == 2 else 0
            before = after
    common = total + 512 * 10 + 10
    assert common == 11_171_146
    assert number_of_parameters(net) == 11_172_170 == common + 2 * 512
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 18
    assert [m.stride[0] for m in convolutions if m.stride[0] > 1] == [2, 2, 2]


@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("build", "width"),
    [
        (lambda shape: WideResNet(shape, 5, 10, 1), 64),
        (lambda shape: WideResNet(shape, 5, 10, 2, dropout=0.3, batch_norm=False), 128),
        (lambda shape: PreActResNet18(shape, 5, width=4), 32),
    ],
)
def test_classifiers_take_any_image_and_train_every_weight(build: Callable, width, channels, side):
    net, x = build((channels, side, side)), uniform(3, channels, side, side).requires_grad_()
    logits = net.classify(x)
    assert logits.shape == (3, 5)
    assert logits.dtype == torch.float32
    assert net.features(x).shape == (3, width)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [x, *net.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.float32
    net.eval()
    torch.testing.assert_close(net(x), net.readout(net.features(x)))
    torch.testing.assert_close(net.features(x), net.body(net.stem(x)).flatten(2).mean(dim=2))


def test_a_pre_activation_block_is_what_he_et_al_drew():
    block = PreActBlock(4, 4, 1, 0.0, True).eval()
    x, (norm, _), branch = uniform(2, 4, 8, 8), block.enter, block.branch
    torch.testing.assert_close(block(x), x + branch[4](branch[1](branch[0](norm(x).relu())).relu()))
    wider = PreActBlock(4, 6, 2, 0.0, True).eval()
    h = wider.enter(x)
    assert (h >= 0).all()
    torch.testing.assert_close(wider(x), wider.branch(h) + wider.shortcut(h))


def test_initial_activations_keep_their_scale():
    torch.manual_seed(0)
    conv = WideResNet(SHAPE, 10, 10, 4).body[0].branch[0]  # 16 -> 64
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    net = WideResNet(SHAPE, 10, 10, 4, batch_norm=False)
    assert all((m.bias == 0).all() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_wide_resnet_without_norms_has_biases_and_no_state():
    net = WideResNet((3, 32, 32), 10, 10, 2, batch_norm=False)
    assert not list(net.buffers())
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.ReLU)]
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))
    assert all(m.negative_slope == 0.2 for m in net.modules() if isinstance(m, nn.LeakyReLU))
    normed = WideResNet((3, 32, 32), 10, 10, 2)
    assert all(m.bias is None for m in normed.modules() if isinstance(m, nn.Conv2d))


def test_dropout_is_inside_the_blocks():
    net, x = WideResNet(SHAPE, 10, 10, 1, dropout=0.5, batch_norm=False), uniform(2, *SHAPE)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# The U-Net


@pytest.mark.slow
def test_unet_has_ddpms_size_and_its_published_settings():
    with torch.device("meta"):
        net = DenoisingUNet((3, 32, 32))
    assert number_of_parameters(net) == 35_746_307
    published = {  # config.json of google/ddpm-cifar10-32
        "act_fn": "silu", "block_out_channels": (128, 256, 256, 256), "center_input_sample": False,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), "downsample_padding": 0,
        "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-6, "norm_num_groups": 32, "out_channels": 3, "time_embedding_type": "positional",
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": None,
    }  # fmt: skip
    assert {key: net.net.config[key] for key in published} == published


@pytest.mark.slow
def test_unet_equals_diffusers_one_step_earlier():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = DenoisingUNet((1, 28, 28), (32, 64, 64), layers=1, attention_at=14).eval()
    theirs = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        dropout=0.1,
    ).eval()
    theirs.load_state_dict(net.net.state_dict())
    x, t = uniform(3, 1, 28, 28), torch.tensor([1, 500, 1000])
    with torch.no_grad():
        assert torch.equal(net.denoise(x, t), theirs(x, t - 1).sample)
        assert not torch.equal(net.denoise(x, t), theirs(x, t).sample)


@pytest.mark.parametrize(
    ("shape", "channels", "attention_at"),
    [((1, 8, 8), (8, 16), 4), ((3, 32, 32), (8, 8, 12), 16), ((1, 28, 28), (8, 8), 0)],
)
def test_unet_takes_small_images_and_trains_every_weight(shape, channels, attention_at):
    net = DenoisingUNet(shape, channels, layers=1, attention_at=attention_at)
    x, t = uniform(2, *shape), torch.tensor([1, 1000])
    prediction = net(x, t)
    assert not torch.equal(net(x, t), prediction)  # dropout
    assert prediction.shape == x.shape
    assert prediction.dtype == torch.float32
    prediction.square().sum().backward()
    weights = {name: p for name, p in net.named_parameters() if not name.endswith("to_k.bias")}  # a softmax ignores it
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights.values())
    with torch.autocast("cpu", torch.bfloat16):
        assert net.denoise(x, t).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "channels", "attention_at", "message"),
    [
        ((1, 28, 28), (32, 64, 64, 64), 14, r"network\.channels has 4 levels.*28 x 28.*only 2 times: give at most 3 numbers"),
        ((1, 32, 28), (32, 64, 64, 64), 16, r"network\.channels has 4 levels.*32 x 28.*only 2 times: give at most 3 numbers"),
        ((1, 28, 28), (32, 64, 64), 16, r"network\.attention_at is 16.*28, 14, 7 pixels per side: give one of these, or 0"),
        ((1, 28, 28), (), 0, r"network\.channels is \(\)"),
        ((1, 28, 28), (33, 64), 0, r"network\.channels is \(33, 64\).*even"),
    ],
)
def test_unet_names_the_field_and_the_cure(shape, channels, attention_at, message):
    with pytest.raises(ValueError, match=message):
        DenoisingUNet(shape, channels, attention_at=attention_at)


def test_unet_without_diffusers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'hybvit[baselines]'")):
        DenoisingUNet((1, 8, 8), (8, 16), attention_at=4)


# JEM


class Bowl(nn.Module):
    """E(x) = sum w (x - mean)^2 / 2 with w = 1 at first, as the logsumexp of ``classes`` equal logits."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, mean: float = 0.3, classes: int = 4) -> None:
        super().__init__()
        self.mean, self.classes = mean, classes
        self.w = nn.Parameter(torch.ones(shape))

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def classify(self, x: Tensor) -> Tensor:
        energy = (self.w * (x - self.mean).square()).flatten(1).sum(dim=1) / 2
        return (-energy - math.log(self.classes))[:, None].expand(-1, self.classes)


def small_jem(batch_norm: bool = False, replay: int = 12, **settings) -> JEM:
    torch.manual_seed(0)
    backbone = WideResNet(SHAPE, 4, 10, 1, 0.0, batch_norm)
    return JEM(backbone, SHAPE, 4, JEMConfig(replay=replay, **{"steps": 3, **settings}))


def batch(seed: int = 0) -> Batch:
    labels = torch.arange(6) % 4
    return Batch(uniform(6, *SHAPE, seed=seed) * 0.5, uniform(6, *SHAPE, seed=seed + 100), labels)


def test_energy_is_minus_logsumexp_and_features_are_the_backbones():
    model, x = small_jem(), uniform(5, *SHAPE)
    logits = model.backbone.classify(x)
    torch.testing.assert_close(model.energy(x), -logits.exp().sum(dim=1).log())
    torch.testing.assert_close(model.classify(x), logits)
    torch.testing.assert_close(model(x), logits)
    torch.testing.assert_close(model.features(x), model.backbone.features(x))
    torch.testing.assert_close(
        JEM(Bowl(), SHAPE, 4, JEMConfig(replay=1)).energy(x), (x - 0.3).square().flatten(1).sum(dim=1) / 2
    )


def test_sgld_contracts_a_quadratic_energy():
    model, x = JEM(Bowl(), SHAPE, 4, JEMConfig(replay=1, noise=0.0, step_size=0.2)), uniform(5, *SHAPE)
    torch.testing.assert_close(model.sgld(x, 1, rng()), 0.3 + 0.8 * (x - 0.3))
    torch.testing.assert_close(model.sgld(x, 4, rng()), 0.3 + 0.8**4 * (x - 0.3))
    far = model.sgld(x + 5, 1, rng())  # the image itself is not clipped
    torch.testing.assert_close(far, 0.3 + 0.8 * (x + 5 - 0.3), atol=1e-3, rtol=0)
    assert torch.equal(model.sgld(x, 0, rng()), x)


def test_sgld_samples_the_density_of_a_quadratic_energy():
    step = 0.05
    model = JEM(Bowl((1, 16, 16)), (1, 16, 16), 4, JEMConfig(replay=1, step_size=step, noise=math.sqrt(2 * step)))
    x = model.sgld(torch.zeros(64, 1, 16, 16), 200, rng())
    assert x.mean().item() == pytest.approx(0.3, abs=0.03)
    assert x.var().item() == pytest.approx(1 / (1 - step / 2), abs=0.04)  # 1 in the limit of small steps


def test_proximal_bounds_every_element_of_a_step():
    model = JEM(Bowl(), SHAPE, 4, JEMConfig(replay=1, noise=0.0, step_size=0.5, proximal=0.1))
    x = uniform(5, *SHAPE) * 3
    change = model.sgld(x, 1, rng()) - x
    torch.testing.assert_close(change, -0.5 * (x - 0.3).clamp(-0.1, 0.1))
    assert change.abs().max().item() == pytest.approx(0.05, abs=1e-6)


def test_sgld_leaves_network_statistics_and_mode_alone():
    model, x = small_jem(batch_norm=True), uniform(5, *SHAPE)
    frozen = model.backbone.body[0]
    frozen.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    original = x.clone()
    with torch.no_grad():
        sampled = model.sgld(x, 3, rng())
    assert not sampled.requires_grad
    assert torch.equal(x, original)
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert modes.count(False) == len(list(frozen.modules()))
    alone = torch.cat([model.sgld(part, 3, rng()) for part in (x[:1], x[:1])])  # in eval mode rows are independent
    torch.testing.assert_close(alone[0], alone[1])
    frozen.train()
    with contextlib.suppress(ZeroDivisionError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())


def test_loss_is_cross_entropy_and_the_gap_between_real_images_and_continued_chains():
    model, data = (
        JEM(Bowl(), SHAPE, 4, JEMConfig(replay=6, steps=2, noise=0.0, step_size=0.1, restart=0.0, input_noise=0.0, weight=0.5)),
        batch(),
    )
    start = model.replay_images.clone()
    losses = model.loss(data, PLAIN, rng())
    ended = 0.3 + 0.9**2 * (start - 0.3)
    torch.testing.assert_close(model.replay_images, ended)  # every chain was continued and written back to its own place
    torch.testing.assert_close(losses.energy_gap, model.energy(data.x0).mean() - model.energy(ended).mean())
    torch.testing.assert_close(losses.ce, torch.tensor(math.log(4)))
    torch.testing.assert_close(losses.total, losses.ce + 0.5 * losses.energy_gap)
    model.loss(data, PLAIN, rng(1))
    torch.testing.assert_close(model.replay_images, 0.3 + 0.9**4 * (start - 0.3))


def test_loss_takes_shares_and_label_smoothing():
    model, data = small_jem(), batch()
    plain = model.loss(data, PLAIN, rng()).ce
    log_p = model.classify(data.images).log_softmax(dim=1)
    torch.testing.assert_close(plain, -log_p[torch.arange(6), data.labels].mean())
    one_hot = nn.functional.one_hot(data.labels, 4).float()
    torch.testing.assert_close(model.loss(data._replace(labels=one_hot), PLAIN, rng()).ce, plain)
    smooth = model.loss(data, replace(PLAIN, label_smoothing=0.4), rng()).ce
    torch.testing.assert_close(smooth, -(log_p * (0.6 * one_hot + 0.1)).sum(dim=1).mean())


def test_real_images_get_noise_where_their_energy_is_lowered():
    """E[E(x + s n)] of the bowl exceeds E(x) by s^2 D / 2."""
    shape = (1, 32, 32)
    quiet, noisy = (
        JEM(Bowl(shape), shape, 4, JEMConfig(replay=64, steps=1, restart=0.0, input_noise=s, limit=1e9)) for s in (0.0, 0.5)
    )
    data = Batch(torch.zeros(64, *shape), torch.zeros(2, *shape), torch.tensor([0, 1]))
    noisy.load_state_dict(quiet.state_dict())
    more = noisy.loss(data, PLAIN, rng()).energy_gap - quiet.loss(data, PLAIN, rng()).energy_gap
    assert more.item() == pytest.approx(0.25 * 1024 / 2, rel=0.05)


def test_a_step_lowers_the_energy_of_data_against_samples():
    model, data = small_jem(weight=1.0, restart=0.0, input_noise=0.0, noise=0.0, replay=6), batch()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)

    def gap() -> float:
        return (model.energy(data.x0).mean() - model.energy(model.replay_images).mean()).item()

    losses = model.loss(data, PLAIN, rng())
    before = gap()
    assert losses.energy_gap.item() == pytest.approx(before, abs=1e-5)
    (losses.total - losses.ce).backward()
    optimiser.step()
    assert gap() < before - 1e-4


def test_every_weight_is_trained_and_no_gradient_reaches_the_samples():
    model = small_jem()
    model.loss(batch(), PLAIN, rng()).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not model.replay_images.requires_grad


def test_restarted_chains_leave_the_buffer():
    kept, fresh, some = (small_jem(restart=r, steps=0, replay=400) for r in (0.0, 1.0, 0.25))
    data = batch()._replace(x0=torch.zeros(400, *SHAPE))
    for model, share, tolerance in ((kept, 0, 0), (fresh, 1, 0), (some, 0.25, 0.06)):
        before = model.replay_images.clone()
        model.replay_images += 10  # chains far away, so that restarts are visible
        model.loss(data, PLAIN, rng())
        anew = (model.replay_images < 5).flatten(1).all(dim=1)
        assert anew.float().mean().item() == pytest.approx(share, abs=tolerance)
        torch.testing.assert_close(model.replay_images[~anew], before[~anew] + 10)
        assert model.replay_images[anew].abs().amax() <= 1 if anew.any() else True


def test_the_initial_chains_are_uniform():
    model = small_jem(replay=500)
    for images in (model.replay_images, model.initial(500, rng())):
        assert images.shape == (500, *SHAPE)
        assert images.dtype == torch.float32
        assert images.mean().item() == pytest.approx(0, abs=0.02)
        assert images.var().item() == pytest.approx(1 / 3, abs=0.01)
        assert images.abs().max() <= 1
    assert set(dict(model.named_buffers())) == {"replay_images"}


@pytest.mark.parametrize(("value", "limit"), [(math.nan, 10.0), (math.nan, math.inf), (math.inf, math.inf), (1e6, 10.0)])
def test_divergence_is_seen_and_the_buffer_stays(value, limit):
    model, data = small_jem(limit=limit, restart=0.0), batch()
    before = model.replay_images.clone()
    with torch.no_grad():
        model.backbone.readout.bias.zero_()
        model.backbone.readout.weight.fill_(value)
    with pytest.raises(DivergedError, match=r"^JEM diverged: mean energy .* gap .* jem\.limit (10|inf);[^\n]*$"):
        model.loss(data, PLAIN, rng())
    assert torch.equal(model.replay_images, before)


@pytest.mark.parametrize("shift", [-20.0, 20.0])
def test_the_limit_bounds_the_gap_on_both_sides(shift):
    # Sampling steps of length 0 and chains at a known place make the gap a known number.
    model = JEM(Bowl(mean=0.0), SHAPE, 4, JEMConfig(replay=6, steps=0, restart=0.0, input_noise=0.0, limit=19.0))
    unit = math.sqrt(2 * 20 / 64)
    near, far = torch.zeros(6, *SHAPE), torch.full((6, *SHAPE), unit)  # energies 0 and 20
    model.replay_images.copy_(near if shift > 0 else far)
    data = batch()._replace(x0=far if shift > 0 else near)
    with pytest.raises(DivergedError, match=rf"gap {shift:g} beyond"):
        model.loss(data, PLAIN, rng())
    model.cfg = replace(model.cfg, limit=21.0)
    assert model.loss(data, PLAIN, rng()).energy_gap.item() == pytest.approx(shift, abs=1e-3)


def test_what_does_not_fit_is_refused():
    model, data = small_jem(replay=5), batch()
    with pytest.raises(ValueError, match=r"jem\.replay is 5: a batch of 6"):
        model.loss(data, PLAIN, rng())
    for part in (data._replace(x0=None), data._replace(images=None, labels=None), data._replace(labels=None)):
        with pytest.raises(ValueError, match="incomplete"):
            model.loss(part, PLAIN, rng())
    with pytest.raises(ValueError, match=r"jem\.informative"):
        model.fit_initial(data.images, data.labels)
    informative = small_jem(informative=True)
    with pytest.raises(ValueError, match="fit_initial"):
        informative.initial(2, rng())
    for images, labels in (
        (data.images[:, :, :4], data.labels),
        (data.images, data.labels[:3]),
        (data.images[:0], data.labels[:0]),
    ):
        with pytest.raises(ValueError, match=re.escape("[N, 1, 8, 8]")):
            informative.fit_initial(images, labels)


def classes_of_images(n: int = 400) -> tuple[Tensor, Tensor]:
    """Three of four classes with different means, and variances in six directions over a floor of 0.05^2."""
    g, labels = rng(), torch.tensor([0, 1, 3]).repeat(n)[:n]
    means = (torch.rand(4, 64, generator=g) - 0.5) * 0.6
    roots = torch.randn(4, 6, 64, generator=g) * 0.05
    along = torch.randn(n, 6, generator=g)
    x = means[labels] + torch.einsum("nr,nrd->nd", along, roots[labels]) + 0.05 * torch.randn(n, 64, generator=g)
    return x.clamp(-1, 1).reshape(n, *SHAPE), labels


def test_informative_starts_have_the_moments_of_each_class():
    images, labels = classes_of_images()
    model = small_jem(informative=True, replay=3000)
    model.fit_initial(images, labels, rng())
    chosen = model.replay_images.flatten(1)
    real = torch.stack([images[labels == k].flatten(1).mean(dim=0) for k in (0, 1, 3)])
    owner = torch.cdist(chosen, real).argmin(dim=1)
    assert owner.bincount().tolist() == pytest.approx([1000] * 3, abs=100)
    for j, k in enumerate((0, 1, 3)):
        rows, drawn = images[labels == k].flatten(1), chosen[owner == j]
        torch.testing.assert_close(drawn.mean(dim=0), rows.mean(dim=0), atol=0.025, rtol=0)
        covariance, wanted = drawn.T.cov(), rows.T.cov(correction=0)
        assert (covariance - wanted).norm() < 0.2 * wanted.norm()
        assert covariance.trace().item() == pytest.approx(wanted.trace().item() + 64e-4, rel=0.08)
    assert chosen.abs().max() <= 1
    assert torch.equal(model.class_shares, torch.bincount(labels, minlength=4) / len(labels))


def test_directions_beyond_the_rank_keep_their_variance():
    shape = (1, 16, 16)
    model = JEM(Bowl(shape), shape, 1, JEMConfig(replay=500, informative=True))
    model.fit_initial(torch.randn(600, *shape, generator=rng()) * 0.2, torch.zeros(600, dtype=torch.int64), rng())
    assert model.class_stds.item() > 0.15  # most of 256 equal directions are beyond the 64
    assert model.replay_images.var().item() == pytest.approx(0.2**2, rel=0.03)


def test_a_classs_gaussian_is_its_covariance_where_the_rank_is_enough():
    rows = torch.randn(30, 10, generator=rng()) @ torch.randn(10, 10, generator=rng(1))
    mean, root, std = gaussian(rows, 64)
    torch.testing.assert_close(mean, rows.mean(dim=0))
    assert root.shape == (10, 10)
    torch.testing.assert_close(root.T @ root, rows.T.cov(correction=0), atol=1e-4, rtol=1e-4)
    assert std == pytest.approx(0.01)

    _, root, std = gaussian(rows, 3)  # the three greatest variances stay, the rest becomes their mean
    values = torch.linalg.eigvalsh(rows.T.cov(correction=0)).flip(0)
    kept = torch.linalg.eigvalsh(root.T @ root + (std**2 - 1e-4) * torch.eye(10)).flip(0)
    torch.testing.assert_close(kept[:3], values[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kept[3:], values[3:].mean().expand(7), atol=1e-4, rtol=1e-4)

    _, root, std = gaussian(rows[:3], 64)
    assert root.shape == (2, 10)
    torch.testing.assert_close(root.T @ root, rows[:3].T.cov(correction=0), atol=1e-4, rtol=1e-4)
    single, root, std = gaussian(rows[:1], 64)
    torch.testing.assert_close(single, rows[0])
    assert root.shape == (0, 10)
    assert std == pytest.approx(0.01)


def test_informing_twice_forgets_the_first_images():
    images, labels = classes_of_images()
    model, again = small_jem(informative=True), small_jem(informative=True)
    model.fit_initial(images, labels, rng())
    model.fit_initial(images[:6], labels[:6], rng())
    again.fit_initial(images[:6], labels[:6], rng())
    for name in ("class_shares", "class_roots", "replay_images"):
        if name == "class_roots":
            present = labels[:6].unique()
            assert torch.equal(model.class_roots[present], again.class_roots[present])
        else:
            assert torch.equal(getattr(model, name), getattr(again, name))


@pytest.mark.parametrize("settings", [{}, {"batch_norm": True, "informative": True, "proximal": 0.1, "restart": 0.5}])
def test_a_resumed_run_is_bit_identical(settings, tmp_path):
    def start() -> tuple[JEM, torch.optim.Optimizer]:
        model = small_jem(**settings)
        if model.cfg.informative:
            model.fit_initial(*classes_of_images(60), rng())
        return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(model: JEM, optimiser: torch.optim.Optimizer, k: int) -> None:
        optimiser.zero_grad()
        model.loss(batch(k), PLAIN, rng(k)).total.backward()
        optimiser.step()

    model, optimiser = start()
    for k in range(3):
        step(model, optimiser, k)
    torch.save((model.state_dict(), optimiser.state_dict()), tmp_path / "state.pt")
    for k in range(3, 5):
        step(model, optimiser, k)

    torch.manual_seed(99)  # the state of the global generator must not matter
    resumed, its_optimiser = start()
    torch.manual_seed(7)
    weights, moments = torch.load(tmp_path / "state.pt")
    resumed.load_state_dict(weights)
    its_optimiser.load_state_dict(moments)
    for k in range(3, 5):
        step(resumed, its_optimiser, k)
    assert model.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_state_has_the_chains_and_the_starts():
    model = small_jem(informative=True)
    wanted = {"replay_images", "class_shares", "class_means", "class_roots", "class_stds"}
    assert wanted <= model.state_dict().keys()
    with torch.device("meta"):
        cifar = JEM(WideResNet((3, 32, 32), 10, 10, 1), (3, 32, 32), 10, JEMConfig(informative=True))
    assert cifar.replay_images.shape == (10_000, 3, 32, 32)
    floats = sum(getattr(cifar, name).numel() for name in wanted - {"replay_images"})
    assert 4 * floats < 9e6


def test_an_image_is_the_same_in_any_batch():
    model = small_jem(noise=0.2, step_size=0.1, replay=7)
    indices = [0, 5, 6, 11, 3]
    together = model.draw(indices, 3, seed=1)
    assert together.dtype == torch.uint8
    assert together.shape == (5, *SHAPE)
    alone = torch.cat([model.draw([i], 3, seed=1) for i in indices])
    assert (together.int() - alone.int()).abs().max() <= 1  # a kernel may round differently at another batch size
    assert (model.draw([11, 0], 3, seed=1).int() - together[[3, 0]].int()).abs().max() <= 1
    assert not torch.equal(model.draw(indices, 3, seed=2), together)
    assert torch.equal(model.draw(indices, 3, seed=1), together)


def test_draws_go_on_from_all_chains_in_an_order_of_the_seed():
    model = small_jem(replay=40)
    before = model.replay_images.clone()
    started = model.draw(range(40), 0, seed=3)
    places = [int((to_pixels(before) == image).flatten(1).all(dim=1).nonzero()) for image in started]
    assert sorted(places) == list(range(40))
    assert places != list(range(40))
    assert not torch.equal(model.draw(range(40), 0, seed=4), started)
    assert torch.equal(model.draw([41], 0, seed=3)[0], started[1])  # from M on they repeat,
    noisy = model.draw([1, 41], 1, seed=3)
    assert not torch.equal(noisy[0], noisy[1])  # with other noise
    assert torch.equal(model.replay_images, before)
    quiet = JEM(Bowl(), SHAPE, 4, JEMConfig(replay=3, step_size=0.5, noise=0.0))
    torch.testing.assert_close(
        quiet.draw(range(3), 2, seed=0).sort(dim=0).values,
        to_pixels(0.3 + 0.25 * (quiet.replay_images - 0.3)).sort(dim=0).values,
    )


def test_a_vit_is_a_backbone_too():
    cfg = ViTConfig(image_size=8, patch_size=2, channels=1, num_classes=4, dim=16, depth=2, heads=2)
    model = JEM(HybViT(cfg), SHAPE, 4, JEMConfig(replay=6, steps=2))
    before = copy.deepcopy(model)
    losses = hybrid_loss(model, Diffusion.cosine(4), batch(), PLAIN, generator=rng())
    assert torch.equal(losses.total, before.loss(batch(), PLAIN, rng()).total)  # its objective is its own
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert model.features(batch().images).shape == (6, 16)


def test_a_copy_keeps_its_own_chains():
    model = small_jem()
    averaged = copy.deepcopy(model)
    model.loss(batch(), PLAIN, rng())
    assert not torch.equal(model.replay_images, averaged.replay_images)


def test_rank_is_bounded_by_the_constant():
    assert jem_room.RANK == 64
    assert JEM(Bowl((1, 16, 16)), (1, 16, 16), 2, JEMConfig(replay=1, informative=True)).class_roots.shape == (2, 64, 256)
