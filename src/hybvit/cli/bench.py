"""`hybvit bench`: time the joint training step against a plain reference and the machine's peak."""

from __future__ import annotations

import json

from ..presets import preset
from ..storage import write_text
from ..training.bench import bench
from .arguments import ArgumentParser, path, positive_int


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(
        prog="hybvit bench", description="Time the joint training step, alternating with a plain reference step."
    )
    parser.add_argument("--preset", default="paper_32", help="a preset with the paper's network (paper_32, of CIFAR-10's size)")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="images per mini-batch (32)")
    parser.add_argument("--repeats", type=positive_int, default=9, help="timed steps of each kind (9)")
    parser.add_argument("--out", type=path, help="also write the results as JSON to this file")
    args = parser.parse_args(arguments)
    cfg = preset(args.preset)
    if cfg.model.time != "token_scalars" or cfg.model.long_skips or cfg.model.pixel_readout != "linear":
        parser.error(f"--preset {args.preset}: the reference step needs the paper's network; choose a preset such as paper_32")
    record = bench(cfg, args.batch_size, args.repeats)
    for name, seconds in record["median_seconds"].items():
        print(f"{name:<24}{1000 * seconds:10.1f} ms (median of {args.repeats}, alternating)")
    low, high = record["speedup_range"]
    print(f"joint step: {record['speedup_over_reference']:.2f} x the speed of the reference (pairwise {low:.2f} to {high:.2f})")
    print(
        f"            {record['images_per_second']:.1f} images/s, {100 * record['fraction_of_peak']:.0f} % of the "
        f"{record['peak_gflop_per_second']:.0f} GFLOP/s of a {record['precision']} matrix product on this machine"
    )
    if args.out:
        write_text(args.out, json.dumps(record, indent=1) + "\n")
