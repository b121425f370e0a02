"""Weights on disk: atomic, verified checkpoints.

A checkpoint is a folder that is either complete or absent: it is written under a temporary name with a manifest of SHA-256
sums, flushed, then renamed. safetensors has no checksum of its own, so only folders whose manifest verifies are loaded. The
manifest has a digest of itself, which covers the step and the run that a checkpoint is of.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError, ConfigError, DataError
from .storage import MAX_TEXT, flush, read_bytes, temporary_name

CONFIG, WEIGHTS, EMA = "config.yaml", "model", "ema"


CALIBRATION = "calibration.safetensors"  # in an exported folder, or in a run folder


MANIFEST = "manifest.json"


CARD = "README.md"  # people edit it, so no manifest names it
GRAPHS = "model.json"  # of a folder of exported graphs: how to use them


DIGEST = "digest"  # of the manifest, in the manifest


OF_FIRST = {"step", "hybvit", "torch", "python", "machine", "device", "threads", "world_size", "sha256"}  # all that 0.1.0 wrote


RUN_ID = "run.id"  # in a run folder: a random name, which its checkpoints repeat


STEP_FOLDER = re.compile(r"step-(\d+)")


REPLACING = 0.5  # seconds, far more than it takes to rename a folder


ATTEMPTS = 100  # to read the newest checkpoint, while a training replaces it


def write_folder(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], files: Mapping[str, str | bytes], **facts: Any
) -> None:
    """Write a checkpoint folder, all or nothing: ``name.safetensors`` for each set of tensors, other files, and the manifest.

    An existing folder is replaced only once the new one is complete.

    Args:
        tensors: file name without suffix -> name of a tensor -> tensor.
        files: file name -> content.
        facts: further entries of the manifest.

    Raises:
        DataError: the folder cannot be written.
    """
    with replacement(folder) as temporary:
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            save_file({key: value.contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors")
        for name, content in files.items():
            (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)
        sums = {path.name: sha256(path) for path in sorted(temporary.iterdir()) if path.name != CARD}
        write_manifest(temporary, {**facts, "sha256": sums})


def add_file(folder: Path, name: str, content: bytes) -> None:
    """Put a file into a valid checkpoint folder and its manifest, or replace it there, all or nothing.

    Raises:
        CheckpointError: a file of the folder is missing or altered.
        DataError: the folder cannot be written.
    """
    manifest = verify(folder)
    with replacement(folder) as temporary:
        shutil.copytree(folder, temporary)
        (temporary / name).write_bytes(content)
        manifest["sha256"][name] = sha256(temporary / name)
        write_manifest(temporary, manifest)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    content = {**manifest, DIGEST: digest_of(manifest)}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacement(folder: Path) -> Iterator[Path]:
    """Yield the name of a folder to create, which takes the place of ``folder`` on success and is removed on an error.

    Raises:
        DataError: it cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name
    temporary = temporary_name(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        mode = stat.S_IMODE(os.stat(temporary / MANIFEST).st_mode)  # by the umask; safetensors lets only the owner read
        for path in temporary.iterdir():
            if path.is_file() and not path.is_symlink():
                os.chmod(path, mode)
                flush(path)
        flush(temporary)
        if folder.exists():
            os.rename(folder, folder.with_name(f".{folder.name}.{os.getpid()}.replaced"))
        os.rename(temporary, folder)
        flush(folder.parent)
        for replaced in folder.parent.glob(f".{glob.escape(folder.name)}.*.replaced"):  # and what a kill left of earlier ones
            shutil.rmtree(replaced, ignore_errors=True)
    except BaseException as error:  # an interruption too must leave nothing
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, (OSError, shutil.Error, SafetensorError)):
            raise DataError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
        raise


def recover(folder: Path) -> None:
    """Put back a folder that is not there because a process was killed between the two renames that replace it."""
    found = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.replaced")) if folder.name else []
    if not found or folder.exists():
        return
    time.sleep(REPLACING)  # a process that is alive is about to
    if not folder.exists():
        with contextlib.suppress(OSError):  # another reader may be faster
            os.rename(found[-1], folder)


def check_replaceable(folder: Path, mark: str, wanted: str) -> None:
    """Check that nothing but an earlier export would be lost if a folder were replaced.

    Args:
        mark: a file that exports of this kind have.
        wanted: what such an export is called.

    Raises:
        ConfigError: the folder exists and is no such export, or holds a file that its manifest does not name.
    """
    recover(folder)
    if not folder.exists():
        return
    try:
        named = read_manifest(folder)["sha256"].keys()
    except CheckpointError:
        named = set()
    if mark not in named:
        raise ConfigError(f"{folder}: exists and {wanted}; choose another folder")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))  # an export has no folders and no links
    if others := [name for name in names if name not in {*named, MANIFEST, CARD} or (folder / name).is_symlink()]:
        raise ConfigError(f"{folder}: holds {others[0]!r}, which is not of the export; choose another folder")


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content, whatever the order and the spaces of its text."""
    content = {name: value for name, value in manifest.items() if name != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, which is what was written.

    Raises:
        CheckpointError: it is missing or altered.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_bytes(path).decode())
        sums = dict(manifest["sha256"])
    except PermissionError:
        raise forbidden(path) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: missing or damaged") from None
    if DIGEST in manifest:
        intact = manifest[DIGEST] == digest_of(manifest)
    else:
        intact = manifest.keys() <= OF_FIRST and manifest.get("hybvit", "0.1.0") == "0.1.0"
    if not intact:
        raise CheckpointError(f"{path}: damaged (its digest is not that of its content)")
    if not sums:
        raise CheckpointError(f"{path}: damaged: it names no file")
    for name in sums:
        if Path(name).name != name:
            raise CheckpointError(f"{path}: damaged: {name!r} is no file of this folder")
    step = manifest.get("step")
    if STEP_FOLDER.fullmatch(folder.name) and step is not None and step != step_of(folder):
        raise CheckpointError(f"{path}: is of step {step}, its folder of step {step_of(folder)}")
    return manifest


def forbidden(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: no permission to read it: ask its owner (chmod a+r)")


def verify(folder: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """Check every file of a folder against its manifest -> the manifest.

    Args:
        needed: the files that the manifest must name.

    Raises:
        CheckpointError: a file is missing or altered; the message names it.
    """
    manifest = read_manifest(folder)
    sums = manifest["sha256"]
    for name in needed:
        if name not in sums:
            raise CheckpointError(f"{folder / MANIFEST}: does not name {name}, which belongs to it")
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        try:
            found = sha256(path)
        except PermissionError:
            raise forbidden(path) from None
        except OSError as error:
            raise CheckpointError(f"{path}: unreadable ({error.strerror})") from None
        if found != expected:
            raise CheckpointError(f"{path}: damaged (its SHA-256 differs from the manifest's)")
    return manifest


def read_verified(folder: Path, *names: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of a folder, and the content of those of its files that are named and that it has, all at once: a training
    that goes on beside may delete them a moment later.

    Raises:
        CheckpointError: the manifest or one of the files is missing or altered.
    """
    manifest = read_manifest(folder)
    contents = {}
    for name in names:
        if name in manifest["sha256"]:
            try:
                contents[name] = read_bytes(folder / name, None if name.endswith(".safetensors") else MAX_TEXT)
            except PermissionError:
                raise forbidden(folder / name) from None
            except OSError as error:
                raise CheckpointError(f"{folder / name}: unreadable ({error.strerror})") from None
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != manifest["sha256"][name]:
            raise CheckpointError(f"{folder / name}: damaged (its SHA-256 differs from the manifest's)")
    if names[0] not in contents and names[0] != CONFIG:
        raise CheckpointError(f"{folder / MANIFEST}: does not name {names[0]}, which belongs to it")
    return manifest, contents


def tensors_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """:func:`read_tensors` for the content of a file; ``path`` is used in messages."""
    try:
        return load_bytes(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: unreadable ({error})") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; CheckpointError where it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last of torch, where the file is deleted as it is opened
        raise CheckpointError(f"{path}: unreadable ({error})") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The training step of a checkpoint folder, from its name."""
    found = STEP_FOLDER.fullmatch(folder.name)
    assert found is not None, folder
    return int(found[1])


def step_folders(checkpoints: Path) -> list[Path]:
    """All checkpoint folders of a run, newest first."""
    if not checkpoints.is_dir():
        return []
    found = [entry for entry in checkpoints.iterdir() if entry.is_dir() and STEP_FOLDER.fullmatch(entry.name)]
    return sorted(found, key=step_of, reverse=True)


def has_steps(run: Path) -> bool:
    """Whether a run folder keeps anything of a training that other settings would contradict; else a run starts anew in it."""
    return any(step_folders(run / name) for name in ("checkpoints", "snapshots"))


def newest(checkpoints: Path, needed: Collection[str] = ()) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest valid checkpoint -> its folder, its manifest, and a line for each damaged one that was skipped.

    Where there is no checkpoint yet: None, an empty manifest and no lines. A training that goes on beside may write and delete
    checkpoints meanwhile.

    Args:
        needed: the files that it must hold.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    problems: list[str] = []
    for _ in range(ATTEMPTS):
        problems, deleted = [], False
        for folder in step_folders(checkpoints):
            try:
                return folder, verify(folder, needed), problems
            except CheckpointError as error:
                if folder.is_dir():
                    problems.append(str(error))
                deleted = deleted or not folder.is_dir()
        if not deleted:
            break
    if problems:
        raise CheckpointError(f"no usable checkpoint: {'; '.join(problems)}")
    return None, {}, []


def run_id_of(run: Path) -> str | None:
    """The name of a run, kept in its folder; None for a run that 0.1.0 started."""
    try:
        return read_bytes(run / RUN_ID).decode().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{run / RUN_ID}: damaged; restore it from a copy of the run") from None


def check_run(folder: Path, manifest: Mapping[str, Any], run: Path) -> None:
    """Check that a checkpoint is of this run and of no other.

    Raises:
        CheckpointError: it is of another; the message says how to use it nevertheless.
    """
    if manifest.get("run") != run_id_of(run):
        raise CheckpointError(
            f"{folder}: a checkpoint of another run, not of {run} (its run and {run / RUN_ID} differ): delete it, or give it "
            "as train.init to a new run"
        )


def prune(checkpoints: Path, step: int, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints up to ``step``, which was just written, and incomplete folders of a killed
    process. Those of later steps, from which the run did not go on since they are damaged, go too."""
    found = step_folders(checkpoints)
    later = [folder for folder in found if step_of(folder) > step]
    for folder in [*later, *[folder for folder in found if folder not in later][keep:]]:
        leaving = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")  # for a reader it is there as a whole, or not
        with contextlib.suppress(OSError):
            os.rename(folder, leaving)
    for leftover in (*checkpoints.glob(".*.part"), *checkpoints.glob(".*.replaced")):
        shutil.rmtree(leftover, ignore_errors=True)


def load_strictly(net: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a network; all names and shapes must be equal.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape; the message names the first.
    """
    check_fits(net, tensors, source)
    net.load_state_dict(dict(tensors))


def check_fits(net: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise CheckpointError for the first tensor that is missing, unknown, or of another shape, with its name."""
    own = net.state_dict()
    for key in own:
        if key not in tensors:
            raise CheckpointError(f"{source}: {key} is missing")
        if tensors[key].shape != own[key].shape:
            raise CheckpointError(
                f"{source}: {key} has shape {list(tensors[key].shape)}, this network needs {list(own[key].shape)}"
            )
    for key in tensors:
        if key not in own:
            raise CheckpointError(f"{source}: {key} is not a weight of this network")


def digest_of_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights and their names, on any device, in any file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
