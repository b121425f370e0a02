"""`hybvit reproduce table1 ... figure24 | all`: every table and figure of the paper, trained, evaluated and rendered."""

from __future__ import annotations

import argparse
import html
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..arguments import ArgumentParser
from ..config import Config, did_you_mean
from ..cost import cost
from ..data.images import save_image
from ..errors import ConfigError, DataError, Interrupted
from ..evaluation.options import Options, parse_options
from ..extractors import extractor
from ..recipes import PRESETS
from ..report import figure
from ..run_folder import environment, make_folder, write_text
from ..train import say_at_once
from . import figures, render, studies, timing
from .runs import (
    USERS_FAULTS,
    Need,
    attempt,
    configuration,
    evaluation_eflop,
    home_of,
    record_of,
    share_of,
    state_of,
)
from .scales import SCALES, Scale
from .tables import FIGURES, NAMES, TIMED, rows, runs_of, suites_of
from .tables import table as table_of

RECORDS = "records.json"
DRAWINGS = ("figure2", "figure3", "figure7", "figure9")


def names_of(words: list[str]) -> list[str]:
    """Tables and figures by name; ``all`` stands for every one.

    Raises:
        ConfigError: there is no such table or figure.
    """
    for word in words:
        if word in DRAWINGS:
            raise ConfigError(f"{word} is a drawing of the network in the paper: there is nothing to reproduce")
        if word not in (*NAMES, "all"):
            known = "table1 to table13, figure1, figure4 to figure24 without 7 and 9, all; or ablation or v2 alone"
            others = [*NAMES, "all", *studies.STUDIES]
            raise ConfigError(f"{word!r} is no table, figure or study{did_you_mean(word, others)} ({known})")
    return [name for name in NAMES if name in words or "all" in words]


class Work(NamedTuple):
    """What is asked for: runs to train and measure, runs whose steps are timed, and presets without data, with the reason."""

    needs: list[Need]
    timed: dict[str, Config]
    missing: dict[str, str]


def plan(names: list[str], scale: Scale, only: set[str], fields: list[str]) -> Work:
    """
    Raises:
        ConfigError: ``only`` names a preset that no table or figure of ``names`` needs.
    """
    suites, snapshots, timed, missing = dict[str, list[str]](), set[str](), dict[str, Config](), dict[str, str]()
    for name in names:
        for run in runs_of(name):
            suites.setdefault(run, []).extend(suites_of(name))
            if name in FIGURES and FIGURES[name].snapshots:
                snapshots.add(home_of(run, scale))
        if name not in FIGURES and set(TIMED) & set(table_of(name, scale).columns):
            for row in rows(name):
                cfg = configuration(row.run, scale, fields) if row.run and (not only or row.run in only) else None
                if cfg is not None and row.run is not None:
                    timed[row.run] = cfg
    for run in only - set(suites) - set(timed):
        raise ConfigError(f"--runs: {run} stands behind none of {', '.join(names)}")
    needs = dict[str, Need]()
    for run, wanted in suites.items():
        if only and run not in only:
            continue
        home = home_of(run, scale)
        cfg = configuration(home, scale, fields, home in snapshots)
        if cfg is None:
            missing[run] = f"the {scale.name} scale has no data in place of {PRESETS[run].config.data.name}"
            continue
        known = needs[home].suites if home in needs else ()
        needs[home] = Need(home, cfg, tuple(dict.fromkeys((*known, *wanted))), home in snapshots)
    return Work(list(needs.values()), timed, missing)


def dry_run(work: Work, mine: list[Need], folder: Path, scale: Scale) -> None:
    total = left = measuring = 0.0
    print(f"{'run':<30}{'parameters':>12}{'steps':>10}{'PFLOP':>10}{'training':>10}{'measuring':>11}  state")
    for need in mine:
        price, state = cost(need.cfg), state_of(folder / need.run, need.cfg)
        hours, after = scale.hours(need.cfg), evaluation_eflop(need, scale) * 1e18 / scale.speed / 3600
        total, measuring = total + hours, measuring + after
        left += 0.0 if state.trained else hours * (1 - state.done / state.steps)
        print(
            f"{need.run:<30}{price.parameters:>12,}{need.cfg.train.steps:>10,}{1e3 * price.total_eflop:>10.3g}"
            f"{in_hours(hours):>10}{in_hours(after):>11}  {state.words()}; measured: {', '.join(state.measured) or 'nothing'}"
        )
    if work.timed:
        print(f"timed side by side: {', '.join(work.timed)}")
    for run, reason in work.missing.items():
        print(f"left out: {run}, {reason}")
    print(
        f"{len(mine)} runs, {total:.1f} hours of training on {scale.machine}, {left:.1f} of them still to do; about "
        f"{measuring:.1f} hours to measure them all, accuracy, calibration and out-of-distribution scores not counted"
    )


def in_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def take_times(timed: dict[str, Config], folder: Path, scale: Scale, fields: list[str], say: Callable[[str], None]) -> None:
    """Time the steps of what is not timed yet, with everything that is: only what was measured in one go can be compared."""
    known = timing.stored(folder)
    if timing.covers(known, timed):
        return
    together = {run: cfg for run in {**known["runs"], **timed} if (cfg := configuration(run, scale, fields)) is not None}
    say(f"timing {len(together)} systems side by side ...")
    write_text(folder / timing.FILE, json.dumps(timing.measure(together, say), indent=1) + "\n")


def collect(folder: Path, scale: Scale, fields: list[str]) -> dict[str, dict[str, Any]]:
    """The records of all runs that are there, with what their steps take where that was measured.

    Raises:
        ConfigError: a run was started with other settings than ``fields`` say.
    """
    timings = timing.stored(folder)
    found: dict[str, dict[str, Any]] = {}
    for run in PRESETS:
        cfg = configuration(run, scale, fields)
        record = record_of(run, folder / home_of(run, scale), cfg) if cfg is not None else None
        took = timings["runs"].get(run)
        if took is not None and cfg is not None and timing.covers(timings, {run: cfg}):
            record = record or {"parameters": took["parameters"], "metrics": {}, "snapshots": {}}
            record["timing"] = took | {"environment": timings["environment"]}
        if record is not None:
            found[run] = record
    return found


def write_out(
    names: list[str],
    folder: Path,
    scale: Scale,
    fields: list[str],
    records: dict[str, dict[str, Any]],
    say: Callable[[str], None],
) -> list[Exception]:
    """records.json, a Markdown file, a CSV file and a drawing per table, the figures, and index.html with these and all that
    earlier calls made -> what could not be drawn."""
    write_text(folder / RECORDS, json.dumps({"scale": scale.name, "runs": records}, indent=1) + "\n")
    page = [
        f"<h1>The paper's tables and figures, {html.escape(scale.name)} scale</h1><p class=sub>{html.escape(scale.words)}</p>"
    ]
    configs = {run: cfg for run in PRESETS if (cfg := configuration(run, scale, fields)) is not None}
    homes = {run: folder / home_of(run, scale) for run in configs}
    written, failed = 0, list[Exception]()
    for name in NAMES:
        earlier = (folder / f"{name}.md").is_file() or any((folder / "figures").glob(f"{name}[._]*"))
        if name not in names and not earlier:
            continue
        if name not in FIGURES:
            page.append(write_table(name, folder, scale, records))
            written += 1
            continue
        try:
            pictures = figures.draw(name, homes, configs, records, scale)
        except (ConfigError, DataError) as error:
            failed.append(error)
            say(f"{name}: left out, {error}")
            continue
        paths = save_figure(name, pictures, folder / "figures")
        if paths:
            page.append(figure_section(name, paths, render.verdicts(name, records, scale)))
        written += len(paths)
    page.append(footer(records))
    write_text(folder / "index.html", render.document(f"hybvit, {scale.name} scale", page))
    say(f"{folder / 'index.html'}: {written} tables and pictures from {len(records)} runs")
    return failed


def write_table(name: str, folder: Path, scale: Scale, records: dict[str, dict[str, Any]]) -> str:
    """A table as Markdown, CSV, a drawing and a page of its own -> its section of the common page."""
    write_text(folder / f"{name}.md", render.markdown(name, records, scale))
    write_text(folder / f"{name}.csv", render.as_csv(name, records, scale))
    section = render.as_html(name, records, scale)
    drawn = render.drawing(name, records, scale)
    if drawn is not None:
        write_text(folder / f"{name}.svg", drawn)
        section += figure(folder / f"{name}.svg", "published (hollow) and ours (filled, with its 95 % interval)")
    write_text(folder / f"{name}.html", render.document(f"{name}, {scale.name}", [section]))
    return section


def save_figure(name: str, pictures: dict[str, figures.Drawn], folder: Path) -> list[Path]:
    """The pictures of a figure in place of those that an earlier call drew."""
    for old in folder.glob(f"{name}[._]*"):
        old.unlink()
    return [save_drawn(picture, folder / stem) for stem, picture in pictures.items()]


def figure_section(name: str, paths: list[Path], verdicts: list[list[str]]) -> str:
    shown = "".join(figure(path, path.stem) for path in paths)
    number, title = name.removeprefix("figure"), html.escape(FIGURES[name].title)
    section = f"<h2 id={name}>Figure {number}. {title}</h2><div class=row>{shown}</div>"
    return section + (render.html_table(render.SAYS, verdicts) if verdicts else "")


def footer(records: dict[str, dict[str, Any]]) -> str:
    """What all of it rests on."""
    facts = ", ".join(f"{key} {value}" for key, value in environment().items())
    seeds = sorted({record["seed"] for record in records.values() if "seed" in record})
    hours = sum(record.get("training", {}).get("seconds", 0) for record in records.values()) / 3600
    return f"<p class=sub>Seeds {seeds}; {hours:.1f} hours of training; rendered with {html.escape(facts)}.</p>"


def save_drawn(picture: figures.Drawn, stem: Path) -> Path:
    make_folder(stem.parent)
    if isinstance(picture, Image.Image):
        save_image(picture, stem.with_name(f"{stem.name}.png"))
        return stem.with_name(f"{stem.name}.png")
    write_text(stem.with_name(f"{stem.name}.svg"), picture)
    return stem.with_name(f"{stem.name}.svg")


def shard_of(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard {text}: it must be i/n with i from 1 to n, such as 1/2")
    return int(found[1]) - 1, int(found[2])


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit reproduce",
        usage="hybvit reproduce NAME ... [--scale pocket|full] [--out DIR] [--dry-run] [--shard i/n] [--any.field VALUE ...]",
        description="Train what a table or figure of the paper needs, evaluate it and render it beside the published figures. "
        "The same command again goes on where it stopped; several with other --shard share the work and the folder, on "
        "several machines or on several GPUs of one (CUDA_VISIBLE_DEVICES=0 hybvit reproduce all --shard 1/2 and so on).",
        epilog="a field such as --optim.lr 1e-3 is set in every run; choose another --out for other settings",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="table1 to table13, figure1, figure4 to figure24, or all; or one study of ours: ablation (what each choice of the "
        "v2 recipe brings) or v2 (the paper's recipe against it, and what being hybrid costs)",
    )
    words = "; ".join(f"{scale.name}: {scale.words}" for scale in SCALES.values())
    minutes = ", ".join(f"{name}: {study.minutes:.3g}" for name, study in studies.STUDIES.items())
    parser.add_argument("--scale", choices=tuple(SCALES), default="pocket", help=words)
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), metavar="DIR", help="where all is kept (runs/paper)")
    parser.add_argument("--runs", metavar="A,B", help="only these presets of the rows, or recipes of the study")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="do the i-th of n equal parts of the work")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its cost, and what is there already")
    parser.add_argument("--render", action="store_true", help="only render what is there")
    parser.add_argument(
        "--budget", type=float, metavar="MINUTES", help=f"of a study: the training time of each of its runs ({minutes})"
    )
    parser.add_argument("--seeds", metavar="0,1", help="of a study: the seeds of its runs (0)")
    parser.add_argument(
        "--look",
        action="append",
        default=[],
        metavar="'--OPTION VALUE'",
        help="options for `hybvit evaluate`, over the scale's",
    )
    return parser


def main(arguments: list[str]) -> None:
    args, fields = build_parser().parse_known_args(arguments)
    overrides = overrides_of(args.look)
    if set(args.names) & set(studies.STUDIES):
        carry_out_study(args, fields, overrides)
        return
    if args.budget is not None or args.seeds is not None:
        raise ConfigError(
            f"--budget and --seeds are for {' and '.join(studies.STUDIES)}: a table's rows have steps of their own"
        )
    scale, names = SCALES[args.scale], names_of(args.names)
    only = set(filter(None, (args.runs or "").split(",")))
    for run in only - set(PRESETS):
        raise ConfigError(f"--runs: {run!r} is no preset{did_you_mean(run, list(PRESETS))} (`hybvit presets` lists them)")
    shard, shards = shard_of(args.shard)
    folder = args.out / scale.name
    work = plan(names, scale, only, fields)
    mine = share_of(work.needs, shard, shards)
    if args.dry_run:
        dry_run(work, mine, folder, scale)
        return
    make_folder(folder)
    faults: dict[str, list[Exception]] = {}
    try:
        if not args.render:
            prepare(work, folder, scale, fields, shards)
            faults = run_jobs(mine, folder, scale, overrides, say_at_once)
        for run, reason in work.missing.items():
            say_at_once(f"{run}: left out, {reason}")
        faults["figures"] = write_out(names, folder, scale, fields, collect(folder, scale, fields), say_at_once)
    except KeyboardInterrupt:
        raise Interrupted(f"{folder}: interrupted; what is done is kept, the same command goes on") from None
    raise_worst(faults)


def prepare(work: Work, folder: Path, scale: Scale, fields: list[str], shards: int) -> None:
    """What comes before the trainings: the Inception weights, and the times of steps while nothing else is at work."""
    if scale.name == "full":
        say_whether_fid_can_be_had(say_at_once)
    if work.timed and shards > 1:
        say_at_once("steps are not timed while others work beside: run these tables once more without --shard")
    elif work.timed:
        take_times(work.timed, folder, scale, fields, say_at_once)


def run_jobs(
    mine: list[Need], folder: Path, scale: Scale, overrides: dict[str, Any], say: Callable[[str], None]
) -> dict[str, list[Exception]]:
    """Train and measure every run -> what each of them met."""
    faults: dict[str, list[Exception]] = {}
    for place, need in enumerate(mine, 1):
        say(f"[{place}/{len(mine)}] {need.run}: {state_of(folder / need.run, need.cfg).words()}")
        faults[need.run] = attempt(need, folder / need.run, scale, overrides, say)
        for fault in faults[need.run]:
            say(f"{need.run}: left out, {fault}")
    return faults


def raise_worst(faults: dict[str, list[Exception]]) -> None:
    """One error of the worst kind that names all faults, if there are any."""
    met = [(run, fault) for run, found in faults.items() for fault in found]
    if met:
        worst = next(kind for kind in USERS_FAULTS if any(isinstance(fault, kind) for _, fault in met))
        raise worst(f"{len(met)} parts could not be done: " + "; ".join(f"{run}: {fault}" for run, fault in met))


def overrides_of(words: list[str]) -> dict[str, Any]:
    """The evaluation options given by --look.

    Raises:
        ConfigError: one is wrong: that is to be seen before hours of training.
    """
    overrides = parse_options([word for look in words for word in shlex.split(look)], "hybvit evaluate")
    Options(**overrides)
    return overrides


def carry_out_study(args: argparse.Namespace, fields: list[str], overrides: dict[str, Any]) -> None:
    """
    Raises:
        ConfigError: an argument does not go with a study.
    """
    name, *others = args.names
    if others or args.scale != "pocket":
        what = f"--scale {args.scale}" if args.scale != "pocket" else " ".join(others)
        raise ConfigError(
            f"{' and '.join(studies.STUDIES)} are done one at a time and at pocket scale; {what} does not go with them"
        )
    seeds = (args.seeds or "0").split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise ConfigError(f"--seeds {args.seeds}: whole numbers with commas between them, such as 0,1")
    if args.budget is not None and not args.budget > 0:
        raise ConfigError(f"--budget {args.budget:g}: minutes, more than 0")
    shard, shards = shard_of(args.shard)
    runs = studies.runs_of(name, set(filter(None, (args.runs or "").split(","))), [int(seed) for seed in seeds])[shard::shards]
    studies.check_fields(studies.STUDIES[name], runs, fields)
    minutes = studies.STUDIES[name].minutes if args.budget is None else args.budget
    asked = studies.Plan(name, args.out / args.scale / name, runs, fields, minutes, overrides)
    if args.dry_run:
        studies.dry_run(asked)
    else:
        studies.run_study(asked, shards == 1, args.render, say_at_once)


def say_whether_fid_can_be_had(say: Callable[[str], None]) -> None:
    """Fetch the Inception weights once, before hours of training; without them everything else is measured all the same."""
    try:
        extractor("inception", "cifar10")
    except (ConfigError, DataError) as error:
        say(f"FID and the Inception score will be empty: {error}")
