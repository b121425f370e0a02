"""The tab Edit: fill what a brush painted, vary a picture, or turn it into another class, with the answers before and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from torch import Tensor

from ..model import Counterfactual, Edit, HybridModel, Prediction
from . import markup
from .brush import blank, brush, mask_of
from .limits import read_picture
from .markup import Shown
from .parts import Given, classes_of, forget, number_of, on, picture, seed_field, slider, taken_as_sent, waited
from .service import Service

FILL, VARY, TURN = "Fill in", "Variations", "Counterfactual"
RESULTS = 4
HINTS = {
    FILL: "Paint over what is to be drawn anew. With the keyboard: arrows move, space paints.",
    VARY: "The picture is noised part of the way, and denoised again: more strength changes more.",
    TURN: "What would make it one of another class, with little else changed? Choose the class.",
}


def build(service: Service) -> Given:
    model, side = service.model, service.model.cfg.model.image_size
    kinds = [FILL, VARY, *([TURN] if model.has_classes else [])]

    def edit(path: str | None, kind: str, painting: dict[str, Any], name: str, strength: float, seed: float) -> Iterator[str]:
        pixels, label = read_picture(model, path), number_of(service, name)
        mask = mask_of(model, painting) if kind == FILL else None
        if kind == TURN and label is None:
            raise ValueError("no class: choose the one that the picture is to become")
        repeated, start = pixels.repeat(RESULTS, 1, 1, 1), int(seed)

        def work() -> Edit | Counterfactual:
            if mask is not None:
                return model.inpaint(repeated, mask, labels=label, seed=start)
            if kind == VARY:
                return model.vary(repeated, strength, labels=label, seed=start)
            assert label is not None
            return model.counterfactual(pixels, label)

        edited = yield from waited(service, "Editing ...", work)
        yield before_and_after(model, pixels, edited)

    def painted(path: str | None) -> list[Any]:
        try:
            value = blank(side, None if path is None else read_picture(model, path))
        except (ValueError, OSError):  # the button says so
            value = blank(side)
        return [value, gr.update(interactive=path is not None)]

    def chosen(kind: str) -> list[Any]:
        return [
            markup.hint(HINTS[kind]),
            gr.update(visible=kind == FILL),
            gr.update(visible=kind == TURN or model.takes_labels),
            gr.update(visible=kind == VARY),
            gr.update(visible=kind != TURN),
        ]

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            given = picture()
            drawn = gr.Button("Let the model draw one", size="sm", visible=model.has_samples)
            kind = taken_as_sent(gr.Radio(kinds, value=FILL, label="Edit"))
            explained = gr.HTML(markup.hint(HINTS[FILL]))
            label = classes_of(service, visible=model.takes_labels)
            strength = slider(0.05, 1, 0.6, 0.05, "Strength", visible=False)
            seed = seed_field()
        with gr.Column(scale=3, min_width=280):
            mask = brush(side)
            go = gr.Button("Edit", variant="primary", elem_id="edit", interactive=False)
            result = gr.HTML(elem_id="edited")
    given.change(painted, given, [mask, go], show_progress="hidden", api_visibility="private")
    kind.change(chosen, kind, [explained, mask, label, strength, seed], show_progress="hidden", api_visibility="private")
    on(go.click, edit, [given, kind, mask, label, strength, seed], result)
    forget(given, result)
    return Given(given, drawn)


def before_and_after(model: HybridModel, pixels: Tensor, edited: Edit | Counterfactual) -> str:
    """The picture, uint8 [1, C, H, W], and what became of it, with what the classifier says of each."""
    shown = [Shown(pixels[0], "before", said(model, edited.before, 0))]
    for i, result in enumerate(edited.pixels):
        shown.append(Shown(result, "after", said(model, edited.after, i)))
    words = ""
    if isinstance(edited, Counterfactual):
        held = (
            "The classifier accepts it"
            if edited.accepted[0]
            else "The classifier does not accept it: the best attempt is shown"
        )
        words = f"<p>{held}; changed by {edited.distance.item():.1f} (L2, pixels in 0 to 1).</p>"
    return markup.figures(shown) + words


def said(model: HybridModel, answers: Prediction | None, i: int) -> str:
    if answers is None:
        return ""
    return f"{model.classes[int(answers.labels[i])]} {markup.percent(answers.probabilities[i].max().item())}"
