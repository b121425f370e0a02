"""The tab Classify: labels, their set, how familiar the picture is, and on request its bits and its certificate."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import gradio as gr

from ..metrics.doubt import RISK
from ..model import COVERAGE
from . import markup
from .limits import read_picture
from .nearest import DRAWN
from .parts import Given, forget, on, picture, waited
from .service import NOISE, VOTES, Service

START = "Drop a picture: its labels appear here."


def build(service: Service) -> Given:
    model = service.model

    def classify(path: str | None) -> Iterator[str]:
        if path is None:
            yield markup.hint(START)
            return
        pixels = read_picture(model, path)
        (found,) = yield from waited(service, "Classifying ...", lambda: service.classify(pixels))
        classes, side = model.classes, model.cfg.model.image_size
        parts = [
            markup.seen(markup.Shown(pixels[0], classes[found.label], f"what the model sees: {side} x {side} pixels")),
            markup.bars(classes, found.probabilities, found.held),
            set_of(service, found.held),
        ]
        if found.abstains:
            parts.append(f"<p><b>Not sure enough</b> to be wrong in at most {100 * RISK:.0f}\u00a0% of such answers.</p>")
        if service.familiar is not None:
            parts.append(markup.gauge(service.familiar, found.log_density))
        yield "".join(parts)

    def bits(path: str | None) -> Iterator[str]:
        pixels = read_picture(model, path)
        words = f"Computing the bound: {model.diffusion.T:,} evaluations of the network ..."
        (found,) = yield from waited(service, words, lambda: service.bits_per_dim(pixels))
        yield f"<p><b>{found:.2f} bits per dimension</b>, an upper bound by the denoiser; fewer are more likely.</p>"

    def certify(path: str | None) -> Iterator[str]:
        pixels = read_picture(model, path)
        work = lambda: model.certify(pixels, noise=NOISE, votes=VOTES)  # noqa: E731
        found = yield from waited(service, f"Collecting {VOTES:,} votes ...", work)
        yield certificate(service, int(found.labels), found.radius.item())

    def look(path: str | None) -> Iterator[str]:
        pixels = read_picture(model, path)
        words = "Looking among images that the model draws itself ..."
        found = yield from waited(service, words, lambda: service.nearest(pixels))
        shown = [markup.Shown(image, model.classes[label], f"cosine {cosine:.2f}") for image, label, cosine in found]
        words = f"The most similar of {DRAWN} images that the model drew itself, by its features before the label read-out."
        yield markup.figures(shown) + markup.hint(words)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            given = picture()
            drawn = gr.Button("Let the model draw one", size="sm", visible=model.has_samples)
        with gr.Column(scale=3, min_width=280):
            answer = gr.HTML(markup.hint(START), elem_id="labels")
            with gr.Row():
                bound = gr.Button("Bits per dimension", size="sm", visible=model.has_denoiser)
                vouch = gr.Button("Certificate", size="sm", visible=model.labels_noisy)
                like = gr.Button("Similar drawings", size="sm", visible=model.has_samples)
            if not model.labels_noisy:
                gr.HTML(markup.hint("No certificate: this model was not trained to label noisy images."))
            likely, vouched, similar = (gr.HTML(elem_id=name) for name in ("bits", "certificate", "similar"))
    on(given.change, classify, given, answer)
    on(bound.click, bits, given, likely)
    on(vouch.click, certify, given, vouched)
    on(like.click, look, given, similar)
    forget(given, likely, vouched, similar)
    return Given(given, drawn)


def set_of(service: Service, held: list[int] | None) -> str:
    """The set in words; for a model that is not calibrated, how to come by one."""
    percent = f"{100 * COVERAGE:.0f}\u00a0%"
    if held is None:
        return (
            f"<p>No set of labels at {percent}: this model is not calibrated. "
            f"<code>hybvit calibrate {escape(service.name)} --help</code> says how.</p>"
        )
    return f"<p>Set of labels at {percent}: <b>{', '.join(escape(service.model.classes[k]) for k in held)}</b>.</p>"


def certificate(service: Service, label: int, radius: float) -> str:
    if label < 0:
        return f"<p><b>No certificate</b>: the {VOTES:,} votes under noise of {NOISE} do not settle on a label.</p>"
    name = escape(service.model.classes[label])
    return (
        f"<p><b>{name}, certified to {radius:.2f}</b>. Most of {VOTES:,} copies of the picture with noise of {NOISE} get this "
        "label, and with 99.9 % confidence no smaller change of the picture (L2, pixels in 0 to 1) takes that majority away. "
        "The bars above are not certified.</p>"
    )
