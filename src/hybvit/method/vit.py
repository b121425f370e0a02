"""The backbone: one Vision Transformer with two read-outs and a time input (Secs. 3 and 4.1 of the paper).

A read-out is an output head. The label read-out maps the class token to logits; the pixel read-out maps the patch tokens to an
image. The tap is the layer whose output the label read-out takes: the last one, as published, or an earlier one.

Shapes: B images, C channels, H = W = image_size, p patch_size, N = (H / p)^2 patches, D dim, K classes, T diffusion steps.
An image x is [B, C, H, W] in [-1, 1]; the token sequence z is [B, N + 1, D], the class token first, then the patches in raster
order; t is int64 [B]. The time embedding A is [B, h], and noisy [B, 1] is 1 where t > 0; both are None if all rows are clean.

The file goes bottom-up: patches, time embedding, attention and MLP; one layer class per kind of time conditioning; the stem and
the two pixel read-outs; the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .vit_config import ViTConfig

__all__ = ["HybViT", "Output", "ViTConfig"]

SHORT = 128  # tokens
ROPE_BASE = 100.0  # not the usual 10,000: positions are rows and columns of patches, tens of them (Heo et al. 2024)


def patchify(x: Tensor, p: int) -> Tensor:
    """[B, C, H, W] -> [B, N, p*p*C]: patches in raster order; within a patch: row, column, channel (as published)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)


def unpatchify(patches: Tensor, p: int, channels: int) -> Tensor:
    """The inverse of :func:`patchify`: [B, N, p*p*channels] -> [B, channels, H, W], for square images."""
    b, n, _ = patches.shape
    side = math.isqrt(n)
    image = patches.reshape(b, side, side, p, p, channels).permute(0, 1, 3, 2, 4, 5).reshape(b, side * p, side * p, channels)
    return image.permute(0, 3, 1, 2)  # channels_last in memory, the fastest layout for convolutions


class WithTables(nn.Module):
    """A module with constant tables, which are computed again when it is moved: they are never in less than float32, and are
    there after ``to_empty``."""

    def tables(self) -> dict[str, Tensor]:
        """Name -> table, in float32 on the CPU."""
        raise NotImplementedError

    def register_tables(self) -> None:
        for name, table in self.tables().items():
            self.register_buffer(name, table.to(torch.get_default_device()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        for name, table in self.tables().items():
            moved = getattr(self, name)
            setattr(self, name, table.to(moved.device, torch.promote_types(moved.dtype, torch.float32)))
        return self


class TimeEmbedding(WithTables):
    """The time embedding A = MLP(emb(t)) of Eq. 21, where emb is a sinusoidal embedding."""

    frequencies: Tensor

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.pairs = dim // 2  # of a sine and a cosine
        self.register_tables()
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))

    def tables(self) -> dict[str, Tensor]:
        """In the published order of operations: the last bit of a frequency shifts the phase at t = 1000 by 6e-5."""
        return {"frequencies": torch.exp(torch.arange(self.pairs, device="cpu") * -(math.log(10_000) / (self.pairs - 1)))}

    def dtype(self) -> torch.dtype:
        return next(self.mlp.parameters()).dtype

    def forward(self, t: Tensor) -> Tensor:
        """t int64 [B] in 0..T -> [B, width]. The sinusoid takes t - 1, which published weights expect."""
        phase = (t - 1)[:, None] * self.frequencies
        return self.mlp(torch.cat((phase.sin(), phase.cos()), dim=-1).to(self.dtype()))


class FiLM(nn.Linear):
    """Maps the time embedding to a scale and a shift for each of ``width`` channels; for a clean row, only the bias is used."""

    def __init__(self, time_width: int, width: int) -> None:
        super().__init__(time_width, 2 * width)

    def modulate(self, features: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """features [B, width, H, W] -> features (1 + scale) + shift."""
        modulation = self.bias.to(features.dtype)[None] if time is None or noisy is None else self(F.silu(time) * noisy)
        scale, shift = modulation[..., None, None].chunk(2, dim=1)
        return torch.addcmul(shift, features, 1 + scale)


# Attention and MLP


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Eq. 16) for q [B, heads, m, d], k and v [B, heads, n, d]. The kernel is chosen only here."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and (q.requires_grad or q.shape[-2] <= SHORT):
        # On a CPU the fused kernel is slower in bf16 than explicit matrix products: its backward several times, its forward
        # for a sequence that is short.
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1, dtype=q.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """MSA of Eq. 18: heads * d = D, qkv without bias, output with bias; optionally with QK normalization and RoPE."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        width = cfg.dim // cfg.heads
        self.qkv = nn.Linear(cfg.dim, 3 * cfg.dim, bias=False)
        self.q_norm = nn.LayerNorm(width, eps=1e-6, bias=False) if cfg.qk_norm else None
        self.k_norm = nn.LayerNorm(width, eps=1e-6, bias=False) if cfg.qk_norm else None
        self.rope = AxialRoPE(cfg) if cfg.rope else None
        self.out = nn.Linear(cfg.dim, cfg.dim)

    def forward(self, z: Tensor, class_only: bool = False) -> Tensor:
        """z [B, n, D] -> [B, n, D], or [B, 1, D] with ``class_only``: of the class token, which attends to all tokens."""
        b, n, d = z.shape
        if class_only:
            q = F.linear(z[:, :1], self.qkv.weight[:d]).reshape(b, 1, self.heads, -1).transpose(1, 2)
            k, v = F.linear(z, self.qkv.weight[d:]).reshape(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = self.qkv(z).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = q if class_only else self.rope(q), self.rope(k)  # the class token is not rotated
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, -1, d))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What a subclass may compute in another way, such as step by step."""
        return attend(q, k, v)


class AxialRoPE(WithTables):
    """Axial rotary embedding: channel pairs rotate by row * frequency (first half of the pairs) or column * frequency.

    The class token is not rotated.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.side, self.quarter = cfg.image_size // cfg.patch_size, cfg.dim // cfg.heads // 4
        self.register_tables()

    def tables(self) -> dict[str, Tensor]:
        positions = torch.arange(self.side, dtype=torch.float32, device="cpu")
        frequencies = ROPE_BASE ** (-torch.arange(self.quarter, device="cpu") / self.quarter)
        rows = positions.repeat_interleave(self.side)[:, None] * frequencies
        columns = positions.repeat(self.side)[:, None] * frequencies
        angles = F.pad(torch.cat((rows, columns), dim=1), (0, 0, 1, 0))
        return {"cos": angles.cos().repeat(1, 2), "sin": torch.cat((-angles.sin(), angles.sin()), dim=1)}

    def forward(self, q: Tensor) -> Tensor:
        """q [B, heads, n, d]: channel i is paired with channel i + d/2."""
        a, b = q.chunk(2, dim=-1)
        return q * self.cos.to(q.dtype) + torch.cat((b, a), dim=-1) * self.sin.to(q.dtype)


class MLP(nn.Sequential):
    """MLP of Eq. 19: two linear layers with an exact GELU in between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class SwiGLU(nn.Module):
    """out(silu(a) * b) with (a, b) = into(z) (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(dim, 2 * hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, z: Tensor) -> Tensor:
        gate, value = self.into(z).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


MLPS: dict[str, type[MLP] | type[SwiGLU]] = {"gelu": MLP, "swiglu": SwiGLU}


# Layers, one class per kind of time conditioning


class Layer(nn.Module):
    """Base class of all layers: the two branches of Eqs. 18-19, each preceded by its LayerNorm.

    ``forward(z [B, n, D], condition, noisy)`` -> [B, n, D]; the condition is A, or the modulation that all layers share. With
    ``class_only`` the result is that of the class token, [B, 1, D].
    """

    def __init__(self, cfg: ViTConfig, affine: bool = True, modulation: nn.Linear | None = None) -> None:
        super().__init__()
        if modulation is not None:
            self.modulation = modulation
        self.norm_attention = nn.LayerNorm(cfg.dim, elementwise_affine=affine)
        self.attention = Attention(cfg)
        self.norm_mlp = nn.LayerNorm(cfg.dim, elementwise_affine=affine)
        self.mlp = MLPS[cfg.mlp](cfg.dim, cfg.mlp_width)


class TokenScalarLayer(Layer):
    """One layer of GenViT as published: z <- z (scale_k + 1) + shift_k (Eq. 21), then Eqs. 18-19."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg, modulation=nn.Linear(cfg.time_width, 2 * (cfg.num_patches + 1)))
        self.ffn_time = cfg.ffn_time

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None, class_only: bool = False) -> Tensor:
        if time is None or noisy is None:
            scale = shift = None
        else:
            scale, shift = (self.modulation(F.silu(time)) * noisy).unsqueeze(-1).chunk(2, dim=1)
        z = self.modulate(z, scale, shift)
        attended = self.attention(self.norm_attention(z), class_only)
        z = z[:, : attended.shape[1]] + attended
        if self.ffn_time:
            z = self.modulate(z, scale, shift)
        return z + self.mlp(self.norm_mlp(z))

    @staticmethod
    def modulate(z: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """z [B, m, D], the first m tokens; scale and shift [B, n, 1]."""
        if scale is None or shift is None:
            return z
        return torch.addcmul(z + shift[:, : z.shape[1]], z, scale[:, : z.shape[1]])


class AdaLNLayer(Layer):
    """One layer with adaLN: z <- z + gate * f(LN(z) (1 + scale) + shift) for f = MSA, then MLP; gates start at 0.

    Clean rows are modulated by learned constants only, so classification has a fixed condition of its own.
    """

    def modulated(self, z: Tensor, modulation: Tensor, class_only: bool) -> Tensor:
        """modulation [B or 1, 6 D]."""
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = modulation.unsqueeze(1).chunk(6, dim=-1)
        attended = self.attention(torch.addcmul(shift_a, self.norm_attention(z), 1 + scale_a), class_only)
        z = z[:, : attended.shape[1]] + gate_a * attended
        return z + gate_m * self.mlp(torch.addcmul(shift_m, self.norm_mlp(z), 1 + scale_m))


class AdaLNZeroLayer(AdaLNLayer):
    """adaLN with a separate modulation for each layer, whose bias holds the constants."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg, affine=False, modulation=nn.Linear(cfg.time_width, 6 * cfg.dim))

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None, class_only: bool = False) -> Tensor:
        if time is None or noisy is None:
            return self.modulated(z, self.modulation.bias.to(z.dtype)[None], class_only)
        return self.modulated(z, self.modulation(F.silu(time) * noisy), class_only)


class AdaLNSingleLayer(AdaLNLayer):
    """adaLN with one modulation shared by all layers, plus constants for each layer."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg, affine=False)
        self.constants = nn.Parameter(torch.zeros(6 * cfg.dim))

    def forward(self, z: Tensor, modulation: Tensor | None, noisy: Tensor | None, class_only: bool = False) -> Tensor:
        """modulation [B, 6 D] is the shared one; it is 0 for clean rows."""
        constants = self.constants.to(z.dtype)[None]
        return self.modulated(z, constants if modulation is None else modulation + constants, class_only)


LAYERS: dict[str, type[TokenScalarLayer] | type[AdaLNZeroLayer] | type[AdaLNSingleLayer]] = {
    "token_scalars": TokenScalarLayer,
    "adaln_zero": AdaLNZeroLayer,
    "adaln_single": AdaLNSingleLayer,
}


# The stem and the pixel read-outs


@torch.fx.wrap  # a graph of it does not depend on the precision that it was traced in
def fast_layout(features: Tensor) -> Tensor:
    """Features [B, C, H, W] channels last where bf16 makes that pay: of one channel both layouts are the same, and convolutions
    of images with one go on in the slower."""
    return features.contiguous(memory_format=torch.channels_last) if features.dtype == torch.bfloat16 else features


class ConvStem(nn.Module):
    """Two 3x3 convolutions before the image is split into patches: [B, C, H, W] -> [B, stem_width, H, W]."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.into = nn.Conv2d(cfg.channels, cfg.stem_width, 3, padding=1)
        self.modulation = FiLM(cfg.time_width, cfg.stem_width)
        self.mix = nn.Conv2d(cfg.stem_width, cfg.stem_width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        features = self.into(x.contiguous(memory_format=torch.channels_last))
        return F.gelu(self.mix(F.gelu(self.modulation.modulate(fast_layout(features), time, noisy))))


class LinearReadout(nn.Module):
    """Maps each patch token linearly to its pixels (Sec. 4.1)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_size, self.channels = cfg.patch_size, cfg.channels
        self.to_pixels = nn.Linear(cfg.dim, cfg.patch_size**2 * cfg.channels)

    def forward(self, tokens: Tensor, pixels: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """tokens [B, N, D], and pixels [B, C or stem_width, H, W], the input of the patch embedding -> [B, C, H, W]."""
        return unpatchify(self.to_pixels(tokens), self.patch_size, self.channels)


class ConvReadout(nn.Module):
    """Maps tokens to ``readout_width`` features per pixel, appends the input pixels, and applies three 3x3 convolutions."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_size, width = cfg.patch_size, cfg.readout_width
        self.width = width
        pixel_channels = cfg.stem_width if cfg.patch_embedding == "conv" else cfg.channels
        self.to_pixels = nn.Linear(cfg.dim, cfg.patch_size**2 * width)
        self.modulation = FiLM(cfg.time_width, width)
        self.mix = nn.Conv2d(width + pixel_channels, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.to_image = nn.Conv2d(width, cfg.channels, 3, padding=1)

    def forward(self, tokens: Tensor, pixels: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        features = unpatchify(self.to_pixels(tokens), self.patch_size, self.width)
        features = self.mix(torch.cat((features, pixels.to(features.dtype)), dim=1))
        features = features + self.refine(F.gelu(self.modulation.modulate(features, time, noisy)))
        return self.to_image(F.gelu(features))


READOUTS: dict[str, type[LinearReadout] | type[ConvReadout]] = {"linear": LinearReadout, "conv": ConvReadout}


# The network


class Output(NamedTuple):
    """The result of one forward pass: both read-outs for every row.

    Attributes:
        logits: [B, K], log p(y|x) up to a constant; meaningful for clean rows.
        prediction: [B, C, H, W], the output of the pixel read-out, meaningful for noisy rows: the noise of Eq. 15 by default,
            or another target; :meth:`hybvit.Diffusion.to_x0` converts it.
        uncond: [B, C, H, W], the unconditional ``prediction``, without gradient; None unless requested.
    """

    logits: Tensor
    prediction: Tensor
    uncond: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        """:attr:`prediction`, by the name that 0.1.0 gave it."""
        return self.prediction


@dataclass
class Stream:
    """The state of a batch between two layers.

    Attributes:
        z: the tokens [B, n, D].
        pixels: the input of the patch embedding, kept for the pixel read-out: x, or the features of the ``conv`` stem.
        time: the embedding A of Eq. 21 [B, h], or None when every row is clean.
        noisy: [B, 1], 1 where t > 0 and 0 for a clean row, or None when every row is clean.
        condition: the time conditioning that the layers take: A itself, or the modulation that all layers share [B, 6 D].
        skips: tokens saved for the long skips, the newest last.
    """

    z: Tensor
    pixels: Tensor
    time: Tensor | None
    noisy: Tensor | None
    condition: Tensor | None
    skips: list[Tensor]

    def drop_rows(self, n: int) -> Stream:
        """The state without its first n rows."""
        time, noisy, condition = (None if part is None else part[n:] for part in (self.time, self.noisy, self.condition))
        return Stream(self.z[n:], self.pixels[n:], time, noisy, condition, [z[n:] for z in self.skips])

    def repeat_rows(self, n: int) -> Stream:
        """The state with each row n times, one after the other."""
        time, noisy, condition = (
            None if part is None else part.repeat_interleave(n, dim=0) for part in (self.time, self.noisy, self.condition)
        )
        z, pixels = self.z.repeat_interleave(n, dim=0), self.pixels.repeat_interleave(n, dim=0)
        return Stream(z, pixels, time, noisy, condition, [z.repeat_interleave(n, dim=0) for z in self.skips])


class HybViT(nn.Module):
    """The network of ViT, GenViT and HybViT; the objective decides which read-outs are trained (Figs. 2 and 3).

    ``net(x, t)`` returns an :class:`Output`. t = None marks all images as clean, t = 0 a single one. ``y`` int64 [B] is the
    class label for a network with ``label_conditioning``; K, or y = None, means unconditional.
    """

    num_prefix_tokens = 1  # the class token, which comes before the patch tokens
    recompute = False  # whether the backward pass computes the layers again instead of keeping what is inside them

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        features = cfg.stem_width if cfg.patch_embedding == "conv" else cfg.channels
        self.stem = ConvStem(cfg) if cfg.patch_embedding == "conv" else None
        self.patch_embedding = nn.Linear(cfg.patch_size**2 * features, cfg.dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, cfg.dim))
        self.positions = nn.Parameter(torch.empty(1, cfg.num_patches + 1, cfg.dim))
        self.time_embedding = TimeEmbedding(cfg.dim, cfg.time_width)
        self.shared_modulation = nn.Linear(cfg.dim, 6 * cfg.dim, bias=False) if cfg.time == "adaln_single" else None
        self.layers = nn.ModuleList(LAYERS[cfg.time](cfg) for _ in range(cfg.depth))
        skips = cfg.depth // 2 if cfg.long_skips else 0
        self.skips = nn.ModuleList(nn.Linear(2 * cfg.dim, cfg.dim) for _ in range(skips))
        self.label_embedding = nn.Embedding(cfg.num_classes + 1, cfg.dim) if cfg.label_conditioning else None
        self.class_readout = nn.Sequential(nn.LayerNorm(cfg.dim), nn.Linear(cfg.dim, cfg.num_classes))
        self.pixel_norm = nn.LayerNorm(cfg.dim) if cfg.final_norm else nn.Identity()
        self.pixel_readout = READOUTS[cfg.pixel_readout](cfg)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the parameters: Xavier normal weights, zero biases, and N(0, position_std^2) for the positions and the
        class token, as published; zero weights for adaLN and FiLM; N(0, 0.02^2) for the label embeddings."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.positions, self.class_token):
            nn.init.normal_(token, std=self.cfg.position_std)
        for module in self.modules():
            if isinstance(module, FiLM):
                nn.init.zeros_(module.weight)
            if isinstance(module, AdaLNZeroLayer):
                nn.init.zeros_(module.modulation.weight)
            if isinstance(module, AdaLNSingleLayer):
                nn.init.zeros_(module.constants)
        if self.shared_modulation is not None:
            nn.init.zeros_(self.shared_modulation.weight)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor | None = None, y: Tensor | None = None) -> Output:
        """x float [B, C, H, W] in [-1, 1]; t int64 [B] in 1..T, 0 for a clean row, or None when all rows are clean.

        Raises:
            ValueError: the shape or type of x, t or y does not match the configuration.
        """
        stream = self.forward_trunk(x, t)
        return Output(self.forward_head(stream.z), self.read_pixels(self.forward_tail(stream, y)))

    def classify(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """x float [B, C, H, W], clean in [-1, 1] or noisy at t -> logits [B, K] (Eq. 20).

        Only the class token is read, so the last layer before the read-out computes no other: the same logits but for rounding,
        for which a training, which must resume to the last bit, computes all.
        """
        return self.forward_head(self.forward_trunk(x, t, class_only=not self.training).z)

    def forward_features(self, x: Tensor) -> Tensor:
        """x float [B, C, H, W] in [-1, 1], clean -> the tokens at the tap [B, N + 1, D]; the name is timm's."""
        return self.forward_trunk(x, None).z

    def forward_head(self, z: Tensor, pre_logits: bool = False) -> Tensor:
        """The label read-out (Eq. 20): z [B, n, D] -> logits [B, K] in float32 or wider.

        With ``pre_logits`` it returns the class token [B, D] instead.
        """
        if pre_logits:
            return z[:, 0]
        logits = self.class_readout(z[:, 0])
        return logits if logits.dtype == torch.float64 else logits.float()

    def features(self, x: Tensor) -> Tensor:
        """x float [B, C, H, W] in [-1, 1], clean -> the class token at the tap [B, D]."""
        return self.forward_head(self.forward_trunk(x, None, class_only=not self.training).z, pre_logits=True)

    def denoise(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t [B, C, H, W] at t int64 [B] in 1..T -> the prediction of the pixel read-out [B, C, H, W]: see :class:`Output`."""
        return self.read_pixels(self.forward_tail(self.forward_trunk(x_t, t), y))

    def denoise_cond_uncond(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional :meth:`denoise`, for guidance. The trunk does not depend on y and runs once."""
        stream = self.forward_trunk(x_t, t)
        cond, uncond = (self.read_pixels(self.forward_tail(stream, label)) for label in (y, None))
        return cond, uncond

    def denoise_labels(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """:meth:`denoise` of each image with each of M labels y int64 [B, M] -> [B, M, C, H, W].

        The trunk does not depend on the label and runs once for each image, so K classes cost 1 trunk and K tails.
        """
        stream = self.forward_trunk(x_t, t).repeat_rows(y.shape[1])
        return self.read_pixels(self.forward_tail(stream, y.flatten())).unflatten(0, y.shape)

    def joint(
        self,
        images: Tensor,
        x_t: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        classify_noisy: bool = False,
        uncond: bool = False,
    ) -> Output:
        """Both mini-batches of Sec. 4.2 in one pass: the logits of ``images``, the prediction for ``x_t``.

        images [Bc, C, H, W] clean; x_t [Bd, C, H, W] noisy at t [Bd] -> Output(logits [Bc, K], prediction [Bd, C, H, W]). With
        ``classify_noisy`` the logits of x_t follow those of the images: [Bc + Bd, K]. With ``uncond`` the third field is set
        too. The clean images are dropped from the batch at the tap, so the layers after it process x_t only.
        """
        rows = len(images)
        stream = self.forward_trunk(torch.cat((images, x_t)), torch.cat((t.new_zeros(rows), t)))
        logits = self.forward_head(stream.z if classify_noisy else stream.z[:rows])
        noisy = stream.drop_rows(rows)
        prediction = self.read_pixels(self.forward_tail(noisy, y))
        if not uncond:
            return Output(logits, prediction)
        with torch.no_grad():
            return Output(logits, prediction, self.read_pixels(self.forward_tail(noisy, None)))

    @property
    def null_label(self) -> int | None:
        """The value of ``y`` that means "no label"; None for a network without ``label_conditioning``."""
        return self.cfg.num_classes if self.cfg.label_conditioning else None

    def forward_trunk(self, x: Tensor, t: Tensor | None, class_only: bool = False) -> Stream:
        """The layers up to the tap (Eqs. 17-21); with ``class_only`` the result has the class token alone."""
        self.check_input(x, t)
        time = noisy = condition = None
        if t is not None:
            time = self.time_embedding(t)
            noisy = (t > 0).to(time.dtype)[:, None]
            condition = time if self.shared_modulation is None else self.shared_modulation(F.silu(time) * noisy)
        pixels = x if self.stem is None else self.stem(x, time, noisy)
        patches = self.patch_embedding(patchify(pixels, self.cfg.patch_size))
        # The residual stream has the dtype of the matrix products (bf16 under autocast), which halves its memory traffic.
        token, positions = self.class_token.to(patches.dtype), self.positions.to(patches.dtype)
        z = torch.cat((token.expand(x.shape[0], -1, -1), patches), dim=1) + positions
        return self.run_layers(Stream(z, pixels, time, noisy, condition, []), 0, self.cfg.tap, class_only)

    def forward_tail(self, stream: Stream, y: Tensor | None) -> Stream:
        """The layers after the tap. With ``label_conditioning`` the label enters here: before the tap, the label read-out of a
        noisy image could simply copy it, and conditional and unconditional predictions could not share the trunk."""
        if self.label_embedding is not None:
            if y is not None and (y.shape != stream.z.shape[:1] or y.is_floating_point()):
                raise ValueError(f"y has shape {list(y.shape)}, type {y.dtype}: it must be int64 [{len(stream.z)}] of labels")
            if y is None:
                y = torch.full((stream.z.shape[0],), self.cfg.num_classes, device=stream.z.device)
            stream = replace(stream, z=stream.z + self.label_embedding(y)[:, None].to(stream.z.dtype))
        elif y is not None:
            raise ValueError("y was passed, but this network was built without model.label_conditioning: leave y out")
        return self.run_layers(stream, self.cfg.tap, self.cfg.depth)

    def run_layers(self, stream: Stream, first: int, last: int, class_only: bool = False) -> Stream:
        z, skips = stream.z, list(stream.skips)
        for k in range(first, last):
            mirrored = k - (len(self.layers) - len(self.skips))
            if mirrored >= 0:
                z = self.skips[mirrored](torch.cat((z, skips.pop()), dim=-1))
            inputs = (z, stream.condition, stream.noisy, class_only and k == last - 1)
            again = self.recompute and torch.is_grad_enabled()
            z = checkpoint(self.layers[k], *inputs, use_reentrant=False) if again else self.layers[k](*inputs)
            if k < len(self.skips):
                skips.append(z)
        return replace(stream, z=z, skips=skips)

    def read_pixels(self, stream: Stream) -> Tensor:
        """The pixel read-out: the output of the last layer -> the prediction [B, C, H, W] in float32 or wider."""
        tokens = self.pixel_norm(stream.z[:, self.num_prefix_tokens :])
        image = self.pixel_readout(tokens, stream.pixels, stream.time, stream.noisy)
        return image if image.dtype == torch.float64 else image.float()

    def check_input(self, x: Tensor, t: Tensor | None) -> None:
        check_images(x, self.cfg.image_shape)
        if t is not None and (t.shape != x.shape[:1] or t.is_floating_point()):
            raise ValueError(
                f"t has shape {list(t.shape)}, type {t.dtype}: it must be int64 [{len(x)}] of steps 1..T, 0 = clean"
            )


def check_images(x: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Raises ValueError where x is no float [B, C, H, W] of this size."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x has type {kind}: it must be float in [-1, 1] (HybridModel.predict takes uint8 pixels)")
    if x.ndim != 4 or tuple(x.shape[1:]) != image_shape:
        raise ValueError(f"x has shape {list(x.shape)}: this network takes [B, {', '.join(map(str, image_shape))}]")
