"""What ``--data`` means: which form of images lies there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ..catalog import CATALOG, OWN_IMAGES
from ..config import DataConfig
from .datasets import find
from .files import Files
from .own_images import picture_names


def locate(data: DataConfig, root: str) -> DataConfig:
    """The settings with ``root`` and, by what is there, ``name``."""
    here = root if "://" in root else os.path.abspath(root)  # a run may be evaluated from another folder
    return replace(data, root=here, name=form_of(root, data.name))


def form_of(root: str, named: str = "folder") -> str:
    """The ``named`` data set if ``root`` holds its files (or is to receive them), else the form of the user's own images."""
    path = Path(root)
    if named not in (*OWN_IMAGES, "digits") and path.exists() and find(named, root) is not None:
        return named
    if root.startswith("hf://") or path.suffix == ".parquet":
        return "huggingface"
    if path.suffix in (".csv", ".jsonl"):
        return "manifest"
    if path.suffix == ".tar" or "://" in root or "{" in root:
        return "shards"
    if path.is_dir():
        if any(path.glob("*.tar")) or any(path.glob("*/*.tar")):
            return "shards"
        if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
            return "huggingface"
        fetched = named in CATALOG and CATALOG[named].download  # into this folder
        return "folder" if named == "digits" or any(picture_names(Files(path))) or not fetched else named
    return "folder" if named == "digits" or path.suffix == ".zip" else named
