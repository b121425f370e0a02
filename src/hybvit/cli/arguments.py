"""Command-line parsing with one-line errors."""

from __future__ import annotations

import argparse
import contextlib
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError, DivergedError


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are filled to the width of the terminal; indented lines, such as those of a table, stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).fill  # an option is not cut
        return "\n".join(indent + (line if line.startswith(" ") else fill(line)) for line in text.splitlines())


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations; errors are raised as :class:`ConfigError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs = {"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:  # --top=--: argparse makes it a list
            self.error(f"argument {action.option_strings[-1]}: '--' is no value of it")
        return super()._get_values(action, arg_strings)


@contextlib.contextmanager
def naming(model: str) -> Iterator[None]:
    """Begin the message of a model that cannot do what is asked, or whose outputs are not finite, with its name."""
    try:
        yield
    except (ConfigError, DivergedError) as error:
        raise type(error)(f"{model}: {error}") from None


def path(text: str) -> Path:
    """An argparse type: a path, where ~ is the user's home; a shell does not expand it in ``--out=~/x``."""
    return Path(location(text))


def location(text: str) -> str:
    """An argparse type: a path as in :func:`path`, an address or a name, as text."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty path: leave the option out, or name a place")
    return os.path.expanduser(text)


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if not text.isdecimal() or int(text[:20]) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not an integer of at least 1")
    if len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:20]}: at most 999,999,999")
    return int(text)


def nonnegative_int(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return int(text)
