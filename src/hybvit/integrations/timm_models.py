"""The classifiers of hybvit as models of timm. Importing this module registers them:

    import timm, hybvit.integrations.timm_models
    model = timm.create_model("hybvit_fashion_mnist", pretrained=True, num_classes=5)

``timm.list_models("hybvit*")`` lists them: the bundled models, with weights; the shapes of the presets, without; and
``hybvit``, which takes the fields of :class:`hybvit.ViTConfig`. Parameters keep the names that they have in
:class:`hybvit.HybViT`, so a state dict fits both. What only the denoiser uses is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import global_pool_nlc, resample_abs_pos_embed, use_fused_attn
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..catalog import OWN_IMAGES
from ..checkpoint import CONFIG, WEIGHTS
from ..config import load_config
from ..errors import CheckpointError, ConfigError, did_you_mean
from ..hub import BUNDLED, bundled
from ..method.vit import AdaLNZeroLayer, Attention, ConvStem, HybViT, Layer, TokenScalarLayer, ViTConfig, patchify
from ..model import HybridModel
from ..presets import PRESETS

__all__ = ["TimmHybViT", "default_cfgs", "from_hybrid"]  # timm adds the names of the models

POOLS = ("token", "avg", "")
OF_TIMM = {"image_size": "img_size", "channels": "in_chans", "num_classes": "num_classes"}  # fields that timm has names for
CLASSIFIER = "class_readout.1"


def known_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are fields of :class:`hybvit.ViTConfig`, without those of timm that ask for nothing.

    Raises:
        ValueError: one is unknown.
    """
    known = {field.name for field in dataclasses.fields(ViTConfig)} - OF_TIMM.keys()
    for name in given.keys() - known:
        if not name.endswith("_rate"):
            close = did_you_mean(OF_TIMM.get(name, name), {*known, *OF_TIMM.values()})
            close = close or f": it has {', '.join(sorted(known))}"
            raise ValueError(f"{name}: a hybvit model of timm has no such argument{close}")
        if given[name]:
            raise ValueError(f"{name} is {given[name]}: the only dropout is drop_rate, before the classifier: leave it out")
    return {name: given[name] for name in given if name in known}


class TraceableAttention(Attention):
    """Attention without a choice by device and type, which symbolic tracing could not follow.

    After ``timm.layers.set_fused_attn(False)`` it has the attention maps [B, heads, n, n], as the output of ``attn_drop``.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg)
        self.fused = use_fused_attn()
        self.attn_drop = nn.Identity()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return self.attn_drop(((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)) @ v


class TimmHybViT(nn.Module):
    """A HybViT up to its label read-out, with the interface of timm's Vision Transformer.

    x is float [B, C, H, W] in [-1, 1], which timm's transforms make with the mean and deviation 0.5 of ``default_cfg``. As in
    timm, features are what the last linear map takes, after the LayerNorm: :meth:`hybvit.HybViT.features` are before it.

    Args:
        img_size: side of the square images, in pixels.
        global_pool: token (as trained), avg (the mean of the patch tokens), or empty for all tokens.
        drop_rate: dropout before the classifier.
        fields: the other fields of :class:`hybvit.ViTConfig`; timm's other rates of dropout may be there if they are 0.

    Raises:
        ValueError: a field is unknown or out of range, or the images are not square.
    """

    num_prefix_tokens = 1
    grad_checkpointing = False

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        in_chans: int = 3,
        num_classes: int = 10,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        **fields: Any,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height != width:
            raise ValueError(f"img_size is {img_size}: images must be square")
        cfg = ViTConfig(image_size=height, channels=in_chans, num_classes=max(num_classes, 1), **known_fields(fields))
        net = HybViT(cfg)
        self.patch_size, self.grid, self.in_chans = cfg.patch_size, height // cfg.patch_size, in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = cfg.dim
        self.depth, self.first_skip = cfg.depth, cfg.depth - len(net.skips)
        self.stem, self.patch_embedding = net.stem, net.patch_embedding
        self.class_token, self.positions = net.class_token, net.positions
        self.layers, self.skips = net.layers[: cfg.tap], net.skips[: max(0, cfg.tap - self.first_skip)]
        self.head_drop, self.class_readout = nn.Dropout(drop_rate), net.class_readout
        self._adapt_modules(cfg)
        self.feature_info = [{"num_chs": cfg.dim, "reduction": cfg.patch_size, "module": f"layers.{k}"} for k in range(cfg.tap)]
        self.reset_classifier(num_classes, global_pool)

    def _adapt_modules(self, cfg: ViTConfig) -> None:
        """Make attention traceable, and drop what noisy images need: clean ones meet only the biases of the time modulations,
        and weights without a gradient would stop timm's training on several GPUs."""
        for module in list(self.modules()):
            if isinstance(module, Layer):
                traceable = TraceableAttention(cfg)
                traceable.load_state_dict(module.attention.state_dict())
                module.attention = traceable
            if isinstance(module, TokenScalarLayer):
                del module.modulation
            elif isinstance(module, AdaLNZeroLayer | ConvStem):
                module.modulation.register_parameter("weight", None)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear map by a new one; 0 classes leave the features."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool is {global_pool!r}: it must be token, avg or empty")
            self.global_pool = global_pool
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for parameter in head.parameters():
            nn.init.xavier_normal_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        self.num_classes, self.class_readout[1] = num_classes, head.to(self.positions.device, self.positions.dtype)

    def get_classifier(self) -> nn.Module:
        return self.class_readout[1]

    def no_weight_decay(self) -> set[str]:
        return {"class_token", "positions"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions for timm's learning rates by layer."""
        return {
            "stem": r"^stem|^patch_embedding|^class_token|^positions",
            "blocks": [(r"^layers\.(\d+)", None), (r"^skips|^class_readout\.0", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> logits [B, K]."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> normalized tokens [B, N + 1, D], the class token first."""
        return self.class_readout[0](self._outputs(x, len(self.layers))[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normalized tokens [B, n, D] -> logits [B, K], or with ``pre_logits`` the features [B, D]."""
        x = self.head_drop(global_pool_nlc(x, self.global_pool, self.num_prefix_tokens))
        return x if pre_logits else self.class_readout[1](x)

    def _outputs(self, x: Tensor, number: int) -> list[Tensor]:
        """x [B, C, H, W] -> what the first layers give, each [B, N + 1, D] (Eqs. 17-19 for a clean image)."""
        pixels = x if self.stem is None else self.stem(x, None, None)
        patches = self.patch_embedding(patchify(pixels, self.patch_size))
        token, positions = self.class_token.to(patches.dtype), self.positions.to(patches.dtype)
        z = torch.cat((token.expand(x.shape[0], -1, -1), patches), dim=1) + positions
        outputs = list[Tensor]()
        for k, layer in enumerate(islice(self.layers, number)):
            if k >= self.first_skip:
                z = self.skips[k - self.first_skip](torch.cat((z, outputs[self.depth - 1 - k]), dim=-1))
            z = checkpoint(layer, z, None, None) if self.grad_checkpointing else layer(z, None, None)
            outputs.append(z)
        return outputs

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """The outputs of some layers, as timm's Vision Transformer gives them.

        Args:
            indices: layers by number, the last n of them, or None for all.
            return_prefix_tokens: give (patches, class token [B, 1, D]) for each layer.
            norm: apply the LayerNorm of the classifier to them.
            stop_early: leave out the layers after the last of these; the first result is then not that of the whole.
            output_fmt: NCHW for [B, D, H / p, W / p], NLC for [B, N, D].
            intermediates_only: give the list alone, without ``forward_features(x)`` before it.
            output_dict: give a dict with timm's keys.

        Raises:
            ValueError: the format is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}: it must be NCHW or NLC")
        taken, last = feature_take_indices(len(self.layers), indices)
        outputs = self._outputs(x, last + 1 if stop_early else len(self.layers))
        normalize = self.class_readout[0]
        found = [normalize(outputs[k]) if norm else outputs[k] for k in taken]
        prefix, patches = [z[:, :1] for z in found], [z[:, 1:] for z in found]
        if output_fmt == "NCHW":
            patches = [z.transpose(1, 2).unflatten(2, (self.grid, self.grid)).contiguous() for z in patches]
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": patches}
            result |= {"image_intermediates_prefix": prefix} if return_prefix_tokens else {}
            return result if intermediates_only else {**result, "image_features": normalize(outputs[-1])}
        given = list(zip(patches, prefix, strict=True)) if return_prefix_tokens else patches
        return given if intermediates_only else (normalize(outputs[-1]), given)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers after the last of ``indices`` -> the numbers of the layers that these mean."""
        taken, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.class_readout[0] = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: TimmHybViT) -> dict[str, Tensor]:
    """The part of a HybViT's weights that a model of timm takes, adapted to its number of patches and channels.

    Raises:
        CheckpointError: a weight is missing; timm itself would let it keep its random values where the classes differ.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(CLASSIFIER)]
    if missing:
        raise CheckpointError(f"{missing[0]} is missing: these are not the weights of this model")
    found = {name: state[name] for name in own if name in state}
    if found["positions"].shape != own["positions"].shape:
        found["positions"] = resample_abs_pos_embed(found["positions"], (model.grid, model.grid), num_prefix_tokens=1)
    first, channel = ("patch_embedding.weight", 2) if model.stem is None else ("stem.into.weight", 1)
    if found[first].shape != own[first].shape:
        # Equal weights for all channels, so that a gray image gives the same through any number of them.
        weight = found[first] if model.stem is not None else found[first].unflatten(1, (model.patch_size**2, -1))
        mean = weight.sum(dim=channel, keepdim=True) / model.in_chans
        found[first] = mean.repeat_interleave(model.in_chans, dim=channel).reshape(own[first].shape)
    return found


def fields_of(vit: ViTConfig) -> dict[str, Any]:
    """The arguments of :class:`TimmHybViT` for a network of this shape."""
    return {OF_TIMM.get(name, name): value for name, value in dataclasses.asdict(vit).items()}


def pretrained_cfg(vit: ViTConfig, classes: Sequence[str] = (), file: str | None = None) -> dict[str, Any]:
    """What timm wants to know of a model: where its weights are, and how its images are prepared."""
    return {
        "file": file,
        "input_size": vit.image_shape,
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": (0.5,) * vit.channels,
        "std": (0.5,) * vit.channels,
        "num_classes": vit.num_classes,
        "label_names": tuple(classes) or None,
        "classifier": CLASSIFIER,
    }


def register(name: str, vit: ViTConfig, **known: Any) -> Callable[..., nn.Module]:
    """Let ``timm.create_model(name)`` make a network of this shape; ``known`` as for :func:`pretrained_cfg`."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        features = {"out_indices": 3, "feature_cls": "getter"}
        given = {"pretrained_filter_fn": checkpoint_filter_fn, "feature_cfg": features, **shape, **kwargs}
        return build_model_with_cfg(TimmHybViT, name, pretrained, **given)

    shape = {field: value for field, value in fields_of(vit).items() if field not in OF_TIMM.values()}
    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{vit.depth} layers of width {vit.dim} for images of {vit.image_size} x {vit.image_size} pixels."
    default_cfgs.update(generate_default_cfgs({name: pretrained_cfg(vit, **known)}))
    return register_model(create)


def shapes() -> dict[str, ViTConfig]:
    """Preset -> the shape of its network, once for each shape, by the shortest name, of a known data set where there is one."""
    found: dict[ViTConfig, str] = {}
    for name in sorted(PRESETS, key=lambda name: (PRESETS[name].config.data.name in OWN_IMAGES, len(name))):
        cfg = PRESETS[name].config
        if cfg.network.name == "vit" and cfg.objective.kind in ("vit", "hybvit"):
            found.setdefault(cfg.model, name)
    return {name: vit for vit, name in found.items()}


def from_hybrid(model: HybridModel) -> nn.Module:
    """The classifier of a model as timm has it, in eval mode on the model's device, with weights of its own.

    ``timm.models.save_for_hf(it, DIR, safe_serialization=True)`` stores it, ``timm.create_model("local-dir:DIR",
    pretrained=True)`` reads it back. What timm trains fits into the model again:
    ``model.net.load_state_dict(it.state_dict(), strict=False)``.

    Raises:
        ConfigError: its network is no HybViT, or was not trained to classify.
    """
    if not isinstance(model, HybridModel) or not isinstance(model.net, HybViT) or not model.has_classes:
        raise ConfigError("only a HybViT that was trained to classify is a model of timm")
    vit = model.cfg.model
    made = timm.create_model("hybvit", pretrained_cfg=pretrained_cfg(vit, model.classes), **fields_of(vit))
    made.load_state_dict(checkpoint_filter_fn(model.net.state_dict(), made))
    return made.eval().to(model.device)


default_cfgs: dict[str, Any] = {}
register("hybvit", ViTConfig())
for _name in bundled():
    _cfg, _file = load_config(BUNDLED / _name / CONFIG), BUNDLED / _name / f"{WEIGHTS}.safetensors"
    register(f"hybvit_{_name.replace('-', '_')}", _cfg.model, classes=_cfg.data.classes, file=str(_file))
for _name, _vit in shapes().items():
    if f"hybvit_{_name}" not in default_cfgs:
        register(f"hybvit_{_name}", _vit)
