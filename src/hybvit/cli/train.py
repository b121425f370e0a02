"""`hybvit train PRESET`: train a preset, or resume an interrupted run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import checkpoint
from ..config import Config, field_help, fields_in, parse, without_effect
from ..data.locate import locate
from ..distributed import is_alone, is_first
from ..errors import ConfigError, Interrupted
from ..presets import PRESETS, preset
from ..training.loop import say_at_once, train
from .arguments import ArgumentParser, location, path
from .next_step import data_options, suggest

A_TRAINING = 100  # steps; fewer are a try


def build_parser(base: Config | None = None) -> ArgumentParser:
    """The parser, whose help lists the fields with the values of ``base``."""
    parser = ArgumentParser(
        prog="hybvit train",
        usage="hybvit train PRESET [--objective KIND] [--data DIR] [--out DIR] [--any.nested.field VALUE ...]",
        description="Train a preset. The same command resumes an interrupted run.",
        epilog=f"fields, with the values of the preset:\n{field_help(base or Config())}",
    )
    parser.add_argument("preset", metavar="PRESET", help="`hybvit presets` lists them")
    parser.add_argument(
        "--objective", choices=("vit", "genvit", "hybvit"), help="classification only, generation only, or both"
    )
    parser.add_argument(
        "--data",
        type=location,
        metavar="DIR",
        help="your images: a folder with one sub-folder per class (no sub-folders with --objective genvit), a CSV or JSONL "
        "manifest, a parquet file, hf://OWNER/NAME or tar shards; or the folder that holds the preset's own data set",
    )
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="run folder (runs/PRESET, with the objective after it where that is not hybvit)"
    )
    return parser


def main(arguments: list[str]) -> None:
    named = [word for word in arguments if word in PRESETS]
    args, fields = build_parser(PRESETS[named[0]].config if named else None).parse_known_args(arguments)
    kind = ["--objective.kind", args.objective] if args.objective else []
    given = fields_in(fields)
    if args.data and "data.root" in given:
        raise ConfigError("--data and --data.root name the images: leave one out")
    if args.objective and "objective.kind" in given:
        raise ConfigError("--objective and --objective.kind name the objective: leave one out")
    cfg = parse([*fields, *kind], preset(args.preset))
    if args.data:
        cfg = replace(cfg, data=locate(cfg.data, args.data))
    run(cfg, fields, args.out or Path("runs") / (args.preset + (f"-{args.objective}" if args.objective else "")), args.data)


def run(cfg: Config, fields: list[str], out: Path, data: str | None) -> None:
    """Train, with a warning for each of the ``fields`` on the command line that does nothing, and say what to do next."""
    given = fields_in(fields)
    lines = without_effect(cfg, given)
    if "train.parallel" in given and is_alone():
        lines.append("--train.parallel does nothing in one process: torchrun starts several")
    if 2 * cfg.optim.warmup_steps > cfg.train.steps >= A_TRAINING:
        when = "never reaches" if cfg.optim.warmup_steps > cfg.train.steps else "takes more than half of them to reach"
        lines.append(
            f"optim.warmup_steps is {cfg.optim.warmup_steps}, of {cfg.train.steps} steps: the learning rate {when} "
            f"optim.lr; give --optim.warmup_steps {cfg.train.steps // 20}, for example"
        )
    for line in lines if is_first() else ():
        say_at_once(f"warning: {line}")
    try:
        train(cfg, out)
    except KeyboardInterrupt:  # before its first step, or after its last one
        if checkpoint.has_steps(out):
            raise Interrupted(f"{out}: interrupted; the state is saved, the same command resumes") from None
        raise
    if is_first():
        print(f"{out}: done")
        suggest("train", run=out, data=data_options(data, cfg.data.test_root))
