"""Interpret ``--data``: detect which kind of data set a path or address holds."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from ..catalog import CATALOG, OWN_IMAGES
from ..config import DataConfig
from ..errors import DataError
from .datasets import another_number, find, foreign_files
from .files import Files
from .own_images import image_names


def locate(data: DataConfig, root: str) -> DataConfig:
    """The settings with ``root`` set, and ``name`` set to what it holds."""
    found = detect_format(root, data.name)
    if found == "folder" and data.name in CATALOG and (other := another_number(data.name, root)):
        print(f"warning: {other}: taken for your own images", file=sys.stderr)
    return replace(data, root=absolute(root), name=found)


def absolute(root: str) -> str:
    """An address as it is, and a path from the root: a run may be evaluated from another folder."""
    return root if "://" in root else os.path.abspath(root)


def image_folders(data: DataConfig) -> list[str]:
    """The folders in which all that lies there is taken for the user's own images."""
    places = (data.root, data.test_root) if data.name in OWN_IMAGES else ()
    return [place for place in places if place is not None and os.path.isdir(place)]


CURES = {  # files that cannot be read as they are
    **dict.fromkeys((".tsv", ".txt", ".xls", ".xlsx", ".ods"), "save the table as .csv, with commas"),
    ".json": "write one object a line, to a .jsonl file",
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "unpack it, and give the folder"),
}


def detect_format(root: str, named: str = "folder") -> str:
    """The ``named`` data set if ``root`` holds its files, or is the folder to download it to; else a format of the user's own
    images.

    Raises:
        DataError: ``root`` is a file of another kind.
    """
    path = Path(root)
    if named not in (*OWN_IMAGES, "digits") and path.exists() and find(named, root) is not None:
        return named
    if root.startswith("hf://") or path.suffix.lower() == ".parquet":
        return "huggingface"
    if path.suffix.lower() in (".csv", ".jsonl"):
        return "manifest"
    if path.suffix.lower() == ".tar" or "://" in root or ("{" in root and not path.exists()):
        return "shards"
    if path.is_dir():
        names = image_names(Files(path))
        if any("/" in name for name in names):
            return "folder"  # an archive beside class folders is a backup, or something else
        if sum(1 for pattern in ("*", "*/*") for _ in path.glob(f"{pattern}.tar")) > len(names):
            return "shards"
        if sum(1 for _ in path.glob("**/*.parquet")) > len(names):  # the hub's folders: CONFIGURATION/SPLIT/0000.parquet
            return "huggingface"
        if names:
            return "folder"
        downloadable = named in CATALOG and CATALOG[named].download and not foreign_files(named, path)  # to this folder
        return "folder" if named == "digits" or not downloadable else named
    if path.is_file() and path.suffix.lower() != ".zip":
        cure = CURES.get(path.suffix.lower(), "give a folder of images, or a .csv that lists them")
        raise DataError(f"{path}: a file of a kind that --data does not read: {cure}")
    return "folder" if named == "digits" or path.suffix.lower() == ".zip" else named
