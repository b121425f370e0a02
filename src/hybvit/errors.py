"""Errors that a user can cure. Each is one line that names the file or field; the command line turns it into an exit code."""

from __future__ import annotations

import difflib


class ConfigError(ValueError):
    """A setting, a preset or a command line is wrong (exit 2)."""


class DataError(ValueError):
    """A data file or asset is missing or corrupt (exit 3)."""


class DivergedError(RuntimeError):
    """The training loss is no longer finite (exit 4)."""


class CheckpointError(ValueError):
    """A checkpoint or weight file cannot be used (exit 5)."""


class Interrupted(RuntimeError):
    """Stopped by a signal, with the state saved (exit 75)."""


def did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else ""
