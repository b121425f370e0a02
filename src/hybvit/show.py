"""`hybvit show PRESET`: a preset's whole configuration as YAML, with its size, its cost and what the paper reached."""

from __future__ import annotations

from .arguments import ArgumentParser
from .config import to_yaml
from .cost import cost
from .presets import claim_in_words, cost_in_words
from .recipes import PRESETS, preset


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="hybvit show", description="Print a preset's whole configuration as YAML.")
    parser.add_argument("preset", metavar="PRESET")
    name = parser.parse_args(arguments).preset
    cfg = preset(name)
    print(f"# {PRESETS[name].summary}\n# {cost(cfg).parameters:,} parameters\n# {cost_in_words(cfg)}")
    for claim in PRESETS[name].published:
        print(f"# {claim_in_words(claim)}")
    print(to_yaml(cfg), end="")
