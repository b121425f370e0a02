"""What ``--data`` means: which form of images lies there."""

from __future__ import annotations

import os
from pathlib import Path

from ..catalog import CATALOG, OWN_IMAGES
from ..config import Config, override
from .datasets import find
from .files import Files
from .own_images import picture_names


def located(cfg: Config, root: str) -> Config:
    """The configuration with ``data.root`` and, by what is there, ``data.name``: the named data set's own files if ``root``
    holds them (or is to receive them), else the form of the user's own images."""
    here = root if "://" in root else os.path.abspath(root)  # a run may be evaluated from another folder
    return override(cfg, data={"root": here, "name": _form(cfg, root)})


def form_of(root: str) -> str:
    """The form of the user's own images that lie at ``root``."""
    return _form(Config(), root)


def _form(cfg: Config, root: str) -> str:
    path, named = Path(root), cfg.data.name
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
