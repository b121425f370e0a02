"""`hybvit finetune MODEL --data DIR`: train a model further on your images, or resume that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoint import CONFIG, has_steps
from ..config import fields_in, load_config, override, parse
from ..data.locate import locate
from ..errors import ConfigError
from ..loading import load
from ..training.finetune import STEPS, finetuning
from .arguments import ArgumentParser, location, path, positive_int
from .train import run


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit finetune",
        usage="hybvit finetune MODEL --data DIR [--freeze] [--objective KIND] [--steps N] [--out DIR] "
        "[--any.nested.field VALUE ...]",
        description="Train a model further on your images, which are brought to its size and channels. Their classes replace "
        "its own. The result is a run folder as `hybvit train` makes it. The same command resumes an interrupted run.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, hub id, or bundled model")
    parser.add_argument(
        "--data", type=location, metavar="DIR", required=True, help="your images, in any form that `hybvit train` takes"
    )
    parser.add_argument("--freeze", action="store_true", help="keep the network as it is: train only what has a row per class")
    parser.add_argument("--objective", choices=("vit", "genvit", "hybvit"), help="what to train for (that of the model)")
    parser.add_argument("--steps", type=positive_int, help=f"training steps ({STEPS}), with a warm-up of a twentieth of them")
    parser.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="run folder (runs/MODEL-finetuned, or MODEL-probe; with the objective after it where it is given)",
    )
    return parser


def main(arguments: list[str]) -> None:
    args, fields = build_parser().parse_known_args(arguments)
    base = finetuning(load(args.model, "cpu").cfg, args.model, args.freeze, args.objective)
    given = fields_in(fields)
    if args.steps and "train.steps" in given:
        raise ConfigError("--steps and --train.steps name the training steps: leave one out")
    cfg = parse(fields, override(base, train={"steps": args.steps or STEPS}))
    kind = f"{'probe' if args.freeze else 'finetuned'}{f'-{args.objective}' if args.objective else ''}"
    out = args.out or Path("runs") / f"{Path(args.model).name}-{kind}"
    if "optim.warmup_steps" not in given:  # a run that goes on for more steps keeps its warm-up
        warmup = load_config(out / CONFIG).optim.warmup_steps if has_steps(out) else cfg.train.steps // 20
        cfg = override(cfg, optim={"warmup_steps": warmup})
    run(replace(cfg, data=locate(cfg.data, args.data)), fields, out, args.data)
