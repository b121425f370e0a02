"""The files that hybvit keeps, ships and finds: caches, models and data sets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..catalog import CATALOG
from ..data import decoded
from ..data.datasets import download_hint, find
from ..data.readers import missing_files
from ..errors import CheckpointError, ConfigError, DataError, quantity
from ..hub import bundled
from ..loading import load
from ..networks import number_of_parameters
from ..storage import cache_folder
from .finding import Finding
from .packages import REINSTALL


def caches() -> Iterator[Finding]:
    """Where caches are, and how large; they may be deleted at any time."""
    home = cache_folder().parent
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub")
    compiled = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or _inductor_folder())
    places = {"hybvit": cache_folder(), "decoded images": decoded.folder(), "hub": hub, "compiled": compiled}
    for name, folder in places.items():
        size = size_of(folder)
        yield Finding("caches", name, f"{folder}: {size / 1e6:,.1f} MB", facts={"path": str(folder), "size": size})


def _inductor_folder() -> Path:
    """Where torch.compile keeps what it compiled, as torch names it."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or "root"
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder, without those that links lead to; 0 where there is none."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # deleted meanwhile
                continue
    return size


def models() -> Iterator[Finding]:
    """The bundled models, each loaded, which compares its checksums."""
    for name in bundled():
        try:
            parameters = number_of_parameters(load(name, "cpu"))
        except (CheckpointError, ConfigError, DataError) as error:
            yield Finding("models", name, str(error), "broken", REINSTALL)
        else:
            yield Finding("models", name, f"comes with hybvit, {parameters:,} parameters", facts={"parameters": parameters})


def data_sets() -> Iterator[Finding]:
    """The known data sets that are on this machine, whole or in part."""
    absent = []
    for name in CATALOG:
        try:
            found = find(name)
            missing = [] if found is None else missing_files(name, found)
        except DataError as error:
            yield Finding("data", name, str(error), "warning", download_hint(name))
            continue
        if found is None:
            absent.append(name)
        elif missing:
            more = f" and {quantity(len(missing) - 1, 'more file')}" if len(missing) > 1 else ""
            yield Finding("data", name, f"{found} is here, but not {missing[0]}{more}", "warning", download_hint(name))
        else:
            place = "in scikit-learn" if found == Path() else str(found)
            yield Finding("data", name, place, facts={"path": None if found == Path() else place})
    if absent:
        yield Finding(
            "data", "not here", ", ".join(absent), "absent", "hybvit datasets says how to get them", {"names": absent}
        )
