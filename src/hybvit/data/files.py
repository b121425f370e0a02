"""Readers of the formats in which data sets are distributed: IDX, pickle, npz and MATLAB files; folders, zip and tar archives.

A file that is missing, damaged, or in another format raises a DataError that names it.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import math
import os
import re
import stat
import struct
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, DataError, is_used_up
from ..storage import MAX_TEXT, read_bytes

MAX_MEMBER = 512 << 20  # bytes of an image file in an archive
METHODS = {9: "Deflate64 (Windows, above 2 GB)", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ"}
COMPRESSED = 15  # the kind of a compressed part of a MATLAB file
MAX_ARRAYS = 3 << 30  # bytes of an array file in an archive; STL-10 has one of 2.6 GiB


@contextmanager
def data_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert whatever a library raises for an unreadable file into a DataError that names the file."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: missing; download or unpack it again") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except Exception as error:
        if is_used_up(error):
            raise
        if words := refused_by_system(error):
            raise DataError(f"{path}: cannot be read ({words})") from None
        raise DataError(f"{path}: damaged or cut short ({' '.join(str(error).split()) or type(error).__name__})") from None


def refused_by_system(error: Exception) -> str | None:
    """What the system says of a file that it does not open or read; None if the error is another, such as a decoder's."""
    return error.strerror if isinstance(error, OSError) and error.errno else None


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A text file of at most MAX_TEXT bytes.

    Raises:
        DataError: it cannot be read, is too large, or is no such text.
    """
    refuse_special(path)
    with data_errors(path):
        return read_bytes(path).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def refuse_special(path: str | os.PathLike[str]) -> None:
    """Raises DataError for a pipe, a socket or a device: reading one may wait forever, or never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # whoever opens it says why it cannot be opened
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{path}: a pipe, a socket or a device: give a file")


def size_of(path: str | os.PathLike[str]) -> int:
    """The size of a file in bytes; -1 where it cannot be found out, which whoever opens it will explain."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1


def crc32(path: str | os.PathLike[str]) -> int:
    """The CRC-32 of a file on disk, read in small parts; 0 for one larger than :data:`MAX_MEMBER`.

    Raises:
        OSError, DataError: it cannot be read.
    """
    refuse_special(path)
    if size_of(path) > MAX_MEMBER:
        return 0
    found = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return found


def stamp(path: str) -> str:
    """Path, size and times of a file. The system sets the last one, even where a program restores the time of the content."""
    found = os.stat(path)
    return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}"


def check_size(size: int, limit: int, where: object) -> None:
    """Raises DataError if a member of an archive claims more bytes than are read into memory."""
    if size > limit:
        raise DataError(f"{where}: {size:,} bytes unpacked, more than the {limit:,} that are read from an archive: unpack it")


def read_member(archive: zipfile.ZipFile, member: str, limit: int, where: object) -> bytes:
    """A file in a zip archive. No more is inflated than the archive's index says, and no more than ``limit``."""
    info = archive.getinfo(member)
    check_readable(info, where)
    check_size(info.file_size, limit, where)
    with archive.open(info) as file:  # read() without a size would inflate all of it, whatever the index says
        return b"".join(iter(lambda: file.read(1 << 20), b""))


def check_readable(info: zipfile.ZipInfo, where: object) -> None:
    """Raises DataError for an encrypted member, and for a compression that is not bounded here, or that Python cannot read."""
    if info.flag_bits & 1:
        raise DataError(f"{where}: encrypted: unpack the archive with its password, and give the folder")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise DataError(f"{where}: compressed by {method}, not by Deflate: unpack the archive, and give the folder")


@functools.lru_cache(maxsize=64)
def _md5(path: Path, size: int, changed: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    bar = tqdm(
        total=size, unit="B", unit_scale=True, desc=f"checking {path.name}", disable=not sys.stderr.isatty(), leave=False
    )
    with path.open("rb") as file, bar:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def check_md5(path: Path, published: str | None) -> None:
    """Raises DataError if a checksum is published and the file has a different one."""
    if published is None:
        return
    with data_errors(path):
        stat = path.stat()
        found = _md5(path, stat.st_size, stat.st_mtime_ns)
    if found != published:
        raise DataError(f"{path}: wrong checksum (MD5 {found}, published {published}): delete it and download it again")


def read_idx(path: Path, limit: int = MAX_ARRAYS) -> np.ndarray:
    """An IDX file of unsigned bytes (LeCun's format), gzipped or not.

    Args:
        limit: the most bytes that its header may claim.

    Raises:
        DataError: the file is cut short, damaged, larger, or not in this format.
    """
    with data_errors(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(4)
        sides = file.read(4 * head[3]) if head[:3] == b"\0\0\x08" and len(head) == 4 else b""
        if not sides or len(sides) < 4 * head[3]:
            raise DataError(f"{path}: not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{head[3]}I", sides)
        size = math.prod(shape)
        check_claim(size, limit, path)
        body = np.frombuffer(file.read(size + 1), dtype=np.uint8)
    if body.size != size:
        found = f"{body.size:,}" if body.size < size else "more"
        raise DataError(f"{path}: {found} bytes of data, but its header says {size:,}: cut short, or two files in one")
    return body.reshape(shape).copy()


def check_claim(size: int, limit: int, where: object) -> None:
    """Raises DataError if a header claims more numbers or bytes than a file of a data set can hold."""
    if size > limit:
        raise DataError(f"{where}: its header claims {size:,} values, more than the {limit:,} that such a file may hold")


def as_text(value: object) -> object:
    """Bytes as text: what Python 2 wrote and Python 3 wrote again may have become either."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def field(content: Any, name: str, path: Path) -> Any:
    """An entry of a pickled or saved mapping, whose keys are text or bytes."""
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a mapping with an entry {name!r}")
    entries = {as_text(key): value for key, value in content.items()}
    if name not in entries:
        raise DataError(
            f"{path}: has no entry {name!r}, only {', '.join(repr(key)[:40] for key in list(entries)[:8]) or 'none at all'}"
        )
    return entries[name]


def read_npz(raw: bytes, path: Path, names: Collection[str], limit: int) -> dict[str, np.ndarray]:
    """Arrays of numbers in a .npz file, those of ``names`` that it has; their headers may claim up to ``limit`` numbers each.

    Raises:
        DataError: the file is damaged, or an array is larger, or not of numbers.
    """
    with data_errors(path):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            found = [name for name in names if f"{name}.npy" in archive.namelist()]
            for name in found:
                check_array(archive, name, path / name, limit)
        with np.load(io.BytesIO(raw), allow_pickle=False) as content:
            return {name: content[name] for name in found}


def check_array(archive: zipfile.ZipFile, name: str, where: object, limit: int) -> None:
    """Raises DataError if the header of an array says that it is larger, or not of numbers; only the header is inflated."""
    info = archive.getinfo(f"{name}.npy")
    check_readable(info, where)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DataError(f"{where}: an array of {dtype}; only arrays of numbers are read")
    check_claim(math.prod(shape), limit, where)


def read_mat(path: Path, names: Sequence[str], limit: int) -> dict[str, Any]:
    """Arrays in a MATLAB file, which may inflate to ``limit`` bytes.

    Raises:
        DataError: the file is damaged, or inflates to more.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with data_errors(path):
        try:
            return loadmat(inflate_mat(path, limit), variable_names=names)
        except MatReadError as error:
            raise DataError(f"{path}: damaged or cut short ({error})") from None


def inflate_mat(path: Path, limit: int) -> io.BytesIO:
    """A MATLAB file of version 5 without the compression of its parts, each of which has a tag with its kind and length."""
    raw = memoryview(read_bytes(path, limit))
    order = {b"IM": "<", b"MI": ">"}.get(bytes(raw[126:128]))
    if order is None:
        return io.BytesIO(raw)
    parts, at, left = [raw[:128]], 128, limit
    while at + 8 <= len(raw):
        kind, size = struct.unpack_from(f"{order}II", raw, at)
        if kind == COMPRESSED:
            machine = zlib.decompressobj()
            whole = machine.decompress(raw[at + 8 : at + 8 + size], left + 1)
            check_size(len(whole), left, path)
            if not machine.eof:
                raise DataError(f"{path}: damaged or cut short")
            left -= len(whole)
            parts.append(memoryview(whole))
        else:
            parts.append(raw[at : at + 8 + size])
        at += 8 + size
    return io.BytesIO(b"".join(parts))


def read_members(source: Path, names: Collection[str], limit: int = MAX_ARRAYS) -> dict[str, bytes]:
    """Read files from a folder, or from a tar or zip archive in one pass; ``names`` are paths below its top-level folder.

    Raises:
        DataError: a file is missing, larger than ``limit`` bytes, or the archive is damaged.
    """
    found: dict[str, bytes] = {}
    if source.is_dir():
        for name in names:
            with data_errors(source / name):
                found[name] = read_bytes(source / name, limit)
        return found
    with data_errors(source):
        if source.suffix.lower() == ".zip":
            with zipfile.ZipFile(source) as archive:
                for member in archive.namelist():
                    if (known := _below_top(member, names)) is not None:
                        found[known] = read_member(archive, member, limit, source / known)
        else:
            with tarfile.open(source, "r|*") as stream:
                for entry in stream:
                    if entry.isfile() and (known := _below_top(entry.name, names)) is not None:
                        check_size(entry.size, limit, source / known)
                        file = stream.extractfile(entry)
                        assert file is not None
                        found[known] = file.read()
                    if len(found) == len(names):
                        break
    for name in names:
        if name not in found:
            raise DataError(f"{source}: does not contain {name}")
    return found


def _below_top(member: str, names: Collection[str]) -> str | None:
    parts = member.removeprefix("./").split("/")
    return next((name for name in ("/".join(parts), "/".join(parts[1:])) if name in names), None)


LEFT_BEHIND = (  # folders that systems and servers make, besides those that begin with a dot
    "__MACOSX", "__pycache__", "$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information", "$WinREAgent",
    "FOUND.000", "lost+found", "LOST.DIR", "#recycle", "#snapshot", "~snapshot", "@eaDir", "@tmp", "@sharebin", "@Recycle",
    "@Recently-Snapshot", "@__thumb", "Network Trash Folder", "Temporary Items",
)  # fmt: skip
HIDDEN = re.compile(rf"(^|/)(\.|({'|'.join(map(re.escape, LEFT_BEHIND))})(/|\Z))", re.IGNORECASE)


def is_hidden(name: str) -> bool:
    """Whether a file lies in, or is, what other programs leave behind: .ipynb_checkpoints, __MACOSX, $RECYCLE.BIN ..."""
    return HIDDEN.search(name) is not None


class Files:
    """The files of a folder or of a zip archive, by their path below it; safe to share between threads and forked processes.

    Args:
        prefix: a folder in a zip archive, ending in "/"; only the files below it are seen.
    """

    def __init__(self, source: Path, prefix: str = "") -> None:
        self.source, self.prefix = source, prefix
        self._local = threading.local()
        refuse_special(source)
        if not source.is_dir() and source.suffix.lower() != ".zip":
            raise DataError(f"{source}: neither a folder nor a zip archive")
        self.zipped = not source.is_dir()

    @property
    def where(self) -> Path:
        """What to call the folder in messages."""
        return self.source / self.prefix

    def names(self) -> list[str]:
        """The paths of all files, sorted."""
        if self.zipped:
            names = sorted(name for name in self._entries() if name and not name.endswith("/"))
            with data_errors(self.source):
                for name in names:  # before any image is read: such an archive is not a set with some bad files
                    if not is_hidden(name):
                        check_readable(self._archive().getinfo(self._members[self.prefix + name]), self.where / name)
            return names
        found, seen = [], set[Path]()
        for folder, folders, names in os.walk(self.source, followlinks=True, onerror=self._unreadable):
            real = Path(folder).resolve()
            if real in seen:  # a link to a folder that was visited before, possibly its own parent
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            below = "".join(f"{part}/" for part in Path(folder).relative_to(self.source).parts)
            found += [f"{below}{name}" for name in names]
        return sorted(found)

    @staticmethod
    def _unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})")

    def subfolder(self, folder: str) -> Files:
        """The files below one of the top-level folders."""
        return Files(self.source, f"{self.prefix}{folder}/") if self.zipped else Files(self.source / folder)

    def folders(self) -> list[str]:
        """The names of the top-level folders, sorted, including empty ones."""
        if self.zipped:
            entries = self._entries()
            return sorted({top for name in entries if "/" in name and not is_hidden(top := name.split("/")[0])})
        with data_errors(self.source):
            return sorted(entry.name for entry in os.scandir(self.source) if entry.is_dir() and not is_hidden(entry.name))

    def open(self, name: str) -> BinaryIO:
        if self.zipped:
            with data_errors(self.source / name):
                return io.BytesIO(
                    read_member(self._archive(), self._members[self.prefix + name], MAX_MEMBER, self.where / name)
                )
        path = os.path.join(self.source, name)  # pathlib takes longer than to open the file
        refuse_special(path)
        with data_errors(path):
            return open(path, "rb")

    def size(self, name: str) -> int:
        """The size of a file in bytes, as the folder or the archive's index gives it."""
        if self.zipped:
            return self._archive().getinfo(self._members[self.prefix + name]).file_size
        return size_of(f"{self.source}/{name}")

    def stamps(self, names: Iterable[str]) -> Iterator[str]:
        """Text that changes when the content of one of these files may have: where it is, its size, and when it was changed.

        Raises:
            OSError: a file cannot be found.
        """
        source = os.path.abspath(self.source)
        if self.zipped:
            yield stamp(source)
        for name in names:
            yield f"{self.prefix}{name}\0{self.size(name)}" if self.zipped else stamp(os.path.join(source, name))

    def start(self, name: str, size: int = 16) -> bytes:
        """The first bytes of a file, by default enough to tell its format; none if it cannot be read."""
        with suppress(Exception):
            if self.zipped:
                with self._archive().open(self._members[self.prefix + name]) as member:
                    return member.read(size)
            refuse_special(path := self.source / name)
            with open(path, "rb", buffering=0) as file:
                return file.read(size)
        return b""

    def checksum(self, name: str) -> int:
        """The CRC-32 of a file, from the archive's index or in small parts; 0 for one larger than :data:`MAX_MEMBER`."""
        if self.zipped:
            return self._archive().getinfo(self._members[self.prefix + name]).CRC
        return crc32(os.path.join(self.source, name))

    def text(self, name: str) -> str:
        if not self.zipped:
            return read_text(self.source / name)
        with data_errors(self.source / name):
            return read_member(self._archive(), self._members[self.prefix + name], MAX_TEXT, self.where / name).decode()

    def _entries(self) -> list[str]:
        """Paths of the archive's files and folders below ``prefix``."""
        with data_errors(self.source):
            return [name.removeprefix(self.prefix) for name in self._members if name.startswith(self.prefix)]

    @functools.cached_property
    def _members(self) -> dict[str, str]:
        """Path -> name in the archive. Some programs on Windows write backslashes, and others begin a path with ./ or /."""
        names = self._archive().namelist()
        return {name.replace("\\", "/").removeprefix("./").lstrip("/"): name for name in names}

    def _archive(self) -> zipfile.ZipFile:
        """The open archive of this process and thread, because a file position cannot be shared."""
        if getattr(self._local, "owner", None) != os.getpid():
            self._local.archive, self._local.owner = zipfile.ZipFile(self.source), os.getpid()
        return self._local.archive

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "prefix": self.prefix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"], state["prefix"])  # type: ignore[misc]
