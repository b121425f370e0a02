"""Tables of published figures, ours and the difference, as Markdown, HTML, CSV and a plot; verdicts on the paper's claims."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping
from typing import Any

from ..evaluation import plots
from ..evaluation.report import STYLE
from .claims import CLAIMS, Claim, Verdict, verdict
from .published import PublishedTable, later, later_columns, tables
from .runs import training_hours
from .scales import Scale
from .tables import BASE, TIMED, Measured, Row, measured, rows, suites_of, table

Records = Mapping[str, dict[str, Any]]
CLAIM_HEADS = ["The paper's claim", "published", "ours", "verdict"]
ONCE, NOT_ONCE = "holds (one run)", "does not hold (one run)"
WIDE = 5  # with more columns than this, published and ours are rows instead of columns
DECIMALS = {"auroc": 2, "bits_per_dim": 2, "hours": 2, "minutes_per_epoch": 2, "parameters_millions": 2, "inception_score": 2}
FAMILIES = ("inception_score", "fid")  # columns whose metric on our side depends on the extractor
TABLES_WITH_REPEATED_LABELS = ("table2", "table11", "table12")


class Cell:
    """One figure: published, ours, and the difference where the two are comparable."""

    def __init__(self, column: str, published: float | str | None, ours: Measured | None, comparable: bool) -> None:
        self.column, self.published, self.ours = column, published, ours
        self.comparable = comparable and ours is not None and isinstance(published, int | float)

    def texts(self) -> tuple[str, str, str]:
        return (
            "" if self.published is None else str(self.published),
            self.describe_ours(),
            f"{self.difference:+.{decimals(self.column)}f}" if self.difference is not None else "",
        )

    @property
    def difference(self) -> float | None:
        if not self.comparable:
            return None
        assert self.ours is not None
        return self.ours.value - float(self.published or 0)

    def describe_ours(self) -> str:
        if self.ours is None:
            return ""
        digits = decimals(self.column)
        text = f"{self.ours.value:.{digits}f}"
        if self.ours.low is not None and self.ours.high is not None:
            text += f" [{round(self.ours.low, digits) + 0.0:.{digits}f}, {self.ours.high:.{digits}f}]"  # no -0.0
        return text


def decimals(column: str) -> int:
    return next((digits for prefix, digits in DECIMALS.items() if column.startswith(prefix)), 1)


def comparable(scale: Scale) -> bool:
    """Whether a difference from the published figure is meaningful; with other data and other networks it is not."""
    return scale.name == "full"


def cells(name: str, row: Row, records: Records, scale: Scale) -> dict[str, Cell]:
    found = {}
    for column in table(name, scale).columns:
        published = row.published.values.get(column) if row.published else None
        ours = measured(column, row, records.get(row.run) if row.run else None, scale)
        found[column] = Cell(column, published, ours, comparable(scale))
    return found


def heading_of(column: str, name: str, records: Records, scale: Scale) -> str:
    """The heading of our side of a column: the metric with extractor and number of samples, or the set it was measured on."""
    if column in FAMILIES:
        runs = {row.run for row in rows(name) if row.run}
        metrics = {metric for run in runs for metric in records.get(run, {}).get("metrics", {})}
        prefix = ("fidelity/fid_", "fidelity/fd_") if column == "fid" else ("fidelity/is_", "fidelity/score_")
        kinds = sorted(m.removeprefix("fidelity/") for m in metrics if m.startswith(prefix) and m[-1].isdigit())
        return " / ".join(kinds)
    if column == "runtime":
        return "hours"
    if column.startswith("auroc_"):
        return scale.outside.get(column.removeprefix("auroc_"), "")
    return table(name, scale).columns[column].removesuffix(" (%)")


def grid_of(name: str, records: Records, scale: Scale) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of a table, as text."""
    published, lines = table(name, scale), list[list[str]]()
    columns = [column for column in published.columns if column != "augmentation"]
    wide = len(columns) > WIDE
    if wide:
        heads = ["Model", "", *[short(published.columns[column]) for column in columns], "trained here"]
    else:
        heads = ["Model"]
        for column in columns:
            ours = heading_of(column, name, records, scale)
            heads += [f"{published.columns[column]}, published", f"{ours}, ours" if ours else "ours", "difference"]
        heads.append("trained here")
    group = ""
    for row in rows(name):
        if row.group != group:
            group = row.group
            lines.append([f"*{group}*", *[""] * (len(heads) - 1)])
        found = cells(name, row, records, scale)
        if not wide:
            texts = [text for column in columns for text in found[column].texts()]
            lines.append([row.model, *texts, trained(row, records)])
            continue
        for i, word in enumerate(("published", "ours", "difference")):
            texts = [found[column].texts()[i] for column in columns]
            if any(texts):
                first = word == "published" or not row.published
                lines.append([row.model if first else "", word, *texts, trained(row, records) if word == "ours" else ""])
    return drop_empty(heads, lines)


def trained(row: Row, records: Records) -> str:
    """The run behind our figures: network, parameters, steps and batch size, and whether it diverged."""
    record = records.get(row.run or "", {})
    training = record.get("training", {})
    if not training:
        return ""
    done = record["kept_step"] if "diverged" in record else training.get("steps", 0)
    text = f"{record['network']}, {record['parameters'] / 1e6:.2f} M, {done:,} steps of {training['batch_size']}"
    return f"{text}, **diverged**" if "diverged" in record else text


def footnotes(name: str, records: Records) -> list[str]:
    """The reasons why runs of a table diverged."""
    runs = dict.fromkeys(row.run for row in rows(name) if row.run and "diverged" in records.get(row.run, {}))
    return [f"`{run}` diverged: {records[run]['diverged']}" for run in runs]


def facts(name: str, records: Records, scale: Scale) -> str:
    """Data, seeds, hardware and training hours behind our figures of a table, in one line."""
    runs = dict.fromkeys(row.run for row in rows(name) if row.run)
    found = {run: records[run] for run in runs if "data" in records.get(run, {})}
    own = [*found.values()]
    if not own:
        return ""
    if set(TIMED) & set(table(name, scale).columns):
        took = next((record["timing"] for record in records.values() if "timing" in record), None)
        machine = machine_of({"environment": took["environment"]}) if took else ""
        return f"Ours: {scale.name} scale; training steps of all systems timed alternately on {machine}." if took else ""
    data = ", ".join(dict.fromkeys(record["data"] for record in own))
    seeds = ", ".join(dict.fromkeys(str(record["seed"]) for record in own))
    machines = ", ".join(dict.fromkeys(machine_of(record) for record in own))
    hours = training_hours(found, scale)
    protocol = next((record["tables"]["protocol"] for record in own if "protocol" in record.get("tables", {})), None)
    drawn = f"; {protocol['samples']} samples, {protocol['sampler']}, {protocol['steps']} steps" if protocol else ""
    trained = f"seed {seeds}; {hours:.2f} hours of training on {machines}"
    return f"Ours: {scale.name} scale, {data}{drawn}{attacked(name, own)}; {trained}."


def attacked(name: str, own: list[dict[str, Any]]) -> str:
    """How many test images the attacks of a table changed, which are fewer than those of the other columns."""
    if "robustness" not in suites_of(name):
        return ""
    metrics = [metric for record in own for metric in record.get("metrics", {}).items()]
    numbers = sorted({int(entry["n"]) for metric, entry in metrics if metric.startswith("robustness/pgd_")})
    return f"; attacks on {' or '.join(map(str, numbers))} test images" if numbers else ""


def machine_of(record: dict[str, Any]) -> str:
    environment = record.get("environment", {})
    return (
        f"{environment.get('device', environment.get('machine', 'an unknown machine'))}, {environment.get('threads')} thread(s)"
    )


def drop_empty(heads: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Drop columns without content, such as differences between figures that are not comparable."""
    kept = [i for i in range(len(heads)) if i == 0 or any(line[i] for line in lines)]
    return [heads[i] for i in kept], [[line[i] for i in kept] for line in lines]


def short(heading: str) -> str:
    return heading.removeprefix("PGD ").removesuffix(" (%)").removesuffix(" (AUROC)")


def as_csv(name: str, records: Records, scale: Scale) -> str:
    """One line per figure: published, ours with its interval, data, seed and training hours."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["table", "group", "model", "source", "preset", "column", "published", "ours", "low", "high", "difference"]
    writer.writerow([*names, "scale", "data", "seed", "hours", "device"])
    for row in rows(name):
        for column, cell in cells(name, row, records, scale).items():
            if cell.published is None and cell.ours is None:
                continue
            ours = cell.ours or Measured(float("nan"))
            figures = [None if cell.ours is None else ours.value, ours.low, ours.high, cell.difference]
            source = row.published.source if row.published else ""
            record = records.get(row.run or "", {}) if cell.ours is not None else {}
            hours = f"{record['training'].get('seconds', 0) / 3600:.4f}" if "training" in record else ""
            behind = [scale.name if record else "", record.get("data", ""), record.get("seed", ""), hours]
            writer.writerow(
                [name, row.group, row.model, source, row.run or "", column, cell.published]
                + ["" if figure is None else f"{figure:.6g}" for figure in figures]
                + [*behind, record.get("environment", {}).get("device", "")]
            )
    return text.getvalue()


def against_base(name: str, records: Records, scale: Scale) -> tuple[list[str], list[list[str]]]:
    """The difference of each row from the table's base row, published and ours: points, or a factor for distances and times."""
    base = next((row for row in rows(name) if row.model == BASE.get(name)), None)
    if base is None:
        return [], []
    columns = [c for c in table(name, scale).columns if c in ("accuracy", "fid", "minutes_per_epoch")]
    heads, lines, bases = ["Model"], [], cells(name, base, records, scale)
    for column in columns:
        heads += [f"{table(name, scale).columns[column]}, published", "ours"]
    for row in rows(name):
        if (row.group, row.model) == (base.group, base.model) or row.run not in records:
            continue
        line = [row.model]
        for column, cell in cells(name, row, records, scale).items():
            if column in columns:
                was = bases[column]
                line += [
                    change(column, cell.published, was.published),
                    change(column, cell.ours and cell.ours.value, was.ours and was.ours.value),
                ]
        lines.append(line)
    lines = [line for line in lines if any(line[2::2])]  # keep rows with a figure of ours
    return (heads, lines) if lines else ([], [])


def change(column: str, now: float | str | None, before: float | str | None) -> str:
    if not isinstance(now, int | float) or not isinstance(before, int | float) or not before:
        return ""
    return f"{now - before:+.1f}" if column == "accuracy" else f"x {now / before:.2f}"


def verdicts(name: str, records: Records, scale: Scale) -> list[list[str]]:
    """The paper's claims about a table or figure: claim, published figures, our figures, verdict on ours."""
    found = []
    for claim in CLAIMS.get(name, ()):
        if claim.relation == "diverges":
            record = records.get(claim.left, {})
            if "training" in record:
                found.append([claim.statement, "", "", ONCE if "diverged" in record else NOT_ONCE])
            continue
        pair = [row_of(name, claim.group, run) for run in (claim.left, claim.right)]
        ours = verdict(claim, *(measured(claim.column, row, records.get(row.run or ""), scale) for row in pair))
        if ours is None:
            continue
        theirs = verdict(claim, *(published_figure(row, claim.column) for row in pair))
        ended = [row.run for row in pair if "diverged" in records.get(row.run or "", {})]
        outcome = f"not judged: `{ended[0]}` diverged" if ended else ours.outcome
        found.append([with_stand_in(claim.statement, scale), figures_of(claim, theirs), figures_of(claim, ours), outcome])
    return found


def with_stand_in(statement: str, scale: Scale) -> str:
    """A claim, with the data set that replaces SVHN at this scale."""
    other = scale.outside.get("svhn", "SVHN")
    return statement.replace("SVHN", f"SVHN (here {other})") if other != "svhn" else statement


def row_of(name: str, group: str, run: str) -> Row:
    """The row of a table for a preset; a row outside the table if a claim compares with a system that it does not list."""
    own = [row for row in rows(name) if row.run == run] if name in tables() else []
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
        parts += [against(name), "", as_markdown(heads, lines), ""]
    found = verdicts(name, records, scale)
    if found:
        parts += [as_markdown(CLAIM_HEADS, found), ""]
    heads, lines = later_work(name)
    if lines:
        parts += ["Later systems, each by its authors' own protocol:", "", as_markdown(heads, lines), ""]
    for text in (facts(name, records, scale), *footnotes(name, records), published.note):
        if text:
            parts += [text, ""]
    return "\n".join(parts)


def against(name: str) -> str:
    return f"Relative to {BASE[name]}, published and ours: accuracy as a difference in points, distances and times as a factor."


def later_work(name: str) -> tuple[list[str], list[list[str]]]:
    """Systems published after the paper, listed below its table of hybrid and generative models."""
    if name != "table1":
        return [], []
    columns = later_columns()
    lines = [[row.group, row.model, *[str(row.values.get(c, "")) for c in columns], row.source] for row in later()]
    return drop_empty(["Data", "Model", *columns.values(), "Source"], lines)


def title(published: PublishedTable) -> str:
    return f"Table {published.name.removeprefix('table')}. {published.title} ({published.data})"


def as_markdown(heads: list[str], lines: list[list[str]]) -> str:
    text = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join(text + [f"| {' | '.join(line)} |" for line in lines])


def as_html(name: str, records: Records, scale: Scale) -> str:
    """A table as a section of an HTML page."""
    published = table(name, scale)
    parts = [f"<h2 id={name}>{html.escape(title(published))}</h2>", html_table(*grid_of(name, records, scale))]
    heads, lines = against_base(name, records, scale)
    if lines:
        parts += [f"<p class=sub>{html.escape(against(name))}</p>", html_table(heads, lines)]
    found = verdicts(name, records, scale)
    if found:
        parts.append(html_table(CLAIM_HEADS, found))
    heads, lines = later_work(name)
    if lines:
        parts += ["<p class=sub>Later systems, each by its authors' own protocol:</p>", html_table(heads, lines)]
    for text in (facts(name, records, scale), *footnotes(name, records), published.note):
        parts.append(f"<p class=sub>{html.escape(text)}</p>" if text else "")
    return "".join(parts)


def document(title: str, sections: list[str]) -> str:
    head = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    return f"{head}<title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(sections)}</body></html>\n"


def html_table(heads: list[str], lines: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{emphasized(text)}" for text in line) for line in lines)
    return f"<table><tr>{head}{body}</table>"


def emphasized(text: str) -> str:
    """The text of a Markdown cell as HTML: **bold** and *italic*."""
    bold = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"\*(.+?)\*", r"<i>\1</i>", bold)


def drawing(name: str, records: Records, scale: Scale) -> str | None:
    """A plot of published figures beside ours, one panel per column; None if there is no figure of ours."""
    panels: dict[str, list[tuple[str, float | None, Measured | None]]] = {}
    for row in rows(name):
        if not row.run:
            continue
        for column, cell in cells(name, row, records, scale).items():
            number = float(cell.published) if isinstance(cell.published, int | float) else None
            if cell.ours is not None:
                label = f"{row.model} ({row.group})" if name in TABLES_WITH_REPEATED_LABELS else row.model
                panels.setdefault(column, []).append((label, number, cell.ours))
    heads = table(name, scale).columns
    shown = {
        heads[column] if comparable(scale) else f"{heads[column]} | {heading_of(column, name, records, scale)}": points
        for column, points in panels.items()
        if column != "parameters_millions"
    }
    return plots.paired(shown) if shown else None
