from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hybvit import loading
from hybvit.method.vit import SHORT, FiLM, HybViT, TimeEmbedding, ViTConfig, attend, patchify, unpatchify

SMALL = ViTConfig(image_size=8, patch_size=2, channels=3, num_classes=5, dim=32, depth=3, heads=4)
VARIANTS = {
    "paper": {},
    "no ffn_time": {"ffn_time": False},
    "adaln_zero": {"time": "adaln_zero"},
    "long skips": {"long_skips": True},
    "conv read-out": {"pixel_readout": "conv", "final_norm": True, "time": "adaln_zero"},
    "conv stem": {"patch_embedding": "conv", "pixel_readout": "conv"},
    "adaln_single": {"time": "adaln_single", "final_norm": True},
    "llama": {"mlp": "swiglu", "rope": True, "qk_norm": True},
    "tap": {"class_depth": 2, "long_skips": True, "time": "adaln_single"},
    "early tap": {"class_depth": 1, "long_skips": True},
    "label": {"class_depth": 2, "label_conditioning": True, "time": "adaln_zero"},
}


def build(**changes) -> HybViT:
    torch.manual_seed(0)
    net = HybViT(ViTConfig(**{**SMALL.__dict__, **changes}))
    with torch.no_grad():  # zero-initialized parts would make every equality trivial
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.double()


def inputs(b: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(b, 3, 8, 8, generator=g, dtype=torch.float64), torch.randint(1, 1001, (b,), generator=g)


@pytest.mark.parametrize(
    ("parameters", "changes"),
    [
        (11_185_068, {}),
        (3_125_100, {"dim": 192}),
        (43_230_252, {"dim": 768}),
        (11_219_718, {"num_classes": 100}),
        (11_566_218, {"num_classes": 1000}),
        (11_368_954, {"image_size": 64, "patch_size": 8, "num_classes": 200}),
        (12_929_884, {"image_size": 96, "patch_size": 8}),
        (41_107_372, {"image_size": 96, "patch_size": 4}),
        (17_045_352, {"image_size": 96, "patch_size": 6}),
        (11_480_364, {"image_size": 96, "patch_size": 12}),
        (26_430_364, {"image_size": 96, "patch_size": 8, "dim": 576}),
        (45_239_260, {"image_size": 96, "patch_size": 8, "dim": 768}),
        (17_109_948, {"image_size": 128, "patch_size": 8}),
    ],
)
def test_published_parameter_counts(parameters, changes):
    with torch.device("meta"):
        net = HybViT(ViTConfig(**changes))
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == parameters


EVERYTHING = {
    "time": "adaln_single", "rope": True, "qk_norm": True, "patch_embedding": "conv", "pixel_readout": "conv",
    "label_conditioning": True, "class_depth": 1, "final_norm": True, "long_skips": True,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"time": "adaln_zero"}, EVERYTHING])
def test_a_network_that_was_built_without_memory_is_whole_after_its_reset(changes):
    cfg = ViTConfig(**{**SMALL.__dict__, **changes})
    with torch.device("meta"):
        net = HybViT(cfg)
    torch.nn.init.uniform_(net.to_empty(device="cpu").positions)  # memory as it was found
    for weight in net.parameters():
        torch.nn.init.uniform_(weight)
    found, wanted = net, HybViT(cfg)
    for network in (found, wanted):
        torch.manual_seed(0)
        network.reset_parameters()
    x, t = torch.randn(3, 3, 8, 8)[:, : cfg.channels], torch.tensor([1, 500, 1000])
    assert all(torch.equal(a, b) for a, b in zip(found(x, t), wanted(x, t), strict=True) if a is not None)


def sinusoid_only(dim: int) -> TimeEmbedding:
    embedding = TimeEmbedding(dim, 8)
    embedding.mlp = torch.nn.Sequential(torch.nn.Linear(dim, dim, bias=False))
    torch.nn.init.eye_(embedding.mlp[0].weight)
    return embedding


def test_times_stay_apart_in_half_precision():
    embedding, t = sinusoid_only(32), torch.arange(1, 1001)
    sinusoid = embedding(t)
    for dtype, error in ((torch.float16, 5e-4), (torch.bfloat16, 4e-3)):
        assert (embedding.to(dtype)(t).float() - sinusoid).abs().max() < error
    assert torch.equal(embedding.float()(t), sinusoid)


def test_golden_logits_and_noise(golden, golden_config, golden_file):
    net = HybViT(golden_config)
    loading.load_published_weights(net, golden_file)
    with torch.no_grad():
        logits = net(golden["x"]).logits
        eps = net(golden["x_t"], golden["t"] + 1).prediction  # the file counts steps from 0
    assert (logits - golden["logits"]).abs().max() < 1e-5
    assert (eps - golden["eps"]).abs().max() < 1e-5


def test_patches_are_in_raster_order_and_pixels_in_row_column_channel_order():
    x = torch.arange(2 * 3 * 4 * 6 * 6).reshape(2, -1, 6, 6)[:, :3]
    patches = patchify(x, 2)
    assert patches.shape == (2, 9, 12)
    assert torch.equal(patches[1, 5], torch.stack([x[1, c, 2 + i, 4 + j] for i in (0, 1) for j in (0, 1) for c in range(3)]))
    assert torch.equal(unpatchify(patches, 2, 3), x)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_row_at_time_0_is_a_clean_row(changes):
    net, (x, t) = build(**changes), inputs()
    t[1] = t[3] = 0
    mixed, clean, noisy = net(x, t), net(x), net(x[::2], t[::2])
    torch.testing.assert_close(mixed.logits[1::2], clean.logits[1::2], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed.prediction[1::2], clean.prediction[1::2], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed.prediction[::2], noisy.prediction, rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_one_joint_pass_equals_two_passes(changes):
    net, (x, t) = build(**changes), inputs()
    joint = net.joint(x, x.flip(0), t)
    torch.testing.assert_close(joint.logits, net(x).logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(joint.prediction, net(x.flip(0), t).prediction, rtol=0, atol=1e-12)
    both = net.joint(x, x.flip(0), t, classify_noisy=True)
    torch.testing.assert_close(both.logits, torch.cat((joint.logits, net(x.flip(0), t).logits)), rtol=0, atol=1e-12)
    torch.testing.assert_close(both.prediction, joint.prediction, rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_time_reaches_the_output(changes):
    net, (x, _) = build(**changes), inputs()
    early, late = net(x, torch.full((4,), 10)).prediction, net(x, torch.full((4,), 900)).prediction
    assert (early - late).abs().max() > 1e-3


def test_every_parameter_is_trained_by_the_joint_pass():
    for changes in VARIANTS.values():
        net, (x, t) = build(**changes), inputs()
        out = net.joint(x, x, t)
        (out.logits.square().sum() + out.prediction.square().sum()).backward()
        untouched = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert untouched == []


def test_paper_layer_is_equations_18_19_and_21():
    net, (_, t) = build(), inputs()
    layer, time = net.layers[0], net.time_embedding(t)
    z = torch.randn(4, 17, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scale, shift = layer.modulation(torch.nn.functional.silu(time)).split(17, dim=1)
    modulated = z * (scale[:, :, None] + 1) + shift[:, :, None]
    attended = modulated + layer.attention(layer.norm_attention(modulated))
    again = attended * (scale[:, :, None] + 1) + shift[:, :, None]
    expected = again + layer.mlp(layer.norm_mlp(again))
    torch.testing.assert_close(layer(z, time, torch.ones(4, 1).double()), expected, rtol=0, atol=1e-12)


def test_adaln_layer_is_scale_shift_and_gate_inside_the_branches():
    net, (_, t) = build(time="adaln_zero"), inputs()
    layer, time = net.layers[0], net.time_embedding(t)
    assert layer.mlp[0].out_features == 64  # mlp_ratio 2
    z = torch.randn(4, 17, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parts = layer.modulation(torch.nn.functional.silu(time))[:, None].chunk(6, dim=-1)
    scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = parts
    normed = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    attended = z + gate_a * layer.attention(normed * (1 + scale_a) + shift_a)
    normed = (attended - attended.mean(-1, keepdim=True)) / (attended.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = attended + gate_m * layer.mlp(normed * (1 + scale_m) + shift_m)
    torch.testing.assert_close(layer(z, time, torch.ones(4, 1).double()), expected, rtol=0, atol=1e-12)


def seen_by_layers(net):
    """A dict that each forward pass fills: ``in0`` and ``out0`` of layer 0, and so on."""
    seen = {}
    for k, layer in enumerate(net.layers):
        layer.register_forward_hook(lambda m, i, o, k=k: seen.update({f"in{k}": i[0], f"out{k}": o}))
    return seen


def test_long_skips_join_the_first_layers_to_the_last():
    """Depth 3 has one skip: layer 2 takes the outputs of layers 0 and 1."""
    net, (x, t) = build(long_skips=True), inputs()
    seen = seen_by_layers(net)
    net(x, t)
    assert len(net.skips) == 1
    torch.testing.assert_close(seen["in1"], seen["out0"])
    torch.testing.assert_close(seen["in2"], net.skips[0](torch.cat((seen["out1"], seen["out0"]), dim=-1)))


def test_long_skips_are_last_in_first_out():
    net, (x, t) = build(depth=5, long_skips=True), inputs()
    seen = seen_by_layers(net)
    net(x, t)
    for k, (last, first) in enumerate(((2, 1), (3, 0))):
        joined = net.skips[k](torch.cat((seen[f"out{last}"], seen[f"out{first}"]), dim=-1))
        torch.testing.assert_close(seen[f"in{last + 1}"], joined)


def test_film_scales_and_shifts_each_channel():
    film, features, time = FiLM(6, 3), torch.randn(2, 3, 4, 4), torch.randn(2, 6)
    noisy = torch.tensor([[1.0], [0.0]])
    torch.nn.init.normal_(film.bias)
    scale, shift = (film.weight @ torch.nn.functional.silu(time[0]) + film.bias).chunk(2)
    found = film.modulate(features, time, noisy)
    torch.testing.assert_close(found[0], features[0] * (1 + scale)[:, None, None] + shift[:, None, None])
    torch.testing.assert_close(found[1], film.modulate(features, None, None)[1])  # for a clean row, only the bias is used


def test_time_conditioning_of_v2_starts_at_zero():
    torch.manual_seed(0)
    parts = {"time": "adaln_single", "patch_embedding": "conv", "pixel_readout": "conv", "final_norm": True}
    net = HybViT(replace(SMALL, class_depth=2, label_conditioning=True, num_classes=200, **parts)).double()
    x, t = inputs()
    for layer in net.layers:
        layer.register_forward_hook(lambda m, i, o: torch.testing.assert_close(o, i[0], rtol=0, atol=0))
    stream = net.forward_trunk(x, t)
    assert torch.equal(stream.z, net.forward_trunk(x, t + 300).z)  # no dependence on the time at first, not even in the stem
    assert torch.equal(net.read_pixels(stream), net.read_pixels(replace(stream, time=1 + stream.time)))
    assert net.label_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_conv_readout_takes_the_input_image():
    net, (x, t) = build(pixel_readout="conv"), inputs()
    stream = net.forward_tail(net.forward_trunk(x, t), None)
    assert (net.read_pixels(stream) - net.read_pixels(replace(stream, pixels=x + 1))).abs().max() > 1e-3


def test_adaln_single_is_adaln_zero_with_one_modulation_and_constants_per_layer():
    single, (x, t) = build(time="adaln_single"), inputs()
    zero = build(time="adaln_zero")
    weights = dict(single.state_dict())
    shared = weights.pop("shared_modulation.weight")
    for k in range(3):
        weights[f"layers.{k}.modulation.weight"] = shared
        weights[f"layers.{k}.modulation.bias"] = weights.pop(f"layers.{k}.constants")
    zero.load_state_dict(weights)
    for times in (t, t * torch.tensor([1, 0, 1, 0]), None):
        torch.testing.assert_close(single(x, times), zero(x, times), rtol=0, atol=1e-12)


def test_labeled_images_skip_the_layers_after_the_tap():
    net, (x, t) = build(class_depth=2, long_skips=True), inputs()
    rows = []
    for layer in net.layers:
        layer.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    net.joint(x, x[:3], t[:3])
    net.classify(x)
    assert rows == [7, 7, 3, 4, 4]


def test_a_noisy_image_is_classified_at_its_time():
    net, (x, _) = build(**VARIANTS["tap"]), inputs()
    light = torch.tensor([0, 3, 0, 9])
    torch.testing.assert_close(net.classify(x, light), net(x, light).logits, rtol=0, atol=1e-12)
    assert (net.classify(x, light) - net.classify(x)).abs().max() > 1e-3


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_outside_training_the_layer_before_the_read_out_computes_the_class_token_alone(changes):
    net, (x, t) = build(**changes), inputs()
    all_tokens, features, noisy = net.classify(x), net.features(x), net.classify(x, t)
    computed = []
    for layer in net.layers:
        layer.register_forward_hook(lambda m, i, o: computed.append(o.shape[1]))
    net.eval()
    torch.testing.assert_close(net.classify(x), all_tokens, rtol=0, atol=1e-12)
    tap = net.cfg.tap
    assert computed == [17] * (tap - 1) + [1]
    torch.testing.assert_close(net.features(x), features, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.classify(x, t), noisy, rtol=0, atol=1e-12)
    assert net.forward_features(x).shape[1] == 17


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_features_and_head_are_those_of_timm(changes):
    """As in timm: forward_features returns all tokens, forward_head the logits or, with pre_logits, their input."""
    net, (x, _) = build(**changes), inputs()
    z = net.forward_features(x)
    assert net.num_prefix_tokens == 1
    assert z.shape == (4, net.num_prefix_tokens + 16, 32)
    assert torch.equal(net.forward_head(z), net.classify(x))
    assert torch.equal(net.forward_head(z, pre_logits=True), net.features(x))
    assert torch.equal(net.features(x), z[:, 0])
    assert torch.equal(net.class_readout(net.features(x)), net.classify(x))


def test_the_label_reaches_the_pixels_and_not_the_logits():
    net, (x, t) = build(**VARIANTS["label"]), inputs()
    y = torch.tensor([0, 1, 2, 5])
    cond, uncond = net(x, t, y), net(x, t)
    assert torch.equal(cond.logits, uncond.logits)
    assert (cond.prediction - uncond.prediction).abs().amax((1, 2, 3))[:3].min() > 1e-3
    assert torch.equal(cond.prediction[3], uncond.prediction[3])  # K means "no label"
    torch.testing.assert_close(net.joint(x, x, t, y=y).prediction, cond.prediction, rtol=0, atol=1e-12)
    both = net.joint(x, x, t, y=y, uncond=True)
    torch.testing.assert_close(both.prediction, cond.prediction, rtol=0, atol=1e-12)
    torch.testing.assert_close(both.uncond, uncond.prediction, rtol=0, atol=1e-12)
    assert both.prediction.requires_grad
    assert not both.uncond.requires_grad
    with pytest.raises(ValueError, match="label_conditioning"):
        build().denoise(x, t, y)


def test_the_unconditional_pass_does_not_change_gradients_in_mixed_precision():
    net, (x, t) = build(**VARIANTS["label"]).float(), inputs()
    gradients = []
    for uncond in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            net.joint(x.float(), x.float(), t, y=torch.tensor([0, 1, 2, 5]), uncond=uncond).prediction.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_rope_depends_only_on_the_offset_of_two_patches_and_skips_the_prefix():
    net = build(rope=True)
    rope = net.layers[0].attention.rope
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    turned = [rope.double()(part.expand(1, 1, 17, 8))[0, 0] for part in (q, k)]
    assert torch.equal(turned[0][0], q)
    products = (turned[0][1:] @ turned[1][1:].T).reshape(4, 4, 4, 4)  # row, column of q; row, column of k
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3], rtol=0, atol=1e-6)
    torch.testing.assert_close(products[1, 2, 0, 2], products[3, 0, 2, 0], rtol=0, atol=1e-6)
    assert (products[0, 0, 1, 2] - products[0, 0, 2, 1]).abs() > 1e-3
    torch.testing.assert_close(turned[0].norm(dim=1), q.norm().expand(17), rtol=0, atol=1e-6)


def test_queries_and_keys_are_normalized_per_head():
    net = build(qk_norm=True)
    attention = net.layers[0].attention
    z = torch.randn(2, 17, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    before = attention(z)
    with torch.no_grad():
        attention.qkv.weight[:64] *= 7  # of q and k, not of v
    torch.testing.assert_close(attention(z), before, rtol=0, atol=1e-4)


def test_swiglu_has_as_many_parameters_and_a_gate():
    net = build(mlp="swiglu", dim=48)
    mlp = net.layers[0].mlp
    assert sum(p.numel() for p in mlp.parameters() if p.ndim == 2) == 2 * 48 * 96
    z = torch.randn(2, 48, dtype=torch.float64)
    gate, value = mlp.into(z).split(64, dim=1)
    torch.testing.assert_close(mlp(z), mlp.out(gate * gate.sigmoid() * value), rtol=0, atol=1e-12)


def test_attention_is_equation_16():
    net = build()
    z = torch.randn(2, 17, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    attention = net.layers[0].attention
    q, k, v = attention.qkv(z).split(32, dim=-1)
    heads = []
    for h in range(4):
        part = slice(8 * h, 8 * h + 8)
        heads.append(torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(8), -1) @ v[..., part])
    torch.testing.assert_close(attention(z), attention.out(torch.cat(heads, -1)), rtol=0, atol=1e-12)


def test_both_attention_kernels_agree():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, SHORT + 1, 8, generator=g).bfloat16() for _ in range(3))
    fused, plain = attend(q, k, v), attend(q.clone().requires_grad_(), k, v)
    assert (fused.float() - plain.float()).abs().max() < 0.05  # bf16 holds 8 bits
    exact = torch.softmax(q.float() @ k.float().transpose(-2, -1) / 8**0.5, -1) @ v.float()
    assert (plain.float() - exact).abs().max() < 0.05


def test_adaln_zero_starts_as_the_identity():
    torch.manual_seed(0)
    net = HybViT(ViTConfig(**{**SMALL.__dict__, "time": "adaln_zero"}))
    z = torch.randn(2, 17, 32)
    assert torch.equal(net.layers[0](z, torch.randn(2, 32), torch.ones(2, 1)), z)


def test_token_scalars_are_cancelled_by_the_layer_norm():
    """Spec, section 2: LN(a z + b) = LN(z) for scalars a > 0 and b, so the branches of the paper hardly depend on the time."""
    layer = HybViT(SMALL).layers[0].double()
    layer.norm_attention.eps = 1e-12
    z = torch.randn(3, 17, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    scale, shift = torch.rand(2, 3, 17, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    moved = layer.modulate(z, scale, shift)
    assert (moved - z).abs().max() > 1
    torch.testing.assert_close(layer.norm_attention(moved), layer.norm_attention(z), rtol=0, atol=1e-9)


def test_time_embedding_is_computed_at_t_minus_1_sine_first():
    seen = sinusoid_only(6)(torch.tensor([1, 5]))
    frequencies = [10_000 ** (-i / 2) for i in range(3)]
    expected = [
        [math.sin(0)] * 3 + [1.0] * 3,
        [math.sin(4 * f) for f in frequencies] + [math.cos(4 * f) for f in frequencies],
    ]
    torch.testing.assert_close(seen, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_size": 3}, "model.patch_size 3"),
        ({"heads": 5}, "model.dim 384"),
        ({"dim": 0}, "model.dim is 0"),
        ({"channels": -1}, "model.channels"),
        ({"time": "sinus"}, "model.time"),
        ({"dim": 33, "heads": 3}, "even"),
        ({"class_depth": 10}, r"class_depth is 10: it must be in 1\.\.9"),
        ({"dim": 36, "heads": 6, "rope": True}, "multiple of 4"),
        ({"label_conditioning": True}, "class_depth below 9"),
        ({"time": "token"}, "model.time is 'token'"),
    ],
)
def test_impossible_networks_are_refused_by_field(changes, named):
    with pytest.raises(ValueError, match=named):
        ViTConfig(**changes)


def test_wrong_inputs_are_refused():
    net = HybViT(SMALL)
    with pytest.raises(ValueError, match=r"\[B, 3, 8, 8\]"):
        net(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="uint8"):
        net(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="t has shape"):
        net(torch.zeros(2, 3, 8, 8), torch.tensor([1]))
