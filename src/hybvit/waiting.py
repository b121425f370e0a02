"""What a person who waits for a command sees: what it will take, how far it is, and what else a program need not read.

A command says it on standard error, and nothing of it with ``--quiet``. Where Python code uses the package, no line is written,
and bars are drawn on a terminal only.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar

from tqdm import tqdm

LINE_SECONDS = 10.0  # between two lines of a log
LEAST_SECONDS = 5.0  # what takes less is done before a line about it is read
BAR_AFTER = 0.5  # seconds; work that is shorter has none
UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def tells() -> bool:
    """Whether somebody reads what :func:`tell` says: a command runs, without ``--quiet``."""
    return bool(getattr(sys.stderr, "tells", False))


def quiet() -> bool:
    """Whether a command runs with ``--quiet``."""
    return getattr(sys.stderr, "tells", True) is False


def tell(line: str) -> None:
    """Say something to a person that a program need not read; a bar that is being drawn stays below it."""
    if tells():
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``2.5 h``, ``3.1 days``: as exact as a forecast is."""
    size, unit = next((pair for pair in UNITS if seconds >= 1.5 * pair[0]), UNITS[-1])
    return f"{seconds / size:.1f} {unit}" if size >= 3600 else f"{max(1, round(seconds / size))} {unit}"


def percent(share: float) -> str:
    """``99.2 %``, and ``>99.9 %`` for what is not quite certain."""
    return (">99.9" if 0.9995 <= share < 1 else "<0.1" if 0 < share < 0.0005 else f"{100 * share:.1f}") + " %"


def forecast(seconds: float, mebibytes: float | None, at_most: bool = False) -> str | None:
    """``expected: about 12 min and 1.4 GB of memory``; None for what is over within :data:`LEAST_SECONDS`.

    Args:
        mebibytes: the most memory that is held at a time; None where it is not known.
        at_most: whether it is a bound, because the work may end early.
    """
    if seconds < LEAST_SECONDS:
        return None
    memory = "" if mebibytes is None else f" and {mebibytes * 2**20 / 1e9:.1f} GB of memory"
    return f"expected: {'at most' if at_most else 'about'} {duration(seconds)}{memory}"


class Progress:
    """How far some work is, and the time left: a bar on a terminal, and in the log of a command a line every ten seconds.

    ::

        with Progress(len(batches), "logits") as progress:
            for batch in batches:
                ...
                progress.update()

    Args:
        total: how many units the work has, about equally long.
        what: what to call it.
        shown: whether it is shown at all.
        at_most: whether it may end early, so that the time left is a bound.
    """

    def __init__(self, total: float, what: str, shown: bool = True, at_most: bool = False) -> None:
        self.total, self.what, self.about = total, what, "at most" if at_most else "about"
        terminal = shown and sys.stderr.isatty()
        self.lines = shown and not terminal and tells()
        self.bar = tqdm(
            total=total,
            desc=what,
            bar_format=f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{elapsed}}, {self.about} {{remaining}} left",
            delay=BAR_AFTER,
            leave=False,
            dynamic_ncols=True,
            disable=not terminal,
        )
        self.done = self.reached = 0.0
        self.started = self.said = time.monotonic()

    def __enter__(self) -> Progress:
        self.outer = _innermost.set(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _innermost.reset(self.outer)
        self.bar.close()

    def update(self, units: float = 1) -> None:
        """Some more units are done."""
        self.done += units
        self._reach(max(self.done, self.reached))

    def part(self, share: float) -> None:
        """A part of what is being worked on is done, in units."""
        self._reach(min(self.reached + share, self.total))

    def _reach(self, place: float) -> None:
        self.bar.update(place - self.reached)
        self.reached = place
        now = time.monotonic()
        if self.lines and now - self.said > LINE_SECONDS and place:
            left = (now - self.started) * max(self.total / place - 1, 0)
            tell(f"{self.what}: {min(place / self.total, 1):.0%}, {self.about} {duration(left)} left")
            self.said = now


_innermost: ContextVar[Progress | None] = ContextVar("innermost", default=None)


def part_done(share: float) -> None:
    """Move the innermost :class:`Progress`, if there is one, by a part of its unit: what works on a unit need not know it."""
    progress = _innermost.get()
    if progress is not None:
        progress.part(share)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Let nothing within move a progress: what is timed first is no part of the work."""
    outer = _innermost.set(None)
    try:
        yield
    finally:
        _innermost.reset(outer)
