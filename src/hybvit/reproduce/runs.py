"""One row of a reproduction: trained if it is not, resumed if it is half trained, evaluated, and its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .. import checkpoint, evaluate
from ..config import Config, differences, parse
from ..cost import cost
from ..errors import CheckpointError, ConfigError, DataError, DivergedError
from ..recipes import preset
from ..run_folder import check_same, environment, read_metrics, training_summary, write_text
from ..train import train
from .scales import Scale

RECORD, DIVERGED = "results.json", "diverged.json"
SNAPSHOT_SUITES = ("accuracy", "fidelity")
SETTLED = {"model.num_classes", "data.classes", "train.precision"}  # what data and machine fill in when training starts
KEPT_TABLES = ("reliability", "protocol", "samples_by_class")


class Need(NamedTuple):
    """A preset that has to be trained, and what has to be known about it."""

    run: str
    cfg: Config
    suites: tuple[str, ...]
    snapshots: bool


class State(NamedTuple):
    """How far a run is: steps done of all; ``measured`` names the suites whose results are there."""

    done: int
    steps: int
    diverged: bool
    measured: tuple[str, ...]

    @property
    def trained(self) -> bool:
        return self.diverged or self.done >= self.steps

    def words(self) -> str:
        if self.diverged:
            return f"diverged, its state at step {self.done} is kept"
        return "trained" if self.trained else f"at step {self.done} of {self.steps}" if self.done else "not begun"


def configuration(run: str, scale: Scale, fields: list[str]) -> Config | None:
    """The run's configuration at a scale, with fields from the command line; None where the scale has no data for it."""
    cfg = scale.config(run)
    return None if cfg is None else parse(fields, cfg)


def state_of(folder: Path, cfg: Config) -> State:
    newest = checkpoint.step_folders(folder / "checkpoints")
    done = int(newest[0].name.removeprefix("step-")) if newest else 0
    measured = tuple(sorted(path.parent.name for path in folder.glob("evaluation/*/result.json")))
    return State(done, cfg.train.steps, (folder / DIVERGED).is_file(), measured)


def carry_out(need: Need, folder: Path, scale: Scale, looks: list[str], say: Callable[[str], None]) -> list[str]:
    """Train and evaluate what is missing of one row -> what could not be measured, a line each.

    A run that diverges is evaluated where its last checkpoint stands.

    Raises:
        Interrupted: the state is saved; the same call goes on.
        ConfigError: another process trains it, or it was begun with other settings.
        DataError, CheckpointError: its data are not there, or its state cannot be used.
    """
    state = state_of(folder, need.cfg)
    if state.trained:
        check_same(folder, need.cfg, SETTLED)
    else:
        try:
            train(need.cfg, folder, say)
        except DivergedError as error:
            write_text(folder / DIVERGED, json.dumps({"message": str(error), "environment": environment()}, indent=1) + "\n")
            say(f"{need.run}: {error}")
        state = state_of(folder, need.cfg)
    if not state.done:
        return []  # it diverged before the first checkpoint
    calls = []
    for suites, usual in scale.looks.items():
        arguments = list(usual)
        if "fidelity" in suites and need.cfg.data.name in scale.fewer_samples:
            arguments += ["--samples", str(scale.fewer_samples[need.cfg.data.name])]
        wanted = [suite for suite in suites if suite in need.suites]
        if wanted:
            calls.append([str(folder), "--suites", ",".join(wanted), *arguments])
        if "fidelity" in suites and need.snapshots:
            for snapshot in reversed(checkpoint.step_folders(folder / "checkpoints")):
                out = folder / "snapshots" / snapshot.name
                if not (out / RECORD).is_file():
                    calls.append([str(snapshot), "--out", str(out), "--suites", ",".join(SNAPSHOT_SUITES), *arguments])
    failed = []
    for call in calls:
        try:
            evaluate.main([*call, *looks])
        except (ConfigError, DataError, CheckpointError) as error:
            failed.append(str(error))
    return failed


def attempt(need: Need, folder: Path, scale: Scale, looks: list[str], say: Callable[[str], None]) -> str | None:
    """:func:`carry_out`, with what stopped it in a line: one row that cannot be done does not stop the others."""
    try:
        return "; ".join(dict.fromkeys(carry_out(need, folder, scale, looks, say))) or None
    except (ConfigError, DataError, CheckpointError) as error:
        return str(error)


def record_of(run: str, folder: Path, cfg: Config) -> dict[str, Any] | None:
    """Everything that the tables and figures need of a run, small enough to be kept in a repository."""
    state = state_of(folder, cfg)
    if not state.trained:
        return None
    record: dict[str, Any] = {"data": cfg.data.name, "objective": cfg.objective.kind, "seed": cfg.train.seed}
    if state.diverged:
        record["diverged"] = json.loads((folder / DIVERGED).read_text())["message"].partition(": ")[2]
        record["diverged_after"] = state.done
    found = json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else {}
    record["parameters"] = found.get("parameters") or cost(cfg).parameters
    history = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    record["training"] = training_summary(history) | {"of_steps": cfg.train.steps, "batch_size": cfg.train.batch_size}
    record["environment"] = found.get("environment", environment())
    record["metrics"] = found.get("metrics", {})
    record["tables"] = {name: value for name, value in found.get("tables", {}).items() if name in KEPT_TABLES}
    record["options"] = {name: suite["settings"] for name, suite in found.get("suites", {}).items()}
    record["changed"] = {name: [before, now] for name, (before, now) in differences(preset(run), cfg).items()}
    record["snapshots"] = {
        path.parent.name.removeprefix("step-").lstrip("0"): json.loads(path.read_text())["metrics"]
        for path in sorted(folder.glob(f"snapshots/*/{RECORD}"))
    }
    return record


def share_of(needs: Iterable[Need], shard: int, shards: int) -> list[Need]:
    """The part of the work of one of several processes: the costliest first, each to whoever has least."""
    loads = [0.0] * shards
    mine = []
    for need in sorted(needs, key=lambda need: (-cost(need.cfg).total_eflop, need.run)):
        least = loads.index(min(loads))
        loads[least] += cost(need.cfg).total_eflop
        if least == shard:
            mine.append(need)
    return mine
