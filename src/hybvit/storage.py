"""Atomic file writes, and locks on folders."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, DataError

ASSETS = Path(__file__).parent / "assets"  # files that ship with the package


def temporary_name(path: Path) -> Path:
    """A name in the folder of ``path`` that no other process uses, on this machine or another that shares the folder."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")


def flush(path: Path) -> None:
    """fsync a file or a folder, so that a later rename cannot reach the disk before the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write to. It replaces ``path`` on success and is removed on an error.

    Raises:
        DataError: the file cannot be written.
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
    """Write or replace a UTF-8 text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Create a folder unless it exists, and check that it is writable.

    Raises:
        DataError: it cannot be created, or is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise DataError(f"{path}: no permission to write to it")


def lock_folder(path: Path, name: str = ".lock") -> IO[str] | None:
    """Lock a folder against other processes until the returned file is closed; the lock of a killed process is released.

    Returns None on Windows, where nothing is locked.

    Raises:
        ConfigError: another process holds the lock.
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
        raise ConfigError(f"{path}: in use by another process; choose another --out, or wait") from None
    except OSError:  # the file system does not support locks
        pass
    return file


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is damaged or cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # also raised for bytes that are not text
        raise DataError(f"{path}: damaged ({error}); restore it, or delete it to have it computed again") from None
