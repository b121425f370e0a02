"""`hybvit bench`: time training and inference beside other systems, as a share of what the machine can do."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from ..config import parse
from ..devices import best_device
from ..errors import DataError, did_you_mean
from ..evaluation import plots
from ..loading import load
from ..model import HybridModel
from ..networks import build_network
from ..presets import preset
from ..storage import write_text
from ..training.bench import bench, identity, table
from ..training.bench.growth import MEMORY, growth, growth_table
from ..training.bench.record import as_json, compare, read_record, refuse_other
from ..training.bench.rows import DEFAULT_ROWS, ROWS, Settings, with_batch_size
from ..waiting import tell
from .arguments import ArgumentParser, path, positive_int
from .next_step import suggest

CPU_BATCH = 32  # images; on a GPU the preset's own batch is timed


def build_parser() -> ArgumentParser:
    listed = "\n".join(
        textwrap.fill(words, 110, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16) for name, words in ROWS.items()
    )
    parser = ArgumentParser(
        prog="hybvit bench",
        usage="hybvit bench [--preset NAME | --model MODEL] [options] [--any.nested.field VALUE ...]",
        description="Time training and inference, alternating with a matrix product and with other systems, in float32 and, "
        "where the device is faster with it, in bfloat16. Nothing else should run on the machine.",
        epilog=f"rows:\n{listed}",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preset", help="a preset, with random weights (paper_32, of CIFAR-10's size)")
    what.add_argument("--model", help="a run folder, exported folder, hub id or bundled model instead")
    parser.add_argument("--rows", type=row_names, default=DEFAULT_ROWS, help=f"of the list below ({','.join(DEFAULT_ROWS)})")
    parser.add_argument("--batch-size", type=positive_int, help="images per mini-batch (32 on a CPU, else the preset's)")
    parser.add_argument("--samples", type=positive_int, default=Settings.samples, help="images to draw and to bound (8)")
    parser.add_argument("--steps", type=positive_int, default=Settings.steps, help="sampler steps (20)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="time no other systems")
    parser.add_argument(
        "--seconds", type=positive_int, default=100, help="about how long it may take; at least 3 repeats (100)"
    )
    parser.add_argument("--repeats", type=positive_int, help="timed repeats, instead of as many as fit into --seconds")
    parser.add_argument("--growth", choices=tuple(MEMORY), help="time the training step at several sizes instead of the rows")
    parser.add_argument("--out", type=path, help="write the results as JSON to this file")
    parser.add_argument("--plot", type=path, help="write a plot to this file (.svg)")
    parser.add_argument("--compare", type=path, metavar="FILE", help="say what changed since this file of --out")
    parser.add_argument("--json", action="store_true", help="print what --out writes, and all else to standard error")
    return parser


def row_names(text: str) -> tuple[str, ...]:
    """An argparse type: names of rows, separated by commas."""
    names = tuple(text.split(","))
    for name in names:
        if name not in ROWS:
            hint = did_you_mean(name, ROWS) or f": it is one of {', '.join(ROWS)}"
            raise argparse.ArgumentTypeError(f"unknown row {name!r}{hint}")
    return names


def main(arguments: list[str]) -> None:
    parser = build_parser()
    args, fields = parser.parse_known_args(arguments)
    if args.model is not None and fields:
        parser.error(f"{fields[0]}: the configuration of a --model is fixed; with --preset it can be changed")
    if args.plot is not None and args.plot.suffix != ".svg":
        parser.error(f"--plot {args.plot}: the name must end with .svg")
    of_rows = ("compare", "rows", "samples", "steps", "peers")
    for name in of_rows if args.growth is not None else ():
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{'no-peers' if name == 'peers' else name} is of rows, not of --growth")
    for target in (args.out, args.plot):
        if target is not None and not target.parent.is_dir():
            raise DataError(f"{target}: there is no folder {target.parent}")
    before = read_record(args.compare) if args.compare is not None else None
    model = load(args.model) if args.model is not None else None
    name = args.preset or "paper_32"
    cfg = parse(fields, preset(name)) if model is None else model.cfg
    subject = " ".join([name, *fields]) if args.model is None else args.model
    device = best_device() if model is None else model.device
    cfg = with_batch_size(cfg, args.batch_size or (CPU_BATCH if device.type == "cpu" else cfg.train.batch_size))
    settings = Settings(args.rows, args.samples, args.steps, args.peers, args.seconds, args.repeats)
    if before is not None:
        refuse_other(args.compare, before, identity(subject, cfg, settings))
    if args.growth is not None:
        record = growth(subject, cfg, args.growth, device, settings)
        report(args, record, growth_table(record), growth_plot)
        return
    said = tell if args.json else print
    record = bench(subject, model or HybridModel(build_network(cfg), cfg, device), cfg, settings, said)
    report(args, record, table(record), rows_plot)
    for line in compare(before, record) if before is not None else ():
        said(f"since {args.compare}: {line}")
    if not args.json and before is None:
        suggest("bench" if args.out is None else "bench --out", arguments=arguments, out=str(args.out))


def report(args: argparse.Namespace, record: Mapping[str, Any], lines: list[str], draw: Any) -> None:
    """Print a record, and write it and its plot."""
    print(json.dumps(record) if args.json else "\n".join(lines))
    if args.out is not None:
        write_text(args.out, as_json(record))
    if args.plot is not None:
        write_text(args.plot, draw(record))


def rows_plot(record: Mapping[str, Any]) -> str:
    """The share of the measured peak that each row reaches."""
    shown = {}
    for row in record["rows"]:
        if "fraction_of_peak" in row:
            name = f"{row['row']}, {row['system']}, {row['precision']} ({1000 * row['seconds']['median']:,.1f} ms)"
            median, low, high = (100 * row["fraction_of_peak"][key] for key in ("median", "low", "high"))
            shown[name] = (median, low, high)
    return plots.intervals(shown, "% of the speed of a large matrix product")


def growth_plot(record: Mapping[str, Any]) -> str:
    """Seconds, and memory where it was measured, against the size."""
    points, found = record["points"], record["exponents"]
    seconds = [(point["size"], point["seconds"]["median"]) for point in points]
    panels = {"seconds": (seconds, {"fitted": found["seconds"], "operations": found["operations"]})}
    if "memory" in found:
        panels["MiB"] = ([(point["size"], point["memory_mib"]) for point in points], {"fitted": found["memory"]})
    return plots.power_laws(panels, record["growth"])
