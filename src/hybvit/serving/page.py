"""The page: a tab for each thing that the model can do."""

from __future__ import annotations

import os
import tempfile
from html import escape

import gradio as gr
from fastapi import FastAPI

from .. import __version__
from ..errors import quantity
from . import tab_attack, tab_classify, tab_draw, tab_edit, tab_report
from .limits import UPLOAD
from .markup import read_asset
from .parts import Given, draw_one
from .service import Service

KEPT = 3600  # seconds that an uploaded picture is kept


def build_page(service: Service) -> gr.Blocks:
    model = service.model
    given: list[Given] = []
    with gr.Blocks(title=f"{service.name} - hybvit", analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        gr.HTML(heading(service))
        with gr.Tabs():
            if model.has_classes:
                with gr.Tab("Classify"):
                    given.append(tab_classify.build(service))
            if model.has_samples:
                with gr.Tab("Draw"):
                    tab_draw.build(service)
            if model.has_denoiser:
                with gr.Tab("Edit"):
                    given.append(tab_edit.build(service))
            if model.has_classes:
                with gr.Tab("Attack"):
                    given.append(tab_attack.build(service))
            with gr.Tab("Report"):
                tab_report.build(service)
        share_pictures(service, given)
    page.queue(default_concurrency_limit=None)
    return page


def heading(service: Service) -> str:
    shape = service.model.cfg.model
    color = "color" if shape.channels == 3 else "gray"
    return (
        f"<header><h1>{escape(service.name)}</h1><p>One vision transformer that classifies and generates: "
        f"{quantity(len(service.model.classes), 'class')}, {shape.image_size} x {shape.image_size} pixels, {color} · "
        f'<a href="/docs">JSON API</a> · hybvit {__version__}</p></header>'
    )


def share_pictures(service: Service, given: list[Given]) -> None:
    """Let a picture that is dropped in one tab be there in the others, and draw one for all of them."""
    pictures = [tab.picture for tab in given]
    for tab in given:
        others = [picture for picture in pictures if picture is not tab.picture]
        tab.picture.upload(None, tab.picture, others, js=f"(picture) => Array({len(others)}).fill(picture)")
        tab.drawn.click(
            lambda: draw_one(service) if len(pictures) == 1 else [draw_one(service)] * len(pictures),
            None,
            pictures,
            show_progress="hidden",
            api_visibility="private",
        )


def mount_page(app: FastAPI, service: Service) -> None:
    """Put the page at the root of an application. Uploaded pictures lie in a folder that goes with the process."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app.state.uploads = tempfile.TemporaryDirectory(prefix="hybvit-serve-")
    os.environ["GRADIO_TEMP_DIR"] = app.state.uploads.name
    gr.mount_gradio_app(
        app,
        build_page(service),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=UPLOAD,
        ssr_mode=False,
        show_error=True,
        theme=theme(),
        css=read_asset("page.css"),
    )


def theme() -> gr.themes.Base:
    """Fonts of the system, which nobody has to be asked for, and buttons that can be read on their color."""
    plain = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return plain.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )
