"""What `hybvit bench` times beside our network: the paper's network in plain form, timm's ViT, diffusers' U-Net and DiT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...baselines.unet import DenoisingUNet
from ...config import Config
from ...errors import ConfigError
from ...loading import FREE_FIELDS
from ...method.diffusion import Diffusion
from ...method.objective import Batch, draw_times
from ...method.objective_config import Objective
from ...method.seeds import generator, normal_like
from ...method.vit import HybViT, Output, TokenScalarLayer, ViTConfig, patchify, unpatchify

COUNTED = 2  # images that are counted; the operations are proportional to their number
WIDTH_STEP = 4  # by which the width of a U-Net is varied
ATTENTION_AT = 16  # side in pixels of DDPM's level with self-attention


def gflop(call: Callable[[], object]) -> float:
    """10^9 operations of a call that makes its own tensors, on no device: a product of n x k and k x m matrices counts 2nkm.

    On a CPU the fused attention would not be counted.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def noisy_images(cfg: Config, n: int) -> tuple[Tensor, Tensor]:
    """Random x_t [n, C, H, W] and t [n] in 1..T, on the default device."""
    return torch.randn(n, *cfg.model.image_shape), torch.arange(n) % cfg.diffusion.steps + 1


def denoising_gflop(cfg: Config, build: Callable[[], nn.Module], backward: bool = False) -> float:
    """10^9 operations of a denoising pass, per image, with or without the backward pass."""

    def call() -> None:
        prediction: Tensor = build().denoise(*noisy_images(cfg, COUNTED))  # type: ignore[operator]
        if backward:
            prediction.sum().backward()

    return gflop(call) / COUNTED


# The paper's network in plain form


def differs_from_paper(cfg: Config) -> str | None:
    """The first setting that the plain reference does not know, in words; None where there is none."""
    if cfg.network.name != "vit":
        return f"network.name is {cfg.network.name}"
    paper = ViTConfig()
    for name in vars(paper):
        if name not in FREE_FIELDS and getattr(cfg.model, name) != getattr(paper, name):
            return f"model.{name} is {getattr(cfg.model, name)}"
    plain = Objective()
    objective = replace(cfg.objective, alpha=plain.alpha, alpha_end=None, label_smoothing=plain.label_smoothing)
    other = next((name for name in vars(plain) if getattr(objective, name) != getattr(plain, name)), None)
    return f"objective.{other} is {getattr(objective, other)}" if other else None


def reference_forward(net: HybViT, x: Tensor, t: Tensor | None) -> Output:
    """The paper's network in plain form: einsum attention, separate products, nothing fused. Same weights, same results."""
    tokens = net.patch_embedding(patchify(x, net.cfg.patch_size))
    z = torch.cat((net.class_token.expand(len(x), -1, -1), tokens), dim=1) + net.positions
    time_embedding = net.time_embedding(t) if t is not None else None
    for layer in net.layers:
        assert isinstance(layer, TokenScalarLayer)
        scale = shift = None
        if time_embedding is not None:
            scale, shift = (s[:, :, None] for s in layer.modulation(F.silu(time_embedding)).chunk(2, dim=1))
        z = z if scale is None else z * (scale + 1) + shift
        q, k, v = layer.attention.qkv(layer.norm_attention(z)).chunk(3, dim=-1)
        q, k, v = (part.reshape(*part.shape[:2], layer.attention.heads, -1).transpose(1, 2) for part in (q, k, v))
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
        attended = torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).flatten(2)
        z = z + layer.attention.out(attended)
        z = z if scale is None or not layer.ffn_time else z * (scale + 1) + shift
        z = z + layer.mlp(layer.norm_mlp(z))
    image = unpatchify(net.pixel_readout.to_pixels(z[:, 1:]), net.cfg.patch_size, net.cfg.channels)
    return Output(net.class_readout(z[:, 0]).float(), image.float())


def reference_loss(net: HybViT, diffusion: Diffusion, batch: Batch, cfg: Config) -> Tensor:
    """The loss of a training step, by two plain forward passes of the paper's network."""
    x0, images, labels = batch.x0, batch.images, batch.labels
    assert x0 is not None
    assert images is not None
    assert labels is not None
    draws = generator(cfg.train.seed, "noise", 0)
    t, noise = draw_times(len(x0), diffusion.T, generator=draws).to(x0.device), normal_like(x0, draws)
    logits = reference_forward(net, images, None).logits
    ce = F.cross_entropy(logits, labels, label_smoothing=cfg.objective.label_smoothing)
    eps = reference_forward(net, diffusion.q_sample(x0, t, noise), t).prediction
    return ce + cfg.objective.alpha * F.l1_loss(eps, noise)


# Other libraries' networks


def timm_vit(cfg: Config) -> nn.Module:
    """timm's ViT with the tokens, width, heads and MLP of ours, and as many layers as lie before the label read-out.

    Raises:
        ConfigError: our network is no ViT.
    """
    from timm.models.vision_transformer import VisionTransformer

    if cfg.network.name != "vit":
        raise ConfigError(f"network.name is {cfg.network.name}, and a ViT has no shape like it")
    m = cfg.model
    return VisionTransformer(
        img_size=m.image_size, patch_size=m.patch_size, in_chans=m.channels, num_classes=m.num_classes,
        embed_dim=m.dim, depth=m.tap, num_heads=m.heads, mlp_ratio=m.mlp_ratio, qkv_bias=False,
    )  # fmt: skip


class DiT(nn.Module):
    """diffusers' DiT with the tokens, width and heads of our ViT.

    Raises:
        ConfigError: diffusers is not installed, or our network is no ViT.
    """

    def __init__(self, cfg: Config, layers: int) -> None:
        super().__init__()
        try:
            from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
        except ImportError:
            raise ConfigError("needs diffusers: pip install 'hybvit[baselines]'") from None
        m = cfg.model
        if cfg.network.name != "vit":
            raise ConfigError(f"network.name is {cfg.network.name}, and a DiT has no shape like it")
        self.net = DiTTransformer2DModel(
            num_attention_heads=m.heads, attention_head_dim=m.dim // m.heads, in_channels=m.channels, num_layers=layers,
            sample_size=m.image_size, patch_size=m.patch_size, num_embeds_ada_norm=m.num_classes,
        )  # fmt: skip

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.net(x_t, timestep=t - 1, class_labels=torch.zeros_like(t)).sample


@cache
def nearest_dit(cfg: Config, wanted: float) -> Callable[[], nn.Module]:
    """What builds the DiT whose denoising pass takes nearest to ``wanted`` GFLOP an image; its layers are varied."""
    one, two = (denoising_gflop(cfg, lambda n=n: DiT(cfg, n)) for n in (1, 2))  # type: ignore[misc]
    layers = max(1, 1 + round((wanted - one) / (two - one)))
    return lambda: DiT(cfg, layers)


def unet(cfg: Config, width: int) -> nn.Module:
    """DDPM's U-Net by diffusers, of this width: as many levels, up to its four, as leave at least 4 pixels a side.

    Raises:
        ConfigError: diffusers is not installed.
    """
    size = cfg.model.image_size
    levels = [0, *(k for k in (1, 2, 3) if size % 2**k == 0 and size >> k >= 4)]
    attention_at = min((size >> k for k in levels), key=lambda side: abs(side - ATTENTION_AT))
    channels = tuple(width * (1 if k == 0 else 2) for k in levels)
    try:
        return DenoisingUNet(cfg.model.image_shape, channels, attention_at=attention_at, dropout=0.0)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("network.name unet ")) from None


@cache
def nearest_unet(cfg: Config, wanted: float) -> Callable[[], nn.Module]:
    """What builds the U-Net whose denoising pass takes nearest to ``wanted`` GFLOP an image; its width is varied."""
    counts: dict[int, float] = {}

    def counted(width: int) -> float:
        if width not in counts:
            counts[width] = denoising_gflop(cfg, lambda: unet(cfg, width))
        return counts[width]

    width = 8 * WIDTH_STEP
    for _ in range(4):  # the operations are about quadratic in the width
        width = max(WIDTH_STEP, WIDTH_STEP * round(width * (wanted / counted(width)) ** 0.5 / WIDTH_STEP))
        if width in counts:
            break
    counted(width)
    best = min(counts, key=lambda width: abs(counts[width] - wanted))
    return lambda: unet(cfg, best)
