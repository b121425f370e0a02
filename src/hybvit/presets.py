"""`hybvit presets`: what can be trained, by name."""

from __future__ import annotations

from .arguments import ArgumentParser
from .config import PRESETS, Config


def network_in_words(cfg: Config) -> str:
    m = cfg.model
    extras = [m.time.replace("_", " ")] + ["long skips"] * m.long_skips + ["conv read-out"] * (m.pixel_readout == "conv")
    return (
        f"{m.image_size}x{m.image_size}x{m.channels}, patch {m.patch_size}, dim {m.dim}, depth {m.depth}, {', '.join(extras)}"
    )


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(prog="hybvit presets", description="List the presets; `hybvit show PRESET` prints one whole.")
    parser.parse_args(arguments)
    width = max(map(len, PRESETS)) + 2
    for name, (cfg, summary) in PRESETS.items():
        print(f"{name:<{width}}{summary}")
        print(f"{'':<{width}}{network_in_words(cfg)}; {cfg.train.steps:,} steps of batch {cfg.train.batch_size}")
