"""The backbone: one Vision Transformer with two read-outs and a time input (Secs. 3 and 4.1 of the paper).

Shapes: B images, C channels, H = W = image_size, p patch_size, N = (H / p)^2 patches, D dim, K classes, T diffusion steps.
An image x is [B, C, H, W] in [-1, 1]; the token sequence z is [B, n, D] with n = N + 1 (more with registers or a time token),
the class token first, the patches last; t is int64 [B].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import LAYERS, AdaLNZeroLayer, PlainLayer, TimeEmbedding, make_norm
from .readouts import READOUTS, AttentionPool, ClassToken, ConvStem, FiLM, LinearConvReadout, patchify
from .vit_config import ViTConfig

__all__ = ["HybViT", "Output", "ViTConfig"]


class Output(NamedTuple):
    """What one pass gives: both read-outs of every row.

    Attributes:
        logits: [B, K], unnormalised log p(y|x) up to a constant; meant for clean rows.
        eps: [B, C, H, W], the predicted noise of Eq. 15, meant for noisy rows. A network trained for another target
            (v, x0) gives that target here; :meth:`hybvit.Diffusion.to_eps` converts it.
        untold: [B, C, H, W], ``eps`` as it is when no label is told, without a gradient; None where it was not asked for.
    """

    logits: Tensor
    eps: Tensor
    untold: Tensor | None = None


@dataclass
class Stream:
    """A batch on its way through the layers.

    Attributes:
        z: the tokens [B, n, D].
        pixels: what the patches were cut from, for the pixel read-out: x, or the features of a ``conv`` patch embedding.
        time: the embedding A of Eq. 21 [B, h], or None when every row is clean.
        noisy: [B, 1], 1 where t > 0 and 0 for a clean row, or None when every row is clean.
        condition: what the layers get of the time: A itself, or the modulation that all layers share [B, 6 D].
        kept: tokens that a long skip will bring back, the newest last.
    """

    z: Tensor
    pixels: Tensor
    time: Tensor | None
    noisy: Tensor | None
    condition: Tensor | None
    kept: list[Tensor]

    def without_first(self, rows: int) -> Stream:
        """What is left when so many rows have left the batch."""
        time, noisy, condition = (None if part is None else part[rows:] for part in (self.time, self.noisy, self.condition))
        return Stream(self.z[rows:], self.pixels[rows:], time, noisy, condition, [z[rows:] for z in self.kept])


class HybViT(nn.Module):
    """ViT, GenViT and HybViT: the same network; the objective decides which read-outs are trained (Figs. 2 and 3).

    ``net(x, t)`` gives :class:`Output`; t = None, or a row with t = 0, means a clean image. ``y`` int64 [B] is the label that
    a network with ``label_conditioning`` denoises towards, K or None for none.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        features = cfg.stem_width if cfg.patch_embedding == "conv" else cfg.channels
        self.stem = ConvStem(cfg) if cfg.patch_embedding == "conv" else None
        self.patch_embedding = nn.Linear(cfg.patch_size**2 * features, cfg.dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, cfg.dim))
        self.positions = nn.Parameter(torch.empty(1, cfg.num_patches + 1, cfg.dim))
        self.registers = nn.Parameter(torch.empty(1, cfg.registers, cfg.dim)) if cfg.registers else None
        self.time_embedding = TimeEmbedding(cfg.dim, cfg.time_width)
        self.clean_time = nn.Parameter(torch.empty(1, 1, cfg.dim)) if cfg.time == "token" else None
        self.shared_modulation = nn.Linear(cfg.dim, 6 * cfg.dim, bias=False) if cfg.time == "adaln_single" else None
        self.layers = nn.ModuleList(LAYERS[cfg.time](cfg) for _ in range(cfg.depth))
        skips = cfg.depth // 2 if cfg.long_skips else 0
        self.skips = nn.ModuleList(nn.Linear(2 * cfg.dim, cfg.dim) for _ in range(skips))
        self.label_embedding = nn.Embedding(cfg.num_classes + 1, cfg.dim) if cfg.label_conditioning else None
        self.class_pool = AttentionPool(cfg) if cfg.class_pool == "attention" else ClassToken()
        self.class_readout = nn.Sequential(nn.LayerNorm(cfg.dim), nn.Linear(cfg.dim, cfg.num_classes))
        self.pixel_norm = make_norm(cfg) if cfg.final_norm else nn.Identity()
        self.pixel_readout = READOUTS[cfg.pixel_readout](cfg)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier normal weights and zero biases, N(0, position_std^2) positions and tokens, as published; the weights of adaLN
        and FiLM start at zero, the smoothing convolution as the identity, label embeddings N(0, 0.02^2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.positions, self.class_token, self.registers, self.clean_time):
            if token is not None:
                nn.init.normal_(token, std=self.cfg.position_std)
        for module in self.modules():
            if isinstance(module, FiLM):
                nn.init.zeros_(module.weight)
            if isinstance(module, AdaLNZeroLayer):
                nn.init.zeros_(module.modulation.weight)
            if isinstance(module, LinearConvReadout):
                nn.init.dirac_(module.smooth.weight)
        if self.shared_modulation is not None:
            nn.init.zeros_(self.shared_modulation.weight)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor | None = None, y: Tensor | None = None) -> Output:
        """x float [B, C, H, W] in [-1, 1]; t int64 [B] in 1..T, 0 for a clean row, or None when all rows are clean.

        Raises:
            ValueError: x, t or y has another shape or type than the configuration says.
        """
        stream = self.up_to_tap(x, t)
        return Output(self.read_class(stream.z), self.read_pixels(self.to_the_end(stream, y)))

    def classify(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """x float [B, C, H, W] in [-1, 1], clean, or lightly noisy at t -> logits [B, K] (Eq. 20)."""
        return self.read_class(self.up_to_tap(x, t).z)

    def features(self, x: Tensor) -> Tensor:
        """x float [B, C, H, W] in [-1, 1], clean -> what the label read-out sees [B, D]: the class token, or the pool."""
        return self.class_pool(self.up_to_tap(x, None).z)

    def denoise(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t [B, C, H, W] at t int64 [B] in 1..T -> what the pixel read-out predicts [B, C, H, W]: see :class:`Output`."""
        return self.read_pixels(self.to_the_end(self.up_to_tap(x_t, t), y))

    def denoise_with_and_without(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`denoise` told the label and not told it, as guidance needs both: the layers up to the tap, which are not told
        anyway, see the images once."""
        stream = self.up_to_tap(x_t, t)
        told, untold = (self.read_pixels(self.to_the_end(stream, label)) for label in (y, None))
        return told, untold

    def joint(
        self,
        images: Tensor,
        x_t: Tensor,
        t: Tensor,
        t_images: Tensor | None = None,
        y: Tensor | None = None,
        label_all: bool = False,
        untold: bool = False,
    ) -> Output:
        """Both mini-batches of Sec. 4.2 in one pass: the logits of ``images``, the noise in ``x_t``.

        images [Bc, C, H, W] clean, or at ``t_images`` [Bc]; x_t [Bd, C, H, W] noisy at t [Bd] -> Output(logits [Bc, K], eps
        [Bd, C, H, W]). With ``label_all`` the logits of x_t follow: [Bc + Bd, K]; with ``untold`` the third part is there too.
        The images leave the batch where their labels are read.
        """
        rows = len(images)
        stream = self.up_to_tap(torch.cat((images, x_t)), torch.cat((t.new_zeros(rows) if t_images is None else t_images, t)))
        logits = self.read_class(stream.z if label_all else stream.z[:rows])
        noisy = stream.without_first(rows)
        told = self.read_pixels(self.to_the_end(noisy, y))
        if not untold:
            return Output(logits, told)
        with torch.no_grad():
            return Output(logits, told, self.read_pixels(self.to_the_end(noisy, None)))

    @property
    def null_label(self) -> int | None:
        """What stands for "no label" in ``y``; None for a network that takes no labels."""
        return self.cfg.num_classes if self.cfg.label_conditioning else None

    @property
    def last_shared_weight(self) -> nn.Parameter:
        """The last matrix that both tasks train."""
        layer = cast(PlainLayer, self.layers[self.cfg.tap - 1])
        return [p for p in layer.mlp.parameters() if p.ndim == 2][-1]

    def up_to_tap(self, x: Tensor, t: Tensor | None) -> Stream:
        """Eqs. 17-21 up to the layer that the label read-out sees."""
        self.check_input(x, t)
        time = noisy = condition = None
        if t is not None:
            time = self.time_embedding(t)
            noisy = (t > 0).to(time.dtype)[:, None]
            condition = time if self.shared_modulation is None else self.shared_modulation(F.silu(time) * noisy)
        pixels = x if self.stem is None else self.stem(x, time, noisy)
        patches = self.patch_embedding(patchify(pixels, self.cfg.patch_size))
        # The residual stream has the precision of the products (bf16 under autocast), which halves its memory traffic.
        token, positions = self.class_token.to(patches.dtype), self.positions.to(patches.dtype)
        z = torch.cat((token.expand(len(x), -1, -1), patches), dim=1) + positions
        extra = []
        if self.clean_time is not None:
            token = self.clean_time.expand(len(x), -1, -1)
            extra.append(token if time is None or noisy is None else token + (time * noisy)[:, None])
        if self.registers is not None:
            extra.append(self.registers.expand(len(x), -1, -1))
        if extra:
            z = torch.cat((z[:, :1], *(tokens.to(z.dtype) for tokens in extra), z[:, 1:]), dim=1)
        return self.through(Stream(z, pixels, time, noisy, condition, []), 0, self.cfg.tap)

    def to_the_end(self, stream: Stream, y: Tensor | None) -> Stream:
        """The layers after the tap, told the label where the network takes one."""
        if self.label_embedding is not None:
            if y is not None and (y.shape != stream.z.shape[:1] or y.is_floating_point()):
                raise ValueError(f"y has shape {list(y.shape)}, type {y.dtype}: it must be int64 [{len(stream.z)}] of labels")
            if y is None:
                y = torch.full((len(stream.z),), self.cfg.num_classes, device=stream.z.device)
            stream = replace(stream, z=stream.z + self.label_embedding(y)[:, None].to(stream.z.dtype))
        elif y is not None:
            raise ValueError("y is given, but this network was built without model.label_conditioning")
        return self.through(stream, self.cfg.tap, self.cfg.depth)

    def through(self, stream: Stream, first: int, last: int) -> Stream:
        z, kept = stream.z, list(stream.kept)
        for k in range(first, last):
            mirrored = k - (len(self.layers) - len(self.skips))
            if mirrored >= 0:
                z = self.skips[mirrored](torch.cat((z, kept.pop()), dim=-1))
            z = self.layers[k](z, stream.condition, stream.noisy)
            if k < len(self.skips):
                kept.append(z)
        return replace(stream, z=z, kept=kept)

    def read_class(self, z: Tensor) -> Tensor:
        """Eq. 20 and the label head: z [B, n, D] -> logits [B, K] in float32 or wider."""
        logits = self.class_readout(self.class_pool(z))
        return logits if logits.dtype == torch.float64 else logits.float()

    def read_pixels(self, stream: Stream) -> Tensor:
        """What has left the last layer -> the predicted image [B, C, H, W] in float32 or wider."""
        tokens = self.pixel_norm(stream.z[:, self.cfg.prefix :])
        image = self.pixel_readout(tokens, stream.pixels, stream.time, stream.noisy)
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
