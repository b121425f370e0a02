"""The brush: a picture at the model's size, on which a mask is painted, by pointer or by keyboard."""

from __future__ import annotations

from typing import Any

import gradio as gr
import torch
from torch import Tensor

from ..model import HybridModel
from . import markup
from .markup import read_asset

HTML, SCRIPT = (read_asset(f"brush.{kind}") for kind in ("html", "js"))


def brush(side: int) -> gr.HTML:
    """Its value has the picture (``image``), and as input what was painted (``mask``)."""
    return gr.HTML(blank(side), html_template=HTML, js_on_load=SCRIPT, elem_id="brush")


def blank(side: int, pixels: Tensor | None = None) -> dict[str, Any]:
    """A value without a mask; pixels uint8 [1, C, H, W], or None for no picture."""
    shown = torch.full((1, 1, 1, 1), 224, dtype=torch.uint8) if pixels is None else pixels
    words = "Drop a picture first" if pixels is None else ""
    return {"side": side, "image": markup.address(markup.png(shown)), "mask": "", "words": words}


def mask_of(model: HybridModel, value: dict[str, Any]) -> Tensor:
    """What was painted, bool [H, W].

    Raises:
        ValueError: nothing was.
    """
    side, painted = model.cfg.model.image_size, str(value.get("mask", ""))
    mask = torch.tensor([cell == "1" for cell in painted[: side * side]], dtype=torch.bool)
    if len(mask) != side * side or not bool(mask.any()):
        raise ValueError("nothing is painted: paint over what is to be drawn anew")
    return mask.reshape(side, side)
