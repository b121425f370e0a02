"""Interpret ``--data``: detect which kind of data set a path or address holds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..catalog import CATALOG, OWN_IMAGES
from ..config import DataConfig
from .datasets import find, foreign_files


def locate(data: DataConfig, root: str) -> DataConfig:
    """The settings with ``root`` set, and ``name`` set to what it holds."""
    absolute = root if "://" in root else os.path.abspath(root)  # a run may be evaluated from another folder
    return replace(data, root=absolute, name=detect_format(root, data.name))


def detect_format(root: str, named: str = "folder") -> str:
    """The ``named`` data set if ``root`` holds its files, or is the folder to download it to; else a format of the user's own
    images."""
    path = Path(root)
    if named not in (*OWN_IMAGES, "digits") and path.exists() and find(named, root) is not None:
        return named
    if root.startswith("hf://") or path.suffix.lower() == ".parquet":
        return "huggingface"
    if path.suffix.lower() in (".csv", ".jsonl"):
        return "manifest"
    if path.suffix == ".tar" or "://" in root or "{" in root:
        return "shards"
    if path.is_dir():
        if any(path.glob("*.tar")) or any(path.glob("*/*.tar")):
            return "shards"
        if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
            return "huggingface"
        downloadable = named in CATALOG and CATALOG[named].download and not foreign_files(named, path)  # to this folder
        return "folder" if named == "digits" or not downloadable else named
    return "folder" if named == "digits" or path.suffix.lower() == ".zip" else named
