"""Atomic file writes, locks on folders, and where the cache is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import stat
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import ConfigError, DataError

MAX_TEXT = 256 << 20  # bytes of a configuration, a manifest or a record
ASSETS = Path(__file__).parent / "assets"  # files that ship with the package


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/hybvit or ~/.cache/hybvit; in the folder for temporary files where the user has no home."""
    home = os.path.expanduser("~")
    caches = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home != "~" else tempfile.gettempdir())
    return Path(caches) / "hybvit"


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


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Create a folder unless it exists, with these permissions, and check that it is writable.

    Raises:
        DataError: it cannot be created, or is not writable.
    """
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise DataError(f"{path}: no permission to write to it")


def refuse_inside(folder: Path, places: Iterable[str]) -> None:
    """Raise ConfigError where a folder that is to be written lies in, or is, one that is read: the next time what was written
    there would be read too."""
    written = os.path.realpath(folder)
    for place in places:
        read = os.path.realpath(place)
        if written == read or written.startswith(read.rstrip(os.sep) + os.sep):
            raise ConfigError(
                f"{folder}: lies among the images of {place}, and would be taken for images: choose another --out"
            )


_HELD: weakref.WeakValueDictionary[Path, IO[str]] = weakref.WeakValueDictionary()  # the locks of this process


def refuse_irregular(path: Path) -> None:
    """Raise DataError where something else lies in a file's place, which to open may wait forever."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: a pipe, a folder or a device: delete it")


def lock_folder(path: Path, name: str = ".lock") -> IO[str] | None:
    """Lock a folder against other callers until the returned file is closed; the lock of a killed process is released.

    It is a POSIX record lock, which belongs to the process alone: loader workers that outlive a killed training do not keep it.

    Returns None on Windows, where nothing is locked.

    Raises:
        ConfigError: another process holds the lock, or another call in this one.
        DataError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    taken = ConfigError(f"{path}: in use by another process; choose another --out, or wait")
    place = (path / name).resolve()
    held = _HELD.get(place)
    if held is not None and not held.closed:  # to open and close the file once more would release the lock
        raise taken
    try:
        refuse_irregular(place)
        file = place.open("a")
    except OSError as error:
        raise DataError(f"{place}: cannot be written ({error.strerror})") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        file.close()
        raise taken from None
    except OSError:  # the file system does not support locks
        pass
    _HELD[place] = file
    return file


def read_bytes(path: Path, limit: int | None = MAX_TEXT) -> bytes:
    """The content of a file.

    Args:
        limit: bytes beyond which it is not read; None for weights and data, which may be as large as the memory.

    Raises:
        OSError: it cannot be read, or is too large; or it is a pipe, a socket or a device, which may wait forever or never end.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe, a socket or a device: give a file", str(path))
    if limit is not None and found.st_size > limit:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, more than any such file has", str(path))
    try:
        return path.read_bytes()
    except MemoryError:
        raise OSError(errno.ENOMEM, f"{found.st_size:,} bytes, more than fit into memory", str(path)) from None


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The content of a JSON file, an object with these keys.

    Raises:
        DataError: the file is damaged or cannot be read.
    """
    try:
        content = json.loads(read_bytes(path).decode())
        if not isinstance(content, dict):
            raise ValueError(f"an object is expected, not {json.dumps(content)[:40]}")
        for key in keys:
            if key not in content:
                raise ValueError(f"{key} is missing")
        return content
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # also raised for bytes that are not text
        raise DataError(f"{path}: damaged ({error}); restore it, or delete it to have it computed again") from None
