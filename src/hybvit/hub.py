"""Models that are not local folders: those bundled with the package, and those on the Hugging Face hub.

On the hub a model is the files of an exported folder. Only safetensors and text are downloaded and read, never a pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from . import __version__, checkpoint
from .errors import CheckpointError, DataError, did_you_mean
from .storage import ASSETS

BUNDLED = ASSETS / "models"
CONFIG_JSON = "config.json"  # what the hub shows of a model; config.yaml is what is loaded
DOWNLOADED = ("*.safetensors", "*.json", "*.yaml", "*.md", "*.png")
PICKLED = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
NOT_IN_CARD = ("speed/",)  # it is of the machine, not of the model
HEADLINES = (  # the metrics that are shown first: name, what to call it, factor, unit
    ("test/accuracy", "accuracy", 100, " %"),
    ("calibration/ece_20", "ECE", 100, " %"),
    ("calibration/ece_20_scaled", "ECE, calibrated", 100, " %"),
    (r"fidelity/(fid|fd)_.*\d$", "Frechet distance", 1, ""),
    ("likelihood/bits_per_dim", "bits per dimension", 1, ""),
    (r"robustness/autoattack_linf.*", "AutoAttack, L-inf", 100, " %"),
    (r"speed/train_images_per_second", "images/s in training", 1, ""),
)
TASKS = {"fidelity/": "unconditional-image-generation", "samples/": "unconditional-image-generation"}


def download(
    source: str,
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Download a model from the Hugging Face hub, or find it in the hub's cache -> its folder there.

    Args:
        source: OWNER/NAME, or OWNER/NAME@REVISION.
        revision: branch, tag or commit; None takes that of ``source``, or else the newest of the main branch.
        cache_dir: None takes the hub's cache (HF_HOME).
        local_files_only: take what is in the cache, without asking the hub; so does HF_HUB_OFFLINE=1.
        force_download: download again what is in the cache.
        token: None takes HF_TOKEN, or that of `hf auth login`.

    Raises:
        DataError: ``source`` is not a valid hub id, the download failed, or what is there is not a model of hybvit.
    """
    hub_id, _, pinned = source.partition("@")
    if "/" not in hub_id:
        known = bundled()
        if hub_id in known:
            raise DataError(f"{source}: a bundled model has no revisions: it is {hub_id!r}, without one")
        not_bundled = f"none of the bundled models ({', '.join(known)}{did_you_mean(hub_id, known)})"
        raise DataError(f"{hub_id}: no such folder, {not_bundled}, and not a hub id (OWNER/NAME)")
    if models := neighbors(Path(hub_id)):
        others = f"; beside it: {', '.join(models[:5])}"
        raise DataError(f"{hub_id}: no such folder{did_you_mean(hub_id, models) or others}")
    from huggingface_hub import snapshot_download

    with hub_errors(f"{source}: no such folder, and the download from the hub failed"):
        folder = Path(
            snapshot_download(
                hub_id,
                revision=revision or pinned or None,
                allow_patterns=[*DOWNLOADED],
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                token=token,
            )
        )
    if not (folder / checkpoint.MANIFEST).is_file():
        raise DataError(f"{source}: on the hub, but not a model of hybvit (no {checkpoint.MANIFEST} in it)")
    return folder


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Raise what goes wrong with the hub as a DataError of one line that begins so."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError:
        raise DataError(f"{what} (it is not a hub id, OWNER/NAME)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, *connection_errors()) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{what} ({reason})") from None


def connection_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where nobody answers, beside OSError."""
    found = []
    for name in ("httpx", "httpx2"):  # the packages that huggingface_hub 1 and 2 ask with
        with suppress(ImportError):
            found.append(import_module(name).HTTPError)
    return tuple(found)


def upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str = "Upload a model of hybvit",
    branch: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload the files of an exported folder in one commit, to a repository that is created if need be -> the commit's address.

    Args:
        branch: created if need be; None is main.
        private: whether a repository that is created is private; None leaves that to its owner's settings.
        token: None takes HF_TOKEN, or that of `hf auth login`.

    Raises:
        DataError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token, library_name="hybvit", library_version=__version__)
    with hub_errors(f"{repo_id}: the upload to the hub failed"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        files = [CommitOperationAdd(path.name, path) for path in uploaded(folder)]
        return str(api.create_commit(repo_id, files, commit_message=commit_message, revision=branch).commit_url)


def uploaded(folder: Path) -> list[Path]:
    """The files of an exported folder that go to the hub: those that its manifest names, the manifest and the card."""
    names = {*checkpoint.verify(folder)["sha256"], checkpoint.MANIFEST, checkpoint.CARD}
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


def refuse_pickles(folder: Path) -> None:
    """Raise CheckpointError where a folder has weights in a format that can run code when it is read."""
    for path in sorted(folder.glob("*")):
        if path.suffix in PICKLED:
            raise CheckpointError(f"{path}: a pickle, which can run code when it is read: hybvit reads safetensors only")


def config_json(content: Mapping[str, Any]) -> str:
    """A configuration (``config.to_dict``) as the hub reads it, with what the model is."""
    return json.dumps({"model_type": "hybvit", "architectures": ["HybViT"], "hybvit": __version__, **content}, indent=1) + "\n"


def model_card(
    content: Mapping[str, Any],
    title: str,
    repo_id: str | None = None,
    results: Mapping[str, Any] | None = None,
    calibrated: str | None = None,
) -> str:
    """The README.md of a model: metadata, what it is, how to load it, and its figures.

    Args:
        content: its configuration (``config.to_dict``).
        title: of the images that it was trained on.
        repo_id: its name on the hub, where that is known.
        results: the content of a results.json of `hybvit evaluate`.
        calibrated: the images that it was calibrated by, where it is.
    """
    from huggingface_hub import EvalResult, ModelCardData

    name, kind = repo_id or "my-model", content["objective"]["kind"]
    metrics = {key: value for key, value in (results or {}).get("metrics", {}).items() if not key.startswith(NOT_IN_CARD)}
    found = [
        EvalResult(
            task_type=next((task for start, task in TASKS.items() if key.startswith(start)), "image-classification"),
            dataset_type=content["data"]["name"],
            dataset_name=title,
            metric_type=key.rpartition("/")[2],
            metric_name=key,
            metric_value=entry["value"],
        )
        for key, entry in metrics.items()
    ]
    tags = ["hybvit", "vit", *(["diffusion"] if kind in ("genvit", "hybvit") else [])]
    task = "unconditional-image-generation" if kind == "genvit" else "image-classification"
    data = ModelCardData(
        library_name="hybvit",
        pipeline_tag=task,
        tags=tags,
        **({"eval_results": found, "model_name": name.rpartition("/")[2]} if found else {}),
    )
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name.rpartition('/')[2]}\n",
        describe(content, title),
        LOADING.format(name=name),
    ]
    if calibrated:
        lines.append(f"Its probabilities are calibrated, by {calibrated}; figures that end in `_scaled` are of these.\n")
    if metrics:
        lines += ["Measured by `hybvit evaluate`; n is the number of images, and the interval is of 95 %.\n", table(metrics)]
    return "\n".join(lines)


LOADING = """```python
import hybvit

model = hybvit.load("{name}")  # or "{name}@REVISION", to pin it
```

The weights are safetensors, and every file is checked against the sums in manifest.json. Nothing is unpickled.
"""


def describe(content: Mapping[str, Any], title: str) -> str:
    does = {
        "vit": "classifies such images",
        "genvit": "generates such images and bounds their likelihood",
        "jem": "classifies such images, scores and generates them",
        "hybvit": "classifies such images, generates them, and bounds their likelihood",
    }[content["objective"]["kind"]]
    side, color = content["model"]["image_size"], "grayscale" if content["model"]["channels"] == 1 else "color"
    return (
        f"A network of [hybvit](https://arxiv.org/abs/2208.07791), trained on {title} ({side}x{side}, {color}). It {does}; "
        "what it says of other images means nothing.\n"
    )


def table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each metric: name, value, interval, number of images."""
    rows = ["| metric | value | interval | n |", "|---|---|---|---|"]
    for name, entry in metrics.items():
        known = entry.get("low") is not None and entry.get("high") is not None
        interval = f"{entry['low']:.4g} to {entry['high']:.4g}" if known else ""
        rows.append(f"| `{name}` | {entry['value']:.4g} | {interval} | {entry.get('n', '')} |")
    return "\n".join(rows) + "\n"


def neighbors(path: Path) -> list[str]:
    """The models in the folder that a missing ``path`` would lie in: then it is a misspelled path, and not a hub id."""
    return sorted(str(config.parent) for config in path.parent.glob(f"*/{checkpoint.CONFIG}"))


def local_folder(source: str | os.PathLike[str]) -> Path:
    """The folder of a model on this machine: that of a bundled one, unless there is a folder of that name here."""
    return BUNDLED / str(source) if str(source) in bundled() and not Path(source).exists() else Path(source)


def bundled() -> list[str]:
    """Names of the trained models bundled with the package; :func:`load` needs no network connection for them."""
    return sorted(manifest.parent.name for manifest in BUNDLED.glob(f"*/{checkpoint.MANIFEST}"))
