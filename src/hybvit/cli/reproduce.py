"""`hybvit reproduce table1 ... figure24 | all`: every table and figure of the paper, trained, evaluated and rendered."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from ..distributed import is_alone
from ..errors import ConfigError, Interrupted, did_you_mean
from ..evaluation.options import Options
from ..presets import PRESETS
from ..reproduce import studies
from ..reproduce.pages import write_out
from ..reproduce.runs import share_of
from ..reproduce.scales import SCALES
from ..reproduce.tables import NAMES
from ..reproduce.work import announce_jobs, check_started, collect, dry_run, plan, prepare, raise_worst, run_jobs
from ..storage import make_folder
from ..training.loop import say_at_once
from .arguments import ArgumentParser, path
from .evaluate import parse_options
from .next_step import suggest

MOST_MINUTES = 1e6  # of a training
DRAWINGS = ("figure2", "figure3", "figure7", "figure9")


def names_of(words: list[str]) -> list[str]:
    """The names of tables and figures, in order; ``all`` selects every one.

    Raises:
        ConfigError: a table or figure is unknown.
    """
    for word in words:
        if word in DRAWINGS:
            raise ConfigError(f"{word}: what it shows is a drawing, or not said in the paper's text: choose another figure")
        if word not in (*NAMES, "all"):
            known = (
                f"table1 to table13, figure1, figure4 to figure24 except 7 and 9, all; studies: {', '.join(studies.STUDIES)}"
            )
            others = [*NAMES, "all", *studies.STUDIES]
            raise ConfigError(f"{word!r} is not a table, figure or study{did_you_mean(word, others)} ({known})")
    return [name for name in NAMES if name in words or "all" in words]


def shard_of(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard {text}: it must be i/n with i from 1 to n, such as 1/2")
    return int(found[1]) - 1, int(found[2])


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit reproduce",
        usage="hybvit reproduce NAME ... [--scale pocket|cifar|full] [--out DIR] [--dry-run] [--shard i/n] [--FIELD VALUE ...]",
        description="Train the runs behind a table or figure of the paper, evaluate them, and render them beside the published "
        "figures. The same command resumes an interrupted reproduction. Processes with different --shard share the work and "
        "the folder, on several machines or several GPUs (CUDA_VISIBLE_DEVICES=0 hybvit reproduce all --shard 1/2, ...).",
        epilog="a field such as --optim.lr 1e-3 applies to every run; choose another --out for other settings",
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help="table1 to table13, figure1, figure4 to figure24 without 7 and 9, figure8b, or all; or one study: ablation "
        "(what each choice of the v2 recipe contributes), v2 (v2 against the paper's recipe, and the cost of being hybrid), "
        "cifar10 (the same on CIFAR-10), cifar10_trials (the choices of v2 on CIFAR-10), own_images (the preset for your own "
        "images, on those of --data.root DIR), few_labels (1 %% of the labels of Fashion-MNIST; more with --runs "
        "few,labels_only --data.labelled 0.1) or few_labels_digits (3 %% of those of "
        "scikit-learn's digits)",
    )
    scales = "; ".join(f"{scale.name}: {scale.description}" for scale in SCALES.values())
    minutes = ", ".join(f"{name}: {study.minutes:.3g}" for name, study in studies.STUDIES.items())
    parser.add_argument("--scale", choices=tuple(SCALES), default="pocket", help=f"{scales} (pocket)")
    parser.add_argument(
        "--out", type=path, default=Path("runs/paper"), metavar="DIR", help="folder for all runs and results (runs/paper)"
    )
    parser.add_argument("--runs", metavar="A,B", help="only these presets, or these recipes of a study")
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="do the i-th of n parts of the work")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its cost and the progress so far")
    parser.add_argument("--render", action="store_true", help="only render the existing results")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help=f"training time of each run of a study ({minutes})")
    parser.add_argument("--seeds", metavar="0,1", help="seeds of the runs of a study (0)")
    parser.add_argument(
        "--look",
        action="append",
        default=[],
        metavar="'--OPTION VALUE'",
        help="options of `hybvit evaluate` that replace the scale's",
    )
    return parser


def main(arguments: list[str]) -> None:
    args, fields = build_parser().parse_known_args(arguments)
    if not is_alone():  # each would train another row, and wait for the others in it
        raise ConfigError(
            "reproduce: WORLD_SIZE says that several processes were started; start one without torchrun, or one for each GPU: "
            "with CUDA_VISIBLE_DEVICES=0 and --shard 1/2, with CUDA_VISIBLE_DEVICES=1 and --shard 2/2"
        )
    overrides = overrides_of(args.look)
    if set(args.names) & set(studies.STUDIES):
        run_study(args, fields, overrides)
        if args.dry_run:
            suggest("reproduce --dry-run", arguments=[word for word in arguments if word != "--dry-run"])
        return
    if args.budget is not None or args.seeds is not None:
        raise ConfigError(f"--budget and --seeds are for {', '.join(studies.STUDIES)}: leave them out for tables and figures")
    scale, names = SCALES[args.scale], names_of(args.names)
    only = set(filter(None, (args.runs or "").split(",")))
    for run in only - set(PRESETS):
        raise ConfigError(f"--runs: {run!r} is not a preset{did_you_mean(run, list(PRESETS))} (`hybvit presets` lists them)")
    shard, shards = shard_of(args.shard)
    folder = args.out / scale.name
    work = plan(names, scale, only, fields)
    mine = share_of(work.jobs, shard, shards)
    if args.dry_run:
        dry_run(work, mine, folder, scale, overrides)
        suggest("reproduce --dry-run", arguments=[word for word in arguments if word != "--dry-run"])
        return
    check_started(folder, scale, fields)
    make_folder(folder)
    failures: dict[str, list[Exception]] = {}
    try:
        if not args.render:
            announce_jobs(mine, folder, scale, overrides)
            prepare(work, folder, scale, fields, shards)
            failures = run_jobs(mine, folder, scale, overrides, say_at_once)
        for run, reason in work.missing.items():
            say_at_once(f"{run}: left out, {reason}")
        failures["figures"] = write_out(names, folder, scale, fields, collect(folder, scale, fields), say_at_once)
    except KeyboardInterrupt:
        raise Interrupted(f"{folder}: interrupted; finished work is kept, the same command resumes") from None
    raise_worst(failures)
    if scale.name == "pocket":
        suggest("reproduce", names=names)


def overrides_of(words: list[str]) -> dict[str, Any]:
    """The evaluation options given by --look, checked here so that an error shows before hours of training.

    Raises:
        ConfigError: an option is invalid.
    """
    try:
        split = [word for look in words for word in shlex.split(look)]
    except ValueError as error:
        raise ConfigError(f"--look {' '.join(words)}: {error}") from None
    overrides = parse_options(split, "hybvit evaluate")
    Options(**overrides)
    return overrides


def run_study(args: argparse.Namespace, fields: list[str], overrides: dict[str, Any]) -> None:
    """Carry out a study.

    Raises:
        ConfigError: an argument is invalid for a study.
    """
    name, *others = args.names
    if others or args.scale != "pocket":
        what = f"--scale {args.scale}" if args.scale != "pocket" else " ".join(others)
        raise ConfigError(f"{', '.join(studies.STUDIES)} run one at a time and at pocket scale: leave out {what}")
    seeds = (args.seeds or "0").split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise ConfigError(f"--seeds {args.seeds}: it must be comma-separated integers, such as 0,1")
    if args.budget is not None and not 0 < args.budget <= MOST_MINUTES:
        raise ConfigError(f"--budget {args.budget:g}: it must be more than 0 minutes, and at most {MOST_MINUTES:g}")
    shard, shards = shard_of(args.shard)
    runs = studies.runs_of(name, set(filter(None, (args.runs or "").split(","))), [int(seed) for seed in seeds])[shard::shards]
    studies.check_fields(studies.STUDIES[name], runs, fields)
    minutes = studies.STUDIES[name].minutes if args.budget is None else args.budget
    asked = studies.Plan(name, args.out / args.scale / name, runs, fields, minutes, overrides)
    if args.dry_run:
        studies.dry_run(asked)
    else:
        studies.run_study(asked, shards == 1, args.render, say_at_once)
