"""The configuration of the backbone: every setting that determines the parameters of :class:`hybvit.HybViT`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

UPPER_LIMITS = {  # far above any real network, yet low enough that its parameters are counted in seconds
    "image_size": 4096, "channels": 1024, "num_classes": 2**24, "dim": 65_536, "depth": 1024, "heads": 4096,
    "mlp_ratio": 1024.0, "stem_width": 65_536, "readout_width": 65_536,
}  # fmt: skip


@cache  # reading the annotations takes a millisecond, and there are 82 presets of nine groups
def choices(group: Any) -> dict[str, tuple[Any, ...]]:
    """Field -> its values, for the fields of a dataclass (the class) that take one of several."""
    return {name: get_args(kind) for name, kind in get_type_hints(group).items() if get_origin(kind) is Literal}


def check_choices(group: str, fields: Any) -> None:
    """Raises ValueError where a field of a dataclass, whose place in a configuration is ``group``, has none of its values."""
    for name, values in choices(fields.__class__).items():
        if getattr(fields, name) not in values:
            allowed = ", ".join(map(str, values))
            raise ValueError(f"{group}.{name} is {getattr(fields, name)!r}: it must be one of {allowed}")


@dataclass(frozen=True)
class ViTConfig:
    """The architecture of a :class:`HybViT`. The defaults are the paper's network for CIFAR-10.

    Args:
        image_size: height and width of the (square) images, in pixels.
        patch_size: side of a patch, in pixels; it must divide ``image_size``.
        channels: 1 for grayscale images, 3 for color.
        num_classes: number of classes of the label read-out.
        dim: width D of a token; it must be even and a multiple of ``heads``.
        depth: number of layers L.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP as a multiple of ``dim``.
        time: how the layers are conditioned on the time. ``token_scalars`` is Eq. 21 as published: one scale and one shift per
            token, which the LayerNorm that follows cancels in the attention and MLP branches. ``adaln_zero`` (Peebles & Xie
            2023) applies a scale, a shift and a gate per channel within the branches; ``adaln_single`` (Chen et al. 2023)
            computes them once for all layers, and each layer adds its own constants.
        ffn_time: apply the token scalars a second time, before the MLP (published default).
        long_skips: connect layer k to layer L - 1 - k by concatenation and a linear layer (U-ViT).
        mlp: ``gelu``, or ``swiglu`` (Shazeer 2020) with two thirds of the hidden width, for the same number of parameters.
        rope: rotate queries and keys by the row and column of their patch (axial RoPE, Heo et al. 2024).
        qk_norm: apply a LayerNorm to the queries and the keys of each head (Dehghani et al. 2023).
        class_depth: layer whose output the label read-out takes, 1..depth; labeled images skip the layers after it. None is
            the last layer, as published.
        patch_embedding: ``linear`` maps each patch to its token (the paper); ``conv`` first applies two 3x3 convolutions of
            ``stem_width`` channels, modulated by the time, to the pixels.
        stem_width: features per pixel of the ``conv`` patch embedding.
        pixel_readout: ``linear`` maps each token to its patch (the paper); ``conv`` maps each token to ``readout_width``
            features per pixel, concatenates the input image (or the features of a ``conv`` patch embedding), and applies three
            3x3 convolutions, modulated by the time.
        readout_width: features per pixel of the ``conv`` read-out.
        final_norm: apply a LayerNorm to the patch tokens before the pixel read-out.
        label_conditioning: add a label embedding to the tokens of noisy images after layer ``class_depth``, which must be
            below ``depth``.
        position_std: standard deviation of the initial positional embedding and class token (published: 1).

    Raises:
        ValueError: a field is out of range or incompatible with another one; the message names the fields.
    """

    image_size: int = 32
    patch_size: int = 4
    channels: int = 3
    num_classes: int = 10
    dim: int = 384
    depth: int = 9
    heads: int = 12
    mlp_ratio: float = 2.0
    time: Literal["token_scalars", "adaln_zero", "adaln_single"] = "token_scalars"
    ffn_time: bool = True
    long_skips: bool = False
    mlp: Literal["gelu", "swiglu"] = "gelu"
    rope: bool = False
    qk_norm: bool = False
    class_depth: int | None = None
    patch_embedding: Literal["linear", "conv"] = "linear"
    stem_width: int = 16
    pixel_readout: Literal["linear", "conv"] = "linear"
    readout_width: int = 16
    final_norm: bool = False
    label_conditioning: bool = False
    position_std: float = 1.0

    def __post_init__(self) -> None:
        at_least_one = (
            "image_size", "patch_size", "channels", "num_classes", "dim", "depth", "heads", "stem_width", "readout_width",
        )  # fmt: skip
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        for name, high in UPPER_LIMITS.items():
            if not getattr(self, name) <= high:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at most {high:,}")
        if self.position_std < 0:
            raise ValueError(f"model.position_std is {self.position_std}: it must be at least 0")
        if int(self.dim * self.mlp_ratio) < 1 or self.mlp_width < 1:
            raise ValueError(f"model.mlp_ratio is {self.mlp_ratio}: the MLP would have no hidden units; increase it")
        if self.image_size % self.patch_size:
            raise ValueError(f"model.patch_size {self.patch_size} does not divide model.image_size {self.image_size}")
        if self.dim % self.heads:
            raise ValueError(f"model.dim {self.dim} is not a multiple of model.heads {self.heads}")
        if self.dim % 2 or self.dim < 4:
            raise ValueError(f"model.dim is {self.dim}: it must be even and at least 4 (half sine, half cosine of the time)")
        check_choices("model", self)
        if self.class_depth is not None and not 1 <= self.class_depth <= self.depth:
            raise ValueError(f"model.class_depth is {self.class_depth}: it must be in 1..{self.depth}, the number of layers")
        if self.rope and self.dim // self.heads % 4:
            raise ValueError(f"model.rope is true, but model.dim / model.heads is {self.dim // self.heads}: it must be a "
                             "multiple of 4")  # fmt: skip
        if self.label_conditioning and self.tap == self.depth:
            raise ValueError(
                f"model.label_conditioning needs layers after the label read-out: set model.class_depth below {self.depth}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def tap(self) -> int:
        """Number of layers before the label read-out, 1..depth."""
        return self.class_depth or self.depth

    @property
    def mlp_width(self) -> int:
        return int(self.dim * self.mlp_ratio * (2 / 3 if self.mlp == "swiglu" else 1))

    @property
    def time_width(self) -> int:
        """Width of the time embedding A: 4 (N + 1) for the published token scalars, D otherwise."""
        return 4 * (self.num_patches + 1) if self.time == "token_scalars" else self.dim
