"""The run folder: config.yaml, environment.json, metrics.jsonl, checkpoints/, samples/, results.json, report.html."""

from __future__ import annotations

import concurrent.futures
import json
import uuid
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from .. import checkpoint
from ..checkpoint import CONFIG
from ..config import FREE_TO_CHANGE, Config, differences, load_config, override, to_yaml
from ..data.fingerprint import numbers
from ..data.trained_on import DIGESTS, TRAINED_ON, checked, united
from ..devices import environment
from ..distributed import from_first, rank
from ..errors import CheckpointError, ConfigError, DataError
from ..networks import check_config
from ..storage import lock_folder, make_folder, read_bytes, read_json, refuse_irregular, write_text

SENSIBLE = 1e100  # numbers below it, added up or multiplied, stay finite
FILLED_IN = {"model.num_classes", "data.classes", "train.precision", "train.compile"}  # set when training starts
NEEDED = ("network.safetensors", "ema.safetensors", "optimizer.safetensors")  # to resume


Groups = Mapping[str, Mapping[str, Tensor]]  # name of a file without suffix -> name of a tensor -> tensor


def copied(groups: Groups) -> Groups:
    """Copies on the CPU, which stay as they are."""
    return {name: {key: value.detach().to("cpu", copy=True) for key, value in group.items()} for name, group in groups.items()}


def check_same(path: Path, cfg: Config, but: Collection[str] = ()) -> None:
    """Check that a run folder has this configuration, except for the fields that are free to change and those of ``but``.

    Raises:
        ConfigError: it has another one; the message names the first field that differs.
    """
    for name, (before, now) in differences(load_config(path / CONFIG), cfg).items():
        if name not in FREE_TO_CHANGE and name not in but:
            raise ConfigError(f"{path} was started with {name} = {before!r}, not {now!r}: choose another --out")


def check_before_images(path: Path, cfg: Config) -> None:
    """What can be said of a run folder before the images are opened and steps are tried, which may take minutes.

    Raises:
        ConfigError: another process trains the run, or it was started with other settings.
        DataError: the folder cannot be written.
    """
    if not path.is_dir():
        return
    lock = lock_folder(path)
    if lock is not None:
        lock.close()
    if checkpoint.has_steps(path) and (path / CONFIG).is_file():
        longer = cfg.train.steps > load_config(path / CONFIG).train.steps
        check_same(path, cfg, FILLED_IN | ({"train.steps"} if longer else set()))


def check_resumable(path: Path, cfg: Config, images: str) -> list[str]:
    """Check that a run can be resumed with this configuration, on images with this fingerprint -> warnings.

    Raises:
        ConfigError: it was started with another configuration (more steps are allowed), or on other images.
    """
    kept, warnings = load_config(path / CONFIG), list[str]()
    before, now = kept.train.steps, cfg.train.steps
    if longer := now > before:
        warnings.append(f"{path} was started for {before} steps: what changes over a run, such as its rate, now spans {now}")
    check_same(path, cfg, {"train.steps"} if longer else ())
    if kept.data.fingerprint not in ("", images):
        other = f"other images ({numbers(kept.data.fingerprint)}, now {numbers(images)}, by names, sizes and classes)"
        if cfg.data.fingerprint != "any":
            raise ConfigError(
                f"{path} was trained on {other}: restore them, choose another --out, or go on with --data.fingerprint any"
            )
        warnings.append(f"{path} was trained on {other} until now")
    return warnings


class RunFolder:
    """A training run on disk. Opening it creates it, or checks that it can be resumed.

    A folder keeps its settings from its first checkpoint on: before that a run starts anew, with whatever settings.

    Of several processes the first one reads and writes; every one must open it and call :meth:`newest`.

    Args:
        images: the fingerprint of the data.
        trained_on: what is kept of the training images (``data/trained_on.py``), beside the weights.

    Attributes:
        cfg: the configuration, with this fingerprint.
        trained_on: the same; from :meth:`newest` on with what the run was trained on before it was resumed.

    Raises:
        ConfigError: the folder holds another run (see :func:`check_resumable`), or another process trains it.
        DataError: the folder cannot be written.
    """

    def __init__(self, path: Path, cfg: Config, images: str = "", trained_on: Tensor | None = None) -> None:
        self.path, self.seed, self.first, self.trained_on = path, cfg.train.seed, rank() == 0, trained_on
        self._copying: concurrent.futures.Future[Groups] | None = None
        self._writer: concurrent.futures.Future[None] | None = None
        self._lock: IO[str] | None = None  # of the first process
        self.cfg, self.run_id, self.warnings = from_first(lambda: self._open(cfg, images))

    def _open(self, cfg: Config, images: str) -> tuple[Config, str | None, list[str]]:
        path = self.path
        make_folder(path)
        make_folder(path / "checkpoints")
        self._lock = lock_folder(path)
        try:
            return self._locked(cfg, images)
        except BaseException:
            self.release()
            raise

    def _locked(self, cfg: Config, images: str) -> tuple[Config, str | None, list[str]]:
        path, warnings = self.path, list[str]()
        if not checkpoint.has_steps(path):
            write_text(path / checkpoint.RUN_ID, uuid.uuid4().hex + "\n")
        elif (path / CONFIG).is_file():
            warnings = check_resumable(path, cfg, images)
        cfg = override(cfg, data={"fingerprint": images})
        write_text(path / CONFIG, to_yaml(cfg))
        self.write_environment(self.earlier_environments())
        return cfg, checkpoint.run_id_of(path), warnings

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.finish_writing()
        except DataError as error:
            if value is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # one error ends the training already
        finally:
            self.release()

    def release(self) -> None:
        """Let another process open the folder."""
        if self._lock is not None:
            self._lock.close()

    def earlier_environments(self) -> list[dict[str, Any]]:
        """The environments in which the run was before it was resumed elsewhere, each with ``until_step``."""
        try:
            earlier = read_json(self.path / "environment.json").get("earlier", [])
        except DataError:  # there is none yet, or it is damaged, which costs nothing else
            return []
        places = earlier if isinstance(earlier, list) else []
        return [place for place in places if isinstance(place, dict) and isinstance(place.get("until_step"), int)]

    def write_environment(self, earlier: list[dict[str, Any]]) -> None:
        facts = {**environment(), "seed": self.seed, **({"earlier": earlier} if earlier else {})}
        write_text(self.path / "environment.json", json.dumps(facts, indent=1) + "\n")

    def save(self, step: int, keep: int, **tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint after ``step`` steps, and delete all but the newest ``keep``, while the training goes on.

        The tensors are copied while the next gradient is computed: they must not change before :meth:`finish_copying`. Where
        the one before could not be written, a warning says so, and this one is written before the training goes on.

        Raises:
            DataError: the one before could not be written, nor can this one.
        """
        if not self.first:
            return
        written = self.is_written()
        folder = checkpoint.step_folder(self.path / "checkpoints", step)
        at_once = any(value.device.type != "cpu" for group in tensors.values() for value in group.values())

        def write() -> None:
            self.write_checkpoint(folder, step, copying.result())
            checkpoint.prune(self.path / "checkpoints", step, keep)

        pool = concurrent.futures.ThreadPoolExecutor(1)  # its own: a thread does not outlive a fork of the process
        copying = self._copying = pool.submit(copied, tensors)
        self._writer = pool.submit(write)
        pool.shutdown(wait=False)
        if at_once:
            self.finish_copying()  # copies from a GPU would wait for the kernels of the gradient, one after the other
        if not written:
            self.finish_writing()

    def is_written(self) -> bool:
        """Wait until the last checkpoint is on the disk -> whether it is; if not, a warning says why."""
        try:
            self.finish_writing()
        except DataError as error:
            warnings.warn(f"{error}: the state after more steps is written instead", stacklevel=3)
            return False
        return True

    def finish_copying(self) -> None:
        """Wait until the tensors of the last checkpoint are copied, and may change."""
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.result()

    def finish_writing(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            DataError: it could not be written.
        """
        self.finish_copying()
        if self._writer is not None:
            try:
                self._writer.result()
            except DataError:
                self._writer = None
                raise
            self._writer = None

    def snapshot(self, step: int, **averages: dict[str, Tensor]) -> None:
        """Keep the averaged weights after ``step`` steps permanently."""
        if not self.first:
            return
        folder = checkpoint.step_folder(self.path / "snapshots", step)
        self.write_checkpoint(folder, step, averages)

    def write_checkpoint(self, folder: Path, step: int, tensors: Groups) -> None:
        facts = {"step": step, **environment()} | ({} if self.run_id is None else {"run": self.run_id})
        known = {} if self.trained_on is None else {TRAINED_ON: {DIGESTS: self.trained_on}}
        checkpoint.write_folder(folder, {**tensors, **known}, {CONFIG: to_yaml(self.cfg)}, **facts)

    def newest(self) -> tuple[int, dict[str, dict[str, Tensor]], list[str]]:
        """The newest valid checkpoint -> its step, its tensors by name, and warnings; step 0 and no tensors if there is none.

        A warning names a damaged checkpoint that was skipped, or says why the resumed run will not be bit-identical.
        """
        step, files, notes = from_first(self._newest)
        tensors = {path.stem: checkpoint.read_tensors(path) for path in files}
        if TRAINED_ON in tensors:
            before = checked(tensors.pop(TRAINED_ON), self.path)
            self.trained_on = united((self.cfg.data.name, before), (self.cfg.data.name, self.trained_on))
        return step, tensors, notes

    def _newest(self) -> tuple[int, list[Path], list[str]]:
        folder, manifest, skipped = checkpoint.newest(self.path / "checkpoints", NEEDED)
        notes = self.warnings + skipped
        if folder is None:
            return 0, [], notes
        checkpoint.check_run(folder, manifest, self.path)
        check_config(folder, checkpoint.read_verified(folder, CONFIG)[1].get(CONFIG), self.cfg)
        step = manifest.get("step")
        if not isinstance(step, int) or step < 1:
            raise CheckpointError(f"{folder / checkpoint.MANIFEST}: has no step")
        now, before = environment(), {name: manifest[name] for name in environment() if name in manifest}
        for fact in ("torch", "threads", "machine", "device", "world_size"):
            if before.get(fact) != now[fact]:
                notes.append(f"{folder} was written with {fact} = {before.get(fact)}, now {now[fact]}: not bit-exact")
        if before != now:
            earlier = [place for place in self.earlier_environments() if place["until_step"] < step]
            self.write_environment([*earlier, {**before, "until_step": step}])
        files = [folder / name for name in manifest["sha256"] if name.endswith(".safetensors")]
        return step, files, notes

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def forget_metrics_after(self, step: int) -> None:
        """Delete the lines of later steps, which will run again, and an incomplete last line."""
        if not self.first:
            return
        refuse_irregular(self.metrics_file)
        if self.metrics_file.is_file():
            kept = [line for line in read_metrics(self.metrics_file) if line["step"] <= step]
            write_text(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, metrics: dict[str, Any]) -> None:
        if not self.first:
            return
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise DataError(f"{self.metrics_file}: cannot be written ({error.strerror})") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without an incomplete last line. A damaged line is left out with a warning.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        *whole, rest = read_bytes(path, limit=None).split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    read = [as_line(text) for text in whole]
    damaged = [str(number) for number, line in enumerate(read, 1) if line is None]
    if damaged:
        lines = f"line {damaged[0]} is" if len(damaged) == 1 else f"lines {', '.join(damaged)} are"
        warnings.warn(f"{path}: {lines} damaged and left out", stacklevel=2)
    return [line for line in (*read, as_line(rest)) if line is not None]


def as_line(text: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl: a step and finite numbers by name; None where it is damaged."""
    try:
        line = json.loads(text, parse_constant=float)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    numbers = all(type(value) in (int, float) and abs(value) < SENSIBLE for value in line.values())
    numbers = numbers and min(line["step"], line.get("seconds", 0), line.get("images_per_second", 0)) >= 0
    return line if numbers and ("loss" not in line or line.keys() >= {"seconds", "images_per_second"}) else None


def training_summary(history: list[dict[str, Any]]) -> dict[str, float]:
    """A summary of metrics.jsonl: steps, seconds and images per second of training, and mean losses over the last tenth."""
    lines = [line for line in history if "loss" in line]
    if not lines:
        return {}
    steps, seconds = lines[-1]["step"], sum(line["seconds"] for line in lines)
    summary = {"steps": steps, "seconds": round(seconds, 1)}
    if seconds > 0:
        summary["images_per_second"] = round(sum(line["images_per_second"] * line["seconds"] for line in lines) / seconds, 1)
    late = [line for line in lines if line["step"] > 0.9 * steps]
    for name in ("ce", "denoising", "energy_gap"):
        values = [line[name] for line in late if name in line]
        if values:
            summary[name] = round(sum(values) / len(values), 4)
    return summary
