"""Every preset: it builds, it is as large as the paper says, its claims exist, and it trains and answers when shrunk."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import hybvit
from hybvit import cli
from hybvit.catalog import CATALOG
from hybvit.config import Config, ConfigError, DataConfig, describe_data, differences, override, parse, to_dict
from hybvit.data.batches import random_batch
from hybvit.method.objective import Batch, Losses, hybrid_loss
from hybvit.method.seeds import generator
from hybvit.networks import build_network, number_of_parameters
from hybvit.presets import PRESETS, preset
from hybvit.reproduce import published
from hybvit.training.cost import GPU, PEAK, ROWS, UTILISATION, Operations, cost
from hybvit.training.loop import train
from hybvit.training.optim import learning_rate

PARAMETERS = {  # exactly, as in the published weights; the systems that the paper compares with as their authors have them
    "cifar10": 11_185_068, "cifar10_dim192": 3_125_100, "cifar10_dim768": 43_230_252, "cifar100": 11_219_718,
    "imagenet32": 11_566_218, "tiny_imagenet": 11_368_954, "celeba_hq_128": 17_109_948,
    "stl10": 12_929_884, "stl10_short_patch4": 41_107_372, "stl10_short_patch6": 17_045_352,
    "stl10_short_patch12": 11_480_364, "stl10_short_genvit_dim576": 26_430_364, "stl10_short_genvit_dim768": 45_239_260,
    "cifar10_wrn28_10": 36_479_194, "cifar10_ddpm": 35_746_307,
}  # fmt: skip
SAME_NETWORK = {  # preset -> the one above whose network it has
    "cifar10_vit": "cifar10", "cifar10_genvit": "cifar10", "cifar10_alpha1": "cifar10", "cifar10_heads16": "cifar10",
    "cifar10_genvit_dim192": "cifar10_dim192", "cifar10_genvit_dim768": "cifar10_dim768", "cifar100_vit": "cifar100",
    "imagenet32_genvit": "imagenet32", "tiny_imagenet_vit": "tiny_imagenet", "stl10_short_vit": "stl10",
    "stl10_short_patch8": "stl10", "stl10_short_genvit": "stl10", "cifar10_weak": "cifar10",
    "cifar10_jempp": "cifar10_wrn28_10",
}  # fmt: skip
CLAIMS = [(row.preset, row) for table in published.tables().values() for row in table.rows if row.preset]


def shrunk(cfg: Config) -> Config:
    """The same recipe for the digits in a second: 4 patches, 2 layers, thin CNNs, 4 images, 1 step."""
    heads = cfg.model.heads
    small = replace(
        cfg.model, image_size=8, patch_size=4, channels=1, num_classes=10, dim=4 * heads, depth=2, heads=heads,
        class_depth=1 if cfg.model.class_depth else None,
    )  # fmt: skip
    return override(
        replace(cfg, model=small),
        network={"depth": 10, "width": 1, "channels": (8, 16), "layers": 1, "attention_at": 4},
        diffusion={"steps": 10},
        jem={"steps": 2, "replay": 16},
        data={"name": "digits"},
        train={"steps": 1, "batch_size": 4, "preview_every": 0},
    )


def real_batch(cfg: Config, size: int, device: str) -> Batch:
    clean, images = torch.rand(2, size, *cfg.model.image_shape, device=device) * 2 - 1
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    kind = cfg.objective.kind
    return Batch(None if kind == "vit" else clean, *((None, None) if kind == "genvit" else (images, labels)))


# what a preset claims


def parameters(cfg: Config) -> int:
    with torch.device("meta"):
        return number_of_parameters(build_network(cfg))


@pytest.mark.parametrize("name", PRESETS)
def test_it_builds_for_its_data(name):
    cfg = preset(name)
    assert parameters(cfg) > 0
    assert CATALOG.get(cfg.data.name) is None or cfg.model.channels == CATALOG[cfg.data.name].channels
    assert cfg.optim.warmup_steps < cfg.train.steps
    assert cfg.optim.schedule == "steps" or learning_rate(cfg.train.steps, cfg) == pytest.approx(1e-6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_exactly_the_paper_s_parameters(name):
    assert parameters(preset(name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("_v2")])
def test_v2_has_the_paper_s_size(name):
    """Within 5 % of the paper's network for the same images, a thin convolutional stem and read-out added."""
    paper = name.removesuffix("_v2") if name != "fashion_mnist_v2" else "fashion_mnist_pocket"
    ours, theirs = preset(name), preset(paper)
    assert 0.95 < parameters(ours) / parameters(theirs) < 1.15
    assert ours.objective.kind == theirs.objective.kind
    assert ours.data.name == theirs.data.name
    pixels = override(ours, model={"patch_embedding": "linear", "pixel_readout": "linear"})
    assert parameters(pixels) / parameters(theirs) < 1.05


@pytest.mark.parametrize("name", SAME_NETWORK)
def test_its_relatives_have_as_many(name):
    # JEM++ has batch norm as the wide ResNet has; JEM has biases in its place
    assert parameters(preset(name)) == PARAMETERS[SAME_NETWORK[name]]


@pytest.mark.parametrize(("name", "row"), CLAIMS, ids=[f"{row.table}-{row.group}-{row.model}" for _, row in CLAIMS])
def test_a_row_names_a_preset_of_its_network(name, row):
    cfg = preset(name)
    millions = row.values.get("parameters_millions")
    if millions is not None:  # the paper rounds 3.125 to 3.2 and 11.48 to 11.4
        assert parameters(cfg) / 1e6 == pytest.approx(float(millions), abs=0.1)

    of_group = {"CIFAR100": "cifar100", "Tiny-ImageNet": "tiny_imagenet", "STL10": "stl10", "CelebA 128": "celeba_hq"}
    of_table = {"table7": "stl10", "table13": "imagenet32"}
    by_default = of_group.get(row.group, "imagenet32" if row.group.startswith("ImageNet") else "cifar10")
    assert cfg.data.name == of_table.get(row.table, by_default)

    system = re.match(r"ViT|GenViT|HybViT|W|PreactResNet18|JEM\+\+|JEM|DDPM", row.model)[0]
    assert (
        system
        == {
            "wide_resnet": "W" if cfg.objective.kind == "vit" else "JEM++" if cfg.jem.informative else "JEM",
            "preact_resnet18": "PreactResNet18",
            "unet": "DDPM",
            "vit": {"vit": "ViT", "genvit": "GenViT", "hybvit": "HybViT", "jem": ""}[cfg.objective.kind],
        }[cfg.network.name]
    )
    settings = {
        "epoch": cfg.train.steps / 1170,
        "alpha": cfg.objective.alpha,
        "head": cfg.model.heads,
        "depth": cfg.model.depth,
        "dim": cfg.model.dim,
        "d": cfg.model.dim,
        "ps": cfg.model.patch_size,
        "K": cfg.jem.steps,
        "M": cfg.jem.steps,
    }
    for setting, value in re.findall(r"(\w+)=(\d+)", row.model):
        assert settings[setting] == int(value)
    assert ("weak augmentation" in row.model) == (cfg.network.name == "vit" and cfg.data.augment == "weak")
    if layers := re.search(r"WRN.(\d+)-(\d+)", row.model):
        assert (cfg.network.depth, cfg.network.width) == (int(layers[1]), int(layers[2]))


def test_every_row_that_the_paper_trained_has_a_preset():
    claimed = [row for _, row in CLAIMS]
    assert len(claimed) == 93
    trained = [
        row
        for name, table in published.tables().items()
        for row in table.rows
        if row.source == "this paper" and name != "table9"  # hyper-parameters
    ]
    assert len(trained) > 50
    assert [row for row in trained if row not in claimed] == []


@pytest.mark.parametrize(
    ("name", "other", "fields"),
    [
        ("cifar10_vit", "cifar10", {"objective.kind": "vit"}),
        ("stl10_genvit", "stl10", {"objective.kind": "genvit"}),
        ("cifar10_alpha1", "cifar10", {"objective.alpha": 1.0}),
        ("cifar10_alpha10", "cifar10", {"objective.alpha": 10.0}),
        ("cifar10_heads6", "cifar10", {"model.heads": 6}),
        ("cifar10_heads8", "cifar10", {"model.heads": 8}),
        ("cifar10_heads16", "cifar10", {"model.heads": 16}),
        ("cifar10_depth6", "cifar10", {"model.depth": 6}),
        ("cifar10_depth12", "cifar10", {"model.depth": 12}),
        ("cifar10_dim768", "cifar10", {"model.dim": 768}),
        ("cifar10_genvit_dim192", "cifar10_genvit", {"model.dim": 192}),
        ("cifar10_epochs100", "cifar10", {"train.steps": 117_000}),
        ("cifar10_vit_epochs100", "cifar10_vit", {"train.steps": 117_000}),
        ("cifar10_genvit_epochs300", "cifar10_genvit", {"train.steps": 351_000}),
        ("cifar10_weak", "cifar10", {"data.augment": "weak"}),
        ("cifar10_vit_weak", "cifar10_vit", {"data.augment": "weak"}),
        ("stl10_short_patch8", "stl10", {"train.steps": 58_500}),
        ("stl10_short_patch12", "stl10_short_patch8", {"model.patch_size": 12}),
        ("stl10_short_genvit_dim576", "stl10_short_genvit", {"model.dim": 576}),
        ("cifar10_jempp_k10", "cifar10_jempp", {"jem.steps": 10}),
    ],
)
def test_a_variant_changes_what_its_name_says_and_nothing_else(name, other, fields):
    assert {field: value for field, (value, _) in differences(preset(name), preset(other)).items()} == fields


def test_the_other_systems_have_their_own_recipes():
    wrn, jem, jempp, ddpm = (preset(f"cifar10_{name}") for name in ("wrn28_10", "jem", "jempp", "ddpm"))
    assert wrn.train.steps == 200 * 390
    assert [round(learning_rate(step, wrn), 5) for step in (0, 23_400, 46_800, 62_400)] == [0.1, 0.02, 0.004, 0.0008]
    assert preset("imagenet32_wrn28_10").train.steps == 40 * 10_009
    assert jem.train.steps == jempp.train.steps == 200 * 781
    assert [learning_rate(step, jem) for step in (499, 60_000, 120_000)] == pytest.approx([5e-5, 3e-5, 9e-6])
    assert [learning_rate(step, jempp) for step in (499, 60_000, 120_000)] == pytest.approx([0.05, 0.03, 0.009])
    assert [learning_rate(step, ddpm) for step in (2499, 799_999)] == pytest.approx([1e-4, 2e-4])
    assert (wrn.optim.name, wrn.optim.nesterov, wrn.optim.beta1, wrn.optim.weight_decay) == ("sgd", True, 0.9, 5e-4)
    assert [(cfg.optim.name, cfg.optim.weight_decay) for cfg in (jem, jempp)] == [("adamw", 0), ("sgd", 5e-4)]
    assert [(cfg.jem.steps, cfg.jem.informative, cfg.jem.proximal) for cfg in (jem, jempp)] == [(20, False, 0), (20, True, 1)]
    assert (ddpm.train.steps, ddpm.train.ema_decay, ddpm.network.dropout, ddpm.optim.weight_decay) == (800_000, 0.9999, 0.1, 0)
    assert (ddpm.diffusion.schedule, ddpm.objective.norm, ddpm.data.clean_flip) == ("linear", "l2", True)
    for cfg in (wrn, jem, jempp):
        assert (cfg.optim.clip, cfg.train.ema_decay, cfg.objective.label_smoothing, cfg.data.repeats) == (0, 0, 0, 1)
        assert (cfg.data.augment, cfg.data.flip) == ("weak", True)
    assert {cfg.train.precision for cfg in (jem, jempp)} == {"fp32"}


def test_a_misspelt_preset_is_named():
    with pytest.raises(ConfigError, match=r"unknown preset 'cifar10_jen': did you mean cifar10_jem\?"):
        preset("cifar10_jen")


# what it does


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_shrunk_it_trains_a_step_and_answers(name, tmp_path):
    cfg = shrunk(preset(name))
    model = train(cfg, tmp_path / "run", say=lambda line: None)
    assert all(bool(weight.isfinite().all()) for weight in model.state())
    assert model.has_samples == (cfg.objective.kind != "vit")
    assert model.has_classes == (cfg.objective.kind != "genvit")
    if model.has_samples:
        pixels = model.sample(2, steps=1)
        assert (pixels.shape, pixels.dtype) == ((2, 1, 8, 8), torch.uint8)
    if model.has_classes:
        logits = model.logits(torch.zeros(2, 1, 8, 8))
        assert logits.shape == (2, 10)
        assert bool(logits.isfinite().all())


# what it costs


def test_the_operations_of_a_vit_are_those_of_its_products():
    cfg = preset("cifar10_vit")
    m = cfg.model
    tokens, patch, layer = m.num_patches + 1, 3 * m.patch_size**2, 0
    embedding = m.num_patches * patch * m.dim
    layer += tokens * m.dim * 4 * m.dim  # qkv and output
    layer += 2 * tokens * tokens * m.dim  # q k^T, and its product with v
    layer += 2 * tokens * m.dim * 2 * m.dim  # MLP
    # the backward pass has twice the products of the forward pass, but none to the pixels
    products = 3 * (m.depth * layer + m.dim * m.num_classes) + 2 * embedding
    assert cost(cfg).train_gflop_per_step * 1e9 == pytest.approx(2 * products * cfg.train.batch_size, rel=1e-12)


def losses_of(net: torch.nn.Module, cfg: Config, batch: Batch) -> Losses:
    return hybrid_loss(net, cfg.diffusion.build(), batch, cfg.objective, generator=generator(0, "noise"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar10_genvit", "cifar10_wrn28_10", "cifar10_ddpm"])
def test_the_cost_of_a_batch_is_that_of_a_real_one(name):
    size = 3
    assert size != ROWS
    cfg = override(shrunk(preset(name)), train={"batch_size": size})
    with torch.device("meta"):
        net = build_network(cfg)
    with FlopCounterMode(display=False) as counter:
        losses = losses_of(net, cfg, real_batch(cfg, size, "meta"))
        losses.total.backward()
    assert counter.get_total_flops() == round(cost(cfg).train_gflop_per_step * 1e9)


def test_the_copies_that_pseudo_labels_need_are_counted():
    cfg = override(shrunk(preset("digits")), train={"batch_size": ROWS})
    cfg = override(cfg, data={"augment": "strong"}, objective={"pseudo_labels": 0.8})
    with torch.device("meta"):
        net = build_network(cfg)
    with FlopCounterMode(display=False) as counter:
        losses_of(net, cfg, random_batch(cfg, "meta")).total.backward()
    counted = round(cost(cfg).train_gflop_per_step * 1e9)
    without = round(cost(override(cfg, objective={"pseudo_labels": 0.0})).train_gflop_per_step * 1e9)
    assert counted == counter.get_total_flops() > without


@pytest.mark.parametrize("name", ["cifar10_wrn28_10", "tiny_imagenet_preact_resnet18", "cifar10_jempp"])
def test_a_batch_is_not_computed_in_parts_where_its_statistics_count(name):
    with pytest.raises(ConfigError, match=r"train\.accumulate does not go with"):
        override(preset(name), train={"accumulate": 4})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--network.dropout", "1.5"], r"network\.dropout is 1\.5: it must be in \[0, 1\)"),
        (["--optim.name", "sgd", "--optim.nesterov", "true", "--optim.beta1", "0"], "optim.nesterov needs a momentum"),
        (["--optim.name", "muon", "--optim.muon_lr", ".nan"], "muon needs both above 0|optim.muon_lr is nan"),
    ],
)
def test_settings_that_torch_would_refuse_are_refused_by_name(words, said):
    with pytest.raises(ConfigError, match=said):
        parse(words, preset("imagenet32_wrn28_10" if "dropout" in words[0] else "digits"))


def test_the_operations_on_a_cpu_are_those_counted_without_values():
    def operations(device: str) -> int:
        q, k, v = torch.randn(3, 2, 4, 9, 8, device=device, requires_grad=True).unbind()
        with Operations() as counter:
            torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
        return counter.total

    assert operations("cpu") == operations("meta") == 3 * 2 * (2 * 2 * 4 * 9 * 9 * 8)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_operations_are_those_of_pytorchs_counter(mode):
    """Inference mode hands over whole what the others take apart."""
    x, images = torch.randn(2, 5, 8, device="meta"), torch.randn(2, 3, 8, 8, device="meta")
    with torch.device("meta"):
        net = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        convolution = torch.nn.Conv2d(3, 4, 3)
    found = []
    for counter in (FlopCounterMode(display=False), Operations()):
        with mode(), counter:
            convolution(images), net(x), x @ x.transpose(1, 2)
        found.append(counter)
    assert found[0].get_total_flops() == found[1].total > 0


@pytest.mark.slow
def test_what_the_noisy_labels_and_the_guidance_take_is_counted():
    cfg = preset("fashion_mnist_v2")
    plain, denoised, m = override(cfg, objective={"noisy_labels": 0.0}), cfg.train.batch_size, cfg.model
    extra = round((cost(cfg).train_gflop_per_step - cost(plain).train_gflop_per_step) * 1e9)
    assert extra == 3 * 2 * denoised * m.dim * m.num_classes  # the read-out of as many rows, forward and twice back
    guided = override(cfg, objective={"guidance": 0.3})
    assert 1.1 < cost(guided).train_gflop_per_step / cost(cfg).train_gflop_per_step < 1.3  # the layers after the tap once more


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["cifar10_jem", "cifar10_jempp"])
def test_the_cost_of_a_jem_is_that_of_its_real_step(name, steps):
    size = 3
    cfg = override(shrunk(preset(name)), jem={"steps": steps, "informative": False}, train={"batch_size": size})
    net = build_network(cfg).train()
    with Operations() as counted:
        losses_of(net, cfg, real_batch(cfg, size, "cpu")).total.backward()
    assert counted.total == round(cost(cfg).train_gflop_per_step * 1e9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_jem", "cifar10_jempp"])
def test_the_cost_of_a_jem_grows_linearly_with_its_langevin_steps(name):
    flop = [round(cost(override(preset(name), jem={"steps": k})).train_gflop_per_step * 1e9) for k in (1, 2, 3, 20)]
    langevin = flop[1] - flop[0]
    assert langevin > 0
    assert flop[2] - flop[1] == langevin
    assert flop[3] - flop[0] == 19 * langevin
    # forward and backward to the pixels, against forward and backward to the weights too, of three mini-batches
    assert flop[0] - langevin == pytest.approx(4.5 * langevin, rel=0.01)


def test_hours_follow_from_operations_and_precision():
    vit, jem = cost(preset("cifar10")), cost(preset("cifar10_jem"))
    assert "312" in GPU
    assert vit.gpu_hours == pytest.approx(vit.total_eflop * 1e18 / (312e12 * 0.35) / 3600)
    assert jem.gpu_hours == pytest.approx(jem.total_eflop * 1e18 / (156e12 * 0.35) / 3600)
    assert (PEAK["bf16"], PEAK["fp32"], UTILISATION) == (312e12, 156e12, 0.35)
    assert cost(preset("cifar10_epochs100")).gpu_hours == pytest.approx(vit.gpu_hours / 5)


# what is printed


def test_show_prints_what_the_paper_reached_and_yaml_that_reads_back(capsys):
    assert cli.main(["show", "cifar10"]) == 0
    out = capsys.readouterr().out
    assert "# 11,185,068 parameters\n" in out
    assert "# Table 1, HybViT: Acc % 95.9, IS 7.68, FID 26.4\n" in out
    assert "# Table 12, L2, HybViT: Clean (%) 95.9, PGD L2 50/255 (%) 58.7," in out
    assert "1.6 hours on one A100" in out
    assert yaml.safe_load(out) == {"hybvit": hybvit.__version__} | to_dict(preset("cifar10"))
    assert cli.main(["show", "cifar10_jem"]) == 0
    assert "26 hours on one A100 (312 TFLOP/s bf16), in TF32," in capsys.readouterr().out


@pytest.mark.slow
def test_presets_prints_a_score_and_needs_no_torch():
    script = "import sys; from hybvit.cli.presets import main; main([]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(f"\n{name} " in f"\n{done.stdout}" for name in PRESETS)
    assert "wide ResNet 28-10, no batch norm, 20 Langevin steps; 156,200 steps of batch 64" in done.stdout
    assert "paper: Table 7, HybViT(ps=12): NoP (M) 11.4, Acc % 69.1, IS 2.55, FID 240.2" in done.stdout


def test_presets_with_cost(capsys, monkeypatch):
    monkeypatch.setattr("hybvit.cli.presets.PRESETS", {name: PRESETS[name] for name in ("digits", "cifar10", "imagenet224")})
    assert cli.main(["presets", "--cost"]) == 0
    out = capsys.readouterr().out
    assert "1,108 GFLOP per step, 0.65 EFLOP, 149,760,000 images: about 1.6 hours on one A100" in out
    assert "less than 0.01 hours" in out
    assert "about 244 hours" in out


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataConfig(name="cifar10"), "cifar10"),
        (DataConfig(), "images without labels"),
        (DataConfig(classes=("cats",)), "cats"),
        (DataConfig(classes=("cats", "dogs")), "cats and dogs"),
        (DataConfig(classes=tuple("abcd")), "a, b, c and d"),
        (DataConfig(classes=tuple("abcdef")), "a, b, c and 3 other classes"),
    ],
)
def test_own_images_go_by_their_classes(data, words):
    assert describe_data(data) == words
