"""What is a cell of a manifest: how its text is read, when it is missing, and in which order labels are numbered."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..config import is_line
from ..errors import DataError, quantity
from .files import read_text
from .splits import FILLERS, WORDS, words_of

MISSING = {"", "none", "nan", "null", "<na>", "na", "n/a", "#n/a"}
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
LONGEST_CELL = 1 << 20
# the columns that are read; of several for the same, the first
PATHS = ("path", "file", "filename", "file_name", "image", "image_path")
LABELS = ("label", "class", "labels", "category")
SPLIT = "split"
# words by which people name a column that says the split, besides those of splits: is_test, image_set, fold ...
OTHER_SPLITS = {"subset", "usage", "partition", "set", "fold", "phase", "split", "is"}
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def text_of(value: object) -> str | None:
    """The text of a cell or label without the space around it; None if it is missing: empty, NaN, or a name for nothing.

    Raises:
        ValueError: it is no text and no number, or no text that can be written as UTF-8.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and math.isinf(value)):
        raise ValueError(f"{type(value).__name__} {str(value)[:40]!r} is neither text nor a number")
    text = str(value).strip()
    if not is_line(text):
        raise ValueError(f"{text[:40]!r} holds a line break, or a character that is no text")
    return None if text.casefold() in MISSING else text


def class_name(text: str) -> str:
    """A label as the name of a class: what looks the same is the same, however its letters are composed (NFC), and without
    invisible characters around it. Paths stay as they are."""
    return unicodedata.normalize("NFC", text.strip("\u200b\u2060\ufeff"))


def _look(label: str) -> str:
    """What a label looks like: without characters that do not show, and with those of compatible forms as one (NFKC)."""
    shown = "".join(character for character in label if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFKC", shown).strip()


def checked_classes(labels: Iterable[str], where: object, what: str = "labels") -> tuple[str, ...]:
    """The distinct labels in natural order, which :func:`check_classes` accepts."""
    distinct = dict.fromkeys(labels)
    check_classes(distinct, where, what)
    return natural_order(distinct)


def check_classes(distinct: Iterable[str], where: object, what: str = "labels") -> None:
    """Check the names of the classes of a data set. A warning names two that differ in upper and lower case only; single
    letters may.

    Raises:
        DataError: one is not one line of UTF-8 text, or two look the same or are the same number, such as 1 and 1.0.
    """
    same, folded = dict[object, str](), dict[str, str]()
    for label in distinct:
        name = _look(label)
        if (other := same.setdefault(name, label)) != label:
            raise DataError(f"{where}: the {what} {other!r} and {label!r} look the same: merge them")
        if NUMBER.fullmatch(name) and (other := same.setdefault(float(name), label)) != label:
            raise DataError(f"{where}: the {what} {other!r} and {label!r} are the same number: write them alike")
        if len(name) > 1 and (other := folded.setdefault(name.casefold(), label)) != label:
            print(
                f"warning: {where}: the {what} {other!r} and {label!r} are two classes, though only their case differs: if "
                "they are one, write them alike",
                file=sys.stderr,
            )
        if not is_line(label):
            raise DataError(f"{where}: the name {label!r} is not one line of UTF-8 text: rename it")


def natural_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels as people sort them: 2 before 10, 2.0 before 10.0, img2 before img10; numbers by their value."""
    distinct = set(labels)
    if all(NUMBER.fullmatch(label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (float(label), label)))
    return tuple(sorted(distinct, key=lambda label: (_chunks(label), label)))


def _chunks(label: str) -> list[tuple[int, int, str]]:
    """Text and numbers in turn. Numbers are compared by length, then as text, since they may be longer than int() takes."""
    numbers = ((chunk, chunk.lstrip("0")) for chunk in re.findall(r"[0-9]+|[^0-9]+", label))
    return [(0, len(number), number) if chunk[0] in "0123456789" else (1, 0, chunk) for chunk, number in numbers]


class Table(NamedTuple):
    """A manifest.

    Attributes:
        rows: line number, and the cells of the columns that are read; missing cells are left out.
        others: the names of all other columns, such as captions and boxes.
    """

    rows: list[tuple[int, dict[str, str]]]
    others: list[str]


def read_table(path: Path) -> Table:
    """Read a CSV or JSONL file. Column names are in lower case.

    Raises:
        DataError: the file cannot be read, or a row is damaged; the message names its line.
    """
    text = read_text(path, "utf-8-sig")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path}, line {line}: a NUL byte: save it as UTF-8 text")
    rows, others = list[tuple[int, dict[str, str]]](), dict[str, None]()
    for number, row in _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text):
        cells: dict[str, str] = {}
        for name, value in row:
            if name not in (*PATHS, *LABELS, SPLIT):
                others[name] = None
                continue
            try:
                cell = text_of(value)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {name}: {error}{_unclosed(value)}") from None
            if cell is not None and cells.setdefault(name, cell) != cell:
                raise DataError(
                    f"{path}, line {number}: two columns named {name}, with {cells[name]!r} and {cell!r}: remove one"
                )
        rows.append((number, cells))
    return Table(rows, list(others))


def says_split(column: str) -> bool:
    """Whether a column probably says which images are test images: is_test, subset, Usage, fold ..."""
    words = words_of(column)
    telling = {word for word in words if word in WORDS or word in OTHER_SPLITS}
    return bool(telling - {"is"}) and all(word in telling or word in FILLERS for word in words)


def _unclosed(value: object) -> str:
    return " (a quote that is not closed?)" if isinstance(value, str) and "\n" in value else ""


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: damaged ({error}): is a quote not closed?") from None
        if not any(cell.strip() for cell in row):
            continue
        if names is None:
            names = [cell.strip().casefold() for cell in row]
            _check_header(path, names)
            continue
        if any(cell.strip() for cell in row[len(names) :]):
            cells, columns = quantity(len(row), "cell"), quantity(len(names), "column")
            raise DataError(f"{path}, line {line}: {cells}, but {columns}: quote cells that hold a comma")
        yield line, list(zip(names, row, strict=False))
    if names is None:
        raise DataError(f"{path}: lists no images")


def _check_header(path: Path, names: list[str]) -> None:
    if set(PATHS) & set(names):
        return
    for separator, plural in SEPARATORS.items():
        if any(set(PATHS) & {cell.strip() for cell in name.split(separator)} for name in names):
            raise DataError(f"{path}: its columns are separated by {plural}: save it with commas")
    raise DataError(f"{path}: its header has no column named {', '.join(PATHS[:-1])} or {PATHS[-1]}")


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, list[tuple[str, Any]]]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: strings may hold other separators
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_Pairs)  # a dict would keep the last of two values of a name
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, _Pairs):
            raise DataError(f"{path}, line {number}: not a JSON object")
        yield number, [(name.strip().casefold(), value) for name, value in row]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object: its names and values."""
