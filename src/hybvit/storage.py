"""Files that are written at once or not at all, and folders that one process holds."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, DataError

ASSETS = Path(__file__).parent / "assets"  # what comes with the package


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other process takes, on this machine or another that shares the folder."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")


def flush(path: Path) -> None:
    """fsync a file or a folder, so that a rename that follows cannot outrun the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which takes the place of ``path`` once it is complete, or is gone.

    Raises:
        DataError: it cannot be written.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file, in UTF-8, at once or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Create a folder, or find it there and writable.

    Raises:
        DataError: neither is possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise DataError(f"{path}: no permission to write to it")


def locked(path: Path, name: str = ".lock") -> IO[str] | None:
    """Hold a folder against other processes as long as the file that is returned lives; a killed process lets go of it.

    Raises:
        ConfigError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    file = (path / name).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{path}: another process is at work in it; choose another --out, or wait") from None
    except OSError:  # a file system without locks
        pass
    return file


def read_json(path: Path) -> Any:
    """
    Raises:
        DataError: the file is damaged, or cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # also of bytes that are no text
        raise DataError(f"{path}: damaged ({error}); restore it, or remove it and what stands on it is done again") from None
