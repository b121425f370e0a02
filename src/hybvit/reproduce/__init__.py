"""`hybvit reproduce table1 ... figure24 | all`: every table and figure of the paper, trained, evaluated and rendered."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..arguments import ArgumentParser
from ..cost import cost
from ..data.images import save_image
from ..errors import ConfigError
from ..recipes import PRESETS
from ..report import STYLE, figure
from ..run_folder import environment, make_folder, write_text
from . import figures, render, timing
from .runs import Need, attempt, configuration, record_of, share_of, state_of
from .scales import SCALES, Scale
from .tables import FIGURES, NAMES, TIMED, rows, runs_of, suites_of
from .tables import table as table_of

TIMING, RECORDS = "timing.json", "records.json"


def names_of(words: list[str]) -> list[str]:
    """Tables and figures by name; ``all`` stands for every one.

    Raises:
        ConfigError: there is no such table or figure.
    """
    for word in words:
        if word not in (*NAMES, "all"):
            raise ConfigError(f"{word!r} is no table or figure: table1 to table13, figure1, figure4 to figure24, or all")
    return [name for name in NAMES if name in words or "all" in words]


def plan(names: list[str], scale: Scale, only: set[str], fields: list[str]) -> tuple[list[Need], dict[str, str]]:
    """What has to be trained and measured, and the presets that this scale has nothing for, with the reason."""
    suites: dict[str, list[str]] = {}
    snapshots = set()
    for name in names:
        for run in runs_of(name):
            suites.setdefault(run, []).extend(suites_of(name))
            if name in FIGURES and FIGURES[name].snapshots:
                snapshots.add(run)
    needs, missing = [], {}
    for run, wanted in suites.items():
        if only and run not in only:
            continue
        cfg = configuration(run, scale, fields)
        if cfg is None:
            missing[run] = f"the {scale.name} scale has no data in place of {PRESETS[run].config.data.name}"
        else:
            needs.append(Need(run, cfg, tuple(dict.fromkeys(wanted)), run in snapshots))
    return needs, missing


def timed_runs(names: list[str], scale: Scale, only: set[str], fields: list[str]) -> dict[str, Any]:
    """The configurations whose training steps are timed, for the tables that ask for minutes or hours."""
    found = {}
    for name in names:
        if name not in FIGURES and set(TIMED) & set(table_of(name, scale).columns):
            for row in rows(name):
                cfg = configuration(row.run, scale, fields) if row.run and (not only or row.run in only) else None
                if cfg is not None and row.run is not None:
                    found[row.run] = cfg
    return found


def dry_run(needs: list[Need], missing: dict[str, str], timed: dict[str, Any], folder: Path, scale: Scale) -> None:
    where, speed = scale.device
    total, left = 0.0, 0.0
    print(f"{'run':<28}{'parameters':>12}{'steps':>10}{'EFLOP':>10}{'hours':>9}  state")
    for need in needs:
        price, state = cost(need.cfg), state_of(folder / need.run, need.cfg)
        hours = price.total_eflop * 1e18 / speed / 3600
        total += hours
        left += 0.0 if state.trained else hours * (1 - state.done / state.steps)
        print(
            f"{need.run:<28}{price.parameters:>12,}{need.cfg.train.steps:>10,}{price.total_eflop:>10.3g}{hours:>9.2f}  "
            f"{state.words()}; measured: {', '.join(state.measured) or 'nothing'}"
        )
    for run, reason in missing.items():
        print(f"{run:<28}left out: {reason}")
    if timed:
        print(f"timed side by side: {', '.join(timed)}")
    print(f"{len(needs)} runs, {total:.1f} hours of training on {where} at {speed:.2g} FLOP/s, {left:.1f} of them still to do")


def stored_timings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / TIMING).read_text()) if (folder / TIMING).is_file() else {"runs": {}}


def collect(folder: Path, scale: Scale, fields: list[str]) -> dict[str, dict[str, Any]]:
    """The records of all runs that are there, with what their steps take where that was measured."""
    timings = stored_timings(folder)
    found: dict[str, dict[str, Any]] = {}
    for run in PRESETS:
        cfg = configuration(run, scale, fields)
        record = record_of(run, folder / run, cfg) if cfg is not None else None
        took = timings["runs"].get(run)
        if took is not None:
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
) -> None:
    """records.json, a Markdown file, a CSV file and a drawing per table, the figures, and index.html with everything."""
    write_text(folder / RECORDS, json.dumps({"scale": scale.name, "runs": records}, indent=1) + "\n")
    page = [
        f"<h1>The paper's tables and figures, {html.escape(scale.name)} scale</h1><p class=sub>{html.escape(scale.words)}</p>"
    ]
    configs = {run: cfg for run in PRESETS if (cfg := configuration(run, scale, fields)) is not None}
    written = 0
    for name in names:
        if name in FIGURES:
            pictures = figures.draw(name, folder, configs, records, scale)
            paths = [save_drawn(picture, folder / "figures" / stem) for stem, picture in pictures.items()]
            if paths:
                shown = "".join(figure(path, path.stem) for path in paths)
                number = name.removeprefix("figure")
                page.append(
                    f"<h2 id={name}>Figure {number}. {html.escape(FIGURES[name].title)}</h2><div class=row>{shown}</div>"
                )
            written += len(paths)
            continue
        write_text(folder / f"{name}.md", render.markdown(name, records, scale))
        write_text(folder / f"{name}.csv", render.as_csv(name, records, scale))
        section = render.as_html(name, records, scale)
        drawn = render.drawing(name, records, scale)
        if drawn is not None:
            write_text(folder / f"{name}.svg", drawn)
            section += figure(folder / f"{name}.svg", "published (hollow) and ours (filled, with its 95 % interval)")
        write_text(folder / f"{name}.html", document(f"{name}, {scale.name}", [section]))
        page.append(section)
        written += 1
    facts = ", ".join(f"{key} {value}" for key, value in environment().items())
    seeds = sorted({record["seed"] for record in records.values() if "seed" in record})
    hours = sum(record.get("training", {}).get("seconds", 0) for record in records.values()) / 3600
    page.append(f"<p class=sub>Seeds {seeds}; {hours:.1f} hours of training; rendered with {html.escape(facts)}.</p>")
    write_text(folder / "index.html", document(f"hybvit, {scale.name} scale", page))
    say(f"{folder / 'index.html'}: {written} tables and pictures from {len(records)} runs")


def document(title: str, sections: list[str]) -> str:
    head = '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
    return f"{head}<title>{html.escape(title)}</title><style>{STYLE}</style><body>{''.join(sections)}</body></html>\n"


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


def say_at_once(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(
        prog="hybvit reproduce",
        usage="hybvit reproduce NAME ... [--scale pocket|full] [--out DIR] [--dry-run] [--shard i/n] [--any.field VALUE ...]",
        description="Train what a table or figure of the paper needs, evaluate it and render it beside the published figures. "
        "The same command again goes on where it stopped; several with other --shard share the work and the folder.",
        epilog="a field such as --train.seed 1 is set in every run; choose another --out for other settings",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="table1 to table13, figure1, figure4 to figure24, or all")
    parser.add_argument(
        "--scale", choices=tuple(SCALES), default="pocket", help="; ".join(f"{s.name}: {s.words}" for s in SCALES.values())
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/paper"), metavar="DIR", help="where runs and results are (runs/paper)"
    )
    parser.add_argument("--runs", metavar="A,B", help="only these presets of the rows")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="do the i-th of n equal parts of the work")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its cost, and what is there already")
    parser.add_argument("--render", action="store_true", help="only render what is there")
    parser.add_argument(
        "--look",
        action="append",
        default=[],
        metavar="'--OPTION VALUE'",
        help="options for `hybvit evaluate`, over the scale's",
    )
    args, fields = parser.parse_known_args(arguments)
    scale, names = SCALES[args.scale], names_of(args.names)
    only = set(filter(None, (args.runs or "").split(",")))
    for run in only - set(PRESETS):
        raise ConfigError(f"--runs: {run!r} is no preset (`hybvit presets` lists them)")
    shard, shards = shard_of(args.shard)
    folder = args.out / scale.name
    looks = [word for look in args.look for word in look.split()]
    needs, missing = plan(names, scale, only, fields)
    timed = timed_runs(names, scale, only, fields)
    if args.dry_run:
        dry_run(needs, missing, timed, folder, scale)
        return
    make_folder(folder)
    stopped = {}
    if not args.render:
        mine = share_of(needs, shard, shards)
        known = stored_timings(folder)["runs"]
        if shard == 0 and set(timed) - set(known):
            # all of them anew: only what was measured in one go can be compared
            together = {run: cfg for run in {**known, **timed} if (cfg := configuration(run, scale, fields)) is not None}
            say_at_once(f"timing {len(together)} systems side by side ...")
            write_text(folder / TIMING, json.dumps(timing.measure(together, say_at_once), indent=1) + "\n")
        for place, need in enumerate(mine, 1):
            say_at_once(f"[{place}/{len(mine)}] {need.run}: {state_of(folder / need.run, need.cfg).words()}")
            reason = attempt(need, folder / need.run, scale, looks, say_at_once)
            if reason is not None:
                stopped[need.run] = reason
                say_at_once(f"{need.run}: left out, {reason}")
    for run, reason in missing.items():
        say_at_once(f"{run}: left out, {reason}")
    write_out(names, folder, scale, fields, collect(folder, scale, fields), say_at_once)
    if stopped:
        raise ConfigError(f"{len(stopped)} of the runs could not be done: {'; '.join(stopped.values())}")
