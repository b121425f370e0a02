"""The tab Draw: images appear while they are denoised."""

from __future__ import annotations

import time
from collections.abc import Iterator

import gradio as gr
from torch import Tensor

from ..errors import quantity
from . import markup
from .drawing import View, Wanted, draw
from .limits import IMAGES, STEPS, Say
from .parts import ANY, classes_of, on, seed_field, slider
from .service import Service


def build(service: Service) -> None:
    model = service.model
    steered = model.takes_labels  # else its own classifier guides it, to a class only

    def watch(name: str, n: float, steps: float, guidance: float, seed: float) -> Iterator[str]:
        label = None if name == ANY else name
        weight = guidance if steered or label else 0.0
        wanted = Wanted(n=int(n), label=label, guidance=weight, steps=int(steps), seed=int(seed))
        alt, started = f"{quantity(wanted.n, 'image')} of {name}", time.monotonic()

        def work(say: Say[View]) -> View:
            return View(draw(model, wanted, say), wanted.steps)

        for pixels, step in service.desk.stream(work):
            if step < wanted.steps:
                yield drawing(pixels, alt, f"step {step} of {wanted.steps}")
        yield drawing(pixels, alt, f"{quantity(wanted.steps, 'step')}, {time.monotonic() - started:.1f} s", saved=True)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            label = classes_of(service)
            n = slider(1, IMAGES, 16, 1, "Images")
            steps = slider(1, STEPS, 20, 1, "Steps")
            guidance = slider(0, 5, 0 if steered else 2, 0.1, "Guidance to the class")
            seed = seed_field()
            with gr.Row():
                go = gr.Button("Draw", variant="primary", elem_id="draw", min_width=80)
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(scale=3, min_width=280):
            drawn = gr.HTML(markup.hint("The images appear here while they are denoised."), elem_id="drawn")
    running = on(go.click, watch, [label, n, steps, guidance, seed], drawn)
    stop.click(None, cancels=[running], api_visibility="private")


def drawing(pixels: Tensor, alt: str, doing: str, saved: bool = False) -> str:
    """The images as one square, what is being done, and once they are done a link to keep them."""
    content = markup.png(pixels, gap=1)
    keep = f' · <a href="{markup.address(content)}" download="drawn.png">save</a>' if saved else ""
    return f'<div class="sheet">{markup.image(pixels, alt, gap=1)}</div><p role="status">{doing}{keep}</p>'
