"""`hybvit presets`: list the presets."""

from __future__ import annotations

import json
from typing import Any

from ..config import Config, describe_batch, to_dict
from ..presets import PRESETS
from ..reproduce import published
from .arguments import ArgumentParser
from .next_step import suggest
from .output import hanging


def describe_network(cfg: Config) -> str:
    m, own = cfg.model, cfg.network
    parts = [f"{m.image_size}x{m.image_size}x{m.channels}"]
    if own.name == "vit":
        parts += [f"patch {m.patch_size}", f"dim {m.dim}", f"depth {m.depth}", m.time.replace("_", " ")]
        parts += ["long skips"] * m.long_skips + ["conv stem"] * (m.patch_embedding == "conv")
        parts += ["conv read-out"] * (m.pixel_readout == "conv")
    elif own.name == "wide_resnet":
        parts += [f"wide ResNet {own.depth}-{own.width}"] + ["no batch norm"] * (not own.batch_norm)
    elif own.name == "preact_resnet18":
        parts += ["pre-activation ResNet-18"]
    else:
        parts += [f"U-Net of {', '.join(map(str, own.channels))} channels"]
    if cfg.objective.kind == "jem":
        parts += [f"{cfg.jem.steps} Langevin steps"]
    return ", ".join(parts)


def describe_row(row: published.PublishedRow) -> str:
    """``Table 1, HybViT: Acc % 95.9, IS 7.68, FID 26.4``, as the paper prints it."""
    table = published.tables()[row.table]
    ambiguous = sum(other.model == row.model for other in table.rows) > 1
    figures = ", ".join(f"{table.columns[name]} {value}" for name, value in row.values.items())
    return f"{row.table.replace('table', 'Table ')}, {f'{row.group}, ' if ambiguous else ''}{row.model}: {figures}"


def rounded(value: float) -> str:
    """Two significant digits, or all digits before the decimal point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def describe_cost(cfg: Config) -> str:
    from ..training.cost import GPU, UTILISATION, cost  # imports the networks, which the plain list does not need

    counted = cost(cfg)
    hours = f"about {rounded(counted.gpu_hours)}" if counted.gpu_hours >= 0.01 else "less than 0.01"
    return (
        f"{rounded(counted.train_gflop_per_step)} GFLOP per step, {rounded(counted.total_eflop)} EFLOP, {counted.images:,} "
        f"images: {hours} hours on one {GPU}{', in TF32,' if cfg.train.precision == 'fp32' else ''} "
        f"at {UTILISATION:.0%} of its peak"
    )


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hybvit presets", description="List the presets; `hybvit show PRESET` prints one in full.")
    parser.add_argument("--cost", action="store_true", help="also estimate the cost of each training (takes half a minute)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per preset")
    return parser


def main(arguments: list[str]) -> None:
    args = build_parser().parse_args(arguments)
    width = max(map(len, PRESETS)) + 2
    for name, (cfg, summary) in PRESETS.items():
        if args.json:
            print(json.dumps(record(name, args.cost)), flush=True)
            continue
        lines = [summary, f"{describe_network(cfg)}; {cfg.train.steps:,} steps of batch {describe_batch(cfg)}"]
        lines += [f"paper: {describe_row(row)}" for row in published.rows_of(name)[:1]]
        lines += [describe_cost(cfg)] if args.cost else []
        for place, line in enumerate(lines):
            print(hanging(f"{'' if place else name:<{width}}{line}", width), flush=True)
    if not args.json:
        suggest("presets")


def record(name: str, with_cost: bool) -> dict[str, Any]:
    """A preset as plain values: its whole configuration, and the figures that the paper prints for it."""
    cfg, summary = PRESETS[name]
    paper = [{"table": row.table, "model": row.model, **row.values} for row in published.rows_of(name)]
    found: dict[str, Any] = {"name": name, "summary": summary, "configuration": to_dict(cfg), "paper": paper}
    if with_cost:
        from ..training.cost import cost

        found["cost"] = cost(cfg)._asdict()
    return found
