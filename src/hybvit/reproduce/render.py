"""Tables as published, ours and the difference: Markdown, HTML, CSV and a drawing; and what holds of what the paper says."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping
from typing import Any

from .. import plots
from ..published import PublishedTable
from .claims import CLAIMS, Claim, Verdict, verdict
from .scales import Scale
from .tables import BASE, TIMED, Measured, Row, measured, rows, table

Records = Mapping[str, dict[str, Any]]
SAYS = ["The paper says", "by its figures", "by ours", "here"]
WIDE = 5  # more columns than this, and a model's figures stand in lines under each other
DECIMALS = {"auroc": 2, "bits_per_dim": 2, "hours": 2, "minutes_per_epoch": 2, "parameters_millions": 2, "inception_score": 2}
FAMILIES = {"inception_score": "Inception score", "fid": "FID"}


class Cell:
    """One figure: published, ours, and the difference where both are of one kind."""

    def __init__(self, column: str, published: float | str | None, ours: Measured | None, comparable: bool) -> None:
        self.column, self.published, self.ours = column, published, ours
        self.comparable = comparable and ours is not None and isinstance(published, int | float)

    def texts(self) -> tuple[str, str, str]:
        return (
            "" if self.published is None else f"{self.published:g}" if not isinstance(self.published, str) else self.published,
            self.ours_in_words(),
            f"{self.difference:+.{decimals(self.column)}f}" if self.difference is not None else "",
        )

    @property
    def difference(self) -> float | None:
        if not self.comparable:
            return None
        assert self.ours is not None
        return self.ours.value - float(self.published or 0)

    def ours_in_words(self) -> str:
        if self.ours is None:
            return ""
        digits = decimals(self.column)
        text = f"{self.ours.value:.{digits}f}"
        if self.ours.low is not None and self.ours.high is not None:
            text += f" ± {(self.ours.high - self.ours.low) / 2:.{digits}f}"
        return text


def decimals(column: str) -> int:
    return next((digits for prefix, digits in DECIMALS.items() if column.startswith(prefix)), 1)


def comparable(column: str, scale: Scale) -> bool:
    """A Frechet distance on another extractor is no FID, and a small network's minutes are no A100's."""
    return scale.name == "full" or column not in (*FAMILIES, *TIMED, "parameters_millions")


def cells(name: str, row: Row, records: Records, scale: Scale) -> dict[str, Cell]:
    found = {}
    for column in table(name, scale).columns:
        published = row.published.values.get(column) if row.published else None
        ours = measured(column, row, records.get(row.run) if row.run else None, scale)
        found[column] = Cell(column, published, ours, comparable(column, scale))
    return found


def heading_of(column: str, headings: Mapping[str, str], records: Records, scale: Scale) -> str:
    """Our side of a column: the extractor and the set that it was measured with."""
    if column in FAMILIES:
        names = {metric for record in records.values() for metric in record.get("metrics", {})}
        prefix = ("fidelity/fid_", "fidelity/fd_") if column == "fid" else ("fidelity/is_", "fidelity/score_")
        kinds = sorted(
            {m.removeprefix("fidelity/").rpartition("_")[0] for m in names if m.startswith(prefix) and m[-1].isdigit()}
        )
        return " / ".join(kinds) or headings[column]
    if column == "runtime":
        return "hours"
    if column.startswith("auroc_"):
        return scale.outside.get(column.removeprefix("auroc_"), "")
    return headings[column]


def grid_of(name: str, records: Records, scale: Scale) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table, as text."""
    published, lines = table(name, scale), []
    columns = [column for column in published.columns if column != "augmentation"]
    if len(columns) <= WIDE:
        heads = ["Model"]
        for column in columns:
            ours = heading_of(column, published.columns, records, scale)
            heads += [f"{published.columns[column]}, published", f"{ours}, ours" if ours else "ours", "difference"]
        group = ""
        for row in rows(name):
            if row.group != group:
                group = row.group
                lines.append([f"*{group}*", *[""] * (len(heads) - 1)])
            found = cells(name, row, records, scale)
            lines.append([label(row, records), *[text for column in columns for text in found[column].texts()]])
        return drop_empty(heads, lines)
    heads = ["Model", "", *[short(published.columns[column]) for column in columns]]
    group = ""
    for row in rows(name):
        if row.group != group:
            group = row.group
            lines.append([f"*{group}*", *[""] * (len(heads) - 1)])
        found = cells(name, row, records, scale)
        for i, word in enumerate(("published", "ours", "difference")):
            texts = [found[column].texts()[i] for column in columns]
            if any(texts):
                lines.append([label(row, records) if word == "published" or not row.published else "", word, *texts])
    return drop_empty(heads, lines)


def drop_empty(heads: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without columns that hold nothing, as the differences of what cannot be compared."""
    kept = [i for i in range(len(heads)) if i == 0 or any(line[i] for line in lines)]
    return [heads[i] for i in kept], [[line[i] for i in kept] for line in lines]


def short(heading: str) -> str:
    return heading.removeprefix("PGD ").removesuffix(" (%)").removesuffix(" (AUROC)")


def label(row: Row, records: Records) -> str:
    record = records.get(row.run or "")
    if record and record.get("diverged"):
        return f"{row.model} (diverged, at step {record['diverged_after']} of {record['training']['of_steps']})"
    return row.model


def as_csv(name: str, records: Records, scale: Scale) -> str:
    """One line per figure: table, group, model, preset, column, published, ours, low, high, difference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "group", "model", "source", "preset", "column", "published", "ours", "low", "high", "difference"))
    for row in rows(name):
        for column, cell in cells(name, row, records, scale).items():
            if cell.published is None and cell.ours is None:
                continue
            ours = cell.ours or Measured(float("nan"))
            figures = [None if cell.ours is None else ours.value, ours.low, ours.high, cell.difference]
            source = row.published.source if row.published else ""
            writer.writerow(
                [name, row.group, row.model, source, row.run or "", column, cell.published]
                + ["" if figure is None else f"{figure:.6g}" for figure in figures]
            )
    return text.getvalue()


def against_base(name: str, records: Records, scale: Scale) -> tuple[list[str], list[list[str]]]:
    """What each row changes against the table's base row, published and ours: points, or a factor for distances and times."""
    base = next((row for row in rows(name) if row.model == BASE.get(name)), None)
    if base is None:
        return [], []
    columns = [c for c in table(name, scale).columns if c in ("accuracy", "fid", "minutes_per_epoch")]
    heads, lines, bases = ["Model"], [], cells(name, base, records, scale)
    for column in columns:
        heads += [f"{table(name, scale).columns[column]}, published", "ours"]
    for row in rows(name):
        if row is base or not row.run:
            continue
        line = [label(row, records)]
        for column, cell in cells(name, row, records, scale).items():
            if column in columns:
                was = bases[column]
                line += [
                    change(column, cell.published, was.published),
                    change(column, cell.ours and cell.ours.value, was.ours and was.ours.value),
                ]
        lines.append(line)
    lines = [line for line in lines if any(line[1:])]
    return (heads, lines) if lines else ([], [])


def change(column: str, now: float | str | None, before: float | str | None) -> str:
    if not isinstance(now, int | float) or not isinstance(before, int | float) or not before:
        return ""
    return f"{now - before:+.1f}" if column == "accuracy" else f"x {now / before:.2f}"


def verdicts(name: str, records: Records, scale: Scale) -> list[list[str]]:
    """What the paper says of a table, by its figures and by ours: claim, published, ours, what ours say."""
    found = []
    for claim in CLAIMS.get(name, ()):
        pair = [row_of(name, claim.group, run) for run in (claim.left, claim.right)]
        ours = verdict(claim, *(measured(claim.column, row, records.get(row.run or ""), scale) for row in pair))
        if ours is None:
            continue
        theirs = verdict(claim, *(published_figure(row, claim.column) for row in pair))
        found.append([claim.words, figures_of(claim, theirs), figures_of(claim, ours), ours.outcome])
    return found


def row_of(name: str, group: str, run: str) -> Row:
    """The row of a table that a preset trained; one of no table where a claim compares with a system outside it."""
    own = [row for row in rows(name) if row.run == run]
    return next((row for row in own if row.group == group), own[0] if own else Row(run, group, None, run))


def published_figure(row: Row, column: str) -> Measured | None:
    value = row.published.values.get(column) if row.published else None
    return Measured(float(value)) if isinstance(value, int | float) else None


def figures_of(claim: Claim, figures: Verdict | None) -> str:
    if figures is None:
        return ""
    if claim.relation == "ratio":
        return figures.outcome
    digits = decimals(claim.column)
    return f"{figures.left.value:.{digits}f} and {figures.right.value:.{digits}f}"


def markdown(name: str, records: Records, scale: Scale) -> str:
    published = table(name, scale)
    parts = [f"### {title(published)}", "", as_markdown(*grid_of(name, records, scale)), ""]
    heads, lines = against_base(name, records, scale)
    if lines:
        parts += [
            f"Against {BASE[name]}: accuracy in points, distances and times as a factor.",
            "",
            as_markdown(heads, lines),
            "",
        ]
    found = verdicts(name, records, scale)
    if found:
        parts += [as_markdown(SAYS, found), ""]
    if published.note:
        parts += [published.note, ""]
    return "\n".join(parts)


def title(published: PublishedTable) -> str:
    return f"Table {published.name.removeprefix('table')}. {published.title} ({published.data})"


def as_markdown(heads: list[str], lines: list[list[str]]) -> str:
    text = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join(text + [f"| {' | '.join(line)} |" for line in lines])


def as_html(name: str, records: Records, scale: Scale) -> str:
    """A section of the page."""
    published = table(name, scale)
    parts = [f"<h2 id={name}>{html.escape(title(published))}</h2>", html_table(*grid_of(name, records, scale))]
    heads, lines = against_base(name, records, scale)
    if lines:
        parts += [f"<p class=sub>Against {html.escape(BASE[name])}</p>", html_table(heads, lines)]
    found = verdicts(name, records, scale)
    if found:
        parts.append(html_table(SAYS, found))
    if published.note:
        parts.append(f"<p class=sub>{html.escape(published.note)}</p>")
    return "".join(parts)


def html_table(heads: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text.strip('*'))}" for text in line) for line in lines)
    return f"<table><tr>{head}{body}</table>"


def drawing(name: str, records: Records, scale: Scale) -> str | None:
    """Published beside ours, a panel per column; None where nothing of ours is there."""
    panels: dict[str, list[tuple[str, float | None, Measured | None]]] = {}
    for row in rows(name):
        if not row.run:
            continue
        for column, cell in cells(name, row, records, scale).items():
            number = float(cell.published) if isinstance(cell.published, int | float) else None
            if cell.ours is not None:
                panels.setdefault(column, []).append((label(row, records), number, cell.ours))
    heads = table(name, scale).columns
    shown = {
        heads[column] if comparable(column, scale) else f"{heads[column]} | {heading_of(column, heads, records, scale)}": points
        for column, points in panels.items()
        if column != "parameters_millions"
    }
    return plots.paired(shown) if shown else None
