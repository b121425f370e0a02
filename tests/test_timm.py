"""The classifiers as models of timm: the checks that timm makes of its own models, and equality with hybvit's answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import AttentionExtract
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2.functional import to_pil_image

import hybvit
from hybvit.config import override
from hybvit.errors import CheckpointError, ConfigError
from hybvit.integrations.timm_models import checkpoint_filter_fn, from_hybrid
from hybvit.networks import build_network
from hybvit.presets import preset

BUNDLED = {"hybvit_cifar10": "cifar10", "hybvit_digits": "digits", "hybvit_fashion_mnist": "fashion-mnist"}
SHAPES = (*BUNDLED, "hybvit_digits_paper", "hybvit_cifar10_pocket_v2")  # every time conditioning and stem, skips or none


def images(model: torch.nn.Module, number: int = 2) -> torch.Tensor:
    shape = model.default_cfg["input_size"]
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def of_preset(name: str) -> hybvit.HybridModel:
    """A network that was never trained, of a preset's kind but small, with random weights where they start at zero."""
    cfg = override(preset(name), model={"dim": 48, "heads": 4})
    model = hybvit.HybridModel(build_network(cfg), cfg, "cpu")
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return model


def test_timm_lists_them_and_knows_which_have_weights():
    names = timm.list_models("hybvit*")
    assert {"hybvit", "hybvit_cifar10", "hybvit_cifar10_v2", *SHAPES} <= set(names)
    assert sorted(timm.list_pretrained("hybvit*")) == sorted(BUNDLED)
    assert timm.list_models("*", module="timm_models") == names
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("hybvit_digits_paper", pretrained=True)


@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_backward_reach_every_weight(name):
    model = timm.create_model(name, num_classes=7, drop_rate=0.1)
    x = images(model)
    assert model(x).shape == (2, 7)
    model(x).square().mean().backward()
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert unused == []
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_heads_features_and_intermediates_agree(name):
    model = timm.create_model(name).eval()
    x, width, depth = images(model), model.num_features, len(model.feature_info)
    with torch.no_grad():
        tokens, logits = model.forward_features(x), model(x)
        assert tokens.shape == (2, model.grid**2 + model.num_prefix_tokens, width)
        pooled = model.forward_head(tokens, pre_logits=True)
        assert torch.equal(model.get_classifier()(pooled), logits)
        last, found = model.forward_intermediates(x)
        assert torch.equal(last, tokens)
        assert [tuple(z.shape) for z in found] == [(2, width, model.grid, model.grid)] * depth
        assert [info["num_chs"] for info in model.feature_info] == [width] * depth
        ((patches, prefix),) = model.forward_intermediates(
            x, indices=1, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        assert torch.equal(torch.cat((prefix, patches), dim=1), tokens)
        as_dict = model.forward_intermediates(x, indices=[0], output_dict=True, stop_early=True)
        assert torch.equal(as_dict["image_intermediates"][0], found[0])
        taken = create_feature_extractor(model, ["layers.0", "class_readout.1"])(x)
        assert torch.equal(taken["layers.0"][:, 1:].transpose(1, 2).reshape_as(found[0]), found[0])
        torch.testing.assert_close(taken["class_readout.1"], logits)
        pyramid = timm.create_model(name, features_only=True, out_indices=(0, -1))
        assert pyramid.feature_info.reduction() == [model.patch_size] * 2
        assert [z.shape[1] for z in pyramid(x)] == pyramid.feature_info.channels() == [width, width]

        model.reset_classifier(3)
        assert model.num_classes == 3
        assert model(x).shape == (2, 3)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "avg")
        torch.testing.assert_close(model(x), tokens[:, 1:].mean(dim=1))
        model.reset_classifier(0, "")
        assert torch.equal(model(x), tokens)
    with pytest.raises(ValueError, match="global_pool is 'map'"):
        model.reset_classifier(3, "map")


@pytest.mark.parametrize(("name", "source"), BUNDLED.items())
def test_logits_are_those_of_the_bundled_model(name, source):
    model, whole = timm.create_model(name, pretrained=True).eval(), hybvit.load(source, "cpu")
    pixels = torch.randint(0, 256, (3, *whole.image_shape), dtype=torch.uint8)
    transform = create_transform(**resolve_model_data_config(model))
    x = torch.stack([transform(to_pil_image(image)) for image in pixels])
    torch.testing.assert_close(x, hybvit.to_x(pixels), rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole.logits(hybvit.to_x(pixels)), rtol=0, atol=1e-5)
    assert tuple(model.default_cfg["label_names"]) == whole.classes


@pytest.mark.parametrize("name", ["digits_paper", "cifar10_v2"])  # the second has skips, of which some end after the tap
def test_logits_are_those_of_any_network(name):
    whole = of_preset(name)
    model, x = from_hybrid(whole), torch.rand(2, *whole.image_shape) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model(x), whole.logits(x), rtol=1e-5, atol=1e-5)


def test_new_classes_keep_the_rest_of_the_weights():
    model = timm.create_model("hybvit_fashion_mnist", pretrained=True, num_classes=5)
    given = timm.create_model("hybvit_fashion_mnist", pretrained=True).state_dict()
    assert model.get_classifier().out_features == 5
    for name, weight in model.state_dict().items():
        assert name.startswith("class_readout.1.") or torch.equal(weight, given[name]), name


def test_other_channels_and_sizes_start_from_the_weights():
    for name in BUNDLED:
        gray, color = (timm.create_model(name, pretrained=True, **given).eval() for given in ({}, {"in_chans": 3}))
        x = images(gray)
        with torch.no_grad():
            torch.testing.assert_close(color(x.expand(-1, 3, -1, -1)), gray(x), rtol=1e-4, atol=1e-4)
    larger = timm.create_model("hybvit_digits", pretrained=True, img_size=16)
    assert larger.positions.shape[1] == 17
    assert larger(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
    with pytest.raises(ValueError, match="must be square"):
        timm.create_model("hybvit_digits", img_size=(8, 16))


def test_the_weights_go_to_a_folder_of_timm_and_back(tmp_path):
    whole = of_preset("cifar10_v2")
    whole.cfg = override(whole.cfg, data={"classes": tuple("abcdefghij")})
    model = from_hybrid(whole)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "hybvit"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(model)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert [w.shape for w in again.parameters()] == [w.shape for w in model.parameters()]

    torch.nn.init.ones_(model.get_classifier().weight)  # training would
    whole.net.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(whole.logits(x), model(x), rtol=1e-5, atol=1e-5)


def test_what_is_no_classifier_of_this_kind_is_refused():
    missing = dict(hybvit.load("digits", "cpu").net.state_dict())
    del missing["positions"]
    with pytest.raises(CheckpointError, match="positions is missing"):
        checkpoint_filter_fn(missing, timm.create_model("hybvit_digits", num_classes=3))
    cfg = override(preset("digits"), objective={"kind": "genvit"})
    with pytest.raises(ConfigError, match="trained to classify"):
        from_hybrid(hybvit.HybridModel(build_network(cfg), cfg, "cpu"))


def test_attention_maps_are_those_of_the_network():
    timm.layers.set_fused_attn(False)
    try:
        model = timm.create_model("hybvit_fashion_mnist", pretrained=True).eval()
    finally:
        timm.layers.set_fused_attn(True)
    fused, x = timm.create_model("hybvit_fashion_mnist", pretrained=True).eval(), images(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), fused(x), rtol=0, atol=1e-5)
        hooked = AttentionExtract(model, method="hook")(x)
        traced = AttentionExtract(model, names=["*softmax"])(x)
    assert [tuple(maps.shape) for maps in hooked.values()] == [(2, 4, 17, 17)] * 4
    for one, other in zip(hooked.values(), traced.values(), strict=True):
        torch.testing.assert_close(one.sum(dim=-1), torch.ones(2, 4, 17))
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_an_exported_program_gives_the_same_at_any_batch_size():
    model = timm.create_model("hybvit_fashion_mnist", pretrained=True).eval()
    x = images(model, 3)
    exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), rtol=0, atol=1e-5)


def test_the_optimizers_of_timm_know_the_layers():
    model = timm.create_model("hybvit_cifar10_pocket_v2")
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    assert len(groups) == len(list(model.parameters()))
    scale = {name: groups[id(weight)]["lr_scale"] for name, weight in model.named_parameters()}
    depth = len(model.layers)
    for k in range(depth):
        assert scale[f"layers.{k}.mlp.into.weight"] == pytest.approx(0.5 ** (depth + 1 - k - 1))
    assert scale["patch_embedding.weight"] == min(scale.values()) == pytest.approx(0.5 ** (depth + 1))
    assert scale["class_readout.1.weight"] == 1.0
    assert groups[id(model.positions)]["weight_decay"] == groups[id(model.class_token)]["weight_decay"] == 0
    assert groups[id(model.patch_embedding.weight)]["weight_decay"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("page", ["timm", "diffusers"])
def test_the_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / f"{page}.md").read_text(encoding="utf-8").replace("=20", "=2")
    names: dict = {}
    exec("".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert {"timm": names.get("maps"), "diffusers": names.get("again")}[page]


@pytest.mark.parametrize("name", ["hybvit", "hybvit_digits"])
def test_arguments_of_timm_that_ask_for_nothing_are_taken(name):
    rates = {"drop_path_rate": 0.0, "attn_drop_rate": 0, "proj_drop_rate": 0.0, "drop_block_rate": None}
    assert timm.create_model(name, drop_rate=0.1, **rates).head_drop.p == 0.1


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"drop_path_rate": 0.1}, r"^drop_path_rate is 0\.1: .* leave it out$"),
        ({"attn_drop_rate": 0.2}, r"^attn_drop_rate is 0\.2"),
        ({"dept": 2}, r"^dept: a hybvit model of timm has no such argument: did you mean depth\?$"),
        ({"patchsize": 4}, r"did you mean patch_size\?$"),
        ({"image_size": 8}, r"^image_size: .* did you mean img_size\?$"),
        (
            {"qkv_bias": False},
            r"^qkv_bias: a hybvit model of timm has no such argument: it has class_depth, depth, dim",
        ),
    ],
)
def test_arguments_that_a_model_does_not_have_are_refused_in_one_line(argument, said):
    with pytest.raises(ValueError, match=said):
        timm.create_model("hybvit", **argument)
