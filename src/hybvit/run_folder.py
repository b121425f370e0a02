"""The run folder: config.yaml, environment.json, metrics.jsonl, checkpoints/, samples/, results.json, report.html."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from . import __version__, checkpoint
from .config import Config, differences, load_config, to_yaml
from .errors import CheckpointError, ConfigError, DataError

# Fields that change what is written down, not what is computed: a run may be resumed with others.
FREE_TO_CHANGE = {
    "train.log_every", "train.preview_every", "train.checkpoint_every", "train.keep_checkpoints", "train.snapshot_every",
    "train.tensorboard",
    "data.root", "data.test_root", "data.workers", "data.memory_gib",
}  # fmt: skip


def environment() -> dict[str, Any]:
    """What a number depends on besides the configuration."""
    return {
        "hybvit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "world_size": 1,
    }


@cache
def device_name() -> str:
    """The GPU, or the model of the CPU as far as the system tells."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return f"{platform.processor()} (MPS)"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other process takes, on this machine or another that shares the folder."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")


def write_text(path: Path, text: str) -> None:
    """Replace a file at once or not at all."""
    temporary = temporary_name(path)
    try:
        temporary.write_text(text)
        checkpoint.flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


def make_folder(path: Path) -> None:
    """Create a folder, or find it there and writable.

    Raises:
        DataError: neither is possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise DataError(f"{path}: no permission to write to it")


def locked(path: Path, name: str = ".lock") -> IO[str] | None:
    """Hold a folder against other processes as long as the file that is returned lives; a killed process lets go of it.

    Raises:
        ConfigError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    file = (path / name).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(f"{path}: another process is at work in it; choose another --out, or wait") from None
    except OSError:  # a file system without locks
        pass
    return file


def read_json(path: Path) -> Any:
    """
    Raises:
        DataError: the file is damaged, or cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # also of bytes that are no text
        raise DataError(f"{path}: damaged ({error}); restore it, or remove it and what stands on it is done again") from None


def check_same(path: Path, cfg: Config, but: Collection[str] = ()) -> None:
    """Whether a run folder holds a run of this configuration, but for fields that are free to change and those of ``but``.

    Raises:
        ConfigError: it does not; the first differing field is named.
    """
    for name, (before, now) in differences(load_config(path / "config.yaml"), cfg).items():
        if name not in FREE_TO_CHANGE and name not in but:
            raise ConfigError(f"{path} was started with {name} = {before!r}, not {now!r}: choose another --out")


class RunFolder:
    """One training run on disk. Opening it creates it, or checks that it was started with the same configuration.

    Raises:
        ConfigError: the folder holds another run; the first differing field is named.
        DataError: the folder cannot be written.
    """

    def __init__(self, path: Path, cfg: Config) -> None:
        self.path = path
        make_folder(path)
        make_folder(path / "checkpoints")
        self._lock = locked(path)
        if (path / "config.yaml").is_file():
            check_same(path, cfg)
        write_text(path / "config.yaml", to_yaml(cfg))
        self.seed = cfg.train.seed
        self.write_environment(self.earlier_environments())

    def earlier_environments(self) -> list[dict[str, Any]]:
        """Where the run was before it went on somewhere else: environments, each with ``until_step``."""
        file = self.path / "environment.json"
        try:
            return json.loads(file.read_text()).get("earlier", []) if file.is_file() else []
        except (OSError, ValueError):
            return []

    def write_environment(self, earlier: list[dict[str, Any]]) -> None:
        facts = {**environment(), "seed": self.seed, **({"earlier": earlier} if earlier else {})}
        write_text(self.path / "environment.json", json.dumps(facts, indent=1) + "\n")

    def save(self, step: int, keep: int, **tensors: dict[str, Tensor]) -> None:
        """Write the state after ``step`` steps and delete all but the newest ``keep`` checkpoints."""
        folder = checkpoint.step_folder(self.path / "checkpoints", step)
        checkpoint.write_folder(folder, tensors, {}, step=step, **environment())
        checkpoint.prune(self.path / "checkpoints", keep)

    def snapshot(self, step: int, **averages: dict[str, Tensor]) -> None:
        """Keep the averaged weights after ``step`` steps for good."""
        folder = checkpoint.step_folder(self.path / "snapshots", step)
        checkpoint.write_folder(folder, averages, {}, step=step, **environment())

    def newest(self) -> tuple[int, dict[str, dict[str, Tensor]], list[str]]:
        """(step, tensors by name, remarks): the newest sound checkpoint; step 0 and no tensors where there is none yet.

        A remark tells of a damaged checkpoint that was passed over, or why a resumed run cannot be bit-identical.
        """
        folder, manifest, remarks = checkpoint.newest(self.path / "checkpoints")
        if folder is None:
            return 0, {}, remarks
        try:
            step = int(manifest["step"])
        except (KeyError, ValueError):
            raise CheckpointError(f"{folder / checkpoint.MANIFEST}: has no step") from None
        now, before = environment(), {name: manifest[name] for name in environment() if name in manifest}
        for fact in ("torch", "threads", "machine", "device"):
            if before.get(fact) != now[fact]:
                remarks.append(f"{folder} was written with {fact} = {before.get(fact)}, now {now[fact]}: not bit-exact")
        if before != now:
            earlier = [place for place in self.earlier_environments() if place["until_step"] < step]
            self.write_environment([*earlier, {**before, "until_step": step}])
        return step, {path.stem: checkpoint.read_tensors(path) for path in folder.glob("*.safetensors")}, remarks

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that will be run again, and a line that a kill cut short."""
        if self.metrics_file.is_file():
            kept = [line for line in read_metrics(self.metrics_file) if line["step"] <= step]
            write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, metrics: dict[str, Any]) -> None:
        try:
            with self.metrics_file.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise DataError(f"{self.metrics_file}: cannot be written ({error.strerror})") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def training_summary(history: list[dict[str, Any]]) -> dict[str, float]:
    """What a run's metrics.jsonl says in a line: steps, seconds and rate of the training proper, losses over its last tenth."""
    lines = [line for line in history if "loss" in line]
    if not lines:
        return {}
    steps, seconds = lines[-1]["step"], sum(line["seconds"] for line in lines)
    summary = {"steps": steps, "seconds": round(seconds, 1)}
    summary["images_per_second"] = round(sum(line["images_per_second"] * line["seconds"] for line in lines) / seconds, 1)
    late = [line for line in lines if line["step"] > 0.9 * steps]
    for name in ("ce", "denoising", "energy_gap"):
        if name in lines[-1]:
            summary[name] = round(sum(line[name] for line in late) / len(late), 4)
    return summary
