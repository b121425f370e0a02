"""Trackers: where a run is logged beside its folder. None is imported unless ``train.track`` names it.

All get the metrics by the project's names, the configuration as hyperparameters, and the previews as images. A run that is
resumed goes on in the same tracked run, by the id in the run folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..config import Config, as_typed, to_dict
from ..errors import ConfigError
from ..waiting import quiet
from .run_folder import RunFolder

PROJECT = "hybvit"  # the name under which runs are grouped, unless the tracker's own variable names another


class Tracker(Protocol):
    """One tracked run, open until :meth:`close`."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class Trackers:
    """The trackers that ``train.track`` names, in the first process, as one.

    Args:
        done: steps that the run has behind it.
    """

    def __init__(self, run: RunFolder, done: int) -> None:
        self.open = list[Tracker]()
        try:
            for name in names_of(run.cfg) if run.first else ():
                self.open.append(OPEN[name](run, done))
        except BaseException:
            self.close(failed=True)
            raise

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers by name, such as ``train/loss``."""
        for tracker in self.open:
            tracker.log(metrics, step)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        for tracker in self.open:
            tracker.image(name, image, step)

    def close(self, failed: bool) -> None:
        """Close all of them, whichever fails: its error is raised at the end, or is a warning if the run has ``failed``."""
        errors = list[Exception]()
        for tracker in self.open:
            try:
                tracker.close(failed)
            except Exception as error:
                errors.append(error)
        for one in errors if failed else errors[1:]:
            warnings.warn(f"{type(one).__name__}: {one}", stacklevel=2)
        if errors and not failed:
            raise errors[0]


def check_trackers(cfg: Config) -> None:
    """Raise ConfigError where a tracker is not installed."""
    for name in names_of(cfg):
        library_of(name)


def names_of(cfg: Config) -> list[str]:
    return list(dict.fromkeys(cfg.train.track.split(","))) if cfg.train.track else []


def library_of(name: str) -> Any:
    try:
        return importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(name, name))
    except ImportError:
        raise ConfigError(f"train.track names {name}, which is not installed: pip install 'hybvit[track]'") from None


def hyperparameters(cfg: Config) -> dict[str, Any]:
    """``group.field`` -> its value; a list as the command line takes it."""
    return {
        f"{group}.{name}": as_typed(tuple(value)) if isinstance(value, list) else value
        for group, fields in to_dict(cfg).items()
        for name, value in fields.items()
    }


class TensorBoard:
    """Event files in the run folder's ``tensorboard``; steps that run again replace those of before."""

    def __init__(self, run: RunFolder, done: int) -> None:
        library = library_of("tensorboard")
        self.writer = library.SummaryWriter(str(run.path / "tensorboard"), purge_step=done + 1)
        if not done:
            shown = {name: as_typed(value) if value is None else value for name, value in hyperparameters(run.cfg).items()}
            for summary in importlib.import_module("torch.utils.tensorboard.summary").hparams(shown, {}):
                self.writer.file_writer.add_summary(summary)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, whose files lie in the run folder's ``wandb``; offline with WANDB_MODE=offline."""

    def __init__(self, run: RunFolder, done: int) -> None:
        self.library = library_of("wandb")
        self.run = self.library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=id_of(run),
            name=run.path.name,
            dir=str(run.path),
            config=hyperparameters(run.cfg),
            resume="allow",
            settings=self.library.Settings(silent=quiet()),  # else it may have to ask for a key
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        self.run.log({name: self.library.Image(image)}, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, as files in the run folder's ``mlruns`` unless MLFLOW_TRACKING_URI names a place."""

    def __init__(self, run: RunFolder, done: int) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 would rather have a database, but needs none
        library = library_of("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI") or (run.path / "mlruns").resolve().as_uri()
        self.client = library.MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        tag = f"{PROJECT}.run"
        found = self.client.search_runs([experiment], f"tags.`{tag}` = '{id_of(run)}'")
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self.client.create_run(experiment, tags={tag: id_of(run)}, run_name=run.path.name).info.run_id
            given = [library.entities.Param(name, str(value)) for name, value in hyperparameters(run.cfg).items()]
            self.client.log_batch(self.id, params=given)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.client.log_metric(self.id, name, value, step=step)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        self.client.log_image(self.id, image, key=name, step=step)

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class Trackio:
    """A run of trackio, in trackio's own folder (TRACKIO_DIR): `trackio show --project hybvit`."""

    def __init__(self, run: RunFolder, done: int) -> None:
        self.library, name = library_of("trackio"), f"{run.path.name}-{id_of(run)[:8]}"
        with contextlib.redirect_stdout(None):  # it prints a page of hints
            self.run = self.library.init(PROJECT, name, config=hyperparameters(run.cfg), resume="allow")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def image(self, name: str, image: Image.Image, step: int) -> None:
        self.run.log({name: self.library.Image(image)}, step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(None):
            self.library.finish()


def id_of(run: RunFolder) -> str:
    """The id of a run; a run of 0.1.0 has none, and is known by its place."""
    return run.run_id or hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:32]


OPEN: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio}
