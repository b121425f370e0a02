"""`hybvit reproduce ablation | v2`: compare recipes of one small network, each trained for the same wall-clock time."""

from __future__ import annotations

import csv
import html
import io
import json
import statistics
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..catalog import OWN_IMAGES
from ..config import Config, differences, fields_in, minibatches, override, parse
from ..devices import environment
from ..errors import ConfigError, DivergedError, Interrupted, did_you_mean, quantity
from ..evaluation.options import Options
from ..reproduce import render, timing
from ..storage import make_folder, read_json, write_text
from ..training.cost import cost
from ..training.loop import train
from ..training.run_folder import read_metrics
from ..waiting import forecast, tell
from .runs import USER_ERRORS, Job, record_of, state_of, try_job
from .scales import POCKET
from .variants import STUDIES, Study, Variant

EVAL_OPTIONS = {  # for every run of a study
    ("accuracy", "calibration"): Options(),
    ("fidelity",): Options(samples=5000, sampler="dpmpp_2m", steps=25),
    ("likelihood",): Options(bound_images=256, bound_draws=32),
}
TRIAL_PARTS, TRIAL_PART = 12, 5  # of the trial that measures the time per step: parts, and minimum steps per part
TRIAL_SHARE = 1 / 20  # of the budget; long enough to average over the seconds in which a shared machine is slow
CHECKPOINTS = 5
WARMUP, AVERAGE = 1 / 20, 1 / 20  # fractions of a run: learning-rate warm-up, and width of the weight average
SET_BY_STUDY = {
    "train.seed", "train.steps", "train.checkpoint_every", "train.preview_every", "train.ema_decay", "train.ema_warmup",
    "optim.warmup_steps",
}  # fmt: skip
BUDGET, RECORDS = "budget.json", "records.json"


COLUMNS = {  # heading -> metric in a record, unit and decimals
    "accuracy %": ("test/accuracy", 100.0, 2),
    "NLL": ("test/nll", 1.0, 3),
    "ECE %": ("calibration/ece_20", 100.0, 1),
    "Frechet distance": ("fidelity/fd_", 1.0, 2),
    "bits/dim": ("likelihood/bits_per_dim", 1.0, 3),
}


class Run(NamedTuple):
    """A variant with a seed."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return self.variant.name if not self.seed else f"{self.variant.name}-seed{self.seed}"


class Plan(NamedTuple):
    """The part of a study that one call carries out.

    Attributes:
        name, folder: name of the study, and the folder that stores it.
        fields: settings of all runs, as on the command line.
        minutes: training time of each run.
        overrides: evaluation options that replace the study's.
    """

    name: str
    folder: Path
    runs: list[Run]
    fields: list[str]
    minutes: float
    overrides: Mapping[str, Any]


def within(cfg: Config, minutes: float, fixed: bool) -> tuple[Config, float]:
    """Fit the recipe's steps into ``minutes`` on this machine by a short trial -> the recipe, and seconds per step.

    The extra time of the first steps (mostly compilation) is part of the budget.
    """
    first, *parts = trial_parts(cfg, TRIAL_PART)
    seconds = statistics.median(parts) / TRIAL_PART
    late = max(0.0, first - seconds * TRIAL_PART)
    longer = round(60 * minutes * TRIAL_SHARE / seconds / TRIAL_PARTS)
    if longer > TRIAL_PART:
        seconds = statistics.median(trial_parts(cfg, longer)[1:]) / longer
    return cut(cfg, max(1, round((60 * minutes - late) / seconds)), fixed), seconds


def trial_parts(cfg: Config, steps: int) -> list[float]:
    """Seconds of each of the first ``TRIAL_PARTS`` parts of a training; a part has this many steps."""
    whole = {"steps": TRIAL_PARTS * steps, "log_every": steps, "checkpoint_every": TRIAL_PARTS * steps, "preview_every": 0}
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(override(cfg, train=whole), Path(folder) / "trial", lambda line: None, trial=False)
        except Interrupted:  # what was saved goes with the folder
            raise KeyboardInterrupt from None
        return [line["seconds"] for line in read_metrics(Path(folder) / "trial" / "metrics.jsonl")]


def cut(cfg: Config, steps: int, fixed: bool) -> Config:
    """The recipe with this many steps, and a warm-up and weight average that scale with them."""
    cfg = override(cfg, train={"steps": steps, "checkpoint_every": -(-steps // CHECKPOINTS), "preview_every": 0})
    if fixed:
        return override(cfg, optim={"warmup_steps": min(cfg.optim.warmup_steps, steps // 10)})
    return override(
        cfg,
        optim={"warmup_steps": round(steps * WARMUP)},
        train={"ema_decay": round(max(0.0, 1 - 1 / max(1.0, steps * AVERAGE)), 6), "ema_warmup": True},
    )


def recipe(variant: Variant, seed: int, fields: list[str]) -> Config:
    """A variant's recipe with fields from the command line, before it is fitted to the budget."""
    return override(parse(fields, variant.config), train={"seed": seed})


def configured(run: Run, fields: list[str], folder: Path, minutes: float, say: Callable[[str], None]) -> Config:
    """The run's configuration; its number of steps is fitted to the budget at the first call and then kept.

    Raises:
        ConfigError: the run was started with another budget or other fields.
    """
    cfg, kept = recipe(run.variant, run.seed, fields), folder / BUDGET
    if not kept.is_file():
        cfg, seconds = within(cfg, minutes, run.variant.fixed)
        make_folder(folder)
        found: dict[str, Any] = {"minutes": minutes, "fields": fields, "steps": cfg.train.steps, "seconds_per_step": seconds}
        write_text(kept, json.dumps(found, indent=1) + "\n")
        say(f"{run.name}: {quantity(cfg.train.steps, 'step')} of {1e3 * seconds:.1f} ms fit into {minutes:.4g} min")
        return cfg
    found = read_json(kept, "minutes", "fields", "steps")
    if found["minutes"] != minutes:
        raise ConfigError(
            f"{folder}: started with {found['minutes']:g} min per run, not {minutes:g}; choose another --out, "
            f"or --budget {found['minutes']:g}"
        )
    if found["fields"] != fields:
        earlier = " ".join(found["fields"]) or "no fields"
        raise ConfigError(f"{folder}: started with {earlier}, not {' '.join(fields) or 'none'}; choose another --out")
    return cut(cfg, found["steps"], run.variant.fixed)


def check_fields(study: Study, runs: list[Run], fields: list[str]) -> None:
    """Reject fields that the studies set themselves.

    Raises:
        ConfigError: a field is set by the study, or would undo the change of a variant.
    """
    given = set(fields_in(fields))
    for name in given & SET_BY_STUDY:
        raise ConfigError(f"--{name} is set by the study: use --budget and --seeds")
    base = study.variants[study.base].config
    for run in runs:
        for name in given & set(differences(base, run.variant.config)):
            raise ConfigError(f"--{name} would undo what {run.variant.name} changes: choose other recipes with --runs")


def run_job(plan: Plan, say: Callable[[str], None]) -> list[Exception]:
    """Train and measure the missing runs of a study -> the errors of runs that failed.

    All budgets are fitted before the first run begins, so that a machine that becomes busy later shortens none of them.
    """
    scale, failed = replace(POCKET, eval_options=EVAL_OPTIONS), list[Exception]()
    suites = tuple(suite for group in EVAL_OPTIONS for suite in group)
    recipes: dict[str, Config] = {}

    def leave_out(run: Run, failure: Exception) -> None:
        say(f"{run.name}: left out, {failure}")
        failed.append(failure)

    for run in plan.runs:
        try:
            recipes[run.name] = configured(run, plan.fields, plan.folder / run.name, plan.minutes, say)
        except (*USER_ERRORS, DivergedError) as error:  # raised in the trial that measures the time per step
            leave_out(run, error)
    for place, run in enumerate(plan.runs, 1):
        if run.name not in recipes:
            continue
        run_folder, cfg = plan.folder / run.name, recipes[run.name]
        say(f"[{place}/{len(plan.runs)}] {plan.name}, {run.name}: {state_of(run_folder, cfg).describe()}")
        for failure in try_job(Job(run.name, cfg, suites, False), run_folder, scale, plan.overrides, say):
            leave_out(run, failure)
    return failed


def records_of(study: Study, folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Records of all finished runs by the names of their folders, and those whose recipe has changed since.

    A record outlives the folder of its run.
    """
    stored = read_json(folder / RECORDS, "runs") if (folder / RECORDS).is_file() else {"runs": {}, "outdated": {}}
    found, outdated = dict[str, dict[str, Any]](), stored.get("outdated", {})
    for name, record in stored["runs"].items():
        variant = study.variants.get(record["variant"])
        now = variant and timing.digest(recipe(variant, record["seed"], record["budget"]["fields"]))
        (found if record.get("recipe") == now else outdated)[name] = record
    for run_folder in sorted(path.parent for path in folder.glob(f"*/{BUDGET}")):
        name, _, seed = run_folder.name.partition("-seed")
        if name not in study.variants:
            continue
        budget, variant = read_json(run_folder / BUDGET), study.variants[name]
        whole = recipe(variant, int(seed or 0), budget["fields"])
        cfg = cut(whole, budget["steps"], variant.fixed)
        record = record_of(run_folder.name, run_folder, cfg, study.variants[study.base].config)
        if record is not None:
            images = sum(minibatches(cfg))
            record |= {"variant": name, "words": variant.description, "recipe": timing.digest(whole)}
            record |= {"budget": budget, "gflop_per_step": cost(cfg).train_gflop_per_step}
            training = {"steps": 0, "seconds": 0.0} | record["training"]  # defaults for a run that diverged at once
            record["training"] = training
            record["images_per_second"] = training["steps"] * images / max(training["seconds"], 1e-9)
            found[run_folder.name] = record
    return found, outdated


def step_configs(study: Study, fields: list[str]) -> dict[str, Config]:
    """The joint steps of ``study.costs``, each with the denoising-only step of the same batch."""
    together: dict[str, Config] = {}
    for name in study.costs:
        cfg = parse(fields, study.variants[name].config)
        together |= {name: cfg, f"{name}, images only": override(cfg, objective={"kind": "genvit"})}
    return together


def time_steps(study: Study, fields: list[str], folder: Path, say: Callable[[str], None]) -> None:
    """Time these steps alternately, unless they are already timed with the current recipes."""
    together = step_configs(study, fields)
    if timing.covers(timing.stored(folder), together):
        return
    say(f"timing the steps of {' and '.join(study.costs)} alternately ...")
    write_text(folder / timing.FILE, json.dumps(timing.measure(together, say) | {"fields": fields}, indent=1) + "\n")


def costs_of(study: Study, folder: Path) -> dict[str, Any]:
    """The result of :func:`time_steps`; empty if the recipes have changed since."""
    found = timing.stored(folder)
    timed = study.costs and timing.covers(found, step_configs(study, found.get("fields", [])))
    return found if timed else {}


def metric_of(record: dict[str, Any], prefix: str) -> dict[str, Any] | None:
    """The metric of this name; a prefix that ends in ``_`` is completed by the extractor and the number of samples."""
    metrics = record["metrics"]
    prefixes = (prefix, "fidelity/fid_") if prefix == "fidelity/fd_" else (prefix,)  # of the canonical Inception network
    names = [prefix] if not prefix.endswith("_") else [n for n in metrics if n.startswith(prefixes) and n[-1].isdigit()]
    return next((metrics[name] for name in names if name in metrics), None)


def value_of(record: dict[str, Any], prefix: str) -> float | None:
    metric = metric_of(record, prefix)
    return None if metric is None else metric["value"]


def lines_of(study: Study, records: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table: the base first, then the others by Frechet distance; several seeds are averaged.

    In parentheses: the difference from the base over their common seeds, or over all seeds if they have none in common.
    """
    heads = ["recipe", *COLUMNS, "parameters", "images/s", "steps", "seconds", "seeds"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        groups.setdefault(record["variant"], []).append(record)

    def mean(name: str, heading: str, seeds: Collection[int] = ()) -> float | None:
        metric, unit, _ = COLUMNS[heading]
        own = [record for record in groups.get(name, []) if not seeds or record["seed"] in seeds]
        found = [value for record in own if (value := value_of(record, metric)) is not None]
        return unit * statistics.mean(found) if found else None

    def seeds_of(name: str, heading: str) -> set[int]:
        return {record["seed"] for record in groups.get(name, []) if value_of(record, COLUMNS[heading][0]) is not None}

    def place(name: str) -> tuple[bool, float]:
        distance = mean(name, "Frechet distance")
        return name != study.base, float("inf") if distance is None else distance

    lines = []
    for name in sorted(groups, key=place):
        own = groups[name]
        description = description_of(study, own[0])
        line = [f"**{description}**" if name == study.base else description]
        for heading, (_, _, digits) in COLUMNS.items():
            shared = seeds_of(name, heading) & seeds_of(study.base, heading)
            value, same, base = mean(name, heading), mean(name, heading, shared), mean(study.base, heading, shared)
            if heading == "bits/dim" and padded(study, name):
                base = None
            text = "" if value is None else f"{value:.{digits}f}"
            if same is not None and base is not None and name != study.base:
                text += f" ({round(same - base, digits) + 0.0:+.{digits}f})"  # no -0.0
            line.append(text)
        diverged = [record for record in own if "diverged" in record]
        line += [
            f"{own[0]['parameters'] / 1e6:.3f} M",
            f"{statistics.mean(record['images_per_second'] for record in own):,.0f}",
            f"{statistics.mean(record['training']['steps'] for record in own):,.0f}" + (", diverged" if diverged else ""),
            f"{statistics.mean(record['training']['seconds'] for record in own):,.0f}",
            ", ".join(str(record["seed"]) for record in own),
        ]
        lines.append(line)
    return heads, lines


def description_of(study: Study, record: dict[str, Any]) -> str:
    """The variant's description, or the recorded one if the variant is gone or its recipe has changed since."""
    variant = study.variants.get(record["variant"])
    if variant is None or "recipe" not in record:
        return record["words"]
    now = timing.digest(recipe(variant, record["seed"], record["budget"].get("fields", [])))
    return variant.description if now == record["recipe"] else record["words"]


def padded(study: Study, name: str) -> bool:
    """Whether a variant models more pixels than the base, so that their bits per dimension are not comparable."""
    sizes = [study.variants[variant].config.model.image_size for variant in (name, study.base) if variant in study.variants]
    return len(set(sizes)) > 1


def facts(records: dict[str, dict[str, Any]]) -> str:
    """Data, budget, machine and sampling protocol behind the figures, in one line."""
    one = next(iter(records.values()))
    protocol: dict[str, Any] = next((r["tables"]["protocol"] for r in records.values() if "protocol" in r["tables"]), {})
    budgets = " and ".join(f"{60 * minutes:,.0f}" for minutes in sorted({r["budget"]["minutes"] for r in records.values()}))
    fields = sorted({" ".join(r["budget"].get("fields", [])) for r in records.values()} - {""})
    given = f" (`{'`, `'.join(fields)}`)" if fields else ""
    machines = ", ".join(dict.fromkeys(render.machine_of(record) for record in records.values()))
    drawn = f"{protocol['samples']} samples, {protocol['sampler']}, {protocol['steps']} steps" if protocol else ""
    return (
        f"Data: {one['data']}. Steps: as many as a short trial predicted to fit into {budgets} seconds on {machines}{given}. "
        f"Frechet distance: extractor {protocol.get('extractor', '')}, {drawn}. "
        "In parentheses: the difference from the first row, over the seeds that both have, or over all if they share none."
    )


def intervals(study: Study, records: dict[str, dict[str, Any]], headings: Collection[str] = tuple(COLUMNS)) -> list[str]:
    """One run of the base with 95 % intervals: the uncertainty from the choice of test images and samples."""
    base = next((record for record in records.values() if record["variant"] == study.base), None)
    parts = []
    for heading in (heading for heading in COLUMNS if heading in headings):
        name, unit, digits = COLUMNS[heading]
        metric = metric_of(base, name) if base else None
        if metric is not None and "low" in metric:
            value, low, high = (f"{unit * metric[part]:.{digits}f}" for part in ("value", "low", "high"))
            parts.append(f"{heading} {value} ({low} to {high})")
    return [f"First row, seed {base['seed']}, with 95 % intervals: {', '.join(parts)}."] if base and parts else []


def as_csv(study: Study, records: dict[str, dict[str, Any]]) -> str:
    """One line per run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [metric.rstrip("_") for metric, _, _ in COLUMNS.values()]
    writer.writerow(["run", "variant", "seed", *names, "parameters", "images_per_second", "steps", "seconds", "changed"])
    for name, record in records.items():
        values = [value_of(record, metric) for metric, _, _ in COLUMNS.values()]
        changed = "; ".join(f"{field} {now}" for field, (_, now) in record["changed"].items())
        training = record["training"]
        took = [f"{record['images_per_second']:.1f}", training["steps"], f"{training['seconds']:.1f}"]
        figures = ["" if value is None else f"{value:.6g}" for value in values]
        writer.writerow([name, record["variant"], record["seed"], *figures, record["parameters"], *took, changed])
    return text.getvalue()


def write_out(name: str, folder: Path, say: Callable[[str], None]) -> None:
    """Write the study's records, and its table as Markdown, CSV and HTML."""
    study = STUDIES[name]
    records, outdated = records_of(study, folder)
    if outdated:
        say(f"{folder / RECORDS}: {', '.join(outdated)}: recipe has changed since; kept in the records, not in the table")
    if not records:
        say(f"{folder}: no run of {name} is finished yet")
        return
    found = {
        "study": name,
        "rendered_with": environment(),
        "step_times": costs_of(study, folder),
        "runs": records,
        "outdated": outdated,
    }
    write_text(folder / RECORDS, json.dumps(found, indent=1) + "\n")
    write_text(folder / f"{name}.md", f"### {study.title}\n\n{markdown(name, found)}\n")
    write_text(folder / f"{name}.csv", as_csv(study, records))
    below = "".join(f"<p class=sub>{html.escape(text)}</p>" for text in notes(study, found))
    page = f"<h1>{html.escape(study.title)}</h1>{render.html_table(*lines_of(study, records))}{below}"
    write_text(folder / f"{name}.html", render.document(study.title, [page]))
    say(f"{folder / name}.html: {quantity(len(records), 'run')}")


def markdown(name: str, found: dict[str, Any]) -> str:
    """The table and its notes, from the content of records.json."""
    study = STUDIES[name]
    return "\n\n".join([render.as_markdown(*lines_of(study, found["runs"])), *notes(study, found)])


def notes(study: Study, found: dict[str, Any]) -> list[str]:
    """The notes below the table."""
    times = found["step_times"]
    lines = [facts(found["runs"]), *intervals(study, found["runs"]), *between_seeds(study, found["runs"])]
    if times:
        each = "; ".join(f"{study.variants[name].description}: {ratio_of_steps(times, name)}" for name in study.costs)
        lines.append(
            "Time of a joint step relative to a denoising-only step of the same batch, timed alternately in "
            f"{times['repeats']} repeats of about a second each on {render.machine_of(times)}: {each}."
        )
    return lines


def ratio_of_steps(times: dict[str, Any], name: str) -> str:
    """``1.20 times (120 and 100 ms, repeats within 3 and 5 %)``"""
    both = [times["runs"][name], times["runs"][f"{name}, images only"]]
    seconds, spreads = ([run[key] for run in both] for key in ("seconds_per_step", "spread"))
    took, within = (
        " and ".join(f"{factor * value:.0f}" for value in values) for factor, values in ((1e3, seconds), (100, spreads))
    )
    return f"{seconds[0] / seconds[1]:.2f} times ({took} ms, repeats within {within} %)"


def between_seeds(study: Study, records: dict[str, dict[str, Any]]) -> list[str]:
    """The range over the seeds of a variant; smaller differences between variants are noise."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        groups.setdefault(record["variant"], []).append(record)
    parts = []
    for own in groups.values():
        spans = []
        for heading in ("accuracy %", "Frechet distance"):
            metric, unit, digits = COLUMNS[heading]
            values = [unit * value for record in own if (value := value_of(record, metric)) is not None]
            if len(values) > 1:
                spans.append(f"{heading} {min(values):.{digits}f} to {max(values):.{digits}f}")
        if spans:
            parts.append(f"{description_of(study, own[0])}: {', '.join(spans)}")
    return [f"Range over seeds: {'; '.join(parts)}."] if parts else []


def runs_of(name: str, only: set[str], seeds: list[int]) -> list[Run]:
    """The runs of a study, or only those of the variants in ``only``.

    Raises:
        ConfigError: a variant is unknown.
    """
    study = STUDIES[name]
    for variant in only - set(study.variants):
        near = did_you_mean(variant, list(study.variants))
        raise ConfigError(
            f"--runs: {variant!r} is not a recipe of {name}{near} (`hybvit reproduce {name} --dry-run` lists them)"
        )
    return [Run(v, seed) for seed in seeds for v in study.variants.values() if not only or v.name in only]


def dry_run(plan: Plan) -> None:
    print(f"{'run':<28}{'parameters':>12}{'GFLOP/step':>14}{'steps':>8}  state")
    for run in plan.runs:
        cfg, kept = recipe(run.variant, run.seed, plan.fields), plan.folder / run.name / BUDGET
        price = cost(cfg)
        steps = read_json(kept, "steps")["steps"] if kept.is_file() else None
        state = "not started" if steps is None else state_of(kept.parent, cut(cfg, steps, run.variant.fixed)).describe()
        print(f"{run.name:<28}{price.parameters:>12,}{price.train_gflop_per_step:>14.1f}{steps or '':>8}  {state}")
    hours = len(plan.runs) * plan.minutes / 60
    print(
        f"{plan.name}: {quantity(len(plan.runs), 'run')} of {plan.minutes:.4g} min, {hours:.1f} hours of training, "
        "plus trials and evaluation"
    )


def announce_runs(plan: Plan) -> None:
    """Say how long the trainings that are left may take, by their budget."""
    left = 0
    for run in plan.runs:
        cfg, kept = recipe(run.variant, run.seed, plan.fields), plan.folder / run.name / BUDGET
        steps = read_json(kept, "steps")["steps"] if kept.is_file() else None
        left += steps is None or not state_of(kept.parent, cut(cfg, steps, run.variant.fixed)).trained
    line = forecast(60 * plan.minutes * left, None)
    if line is not None:
        tell(f"{line} for training, plus trials and evaluation")


def run_study(plan: Plan, alone: bool, only_render: bool, say: Callable[[str], None]) -> None:
    """Carry out a study.

    Args:
        alone: whether no other process works on it, so that steps can be timed.

    Raises:
        Interrupted: finished work is kept.
        ConfigError, DataError, CheckpointError: the error of the first failed run, raised after the other runs.
    """
    study = STUDIES[plan.name]
    own = study.variants[study.base].config.data.name in OWN_IMAGES
    if own and not only_render and "data.root" not in fields_in(plan.fields):
        raise ConfigError(f"{plan.name} trains on your own images: give --data.root DIR, with a sub-folder per class")
    make_folder(plan.folder)
    failed = list[Exception]()
    try:
        if not only_render:
            announce_runs(plan)
            if not alone:
                say("budgets assume one process per machine, and shards do not time steps: repeat without --shard")
            if alone:
                time_steps(study, plan.fields, plan.folder, say)
            failed = run_job(plan, say)
        write_out(plan.name, plan.folder, say)
    except KeyboardInterrupt:
        raise Interrupted(f"{plan.folder}: interrupted; finished work is kept, the same command resumes") from None
    if failed:
        raise failed[0]
