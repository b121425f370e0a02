"""Pictures and answers as HTML. Whatever comes from outside, such as the name of a class, is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from typing import NamedTuple

import torch
from torch import Tensor

from .. import waiting
from ..data.images import grid
from .familiar import UNUSUAL, Familiar

BINS = 32  # of the gauge


class Shown(NamedTuple):
    """A picture and the words below it; pixels uint8 [C, H, W]."""

    pixels: Tensor
    title: str
    words: str = ""


def read_asset(name: str) -> str:
    """A file of this folder that the browser gets."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def png(pixels: Tensor, gap: int = 0) -> bytes:
    """uint8 [N, C, H, W] -> a PNG file of all of them as one square."""
    buffer = BytesIO()
    grid(pixels, gap=gap).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def address(content: bytes, kind: str = "image/png") -> str:
    """The content of a file as an address of its own, so that the page asks for nothing."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(pixels: Tensor, words: str, gap: int = 0) -> str:
    """uint8 [N, C, H, W] as one element, which says ``words`` to those who cannot see it."""
    return f'<img class="pixels" decoding="sync" src="{address(png(pixels, gap))}" alt="{escape(words)}">'


def notice(words: str) -> str:
    """What is wrong, and the cure."""
    return f'<p class="notice" role="alert">{escape(" ".join(words.split()))}</p>'


def hint(words: str) -> str:
    return f'<p class="hint">{escape(words)}</p>'


def seen(one: Shown) -> str:
    """A picture with its title beside it."""
    words = f"<p><b>{escape(one.title)}</b><span>{escape(one.words)}</span></p>"
    return f'<div class="seen">{image(one.pixels[None], "the picture as the model sees it")}{words}</div>'


def figures(shown: Sequence[Shown]) -> str:
    """Pictures beside each other."""
    cells = [
        f"<figure>{image(one.pixels[None], one.title)}<figcaption><b>{escape(one.title)}</b>"
        f"{f'<span>{escape(one.words)}</span>' if one.words else ''}</figcaption></figure>"
        for one in shown
    ]
    return f'<div class="figures">{"".join(cells)}</div>'


def percent(share: float) -> str:
    """In percent, with a space that no line breaks at."""
    return waiting.percent(share).replace(" ", "\u00a0")


def bars(classes: Sequence[str], probabilities: Sequence[float], held: Sequence[int] | None, most: int = 5) -> str:
    """The most probable classes; those that a set holds are marked."""
    first = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)[:most]
    rows = [
        f'<li{" class=held" if held and k in held else ""}><span>{escape(classes[k])}</span><i aria-hidden="true">'
        f'<b style="width:{100 * probabilities[k]:.1f}%"></b></i><span class="number">{percent(probabilities[k])}</span></li>'
        for k in first
    ]
    return f'<ol class="bars">{"".join(rows)}</ol>'


def gauge(familiar: Familiar, density: float) -> str:
    """Where a log density lies among those of familiar images: their distribution, with a mark."""
    values = torch.tensor([*familiar.densities, density])
    low, high = values.min().item(), max(values.max().item(), values.min().item() + 1e-6)
    counts = torch.histc(values[:-1], BINS, low, high)
    heights = (counts / counts.max() * 44).tolist()
    columns = "".join(
        f'<rect x="{10 * i + 1}" y="{46 - h:.1f}" width="8" height="{h:.1f}" rx="1"/>' for i, h in enumerate(heights) if h
    )
    place = 10 * BINS * (density - low) / (high - low)
    share = familiar.share_below(density)
    unusual = share < UNUSUAL
    verdict = "Unusual" if unusual else "Familiar"
    words = f"its log density, {density:.1f}, is above that of {percent(share)} of {familiar.images}"
    return (
        f'<div class="gauge{" unusual" if unusual else ""}"><p><b>{verdict}</b>: {escape(words)}.</p>'
        f'<svg viewBox="-4 0 {10 * BINS + 8} 60" role="img" aria-label="{verdict}: {escape(words)}">{columns}'
        f'<path d="M{place:.1f} 2V50" class="mark"/><path d="M{place:.1f} 50l5 8h-10z" class="tip"/></svg>'
        f'<div class="ends" aria-hidden="true"><span>less familiar</span><span>more familiar</span></div></div>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
