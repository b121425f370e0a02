"""The tab Attack: a picture that was changed to be mislabeled, and what three readings make of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import gradio as gr
import torch
from torch import Tensor

from ..data.image_set import to_pixels, to_x
from ..metrics.robustness import strong_pgd
from ..model import HybridModel, Prediction, Reading
from . import markup
from .limits import read_picture
from .markup import Shown
from .parts import Given, forget, on, picture, slider, waited
from .service import Service

STEPS = 20
LARGEST = 16  # of 255
READINGS: dict[Reading, str] = {
    "label": "label read-out",
    "diffusion": "diffusion classifier",
    "denoised": "label read-out after one denoising step",
}


class Attacked(NamedTuple):
    """A picture and its attacked version, uint8 [2, C, H, W], with the answers of each reading for both."""

    pixels: Tensor
    readings: dict[Reading, Prediction]


def build(service: Service) -> Given:
    model = service.model

    def run(path: str | None, eps: float) -> Iterator[str]:
        pixels = read_picture(model, path)
        found = yield from waited(service, "Attacking ...", lambda: attack(model, pixels, eps / 255))
        yield shown(model, found, eps)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            given = picture()
            drawn = gr.Button("Let the model draw one", size="sm", visible=model.has_samples)
            words = "Epsilon: the most that a pixel may change, in 255ths"
            eps = slider(0, LARGEST, 8, 1, words)
            go = gr.Button("Attack", variant="primary", elem_id="attack")
        with gr.Column(scale=3, min_width=280):
            result = gr.HTML(
                markup.hint("The label read-out is attacked; the other two readings see the result."), elem_id="attacked"
            )
    on(go.click, run, [given, eps], result)
    on(eps.release, run, [given, eps], result)
    forget(given, result)
    return Given(given, drawn)


def attack(model: HybridModel, pixels: Tensor, eps: float) -> Attacked:
    """Attack the label read-out on one picture, uint8 [1, C, H, W], away from its own label, and read both."""
    x = to_x(pixels.to(model.device))
    with torch.no_grad():
        label = model.logits(x).argmax(dim=1)
    changed = strong_pgd(model.logits, x, label, eps, "linf", torch.Generator().manual_seed(0), STEPS).images
    both = torch.cat((pixels, to_pixels(changed).cpu()))
    kinds: list[Reading] = ["label"]
    kinds += ["diffusion"] if model.takes_labels else []
    kinds += ["denoised"] if model.has_denoiser else []
    return Attacked(both, {kind: model.read(both, kind) for kind in kinds})


def shown(model: HybridModel, found: Attacked, eps: float) -> str:
    clean, attacked = found.pixels
    difference = ((attacked.int() - clean.int()) * (127 / max(eps, 1)) + 128).clamp(0, 255).to(torch.uint8)
    head, rows = ["reading", "clean", "attacked"], []
    for kind, answers in found.readings.items():
        best = answers.probabilities.max(dim=1).values.tolist()
        said = [f"{model.classes[k]} {markup.percent(p)}" for k, p in zip(answers.labels.tolist(), best, strict=True)]
        rows.append([READINGS[kind], *said])
    fooled = found.readings["label"].labels.unique().numel() > 1
    words = "The attack changed the label" if fooled else "The label withstood the attack"
    figures = [Shown(clean, "clean"), Shown(attacked, "attacked"), Shown(difference, "difference", "gray is none")]
    return (
        f"{markup.figures(figures)}<p><b>{words}</b> of the label read-out, at {eps:.0f}/255.</p>{markup.table(head, rows)}"
        + markup.hint(f"Projected gradient descent, {STEPS} steps, which knows nothing of the other two readings.")
    )
