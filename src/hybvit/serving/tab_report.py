"""The tab Report: the facts of the model, and its report or card."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import gradio as gr

from ..errors import DataError
from ..hub import HEADLINES, local_folder
from ..model import HybridModel
from ..model.weights import is_of_other_weights
from ..storage import read_json
from . import markup
from .service import Service

LONG = 20  # rows of a table that is folded
REPORT, RESULTS, CARD = "report.html", "results.json", "README.md"


def folder_of(name: str) -> Path:
    """Where what is known of a model lies: its folder, or that of the run of a checkpoint."""
    path = local_folder(name)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def report_of(name: str) -> Path | None:
    """The page that `hybvit evaluate` wrote of a run; None if there is none."""
    path = folder_of(name) / REPORT
    return path if path.is_file() else None


def is_outdated(results: Path, model: HybridModel) -> bool:
    """Whether a report's figures were measured on other weights; of a report without them nothing is known."""
    try:
        return is_of_other_weights(read_json(results), model)
    except DataError:
        return False


def build(service: Service) -> None:
    gr.HTML(facts(service))
    folder = folder_of(service.name)
    if report_of(service.name) is not None:
        if is_outdated(folder / RESULTS, service.model):
            gr.HTML(
                markup.hint(f"This report is of other weights than those of this page: hybvit evaluate {service.name} --report")
            )
        gr.HTML(f'<iframe class="report" src="/{REPORT}" title="Report of {escape(service.name)}"></iframe>')
    elif (folder / CARD).is_file():
        gr.Markdown(card(folder / CARD), elem_id="card", latex_delimiters=[])
    else:
        gr.HTML(markup.hint(f"No report yet: hybvit evaluate {service.name} writes one."))


def facts(service: Service) -> str:
    model = service.model
    shape, calibration = model.cfg.model, model.calibration
    rows = [
        ["images", f"{shape.image_size} x {shape.image_size}, {'color' if shape.channels == 3 else 'gray'}"],
        ["classes", f"{len(model.classes)}: {', '.join(model.classes[:20])}{' ...' if len(model.classes) > 20 else ''}"],
        ["parameters", f"{sum(weight.numel() for weight in model.parameters()):,}"],
        ["objective", model.cfg.objective.kind],
        ["calibration", "none" if calibration is None else f"by {len(calibration):,} images ({calibration.source})"],
    ]
    return markup.table(["model", service.name], rows)


def card(path: Path) -> str:
    """The text of a model card, without its metadata and its heading, and with its pictures inside."""
    text = re.sub(r"\A---\n.*?\n---\n(\s*# [^\n]*\n)?", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)

    def inside(link: re.Match[str]) -> str:
        place = path.parent / Path(link[2]).name
        return f"![{link[1]}]({markup.address(place.read_bytes())})" if place.suffix == ".png" and place.is_file() else link[1]

    return re.sub(r"!\[([^\]]*)\]\(([^)]+)\)", inside, folded(text))


def folded(text: str) -> str:
    """A card with the headline figures of its long tables, and all of them folded below."""

    def shorten(found: re.Match[str]) -> str:
        head, *rows = found[0].splitlines()
        rule, *rows = rows
        first = [row for row in rows if any(re.fullmatch(pattern, row.split("`")[1]) for pattern, *_ in HEADLINES)]
        if len(rows) <= LONG or not first:
            return found[0]
        every = f"<details><summary>All {len(rows)} figures</summary>\n\n{found[0]}\n</details>\n"
        return "\n".join([head, rule, *first, "", every])

    return re.sub(r"^\| metric .*\n\|[-|]+\n(?:\| `.*\n)+", shorten, text, flags=re.MULTILINE)
