"""`hybvit finetune MODEL --data DIR`: train a model further on your images, or resume that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import override, parse
from ..data.locate import locate
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
    parser.add_argument("--steps", type=positive_int, default=STEPS, help=f"training steps ({STEPS})")
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
    base = override(base, train={"steps": args.steps}, optim={"warmup_steps": args.steps // 20})
    cfg = parse(fields, base)
    kind = f"{'probe' if args.freeze else 'finetuned'}{f'-{args.objective}' if args.objective else ''}"
    run(
        replace(cfg, data=locate(cfg.data, args.data)),
        fields,
        args.out or Path("runs") / f"{Path(args.model).name}-{kind}",
        args.data,
    )
