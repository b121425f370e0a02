"""The figures of the paper's Tables 1 to 13 and of later systems, for comparison with measured ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from ..errors import DataError, nearest
from ..storage import ASSETS

FILE = ASSETS / "published.json"


class Printed(float):
    """A number that keeps its printed form: 38.0 stays 38.0."""

    def __new__(cls, text: str) -> Printed:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table.

    Args:
        table: ``table1`` to ``table13``, or ``later``.
        group: the heading above the row: a data set, a kind of model, a score, a norm; empty if the table has no groups.
        model: readable label of the row; in Table 9 a hyperparameter.
        source: ``this paper``, or the publication of the system.
        values: column id -> number, or text where the paper has text; empty cells and dashes are absent.
        printed: the label as printed in the paper.
        preset: name of the preset that reproduces the row, if there is one.
    """

    table: str
    group: str
    model: str
    source: str
    values: Mapping[str, float | str]
    printed: str
    preset: str | None = None


@dataclass(frozen=True)
class PublishedTable:
    """One table.

    Args:
        name: ``table1`` to ``table13``.
        title: its subject, in our words.
        data: the data set or sets.
        note: what a reader must know, or empty.
        columns: column id -> heading with its unit.
        rows: in the paper's order.
    """

    name: str
    title: str
    data: str
    note: str
    columns: Mapping[str, str]
    rows: tuple[PublishedRow, ...]


@cache
def _content() -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"), parse_float=Printed)
    except (OSError, ValueError) as error:
        raise DataError(f"{FILE}: {error}; install hybvit again") from error
    return content


def _rows(table: str, rows: list[dict[str, Any]]) -> tuple[PublishedRow, ...]:
    return tuple(
        PublishedRow(
            table=table,
            group=row["group"],
            model=row["model"],
            source=row["source"],
            values=MappingProxyType(row["values"]),
            printed=row.get("printed", row["model"]),
            preset=row.get("preset"),
        )
        for row in rows
    )


@cache
def tables() -> Mapping[str, PublishedTable]:
    """``table1`` to ``table13``, in order."""
    return MappingProxyType(
        {
            name: PublishedTable(
                name=name,
                title=table["title"],
                data=table["data"],
                note=table["note"],
                columns=MappingProxyType(table["columns"]),
                rows=_rows(name, table["rows"]),
            )
            for name, table in _content()["tables"].items()
        }
    )


@cache
def rows_of(preset: str) -> tuple[PublishedRow, ...]:
    """The rows of the paper that a preset reproduces, in the order of the tables."""
    return tuple(row for table in tables().values() for row in table.rows if row.preset == preset)


@cache
def later() -> tuple[PublishedRow, ...]:
    """Systems published after the paper; a row's group is its data set."""
    return _rows("later", _content()["later"]["rows"])


def later_columns() -> Mapping[str, str]:
    """Column id -> heading, of :func:`later`."""
    return MappingProxyType(_content()["later"]["columns"])


def _nearest(name: str, known: list[str]) -> str:
    close = nearest(name, known, cutoff=0.0)
    return f"the nearest is {close!r}" if close else "it has no rows"


def row(table: str, model: str, group: str | None = None) -> PublishedRow:
    """The row of a model, by its label.

    Args:
        table: ``table1`` to ``table13``.
        model: label as in :attr:`PublishedRow.model`.
        group: needed where a table has the model in several groups.

    Raises:
        ValueError: there is no such row, or there are several.
    """
    if table not in tables():
        raise ValueError(f"the paper has no {table!r}: its tables are table1 to table{len(tables())}")
    rows = tables()[table].rows
    if group is not None:
        groups = list(dict.fromkeys(row.group for row in rows))
        if group not in groups:
            raise ValueError(f"{table} has no group {group!r}: {_nearest(group, groups)}")
        rows = tuple(row for row in rows if row.group == group)
    found = [row for row in rows if row.model == model]
    if not found:
        where = table if group is None else f"{table}, {group},"
        raise ValueError(f"{where} has no {model!r}: {_nearest(model, [row.model for row in rows])}")
    if len(found) > 1:
        raise ValueError(f"{table} has {model!r} in several groups: name one of {', '.join(row.group for row in found)}")
    return found[0]
