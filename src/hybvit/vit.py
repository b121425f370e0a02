"""The backbone: one Vision Transformer with two read-outs and a time input (Secs. 3 and 4.1 of the paper).

Shapes: B images, C channels, H = W = image_size, p patch_size, N = (H / p)^2 patches, D dim, K classes, T diffusion steps.
An image x is [B, C, H, W] in [-1, 1]; the token sequence z is [B, N + 1, D], the class token first; t is int64 [B].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ViTConfig:
    """Everything that decides the shape of a :class:`HybViT`. The defaults are the paper's network for CIFAR-10.

    Args:
        image_size: height and width of the (square) images, in pixels.
        patch_size: side of a patch, in pixels; it must divide ``image_size``.
        channels: 1 for grey images, 3 for colour.
        num_classes: classes of the label read-out.
        dim: width D of a token; it must be even and a multiple of ``heads``.
        depth: number of layers L.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP as a multiple of ``dim``.
        time: how a layer is told the time. ``token_scalars`` is Eq. 21 as published: one scale and one shift per token,
            which the LayerNorm that follows cancels in the attention and MLP branches. ``adaln_zero`` (Peebles & Xie
            2023) gives scale, shift and gate per channel, inside the branches.
        ffn_time: apply the token scalars a second time, before the MLP (published default).
        long_skips: join layer k to layer L - 1 - k by concatenation and a Linear (U-ViT, Bao et al. 2023).
        pixel_readout: ``linear`` maps each token to its patch (the paper); ``conv`` maps it to ``readout_width`` features
            per pixel, which three 3x3 convolutions, modulated by the time, refine beside the input image.
        readout_width: features per pixel of the ``conv`` read-out.
        final_norm: a LayerNorm on the patch tokens before the pixel read-out.
        position_std: standard deviation of the initial positional embedding and class token (published: 1).
    """

    image_size: int = 32
    patch_size: int = 4
    channels: int = 3
    num_classes: int = 10
    dim: int = 384
    depth: int = 9
    heads: int = 12
    mlp_ratio: float = 2.0
    time: Literal["token_scalars", "adaln_zero"] = "token_scalars"
    ffn_time: bool = True
    long_skips: bool = False
    pixel_readout: Literal["linear", "conv"] = "linear"
    readout_width: int = 16
    final_norm: bool = False
    position_std: float = 1.0

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "channels", "num_classes", "dim", "depth", "heads", "readout_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if self.position_std < 0:
            raise ValueError(f"model.position_std is {self.position_std}: it must be at least 0")
        if int(self.dim * self.mlp_ratio) < 1:
            raise ValueError(f"model.mlp_ratio is {self.mlp_ratio}: the MLP would have no hidden unit")
        if self.image_size % self.patch_size:
            raise ValueError(f"model.patch_size {self.patch_size} does not divide model.image_size {self.image_size}")
        if self.dim % self.heads:
            raise ValueError(f"model.dim {self.dim} is not a multiple of model.heads {self.heads}")
        if self.dim % 2 or self.dim < 4:
            raise ValueError(f"model.dim {self.dim}: it must be even and at least 4 (half sine, half cosine of the time)")
        for name, allowed in (("time", tuple(LAYERS)), ("pixel_readout", tuple(READOUTS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}: it must be one of {', '.join(allowed)}")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def time_width(self) -> int:
        """Width of the time embedding A: 4 (N + 1) for the published token scalars, D otherwise."""
        return 4 * (self.num_patches + 1) if self.time == "token_scalars" else self.dim


class Output(NamedTuple):
    """What one pass gives: both read-outs of every row.

    Attributes:
        logits: [B, K], unnormalised log p(y|x) up to a constant; meant for clean rows.
        eps: [B, C, H, W], the predicted noise of Eq. 15, meant for noisy rows. A network trained for another target
            (v, x0) gives that target here; :meth:`hybvit.Diffusion.to_eps` converts it.
    """

    logits: Tensor
    eps: Tensor


class Encoded(NamedTuple):
    """The last layer's tokens and what the read-outs need to know about the time.

    Attributes:
        z: z_L [B, N + 1, D].
        time: the embedding A of Eq. 21 [B, h], or None when every row is clean.
        noisy: [B, 1], 1 where t > 0 and 0 for a clean row, or None when every row is clean.
    """

    z: Tensor
    time: Tensor | None
    noisy: Tensor | None


def patchify(x: Tensor, p: int) -> Tensor:
    """[B, C, H, W] -> [B, N, p*p*C]: patches in raster order; inside one: row, column, channel (as published)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)


def unpatchify(patches: Tensor, p: int, channels: int) -> Tensor:
    """The inverse of :func:`patchify`: [B, N, p*p*channels] -> [B, channels, H, W], for square images."""
    b, n, _ = patches.shape
    side = math.isqrt(n)
    image = patches.reshape(b, side, side, p, p, channels).permute(0, 1, 3, 2, 4, 5).reshape(b, side * p, side * p, channels)
    return image.permute(0, 3, 1, 2)  # channels last in memory, the order that convolutions like best


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Eq. 16) for q, k, v of shape [B, heads, N + 1, d]: the one place that picks a kernel."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # The fused kernel's bf16 backward on CPU is several times slower than three plain products (`hybvit bench`).
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1, dtype=q.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """MSA of Eq. 18: heads * d = D, qkv without bias, output with bias."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, z: Tensor) -> Tensor:
        b, n, d = z.shape
        q, k, v = self.qkv(z).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Sequential):
    """MLP of Eq. 19: two Linear maps with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class TimeEmbedding(nn.Module):
    """A = MLP(emb(t)) of Eq. 21."""

    frequencies: Tensor

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        half = dim // 2
        # In float32 and in this order, as published: a last bit in a frequency is 6e-5 in the phase at t = 1000.
        frequencies = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """t int64 [B] in 0..T -> [B, width]. The sinusoid sees t - 1, so that published weights keep their meaning."""
        phase = (t - 1)[:, None] * self.frequencies
        return self.mlp(torch.cat((phase.sin(), phase.cos()), dim=-1))


class TokenScalarLayer(nn.Module):
    """One layer of GenViT as published: z <- z (scale_k + 1) + shift_k (Eq. 21), then Eqs. 18-19."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.ffn_time = cfg.ffn_time
        self.modulation = nn.Linear(cfg.time_width, 2 * (cfg.num_patches + 1))
        self.norm_attention = nn.LayerNorm(cfg.dim)
        self.attention = Attention(cfg.dim, cfg.heads)
        self.norm_mlp = nn.LayerNorm(cfg.dim)
        self.mlp = MLP(cfg.dim, int(cfg.dim * cfg.mlp_ratio))

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """z [B, N + 1, D], time [B, h], noisy [B, 1] (1 where t > 0); time = noisy = None means all rows are clean."""
        if time is None or noisy is None:
            scale = shift = None
        else:
            scale, shift = (self.modulation(F.silu(time)) * noisy).unsqueeze(-1).chunk(2, dim=1)
        z = self.modulate(z, scale, shift)
        z = z + self.attention(self.norm_attention(z))
        if self.ffn_time:
            z = self.modulate(z, scale, shift)
        return z + self.mlp(self.norm_mlp(z))

    @staticmethod
    def modulate(z: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        return z if scale is None or shift is None else torch.addcmul(z + shift, z, scale)


class AdaLNZeroLayer(nn.Module):
    """One layer with adaLN-zero: z <- z + gate * f(LN(z) (1 + scale) + shift) for f = MSA, then MLP; gates start at 0.

    A clean row sees the bias of the modulation alone, which is learned: classification has its own fixed condition.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(cfg.time_width, 6 * cfg.dim)
        self.norm_attention = nn.LayerNorm(cfg.dim, elementwise_affine=False)
        self.attention = Attention(cfg.dim, cfg.heads)
        self.norm_mlp = nn.LayerNorm(cfg.dim, elementwise_affine=False)
        self.mlp = MLP(cfg.dim, int(cfg.dim * cfg.mlp_ratio))

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        if time is None or noisy is None:
            modulation = self.modulation.bias.to(z.dtype)[None]
        else:
            modulation = self.modulation(F.silu(time) * noisy)
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = modulation.unsqueeze(1).chunk(6, dim=-1)
        z = z + gate_a * self.attention(torch.addcmul(shift_a, self.norm_attention(z), 1 + scale_a))
        return z + gate_m * self.mlp(torch.addcmul(shift_m, self.norm_mlp(z), 1 + scale_m))


class LinearReadout(nn.Module):
    """Each patch token is mapped linearly to its pixels (Sec. 4.1)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_size, self.channels = cfg.patch_size, cfg.channels
        self.to_pixels = nn.Linear(cfg.dim, cfg.patch_size**2 * cfg.channels)

    def forward(self, tokens: Tensor, x: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """tokens [B, N, D], x [B, C, H, W] the network's input -> [B, C, H, W]."""
        return unpatchify(self.to_pixels(tokens), self.patch_size, self.channels)


class ConvReadout(nn.Module):
    """Tokens become ``readout_width`` features per pixel; three 3x3 convolutions refine them beside the input image."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_size, width = cfg.patch_size, cfg.readout_width
        self.width = width
        self.to_pixels = nn.Linear(cfg.dim, cfg.patch_size**2 * width)
        self.modulation = nn.Linear(cfg.time_width, 2 * width)
        self.mix = nn.Conv2d(width + cfg.channels, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.to_image = nn.Conv2d(width, cfg.channels, 3, padding=1)

    def forward(self, tokens: Tensor, x: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        features = unpatchify(self.to_pixels(tokens), self.patch_size, self.width)
        if time is None or noisy is None:
            modulation = self.modulation.bias.to(features.dtype)[None]
        else:
            modulation = self.modulation(F.silu(time) * noisy)
        scale, shift = modulation[..., None, None].chunk(2, dim=1)
        features = self.mix(torch.cat((features, x.to(features.dtype)), dim=1))
        features = features + self.refine(F.gelu(torch.addcmul(shift, features, 1 + scale)))
        return self.to_image(F.gelu(features))


LAYERS: dict[str, type[TokenScalarLayer] | type[AdaLNZeroLayer]] = {
    "token_scalars": TokenScalarLayer,
    "adaln_zero": AdaLNZeroLayer,
}
READOUTS: dict[str, type[LinearReadout] | type[ConvReadout]] = {"linear": LinearReadout, "conv": ConvReadout}


class HybViT(nn.Module):
    """ViT, GenViT and HybViT: the same network; the objective decides which read-outs are trained (Figs. 2 and 3).

    ``net(x, t)`` gives :class:`Output`; t = None, or a row with t = 0, means a clean image.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_embedding = nn.Linear(cfg.patch_size**2 * cfg.channels, cfg.dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, cfg.dim))
        self.positions = nn.Parameter(torch.empty(1, cfg.num_patches + 1, cfg.dim))
        self.time_embedding = TimeEmbedding(cfg.dim, cfg.time_width)
        self.layers = nn.ModuleList(LAYERS[cfg.time](cfg) for _ in range(cfg.depth))
        skips = cfg.depth // 2 if cfg.long_skips else 0
        self.skips = nn.ModuleList(nn.Linear(2 * cfg.dim, cfg.dim) for _ in range(skips))
        self.class_readout = nn.Sequential(nn.LayerNorm(cfg.dim), nn.Linear(cfg.dim, cfg.num_classes))
        self.pixel_norm = nn.LayerNorm(cfg.dim) if cfg.final_norm else nn.Identity()
        self.pixel_readout = READOUTS[cfg.pixel_readout](cfg)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier normal weights and zero biases, N(0, position_std^2) positions and class token; adaLN starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=self.cfg.position_std)
        nn.init.normal_(self.class_token, std=self.cfg.position_std)
        for module in self.modules():
            if isinstance(module, AdaLNZeroLayer | ConvReadout):
                nn.init.zeros_(module.modulation.weight)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Output:
        """x float [B, C, H, W] in [-1, 1]; t int64 [B] in 1..T, 0 for a clean row, or None when all rows are clean.

        Raises:
            ValueError: x or t has another shape or type than the configuration says.
        """
        z, time, noisy = self.encode(x, t)
        return Output(self.read_class(z), self.read_pixels(z, x, time, noisy))

    def classify(self, x: Tensor) -> Tensor:
        """x float [B, C, H, W] in [-1, 1], clean -> logits [B, K] (Eq. 20)."""
        return self.read_class(self.encode(x, None).z)

    def features(self, x: Tensor) -> Tensor:
        """x float [B, C, H, W] in [-1, 1], clean -> the class token after the last layer [B, D]."""
        return self.encode(x, None).z[:, 0]

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, H, W] at t int64 [B] in 1..T -> what the pixel read-out predicts [B, C, H, W]: see :class:`Output`."""
        z, time, noisy = self.encode(x_t, t)
        return self.read_pixels(z, x_t, time, noisy)

    def joint(self, images: Tensor, x_t: Tensor, t: Tensor) -> Output:
        """Both mini-batches of Sec. 4.2 in one pass: the logits of the clean ``images``, the noise in ``x_t``.

        images [Bc, C, H, W] clean; x_t [Bd, C, H, W] noisy at t [Bd] -> Output(logits [Bc, K], eps [Bd, C, H, W]).
        """
        clean = len(images)
        z, time, noisy = self.encode(torch.cat((images, x_t)), torch.cat((t.new_zeros(clean), t)))
        if time is not None and noisy is not None:
            time, noisy = time[clean:], noisy[clean:]
        return Output(self.read_class(z[:clean]), self.read_pixels(z[clean:], x_t, time, noisy))

    def encode(self, x: Tensor, t: Tensor | None) -> Encoded:
        """Eqs. 17-21 without the read-outs."""
        self.check_input(x, t)
        time = noisy = None
        if t is not None:
            time = self.time_embedding(t)
            noisy = (t > 0).to(time.dtype)[:, None]
        patches = self.patch_embedding(patchify(x, self.cfg.patch_size))
        # The residual stream has the precision of the products (bf16 under autocast), which halves its memory traffic.
        token, positions = self.class_token.to(patches.dtype), self.positions.to(patches.dtype)
        z = torch.cat((token.expand(len(x), -1, -1), patches), dim=1) + positions
        kept: list[Tensor] = []
        for k, layer in enumerate(self.layers):
            mirrored = k - (len(self.layers) - len(self.skips))
            if mirrored >= 0:
                z = self.skips[mirrored](torch.cat((z, kept.pop()), dim=-1))
            z = layer(z, time, noisy)
            if k < len(self.skips):
                kept.append(z)
        return Encoded(z, time, noisy)

    def read_class(self, z: Tensor) -> Tensor:
        """Eq. 20 and the label head: z_L [B, N + 1, D] -> logits [B, K] in float32 or wider."""
        logits = self.class_readout(z[:, 0])
        return logits if logits.dtype == torch.float64 else logits.float()

    def read_pixels(self, z: Tensor, x: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """z_L [B, N + 1, D] and the input x [B, C, H, W] -> the predicted image [B, C, H, W] in float32 or wider."""
        image = self.pixel_readout(self.pixel_norm(z[:, 1:]), x, time, noisy)
        return image if image.dtype == torch.float64 else image.float()

    def check_input(self, x: Tensor, t: Tensor | None) -> None:
        expected = (self.cfg.channels, self.cfg.image_size, self.cfg.image_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f"x has shape {list(x.shape)}: this network takes [B, {', '.join(map(str, expected))}]")
        if not x.is_floating_point():
            raise ValueError(f"x has type {x.dtype}: it must be float in [-1, 1] (HybridModel.predict takes uint8 pixels)")
        if t is not None and (t.shape != x.shape[:1] or t.is_floating_point()):
            raise ValueError(
                f"t has shape {list(t.shape)}, type {t.dtype}: it must be int64 [{len(x)}] of steps 1..T, 0 = clean"
            )
