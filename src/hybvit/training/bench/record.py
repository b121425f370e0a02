"""The numbers of a benchmark: quartiles, the exponent of a power law, and what changed between two records."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ConfigError, DataError
from ...storage import read_json

SIGMAS = 4  # standard errors of a difference of medians within which it is noise
SMALLEST = 0.02  # relative change of a time that is never called one, however small the spread
SMALLEST_OF_MEMORY, SMALLEST_MIB = 0.1, 8  # the same of a memory; both are to be exceeded
IDENTITY = ("subject", "device", "threads", "batch_size", "samples", "steps")  # of a record; equal in what can be compared


class Quartiles(NamedTuple):
    """The median of some values, and the quartiles around it."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles by linear interpolation, as numpy's."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(median, low, high)


def ratios(a: Sequence[float], b: Sequence[float]) -> Quartiles:
    """The quartiles of a / b, repeat by repeat: what slows a whole repeat down cancels."""
    return quartiles([x / y for x, y in zip(a, b, strict=True)])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The k of values ~ sizes^k: the slope of the least-squares line through the logarithms."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope


def relative_error(found: Quartiles, repeats: int) -> float:
    """The standard error of the median of so many repeats, relative to it, from the quartiles of a normal distribution.

    Two repeats less count, since the quartiles of few are uncertain themselves.
    """
    deviation = (found.high - found.low) / 1.349
    return math.sqrt(math.pi / 2) * deviation / found.median / math.sqrt(repeats - 2) if repeats > 2 else math.inf


class Change(NamedTuple):
    """How a time changed: relative (0.1 is 10 % more), and the noise, below which it is no change."""

    time: float
    noise: float

    def __str__(self) -> str:
        if abs(self.time) <= self.noise:
            spread = (
                f"{100 * self.time:+.1f} %, noise {100 * self.noise:.1f} %"
                if math.isfinite(self.noise)
                else "fewer than three repeats tell none"
            )
            return f"no change beyond the noise ({spread})"
        return f"{abs(100 * self.time):.1f} % {'slower' if self.time > 0 else 'faster'} (noise {100 * self.noise:.1f} %)"


def change(before: Quartiles, now: Quartiles, repeats: tuple[int, int]) -> Change:
    """The change between two medians with their quartiles, of (before, now) repeats.

    The noise is four standard errors of the difference, and at least 2 %: of rows that did not change, about one in a hundred
    exceeds it.
    """
    errors = (relative_error(found, n) for found, n in zip((before, now), repeats, strict=True))
    return Change(now.median / before.median - 1, max(SIGMAS * math.hypot(*errors), SMALLEST))


def row_name(row: Mapping[str, Any]) -> str:
    return f"{row['row']}, {row['system']}, {row['precision']}"


def read_record(path: Path) -> dict[str, Any]:
    """A record that `hybvit bench --out` wrote.

    Raises:
        DataError: the file cannot be read, or is no such record.
    """
    record = read_json(path)
    try:
        if not record["rows"] or not all(quartiles_of(row["relative"]).median > 0 and row_name(row) for row in record["rows"]):
            raise ValueError
        _ = int(record["repeats"]), [record[name] for name in IDENTITY]
    except (LookupError, TypeError, ValueError):
        raise DataError(f"{path}: not a record of `hybvit bench --out` of this version; write one to compare with") from None
    return record


def quartiles_of(stored: Mapping[str, float]) -> Quartiles:
    return Quartiles(float(stored["median"]), float(stored["low"]), float(stored["high"]))


def refuse_other(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ConfigError where the record in a file is of another model, device or size; it names the first difference."""
    for name in IDENTITY:
        if before[name] != now[name]:
            words = name.replace("_", " ")
            raise ConfigError(f"{path}: its {words} is {before[name]}, here it is {now[name]}: the two do not compare")


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each row of two records: what changed in its time, relative to the matrix product of its own record."""
    earlier = {row_name(row): row for row in before["rows"]}
    for row in now["rows"]:
        name = row_name(row)
        if name not in earlier:
            yield f"{name}: new"
            continue
        old, repeats = earlier.pop(name), (int(before["repeats"]), int(now["repeats"]))
        found = change(quartiles_of(old["relative"]), quartiles_of(row["relative"]), repeats)
        yield "; ".join([f"{name}: {found}", *other_changes(old, row)])
    for name in earlier:
        yield f"{name}: not measured now"


def other_changes(old: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    """What else changed in a row: its operations, and its memory beyond what means nothing."""
    counted = old.get("gflop"), row.get("gflop")
    if counted[0] != counted[1]:
        yield " -> ".join("not counted" if count is None else f"{count:.4g}" for count in counted) + " GFLOP"
    before, now = old.get("memory_mib"), row.get("memory_mib")
    if before is not None and now is not None and abs(now - before) > max(SMALLEST_OF_MEMORY * before, SMALLEST_MIB):
        yield f"{before:,.0f} -> {now:,.0f} MiB"


def as_json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"
