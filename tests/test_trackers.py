"""Trackers: an interrupted run is one tracked run, with its metrics, settings and images, as the real libraries read it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybvit import config
from hybvit.config import override
from hybvit.errors import ConfigError
from hybvit.presets import preset
from hybvit.training import trackers
from hybvit.training.run_folder import RunFolder, read_metrics
from hybvit.training.trackers import Trackers, check_trackers, hyperparameters, names_of

from .conftest import TINY, hybvit, hybvit_process

STEPS, EVERY = 8, 4  # in all, and until it is interrupted


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Iterator[Path]:
    """A run that all four tracked, resumed half-way."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": folder / "settings", "WANDB_CACHE_DIR": folder,
            "TRACKIO_DIR": folder / "trackio", "MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true",
        }.items():  # fmt: skip
            patch.setenv(name, str(value))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for steps in (EVERY, STEPS):
            words = [*TINY, "--train.log_every=2", f"--train.checkpoint_every={EVERY}", f"--train.preview_every={EVERY}"]
            track = f"--train.track={','.join(config.TRACKERS)}"
            done = hybvit("train", "digits", "--out", folder / "run", f"--train.steps={steps}", track, *words)
            assert done.returncode == 0, done.stderr
            assert "trackio" not in done.stdout.lower()
        yield folder / "run"


@pytest.fixture(scope="module")
def logged(tracked) -> dict[tuple[str, int], float]:
    """(metric, step) -> value, as the run folder has it."""
    found = {}
    for line in read_metrics(tracked / "metrics.jsonl"):
        step = line.pop("step")
        found |= {(name if "/" in name else f"train/{name}", step): value for name, value in line.items()}
    assert {step for _, step in found} == {2, 4, 6, 8}
    return found


def test_all_trackers_are_closed_whichever_fails(tmp_path, monkeypatch):
    closed = list[str]()

    class One:
        def __init__(self, name: str, fails: bool = False) -> None:
            self.name, self.fails = name, fails

        def close(self, failed: bool) -> None:
            closed.append(self.name)
            if self.fails:
                raise OSError(f"{self.name}: network down")

    def unreachable(run: object, done: int) -> One:
        raise ConfigError("mlflow: no server")

    cfg = override(preset("digits"), train={"track": "tensorboard,wandb,trackio"})
    monkeypatch.setitem(trackers.OPEN, "tensorboard", lambda run, done: One("first", fails=True))
    monkeypatch.setitem(trackers.OPEN, "wandb", lambda run, done: One("second"))
    monkeypatch.setitem(trackers.OPEN, "trackio", lambda run, done: One("third"))
    with RunFolder(tmp_path / "run", cfg) as run:
        with pytest.raises(OSError, match="first: network down"):
            Trackers(run, 0).close(failed=False)
        with pytest.warns(UserWarning, match="first: network down"):
            Trackers(run, 0).close(failed=True)  # the error that ended the run is the one to see
        assert closed == ["first", "second", "third"] * 2
        monkeypatch.setitem(trackers.OPEN, "trackio", unreachable)
        with pytest.raises(ConfigError, match="no server"), pytest.warns(UserWarning, match="first"):
            Trackers(run, 0)
        assert closed[6:] == ["first", "second"]


def assert_tracked(found: dict[tuple[str, int], float], logged: dict[tuple[str, int], float]) -> None:
    assert found.keys() == logged.keys()
    for key, value in logged.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key


def pixels_of(image: Any) -> np.ndarray:
    return np.asarray(Image.open(image).convert("RGB"))


@pytest.mark.slow
def test_tensorboard_reads_the_run(tracked, logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "tensorboard"), size_guidance={"images": 0}).Reload()
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert_tracked(found, logged)
    assert [event.step for event in events.Images("samples")] == [EVERY, STEPS]
    assert events.PluginTagToContent("hparams")["_hparams_/session_start_info"]


@pytest.mark.slow
def test_mlflow_reads_the_run(tracked, logged):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tracked / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("hybvit").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.003"
    assert run.data.params["model.dim"] == "16"
    found = {
        (name, entry.step): entry.value
        for name in run.data.metrics
        for entry in client.get_metric_history(run.info.run_id, name)
    }
    assert_tracked(found, logged)
    images = [entry.path for entry in client.list_artifacts(run.info.run_id, "images") if entry.path.endswith(".png")]
    assert len(images) == 2


@pytest.mark.slow
def test_trackio_reads_the_run(tracked, logged):
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("hybvit")
    assert run.config["train.batch_size"] == 8
    logs = SQLiteStorage.get_logs("hybvit", run.name)
    found = {
        (name, line["step"]): value
        for line in logs
        for name, value in line.items()
        if name != "step" and isinstance(value, (int, float))
    }
    assert_tracked(found, logged)
    assert [line["step"] for line in logs if "samples" in line] == [EVERY, STEPS]


def records_of(path: Path) -> Iterator[Any]:
    """The records of a wandb file: LevelDB's log format, whose records all fit into the first block here."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at = path.read_bytes(), 7
    assert content[:4] == b":W&B"
    assert len(content) < 2**15
    while at < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, at)
        assert kind == 1  # a whole record
        yield Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length


@pytest.mark.slow
def test_wandb_reads_the_run(tracked, logged):
    found, settings, ids, images, exits = {}, {}, set(), [], []
    for path in sorted((tracked / "wandb").glob("offline-run-*/*.wandb")):
        for record in records_of(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "exit":
                exits.append(record.exit.exit_code)
            elif kind == "history":
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                step = int(row["_step"])
                images += [step] if "samples/path" in row else []
                found |= {(name, step): value for name, value in row.items() if name.startswith(("train/", "test/"))}
    assert_tracked(found, logged)
    assert ids == {(tracked / "run.id").read_text().strip()}
    assert settings["optim.lr"] == 0.003
    assert images == [EVERY, STEPS]
    assert exits == [0, 0]
    grids = sorted((tracked / "wandb").glob("offline-run-*/files/media/images/*.png"))
    for grid, own in zip(grids, sorted((tracked / "samples").glob("*.png")), strict=True):
        np.testing.assert_array_equal(pixels_of(grid), pixels_of(own))


def with_trackers(track: str) -> config.Config:
    return override(preset("digits"), train={"track": track})


def test_the_names_are_those_that_there_are():
    assert set(trackers.OPEN) == set(config.TRACKERS)
    assert names_of(with_trackers("")) == []
    assert names_of(with_trackers("wandb,mlflow,wandb")) == ["wandb", "mlflow"]
    for wrong in ("wandb, mlflow", "comet", "wandb,"):
        with pytest.raises(ConfigError, match=r"train\.track is .*: it must be names from tensorboard, wandb, mlflow, trackio"):
            with_trackers(wrong)


def test_a_tracker_that_is_not_installed_is_named_before_the_data_are_opened(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = hybvit("train", "digits", "--out", tmp_path / "run", "--data.root", tmp_path, "--train.track=wandb")
    assert done.returncode == 2
    assert done.stderr == "hybvit: train.track names wandb, which is not installed: pip install 'hybvit[track]'\n"
    check_trackers(with_trackers(""))


def test_only_the_first_process_tracks_and_a_failure_is_passed_on(tmp_path, monkeypatch):
    calls = []

    class Fake:
        def __init__(self, run: RunFolder, done: int) -> None:
            calls.append(("open", done))

        def log(self, metrics: dict[str, float], step: int) -> None:
            calls.append(("log", dict(metrics), step))

        def image(self, name: str, image: Image.Image, step: int) -> None:
            calls.append(("image", name, step))

        def close(self, failed: bool) -> None:
            calls.append(("close", failed))

    monkeypatch.setitem(trackers.OPEN, "wandb", Fake)
    with RunFolder(tmp_path / "run", with_trackers("wandb")) as run:
        opened = Trackers(run, 3)
        opened.log({"train/loss": 1.0}, 4)
        opened.image("samples", Image.new("L", (2, 2)), 4)
        opened.close(failed=True)
        run.first = False
        Trackers(run, 3).log({"train/loss": 1.0}, 4)
    assert calls == [("open", 3), ("log", {"train/loss": 1.0}, 4), ("image", "samples", 4), ("close", True)]
    shown = hyperparameters(with_trackers(""))
    assert shown["network.channels"] == "[128,256,256,256]"
    assert shown["train.init"] is None


@pytest.mark.slow
def test_no_tracker_says_anything_under_quiet(tmp_path, monkeypatch):
    """In a process of its own, since wandb keeps what it was told first."""
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    for variable in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    track = f"--train.track={','.join(config.TRACKERS)}"
    done = hybvit_process("train", "digits", *TINY, "--train.steps=2", track, "--quiet", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
