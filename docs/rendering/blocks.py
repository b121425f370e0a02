"""The blocks of the pages, between `<!-- begin NAME -->` and `<!-- end NAME -->`, and what renders each."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

BLOCKS: dict[str, Callable[[], str]] = {}
Renderer = Callable[..., str]


def block(**arguments: tuple[str, ...]) -> Callable[[Renderer], Renderer]:
    """Make a function the renderer of blocks: of its own name, or of these names, each with its arguments."""

    def register(renderer: Renderer) -> Renderer:
        for name, given in (arguments or {renderer.__name__: ()}).items():
            BLOCKS[name] = partial(renderer, *given)
        return renderer

    return register


def render(text: str) -> str:
    """The text of a page with all its blocks rendered."""
    for name, renderer in BLOCKS.items():
        if f"<!-- begin {name} -->" not in text:
            continue
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, renderer=renderer: match[1] + renderer() + "\n" + match[2], text)
    return text
