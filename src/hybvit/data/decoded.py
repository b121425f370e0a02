"""Decoded pixels of image files, kept in the user's cache, since to decode thousands of small files takes long.

A file there is named by a digest of all that its pixels depend on, so it is never out of date. It is mapped into memory: all
processes that read it share its pages. A set that cannot be read or kept is decoded again, and nothing fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError
from ..storage import atomic_write, cache_folder, make_folder
from .fingerprint import digest_of
from .images import Note

VERSION = 1  # of the decoding in images.py: to be raised with any change of the pixels or notes that it makes of a file
FEWEST = 2000  # images in a set that is worth it
MOST = 4 << 30  # bytes of all sets together

_refused = set[Path]()  # folders that could not be written: said once


def folder() -> Path:
    return cache_folder() / "decoded"


def place_of(stamps: Callable[[], Iterable[str]], channels: int, size: int, bits: int | None) -> Path | None:
    """Where a set is kept; None if a file cannot be found, or there is no place for a cache.

    Args:
        stamps: text that changes with the files (:meth:`~hybvit.data.files.Files.stamps`).
    """
    try:
        lines = [f"{VERSION} {PIL.__version__} {channels} {size} {bits}", *stamps()]
        return folder() / f"{digest_of(chr(10).join(lines))[:32]}.safetensors"
    except (OSError, ValueError):
        return None


def checksum(pixels: Tensor, notes: Tensor) -> str:
    return str(zlib.crc32(notes.numpy().data, zlib.crc32(pixels.numpy().data)))  # 184 MB in 0.06 s; SHA-256 takes 0.14


def read(path: Path, shape: Sequence[int]) -> tuple[Tensor, list[Note]] | None:
    """The pixels uint8 [N, C, H, W], mapped from the file, and what the images were; None if they are not there.

    A file that is damaged is deleted. Whoever writes into the pixels writes into memory of its own.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            pixels, notes, facts = file.get_tensor("pixels"), file.get_tensor("notes"), file.metadata()
        if (pixels.dtype, notes.dtype, list(pixels.shape)) != (torch.uint8, torch.int32, list(shape)):
            raise ValueError("its header is damaged")
        if facts != {"crc32": checksum(pixels, notes)}:
            raise ValueError("its content is damaged")
        found = pixels, [note for *fields, count in notes.tolist() for note in [Note(*fields)] * count]
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError):
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):  # the time of its last use
        os.utime(path)
    return found


def write(path: Path, pixels: Tensor, notes: Sequence[Note]) -> None:
    """Keep a set, in the place of those whose last use is the longest ago."""
    if path.parent in _refused or pixels.numel() > MOST:
        return
    described = torch.tensor([(*note, count) for note, count in sorted(Counter(notes).items())], dtype=torch.int32)
    try:
        make_folder(path.parent, 0o700)  # the images themselves may be private
        make_room(pixels.numel() + described.nbytes)
        with atomic_write(path) as temporary:
            save_file({"pixels": pixels, "notes": described}, temporary, {"crc32": checksum(pixels, described)})
    except (DataError, OSError, SafetensorError) as error:
        _refused.add(path.parent)
        reason = str(error) if isinstance(error, DataError) else f"{path}: cannot be written ({error})"
        print(f"warning: {reason}: decoded images are not kept for the next time", file=sys.stderr)


def kept() -> list[tuple[float, int, Path]]:
    """Time of the last use, size in bytes and path of every file, the latest first; a kill may have left one half written."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder()):
            with contextlib.suppress(OSError):  # another process may delete it
                found.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
    return sorted(found, reverse=True)


def make_room(needed: int) -> int:
    """Delete files until ``needed`` more bytes fit -> the bytes deleted."""
    used, deleted = needed, 0
    for _, size, path in kept():
        used += size
        if used > MOST:
            with contextlib.suppress(OSError):
                path.unlink()
                deleted += size
    return deleted


def clear() -> int:
    """Delete everything -> the bytes deleted; DataError if something cannot be deleted."""
    deleted = make_room(MOST + 1)
    if left := kept():
        raise DataError(f"{left[0][2]}: cannot be deleted")
    return deleted
