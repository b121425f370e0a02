"""`hybvit evaluate`: evaluate a model in suites, each of which can be run, resumed and repeated on its own."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ..distributed import first_of_all, process_group
from ..errors import ConfigError, Interrupted
from ..evaluation import measure
from ..evaluation.options import Options
from ..evaluation.subject import Subject, open_subject
from ..evaluation.suites import DEFAULT, SUITES, check_suites
from ..evaluation.unseen import held_out_of_training
from ..model import HybridModel
from ..waiting import tell
from .arguments import ArgumentParser, location, nonnegative_int, path, positive_int
from .next_step import data_options, suggest


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit evaluate",
        description="Evaluate a model and write results.json; with --report, also report.html and report.md. "
        "The same command resumes an interrupted evaluation at its unfinished suite. "
        "`torchrun --nproc-per-node N -m hybvit evaluate ...` splits the work over N processes with the same results.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="run folder, exported folder, hub id or bundled model; or an external model: timm:NAME, torchvision:NAME "
        "(with @FILE for your own weights), or FILE.py:FUNCTION that returns a hybvit.Adapted",
    )
    longer = ", ".join(name for name in SUITES if name not in DEFAULT)
    parser.add_argument(
        "--suites",
        default=",".join(DEFAULT),
        help=f"comma-separated list of {', '.join(SUITES)}; or all; by default without {longer}, which take longer",
    )
    parser.add_argument(
        "--data",
        type=location,
        help="where the images are: needed for a model of your own images, and if they have moved since training",
    )
    parser.add_argument("--data.test_root", dest="test_root", type=location, help="test images that lie outside of --data")
    parser.add_argument(
        "--dataset", metavar="DATASET", help="data set, by its name, instead of the one that the model was trained on"
    )
    add_options(parser)
    parser.add_argument("--out", type=path, help="folder for the results (the run folder, or ./evaluated/NAME)")
    parser.add_argument("--report", action="store_true", help="also write report.html and report.md")
    parser.add_argument(
        "--again", action="store_true", help="measure again even where a result with the same settings is stored"
    )
    parser.add_argument("--json", action="store_true", help="print the content of results.json, and all else to standard error")
    return parser


def main(arguments: list[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        suites = check_suites(args.suites)
    except ConfigError as error:
        parser.error(f"--{error}")
    options = Options(**given_options(args))
    with process_group() as (rank, _):

        def say(line: str) -> None:
            if rank == 0 and args.json:
                tell(line)
            elif rank == 0:
                print(line, flush=True)

        subject = first_of_all(lambda: open_subject(args.model, args.dataset, args.data, args.test_root))
        out = args.out or subject.run or Path("evaluated") / folder_name(args.model)
        try:
            results = measure(subject, suites, options, out, args.again, say)
        except KeyboardInterrupt:
            if any((out / "evaluation").glob("*/result.json")):
                raise Interrupted(f"{out}: interrupted; finished suites are kept, the same command resumes") from None
            raise
        say(f"{results.save(out)} written")
        if args.report:
            say(f"{results.report(out)} and report.md written: open it in a browser")
        if rank == 0 and args.json:
            print(json.dumps(results.record, allow_nan=False))
        elif rank == 0:
            suggest_next(args, arguments, subject)


def folder_name(model: str) -> str:
    """A name for the results of a model that is no run of its own: models of different places do not share it."""
    named, at, weights = model.partition("@")  # of timm and torchvision a file, of a hub id a version
    named = os.path.normpath(named)
    named = os.path.abspath(named) if named.startswith(".") else named
    return re.sub(r"[^\w.]+", "-", f"{named}{at}{os.path.normpath(weights) if at else ''}").strip("-")


def suggest_next(args: argparse.Namespace, arguments: list[str], subject: Subject) -> None:
    """The report; then a calibration, if the model can have one; then to try the model."""
    if not args.report:
        suggest("evaluate", arguments=arguments)
    elif not isinstance(model := subject.model, HybridModel):  # the other commands do not take it
        return
    elif model.calibration is None and model.has_classes and subject.data.test.labels is not None:
        suggest(
            "evaluate --report without a calibration",
            model=args.model,
            data=data_options(args.data, args.test_root),
            half=["--half-of-test"] if held_out_of_training(model, subject.data) is None else [],
            out=[] if Path(args.model).is_dir() else ["--out", f"{subject.name}-calibrated"],
        )
    else:
        suggest("evaluate --report", model=args.model)


def add_options(parser: ArgumentParser) -> None:
    """Add an argument for every option; options that are not given are absent from the parsed arguments."""
    for f in fields(Options):
        argument = dict(f.metadata["argument"])
        flag = argument.pop("flag", f"--{f.name.replace('_', '-')}")
        text = f.metadata["help"].format(default=f.default)
        parser.add_argument(flag, dest=f.name, default=argparse.SUPPRESS, help=text, **{**type_of(f), **argument})


def type_of(option: Field[Any]) -> dict[str, Any]:
    """The argparse type of an integer option."""
    minimum = option.metadata["minimum"]
    return {} if minimum is None else {"type": positive_int if minimum else nonnegative_int}  # Options knows the exact minimum


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options present in parsed arguments, by field name."""
    return {f.name: getattr(args, f.name) for f in fields(Options) if hasattr(args, f.name)}


def parse_options(words: list[str], prog: str) -> dict[str, Any]:
    """Parse options as on the command line of `hybvit evaluate` -> the given ones, by field name.

    Raises:
        ConfigError: an option is unknown or has an invalid value.
    """
    parser = ArgumentParser(prog=prog)
    add_options(parser)
    return given_options(parser.parse_args(words))
