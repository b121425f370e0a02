"""Errors that a user can fix. Each message is a line that names the file or field; the command line maps them to exit codes."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Collection

HANGUP = getattr(signal, "SIGHUP", None)  # the terminal is gone; not on Windows
WARNED = getattr(signal, "SIGUSR1", None)  # a scheduler such as Slurm is about to end the job
STOPPING = [number for number in (signal.SIGINT, signal.SIGTERM, HANGUP, WARNED) if number is not None]  # they stop a command


# as libraries say that the machine has no more of something, which is no fault of what is being read
USED_UP = ("failed to map segment", "not enough memory", "Cannot allocate memory", "out of memory", "can't start new thread")


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


def is_used_up(error: Exception) -> bool:
    """Whether an error says that memory or threads are used up."""
    return any(words in str(error) for words in USED_UP)


def nearest(name: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The known name most similar to ``name``; None where no similarity reaches ``cutoff``, in 0 (any name) to 1 (equal)."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: ": did you mean X?", or empty where no known name is similar.

    A number is not a misspelled number.
    """
    close = None if name.lstrip("+-").isdecimal() else nearest(name, known)
    return f": did you mean {close}?" if close else ""


def quantity(number: float, noun: str, form: str = ",") -> str:
    """A number with its noun, in the singular for 1: "1 image", "2,000 images"; ``form`` as in format()."""
    shown = f"{number:{form}}"
    return f"{shown} {noun}" if shown == "1" else f"{shown} {noun}{'es' if noun.endswith('s') else 's'}"
