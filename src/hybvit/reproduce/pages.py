"""The output files of a reproduction: tables as Markdown, CSV, HTML and plots; the figures; index.html with all of them."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import save_image
from ..devices import environment
from ..errors import ConfigError, DataError, quantity
from ..evaluation.report import figure
from ..presets import PRESETS
from ..reproduce import figures, render
from ..storage import make_folder, write_text
from .runs import configuration, run_dir, training_hours
from .scales import Scale
from .tables import FIGURES, NAMES

RECORDS = "records.json"


def write_out(
    names: list[str],
    folder: Path,
    scale: Scale,
    fields: list[str],
    records: dict[str, dict[str, Any]],
    say: Callable[[str], None],
) -> list[Exception]:
    """Write records.json, the tables, the figures and index.html -> the errors of figures that could not be drawn.

    index.html also shows the tables and figures of earlier calls.
    """
    write_text(folder / RECORDS, json.dumps({"scale": scale.name, "runs": records}, indent=1) + "\n")
    page = [
        f"<h1>The paper's tables and figures, {html.escape(scale.name)} scale</h1>"
        f"<p class=sub>{html.escape(scale.description)}</p>"
    ]
    configs = {run: cfg for run in PRESETS if (cfg := configuration(run, scale, fields)) is not None}
    folders = {run: folder / run_dir(run, scale) for run in configs}
    written, failed = 0, list[Exception]()
    for name in NAMES:
        earlier = (folder / f"{name}.md").is_file() or any((folder / "figures").glob(f"{name}[._]*"))
        if name not in names and not earlier:
            continue
        if name not in FIGURES:
            page.append(write_table(name, folder, scale, records))
            written += 1
            continue
        try:
            pictures = figures.draw(name, folders, configs, records, scale)
        except (ConfigError, DataError) as error:
            failed.append(error)
            say(f"{name}: left out, {error}")
            continue
        paths = save_figure(name, pictures, folder / "figures")
        if paths:
            page.append(figure_section(name, paths, render.verdicts(name, records, scale)))
        written += len(paths)
    page.append(footer(records, scale))
    write_text(folder / "index.html", render.document(f"hybvit, {scale.name} scale", page))
    runs = quantity(len({run_dir(run, scale) for run in records}), "run")
    say(f"{folder / 'index.html'}: {written} tables and pictures from {runs}")
    return failed


def write_table(name: str, folder: Path, scale: Scale, records: dict[str, dict[str, Any]]) -> str:
    """Write a table as Markdown, CSV, a plot and an HTML page -> its section of index.html."""
    write_text(folder / f"{name}.md", render.markdown(name, records, scale))
    write_text(folder / f"{name}.csv", render.as_csv(name, records, scale))
    section = render.as_html(name, records, scale)
    drawn = render.drawing(name, records, scale)
    if drawn is not None:
        write_text(folder / f"{name}.svg", drawn)
        section += figure(folder / f"{name}.svg", "published (hollow) and ours (filled, with 95 % intervals)")
    write_text(folder / f"{name}.html", render.document(f"{name}, {scale.name}", [section]))
    return section


def save_figure(name: str, pictures: dict[str, figures.Drawn], folder: Path) -> list[Path]:
    """Save the pictures of a figure, replacing those of an earlier call."""
    for old in folder.glob(f"{name}[._]*"):
        old.unlink()
    return [save_drawn(picture, folder / stem) for stem, picture in pictures.items()]


def figure_section(name: str, paths: list[Path], verdicts: list[list[str]]) -> str:
    shown = "".join(figure(path, path.stem) for path in paths)
    number, title = name.removeprefix("figure"), html.escape(FIGURES[name].title)
    section = f"<h2 id={name}>Figure {number}. {title}</h2><div class=row>{shown}</div>"
    return section + (render.html_table(render.CLAIM_HEADS, verdicts) if verdicts else "")


def footer(records: dict[str, dict[str, Any]], scale: Scale) -> str:
    """Seeds, training time and environment behind the page."""
    facts = ", ".join(f"{key} {value}" for key, value in environment().items())
    seeds = sorted({record["seed"] for record in records.values() if "seed" in record})
    hours = training_hours(records, scale)
    return f"<p class=sub>Seeds {seeds}; {hours:.1f} hours of training; rendered with {html.escape(facts)}.</p>"


def save_drawn(picture: figures.Drawn, stem: Path) -> Path:
    make_folder(stem.parent)
    if isinstance(picture, Image.Image):
        save_image(picture, stem.with_name(f"{stem.name}.png"))
        return stem.with_name(f"{stem.name}.png")
    write_text(stem.with_name(f"{stem.name}.svg"), picture)
    return stem.with_name(f"{stem.name}.svg")
