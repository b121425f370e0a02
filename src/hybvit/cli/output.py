"""Standard output and standard error, which may be closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import textwrap
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from ..errors import DataError

READER_LEFT = 141  # what a shell reports of a program whose reader left (128 + SIGPIPE)
JOINERS = "\u200c\u200d"  # of letters in Persian and Hindi, and of emoji: they show nothing themselves
PROGRESS = re.compile(r"(\r?)(.*?)(\r?|(?:\x1b\[A)*)", re.DOTALL)  # how tqdm goes back to the start of a line, or to one above


def printable(text: str) -> str:
    """Text that does to a terminal no more than to be read: characters that steer it, or turn the order of others around, are
    written as ``\\x1b`` or ``\\u202e``. They come from the names of files and classes."""
    if text.isprintable() or text == "\n":  # nearly all
        return text
    found = PROGRESS.fullmatch(text)
    assert found is not None
    return f"{found[1]}{''.join(map(_escaped, found[2]))}{found[3]}"


def _escaped(character: str) -> str:
    steers = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in "\n\t" + JOINERS
    return character.encode("unicode_escape").decode() if steers else character


class Stream:
    """A text stream that survives its reader, and on which :func:`printable` text arrives.

    Args:
        goes_on: whether the work goes on when the stream fails, because its results are in files; what is said then is lost,
            and ``lost`` says why. Otherwise the first failure raises DataError.
        quiet: whether it passes for no terminal, so that no progress is drawn, and nothing else that can be left out.
        silent: whether all that is written is dropped, except for warnings.
    """

    def __init__(self, stream: TextIO | None, name: str, goes_on: bool, quiet: bool = False, silent: bool = False) -> None:
        self.stream, self.name, self.goes_on, self.quiet, self.silent = stream, name, goes_on, quiet, silent
        self.lost: OSError | None = None
        self.warns = False

    def write(self, text: str) -> int:
        if text != "\n":  # which `print` writes by itself
            self.warns = text.startswith("warning: ")
        if self.warns or not self.silent:
            self._try("write", printable(text))
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    @property
    def tells(self) -> bool:
        """Whether a person reads what a program need not (:func:`hybvit.waiting.tell`)."""
        return self.stream is not None and self.lost is None and not self.quiet

    def isatty(self) -> bool:
        return self.stream is not None and self.lost is None and not self.quiet and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, what: str, *arguments: str) -> None:
        if self.lost is not None:
            return
        try:
            if self.stream is not None:
                getattr(self.stream, what)(*arguments)
            elif arguments and not self.goes_on:
                raise OSError(0, "it is closed")
        except OSError as error:
            self.lost = error
            self._drop_the_rest()
            if isinstance(error, BrokenPipeError) and not self.goes_on:
                raise SystemExit(READER_LEFT) from None
            if not self.goes_on:
                raise DataError(self.message()) from None

    def _drop_the_rest(self) -> None:
        """Let what is still in the buffer go nowhere, or Python would report it at its end."""
        with contextlib.suppress(OSError, ValueError):
            if self.stream is not None:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def message(self) -> str:
        assert self.lost is not None
        return f"{self.name}: cannot be written ({self.lost.strerror or self.lost}); not all of it was"


def hanging(text: str, indent: int) -> str:
    """A line that a terminal would cut anywhere, cut between words instead, with what follows below its text, which begins at
    column ``indent``. In a file or a pipe it stays one line."""
    if not sys.stdout.isatty():
        return text
    columns = max(shutil.get_terminal_size().columns, indent + 20)
    return textwrap.fill(text, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Let a warning of Python, ours or a library's, be one line of standard error like any other: "warning: ..."."""
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # such a picture is refused with a line
        warnings.formatwarning = lambda message, *place, **line: f"warning: {' '.join(str(message).split())}\n"
        try:
            yield
        finally:
            warnings.formatwarning = before


@contextlib.contextmanager
def guarded(goes_on: bool, quiet: bool = False, silent: bool = False) -> Iterator[Stream]:
    """Replace standard output and standard error by streams that survive their readers -> the first of them.

    Args:
        goes_on: whether the work goes on without standard output.
        quiet: whether no progress is shown.
        silent: whether only warnings are written to standard output.
    """
    for descriptor in (0, 1, 2):
        _occupy(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an answer with a name that this encoding lacks is still an answer
    out, before = Stream(sys.stdout, "standard output", goes_on, quiet, silent), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = out, Stream(sys.stderr, "standard error", True, quiet)
    try:
        yield out
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _occupy(descriptor: int) -> None:
    """Open a closed standard stream nowhere, or the next file that is opened would take its number and its output."""
    try:
        os.fstat(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
