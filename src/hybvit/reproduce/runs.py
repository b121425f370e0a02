"""One row of a reproduction: train or resume its run, evaluate it, and collect its record."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import checkpoint
from ..catalog import CATALOG
from ..config import Config, differences, load_config, minibatches, override, parse
from ..data.datasets import find
from ..errors import CheckpointError, ConfigError, DataError, DivergedError
from ..evaluation import Options, evaluate
from ..presets import PRESETS, preset
from ..storage import lock_folder, make_folder, read_json, write_text
from ..training.cost import cost
from ..training.loop import train
from ..training.run_folder import FILLED_IN, check_same, read_metrics, training_summary
from .scales import Scale

RECORD, DIVERGED = "results.json", "diverged.json"
SNAPSHOTS = 10  # per run, for Figures 8 and 13
SNAPSHOT_SUITES = ("accuracy", "fidelity")
KEPT_TABLES = ("reliability", "protocol", "samples_by_class")
USER_ERRORS = (CheckpointError, DataError, ConfigError)  # the most severe first


class Job(NamedTuple):
    """A preset to train, and the suites and snapshots to measure."""

    run: str
    cfg: Config
    suites: tuple[str, ...]
    snapshots: bool


class Evaluation(NamedTuple):
    """One evaluation of a run or of a snapshot, in whose folder the results are stored."""

    folder: Path
    suites: tuple[str, ...]
    options: Options


class State(NamedTuple):
    """The progress of a run: steps done and in total; ``measured`` names the suites with stored results."""

    done: int
    steps: int
    diverged: bool
    measured: tuple[str, ...]

    @property
    def trained(self) -> bool:
        return self.diverged or self.done >= self.steps

    def describe(self) -> str:
        if self.diverged:
            return "diverged" + (
                f"; the checkpoint of step {self.done} is kept" if self.done else " before its first checkpoint"
            )
        return "trained" if self.trained else f"at step {self.done} of {self.steps}" if self.done else "not started"


def configuration(run: str, scale: Scale, fields: list[str], snapshots: bool = False) -> Config | None:
    """The run's configuration at a scale, with fields from the command line; None if the scale has no data for it."""
    cfg = scale.config(run)
    if cfg is None:
        return None
    cfg = parse(fields, cfg)
    return override(cfg, train={"snapshot_every": max(1, cfg.train.steps // SNAPSHOTS)}) if snapshots else cfg


def run_dir(run: str, scale: Scale) -> str:
    """The preset whose folder a run uses: at a small scale several presets may be the same training."""
    cfg = scale.config(run)
    same = [name for name in PRESETS if cfg is not None and scale.config(name) == cfg]
    return min(same, key=len, default=run)


def training_hours(records: Mapping[str, Mapping[str, Any]], scale: Scale) -> float:
    """Hours of training behind records by preset; once for presets that are the same training."""
    trained = {run_dir(run, scale): record["training"] for run, record in records.items() if "training" in record}
    seconds: float = sum(training.get("seconds", 0) for training in trained.values())
    return seconds / 3600


def state_of(folder: Path, cfg: Config) -> State:
    newest = checkpoint.step_folders(folder / "checkpoints")
    done = checkpoint.step_of(newest[0]) if newest else 0
    measured = tuple(sorted(path.parent.name for path in folder.glob("evaluation/*/result.json")))
    return State(done, cfg.train.steps, (folder / DIVERGED).is_file(), measured)


def run_job(job: Job, folder: Path, scale: Scale, overrides: Mapping[str, Any], say: Callable[[str], None]) -> list[Exception]:
    """Do the missing training and evaluation of one row -> the errors of evaluations that failed.

    A run that diverges is evaluated at its last checkpoint.

    Args:
        overrides: evaluation options that replace the scale's.

    Raises:
        Interrupted: the state is saved; the same call resumes.
        ConfigError: another process is working on it, or it was started with other settings.
        DataError, CheckpointError: its data are missing, or its checkpoint cannot be used.
    """
    make_folder(folder)
    lock = lock_folder(folder, ".row.lock")
    try:
        state = state_of(folder, job.cfg)
        if state.trained:
            check_same(folder, job.cfg, FILLED_IN)
        else:
            try:
                train(job.cfg, folder, say, trial=False)  # runs that are compared are all treated alike
            except DivergedError as error:
                message = str(error).removeprefix(f"{folder}: ")
                write_text(folder / DIVERGED, json.dumps({"message": message}, indent=1) + "\n")
                say(f"{job.run}: {error}")
            state = state_of(folder, job.cfg)
        failed = list[Exception]()
        # With no step done, the run diverged before its first checkpoint: there is nothing to evaluate.
        for target, suites, options in evaluations_of(job, folder, scale, overrides) if state.done else ():
            try:
                # A run does not record where its data are, so the location comes from the job.
                results = evaluate(target, job.cfg.data.root, suites=suites, options=options, out=target, say=say)
                say(f"{results.save(target)} written")
            except USER_ERRORS as error:
                failed.append(error)
        return failed
    finally:
        if lock is not None:
            lock.close()


def evaluations_of(job: Job, folder: Path, scale: Scale, overrides: Mapping[str, Any]) -> list[Evaluation]:
    """The evaluations of a row; results stored with the same settings are not measured again. Stand-ins for the paper's
    out-of-distribution sets that are not on this machine are left out."""
    found = []
    for suites, options in scale.eval_options.items():
        if "fidelity" in suites and job.cfg.data.name in scale.fewer_samples:
            options = replace(options, samples=scale.fewer_samples[job.cfg.data.name])
        here = tuple(name for name in options.out_of_distribution if name not in CATALOG or find(name) is not None)
        options = replace(options, **{"out_of_distribution": here, **overrides})
        wanted = tuple(suite for suite in suites if suite in job.suites)
        if wanted:
            found.append(Evaluation(folder, wanted, options))
        if "fidelity" in suites and job.snapshots:
            found += [Evaluation(snapshot, SNAPSHOT_SUITES, options) for snapshot in snapshots_of(folder, job.cfg)]
    return found


def snapshots_of(folder: Path, cfg: Config) -> list[Path]:
    """The weight snapshots of a run, the earliest first; the last step is the run itself."""
    found = reversed(checkpoint.step_folders(folder / "snapshots"))
    return [path for path in found if checkpoint.step_of(path) < cfg.train.steps]


def try_job(job: Job, folder: Path, scale: Scale, overrides: Mapping[str, Any], say: Callable[[str], None]) -> list[Exception]:
    """:func:`run_job`, with errors returned, so that a failing row does not stop the others."""
    try:
        return run_job(job, folder, scale, overrides, say)
    except USER_ERRORS as error:
        return [error]


def record_of(run: str, folder: Path, cfg: Config, base: Config | None = None) -> dict[str, Any] | None:
    """Everything that tables and figures need from a run, small enough to be kept in a repository; None until it is trained.

    Args:
        base: the configuration that ``changed`` is relative to; None for the preset called ``run``.

    Raises:
        ConfigError: the run in the folder was started with other settings.
    """
    state = state_of(folder, cfg)
    if not (folder / "config.yaml").is_file():
        return None
    check_same(folder, cfg, FILLED_IN)
    if not state.trained:
        return None
    found = read_json(folder / RECORD, "metrics", "tables", "suites") if (folder / RECORD).is_file() else {}
    started_with = load_config(folder / "config.yaml")
    record: dict[str, Any] = {
        "data": cfg.data.name,
        "network": describe_network(cfg),
        "objective": cfg.objective.kind,
        "seed": started_with.train.seed,
        "parameters": found.get("parameters") or cost(cfg).parameters,
    }
    if state.diverged:
        record["diverged"] = read_json(folder / DIVERGED, "message")["message"]
        record["kept_step"] = state.done
    history = read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    record["training"] = training_summary(history) | {"of_steps": cfg.train.steps, "batch_size": cfg.train.batch_size}
    with contextlib.suppress(DataError):
        record["environment"] = read_json(folder / "environment.json")
    record["metrics"] = found.get("metrics", {})
    record["tables"] = {name: value for name, value in found.get("tables", {}).items() if name in KEPT_TABLES}
    record["options"] = {name: suite["settings"] for name, suite in found.get("suites", {}).items()}
    changed = differences(base or preset(run), started_with)
    record["changed"] = {name: [before, now] for name, (before, now) in changed.items() if name not in FILLED_IN}
    record["snapshots"] = {
        str(checkpoint.step_of(path)): read_json(path / RECORD, "metrics")["metrics"]
        for path in snapshots_of(folder, cfg)
        if (path / RECORD).is_file()
    }
    if record["snapshots"]:
        record["snapshots"][str(state.done)] = record["metrics"]
    return record


def describe_network(cfg: Config) -> str:
    """The network, short enough for a table cell."""
    own = cfg.network
    if own.name == "wide_resnet":
        return f"WRN-{own.depth}-{own.width}"
    if own.name == "unet":
        return f"U-Net {'-'.join(map(str, own.channels))}"
    if own.name == "preact_resnet18":
        return "PreActResNet-18"
    return f"ViT {cfg.model.depth}x{cfg.model.dim}, patch {cfg.model.patch_size}"


def evaluation_eflop(job: Job, scale: Scale, overrides: Mapping[str, Any]) -> float:
    """The approximate cost of a row's evaluation in 10^18 operations: samples, attacks and bounds.

    A forward pass counts as a third of a training step per image.
    """
    denoising, labeled = minibatches(job.cfg)
    passes = 3 * (denoising + labeled) + (job.cfg.jem.steps * 2 * denoising if job.cfg.objective.kind == "jem" else 0)
    forward = cost(job.cfg).train_gflop_per_step / passes
    evaluations = 0.0
    for _, suites, options in evaluations_of(job._replace(snapshots=False), Path(), scale, overrides):
        if "fidelity" in suites or "quality" in suites:
            evaluations += options.samples * options.steps * (SNAPSHOTS if job.snapshots else 1)
        if "robustness" in suites:
            evaluations += 18 * 3 * options.attack_steps * options.attack_images  # forward and backward at eighteen radii
        if "likelihood" in suites:
            evaluations += options.bound_images * (options.bound_draws or job.cfg.diffusion.steps)
    return forward * evaluations / 1e9


def share_of(jobs: Iterable[Job], shard: int, shards: int) -> list[Job]:
    """The jobs of one of several processes: the costliest first, each to the process with the least load."""
    loads = [0.0] * shards
    mine = []
    for job in sorted(jobs, key=lambda job: (-cost(job.cfg).total_eflop, job.run)):
        least = loads.index(min(loads))
        loads[least] += cost(job.cfg).total_eflop
        if least == shard:
            mine.append(job)
    return mine
