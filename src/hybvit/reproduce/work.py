"""The plan of a reproduction and its execution: which runs are trained, timed, measured and collected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint import has_steps
from ..config import Config, override
from ..devices import announce, best_device
from ..errors import ConfigError, DataError, quantity
from ..evaluation.extractors import open_extractor
from ..presets import PRESETS
from ..reproduce import timing
from ..storage import write_text
from ..training.cost import cost
from ..training.loop import say_at_once
from ..training.run_folder import FILLED_IN, check_same
from ..waiting import tells
from .runs import USER_ERRORS, Job, configuration, evaluation_eflop, record_of, run_dir, state_of, try_job
from .scales import Scale
from .tables import FIGURES, TIMED, rows, runs_of, suites_of
from .tables import table as table_of


class Plan(NamedTuple):
    """Runs to train and measure, runs whose steps are timed, and presets without data, with the reason."""

    jobs: list[Job]
    timed: dict[str, Config]
    missing: dict[str, str]


def plan(names: list[str], scale: Scale, only: set[str], fields: list[str]) -> Plan:
    """Plan the jobs of tables and figures.

    Raises:
        ConfigError: ``only`` names a preset that no table or figure of ``names`` needs, or the length of an epoch is not known.
    """
    suites, snapshots, timed, missing = dict[str, list[str]](), set[str](), dict[str, Config](), dict[str, str]()
    for name in names:
        for run in runs_of(name):
            suites.setdefault(run, []).extend(suites_of(name))
            if name in FIGURES and FIGURES[name].snapshots:
                snapshots.add(run_dir(run, scale))
        if name not in FIGURES and set(TIMED) & set(table_of(name, scale).columns):
            for run in (row.run for row in rows(name) if row.run and (not only or row.run in only)):
                cfg = configuration(run, scale, fields)
                if cfg is None:
                    missing[run] = without_data(run, scale)
                    continue
                timing.epoch_images(cfg)  # raises
                timed[run] = cfg
    for run in only - set(suites) - set(timed) - set(missing):
        raise ConfigError(
            f"--runs: {run} is not needed by {', '.join(names)}: name a preset of their rows (--dry-run lists them)"
        )
    jobs = dict[str, Job]()
    for run, wanted in suites.items():
        if only and run not in only:
            continue
        shared = run_dir(run, scale)
        cfg = configuration(shared, scale, fields, shared in snapshots)
        if cfg is None:
            missing[run] = without_data(run, scale)
            continue
        known = jobs[shared].suites if shared in jobs else ()
        jobs[shared] = Job(shared, cfg, tuple(dict.fromkeys((*known, *wanted))), shared in snapshots)
    return Plan(list(jobs.values()), timed, missing)


def without_data(run: str, scale: Scale) -> str:
    return f"the {scale.name} scale has no stand-in for {PRESETS[run].config.data.name}"


def dry_run(work: Plan, mine: list[Job], folder: Path, scale: Scale, overrides: dict[str, Any]) -> None:
    total = left = measuring = 0.0
    print(f"{'run':<30}{'parameters':>12}{'steps':>10}{'PFLOP':>10}{'training':>10}{'evaluation':>11}  state")
    for job in mine:
        price, state = cost(job.cfg), state_of(folder / job.run, job.cfg)
        hours, after = scale.hours(job.cfg), evaluation_eflop(job, scale, overrides) * 1e18 / scale.speed_here / 3600
        total, measuring = total + hours, measuring + after
        left += 0.0 if state.trained else hours * (1 - state.done / state.steps)
        print(
            f"{job.run:<30}{price.parameters:>12,}{job.cfg.train.steps:>10,}{1e3 * price.total_eflop:>10.3g}"
            f"{in_hours(hours):>10}{in_hours(after):>11}  {state.describe()}; "
            f"measured: {', '.join(state.measured) or 'nothing'}"
        )
    if work.timed:
        print(f"timed alternately: {', '.join(work.timed)}")
    for run, reason in work.missing.items():
        print(f"left out: {run}, {reason}")
    pace = "" if scale.name == "full" else f" at {scale.speed_here / 1e9:.0f} GFLOP/s"
    print(
        f"{quantity(len(mine), 'run')}, {total:.1f} hours of training on {scale.machine}{pace}, of which {left:.1f} "
        f"remain; about {measuring:.1f} hours of evaluation, not counting accuracy, calibration and out-of-distribution scores"
    )


def announce_jobs(mine: list[Job], folder: Path, scale: Scale, overrides: dict[str, Any]) -> None:
    """Say what is left of these runs will take: their operations, at the pace of a step of the smallest one, timed here."""
    states = [state_of(folder / job.run, job.cfg) for job in mine]
    training = sum(
        (1 - state.done / state.steps) * cost(job.cfg).total_eflop
        for job, state in zip(mine, states, strict=True)
        if not state.trained
    )
    measuring = sum(
        evaluation_eflop(job, scale, overrides)
        for job, state in zip(mine, states, strict=True)
        if not {*job.suites} <= {*state.measured}
    )
    if tells() and training + measuring:
        smallest, device = min((job.cfg for job in mine), key=lambda cfg: cost(cfg).train_gflop_per_step), best_device()
        steps = (training + measuring) * 1e9 / cost(smallest).train_gflop_per_step
        announce([(timing.one_step(override(smallest, train={"compile": False}), device), steps)], device)


def in_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def take_times(timed: dict[str, Config], folder: Path, scale: Scale, fields: list[str], say: Callable[[str], None]) -> None:
    """Time the steps if any are missing, together with all timed before: only times from one session are comparable."""
    known = timing.stored(folder)
    if timing.covers(known, timed):
        return
    together = {run: cfg for run in {**known["runs"], **timed} if (cfg := configuration(run, scale, fields)) is not None}
    say(f"timing {len(together)} systems alternately ...")
    write_text(folder / timing.FILE, json.dumps(timing.measure(together, say), indent=1) + "\n")


def collect(folder: Path, scale: Scale, fields: list[str]) -> dict[str, dict[str, Any]]:
    """The records of all available runs, with their step times where those were measured.

    Raises:
        ConfigError: a run was started with settings other than ``fields``.
    """
    timings = timing.stored(folder)
    found: dict[str, dict[str, Any]] = {}
    for run in PRESETS:
        cfg = configuration(run, scale, fields)
        record = record_of(run, folder / run_dir(run, scale), cfg) if cfg is not None else None
        took = timings["runs"].get(run)
        if took is not None and cfg is not None and timing.covers(timings, {run: cfg}):
            record = record or {"parameters": took["parameters"], "metrics": {}, "snapshots": {}}
            record["timing"] = took | {"environment": timings["environment"]}
        if record is not None:
            found[run] = record
    return found


def check_started(folder: Path, scale: Scale, fields: list[str]) -> None:
    """Check the runs of all tables, which share a folder, before any of them is trained.

    Raises:
        ConfigError: a run was started with settings other than ``fields``.
    """
    for run in PRESETS:
        path = folder / run_dir(run, scale)
        if has_steps(path) and (cfg := configuration(run, scale, fields)) is not None:
            check_same(path, cfg, FILLED_IN)


def prepare(work: Plan, folder: Path, scale: Scale, fields: list[str], shards: int) -> None:
    """Fetch the Inception weights and time the steps, before any training runs on the machine."""
    if scale.name == "full":
        check_inception(say_at_once)
    if work.timed and shards > 1:
        say_at_once("steps are not timed while other shards run: repeat these tables without --shard")
    elif work.timed:
        take_times(work.timed, folder, scale, fields, say_at_once)


def run_jobs(
    mine: list[Job], folder: Path, scale: Scale, overrides: dict[str, Any], say: Callable[[str], None]
) -> dict[str, list[Exception]]:
    """Train and measure every run -> the errors of each."""
    failures: dict[str, list[Exception]] = {}
    for place, job in enumerate(mine, 1):
        say(f"[{place}/{len(mine)}] {job.run}: {state_of(folder / job.run, job.cfg).describe()}")
        failures[job.run] = try_job(job, folder / job.run, scale, overrides, say)
        for failure in failures[job.run]:
            say(f"{job.run}: left out, {failure}")
    return failures


def raise_worst(failures: dict[str, list[Exception]]) -> None:
    """Raise one error of the most severe kind that names all errors, if there are any."""
    met = [(run, failure) for run, found in failures.items() for failure in found]
    if met:
        worst = next(kind for kind in USER_ERRORS if any(isinstance(failure, kind) for _, failure in met))
        raise worst(f"{quantity(len(met), 'part')} failed: " + "; ".join(f"{run}: {failure}" for run, failure in met))


def check_inception(say: Callable[[str], None]) -> None:
    """Fetch the Inception weights before hours of training; without them all other metrics are still measured."""
    try:
        open_extractor("inception", "cifar10")
    except (ConfigError, DataError) as error:
        say(f"FID and the Inception score will be left out: {error}")
