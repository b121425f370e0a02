"""`hybvit show PRESET`: a preset's whole configuration as YAML, with its size."""

from __future__ import annotations

import torch

from .arguments import ArgumentParser
from .config import preset, to_yaml
from .vit import HybViT


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="hybvit show", description="Print a preset's whole configuration as YAML.")
    parser.add_argument("preset", metavar="PRESET")
    cfg = preset(parser.parse_args(arguments).preset)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in HybViT(cfg.model).parameters())
    print(f"# {parameters:,} parameters\n{to_yaml(cfg)}", end="")
