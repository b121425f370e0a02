"""What the backbone is built of (Sec. 4.1): attention, MLP, the time embedding, and one layer for each way to tell the time.

Shapes: B images, N patches, n = N + the prefix tokens, D dim; z is [B, n, D], the class token first; t is int64 [B].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vit_config import ViTConfig

ROPE_BASE = 100.0  # of the frequencies: positions are rows and columns of patches, tens and not thousands (Heo et al. 2024)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (Eq. 16), q [B, heads, m, d], k and v [B, heads, n, d]: the one place that picks a kernel."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # The fused kernel's bf16 backward on CPU is several times slower than three plain products (`hybvit bench`).
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1, dtype=q.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class RMSNorm(nn.RMSNorm):
    """torch's, in the precision of its input: it has no fast kernel for a bf16 input and a float32 weight."""

    def forward(self, z: Tensor) -> Tensor:
        return F.rms_norm(z, self.normalized_shape, None if self.weight is None else self.weight.to(z.dtype), self.eps)


def make_norm(cfg: ViTConfig, affine: bool = True) -> nn.Module:
    if cfg.norm == "rms":
        return RMSNorm(cfg.dim, eps=1e-6, elementwise_affine=affine)
    return nn.LayerNorm(cfg.dim, elementwise_affine=affine)


class Attention(nn.Module):
    """MSA of Eq. 18: heads * d = D, qkv without bias, output with bias; optionally with normalised and turned q and k."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.heads = cfg.heads
        width = cfg.dim // cfg.heads
        self.qkv = nn.Linear(cfg.dim, 3 * cfg.dim, bias=False)
        self.q_norm = nn.LayerNorm(width, eps=1e-6, bias=False) if cfg.qk_norm else None
        self.k_norm = nn.LayerNorm(width, eps=1e-6, bias=False) if cfg.qk_norm else None
        self.rope = AxialRoPE(cfg) if cfg.rope else None
        self.out = nn.Linear(cfg.dim, cfg.dim)

    def forward(self, z: Tensor) -> Tensor:
        b, n, d = z.shape
        q, k, v = self.qkv(z).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(b, n, d))


class AxialRoPE(nn.Module):
    """Pairs of channels are turned by row * frequency (first half of the pairs) or column * frequency; the prefix is not."""

    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        side, quarter = cfg.image_size // cfg.patch_size, cfg.dim // cfg.heads // 4
        place = torch.arange(side, dtype=torch.float32)
        frequencies = ROPE_BASE ** (-torch.arange(quarter) / quarter)
        rows = place.repeat_interleave(side)[:, None] * frequencies
        columns = place.repeat(side)[:, None] * frequencies
        angles = torch.cat((torch.zeros(cfg.prefix, 2 * quarter), torch.cat((rows, columns), dim=1)))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, q: Tensor) -> Tensor:
        """q [B, heads, n, d]: channel i is paired with channel i + d/2."""
        a, b = q.chunk(2, dim=-1)
        cos, sin = self.cos.to(q.dtype), self.sin.to(q.dtype)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class MLP(nn.Sequential):
    """MLP of Eq. 19: two Linear maps with an exact GELU between them."""

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


class PlainLayer(nn.Module):
    """Eqs. 18-19 alone; the time is a token among the others."""

    def __init__(self, cfg: ViTConfig, affine: bool = True, modulation: nn.Linear | None = None) -> None:
        super().__init__()
        if modulation is not None:
            self.modulation = modulation
        self.norm_attention = make_norm(cfg, affine)
        self.attention = Attention(cfg)
        self.norm_mlp = make_norm(cfg, affine)
        self.mlp = MLPS[cfg.mlp](cfg.dim, cfg.mlp_width)

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """z [B, n, D], time [B, h], noisy [B, 1] (1 where t > 0); time = noisy = None means all rows are clean."""
        z = z + self.attention(self.norm_attention(z))
        return z + self.mlp(self.norm_mlp(z))


class TokenScalarLayer(PlainLayer):
    """One layer of GenViT as published: z <- z (scale_k + 1) + shift_k (Eq. 21), then Eqs. 18-19."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg, modulation=nn.Linear(cfg.time_width, 2 * (cfg.num_patches + 1)))
        self.ffn_time = cfg.ffn_time

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
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


class AdaLNLayer(PlainLayer):
    """One layer with adaLN: z <- z + gate * f(LN(z) (1 + scale) + shift) for f = MSA, then MLP; gates start at 0.

    A clean row sees learned constants alone: classification has its own fixed condition.
    """

    def modulated(self, z: Tensor, modulation: Tensor) -> Tensor:
        """modulation [B or 1, 6 D]."""
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = modulation.unsqueeze(1).chunk(6, dim=-1)
        z = z + gate_a * self.attention(torch.addcmul(shift_a, self.norm_attention(z), 1 + scale_a))
        return z + gate_m * self.mlp(torch.addcmul(shift_m, self.norm_mlp(z), 1 + scale_m))


class AdaLNZeroLayer(AdaLNLayer):
    """adaLN with a modulation of its own for every layer; the constants are its bias."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg, affine=False, modulation=nn.Linear(cfg.time_width, 6 * cfg.dim))

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        if time is None or noisy is None:
            return self.modulated(z, self.modulation.bias.to(z.dtype)[None])
        return self.modulated(z, self.modulation(F.silu(time) * noisy))


class AdaLNSingleLayer(AdaLNLayer):
    """adaLN with a modulation that the network computes once for all layers, and constants of this layer's own."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg, affine=False)
        self.constants = nn.Parameter(torch.zeros(6 * cfg.dim))

    def forward(self, z: Tensor, time: Tensor | None, noisy: Tensor | None) -> Tensor:
        """time [B, 6 D]: the shared modulation, 0 where a row is clean."""
        constants = self.constants.to(z.dtype)[None]
        return self.modulated(z, constants if time is None else time + constants)


LAYERS: dict[str, type[PlainLayer]] = {
    "token_scalars": TokenScalarLayer,
    "adaln_zero": AdaLNZeroLayer,
    "adaln_single": AdaLNSingleLayer,
    "token": PlainLayer,
}
