"""Where a model lies that is no folder of the user's: in the package, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from . import checkpoint
from .errors import DataError, did_you_mean
from .storage import ASSETS

BUNDLED = ASSETS / "models"


def download(hub_id: str) -> Path:
    """A model of the Hugging Face hub -> its folder in the hub's cache.

    Raises:
        DataError: it is no hub id, or the hub cannot give it.
    """
    if "/" not in hub_id:
        known = bundled()
        own = f"none of the package's models ({', '.join(known)}{did_you_mean(hub_id, known)})"
        raise DataError(f"{hub_id}: no such folder, {own}, and not a hub id (OWNER/NAME)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id))
    except HFValidationError:
        raise DataError(f"{hub_id}: no such folder, and not a hub id (OWNER/NAME)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{hub_id}: no such folder, and the hub cannot give it ({reason})") from None


def bundled() -> list[str]:
    """Names of the trained models that come with the package; :func:`load` takes them without a network."""
    return sorted(manifest.parent.name for manifest in BUNDLED.glob(f"*/{checkpoint.MANIFEST}"))
