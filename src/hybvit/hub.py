"""Models that are not local folders: those bundled with the package, and those on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from . import checkpoint
from .errors import DataError, did_you_mean
from .storage import ASSETS

BUNDLED = ASSETS / "models"


def download(hub_id: str) -> Path:
    """Download a model from the Hugging Face hub -> its folder in the hub's cache.

    Raises:
        DataError: ``hub_id`` is not a valid hub id, or the download failed.
    """
    if "/" not in hub_id:
        known = bundled()
        not_bundled = f"none of the bundled models ({', '.join(known)}{did_you_mean(hub_id, known)})"
        raise DataError(f"{hub_id}: no such folder, {not_bundled}, and not a hub id (OWNER/NAME)")
    if models := neighbors(Path(hub_id)):
        others = f"; beside it: {', '.join(models[:5])}"
        raise DataError(f"{hub_id}: no such folder{did_you_mean(hub_id, models) or others}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id))
    except HFValidationError:
        raise DataError(f"{hub_id}: no such folder, and not a hub id (OWNER/NAME)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{hub_id}: no such folder, and the download from the hub failed ({reason})") from None


def neighbors(path: Path) -> list[str]:
    """The models in the folder that a missing ``path`` would lie in: then it is a misspelled path, and not a hub id."""
    return sorted(str(config.parent) for config in path.parent.glob(f"*/{checkpoint.CONFIG}"))


def bundled() -> list[str]:
    """Names of the trained models bundled with the package; :func:`load` needs no network connection for them."""
    return sorted(manifest.parent.name for manifest in BUNDLED.glob(f"*/{checkpoint.MANIFEST}"))
