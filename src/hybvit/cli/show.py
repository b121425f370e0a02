"""`hybvit show PRESET`: the full configuration as YAML, with its size, its cost and the paper's figures."""

from __future__ import annotations

from ..config import differences, fields_in, parse, to_yaml, without_effect
from ..presets import PRESETS, preset
from ..reproduce.published import rows_of
from ..training.cost import cost
from .arguments import ArgumentParser
from .next_step import suggest
from .presets import describe_cost, describe_row


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit show",
        usage="hybvit show PRESET [--any.nested.field VALUE ...]",
        description="Print a preset's full configuration as YAML. Fields given as options replace the preset's.",
    )
    parser.add_argument("preset", metavar="PRESET", help="`hybvit presets` lists them")
    return parser


def main(arguments: list[str]) -> None:
    args, fields = build_parser().parse_known_args(arguments)
    name = args.preset
    cfg = parse(fields, preset(name))
    changed = ", ".join(differences(preset(name), cfg))
    title = f"{name} with changed {changed}" if changed else PRESETS[name].summary
    print(f"# {title}\n# {cost(cfg).parameters:,} parameters\n# {describe_cost(cfg)}")
    for line in without_effect(cfg, fields_in(fields)):
        print(f"# {line}")
    for row in rows_of(name) if not changed else ():
        print(f"# {describe_row(row)}")
    print(to_yaml(cfg), end="")
    suggest("show", preset=name, fields=fields)
