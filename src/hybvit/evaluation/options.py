"""What an evaluation can be told: each option once, with its default, its words and the suites that depend on it."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import ConfigError
from ..method.samplers import SAMPLERS
from .adapters import Evaluable


def number_or_all(text: str) -> int:
    """``all`` is 0."""
    if text != "all" and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive number nor all")
    return 0 if text == "all" else int(text)


def comma_separated(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def option(default: Any, words: str, suites: str = "", minimum: int | None = None, **argument: Any) -> Any:
    """A field of :class:`Options`.

    Args:
        words: what it is, for `hybvit evaluate --help`; ``{default}`` in them is its default.
        suites: those whose results depend on it, with spaces between them; empty: all.
        minimum: the least whole number that it may be.
        argument: what argparse has to know beyond that; ``flag`` if it is not the field's name.
    """
    metadata = {"words": words, "suites": frozenset(suites.split()), "minimum": minimum, "argument": argument}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """How much is looked at, and how; what each option means stands beside it, and in `hybvit evaluate --help`.

    A suite's result is stored with the options that it depends on, and measured anew when one of them changes.

    Raises:
        ConfigError: a number is too small, or a name unknown.
    """

    limit: int | None = option(None, "at most so many test images, at equal distances, for a quick look", minimum=1)
    seed: int = option(0, "decides samples, noise, attacks and resampling", type=int)
    batch_size: int = option(256, "images in one call of the model ({default})", minimum=1)
    out_of_distribution: tuple[str, ...] = option(
        (),
        "comma-separated out-of-distribution sets: names, folders, interpolation, noise",
        "ood",
        flag="--ood",
        metavar="OOD",
        type=comma_separated,
    )
    bound_images: int = option(256, "images whose likelihood is bounded ({default})", "ood likelihood", minimum=1)
    bound_draws: int = option(  # 0 takes all
        32, "diffusion times drawn per image, or all ({default})", "ood likelihood", minimum=0, type=number_or_all
    )
    attack_images: int = option(256, "images that PGD attacks ({default})", "robustness", minimum=1)
    autoattack_images: int = option(64, "images that AutoAttack attacks, 0 for none ({default})", "robustness", minimum=0)
    attack_steps: int = option(50, "steps of PGD ({default})", "robustness", minimum=1)
    samples: int = option(1000, "generated images ({default})", "fidelity quality", minimum=1)
    sampler: str = option("ddpm", "({default})", "fidelity quality speed", choices=tuple(SAMPLERS))
    steps: int = option(100, "sampler steps ({default}; the paper takes all 1000)", "fidelity quality speed", minimum=1)
    guidance: float = option(0.0, "classifier-free, of networks told labels (0)", "fidelity quality", type=float)
    extractor: str | None = option(
        None, "network for the Frechet distance: inception, cnn-..., timm:NAME, a run folder of ours", "fidelity"
    )
    inception: str | None = option(None, "the canonical Inception weights, for FID", "fidelity", metavar="PATH")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, minimum = getattr(self, f.name), f.metadata["minimum"]
            if minimum is not None and value is not None and value < minimum:
                raise ConfigError(f"{f.name} is {value}: it must be at least {minimum}")
            choices = f.metadata["argument"].get("choices")
            if choices and value not in choices:
                raise ConfigError(f"{f.name} is {value!r}: it must be one of {', '.join(choices)}")
        if isinstance(self.out_of_distribution, str):  # its letters would be taken for names
            raise ConfigError(f"out_of_distribution is {self.out_of_distribution!r}: it must be a tuple of names")

    def of_suite(self, suite: str) -> dict[str, Any]:
        """The options that the results of a suite depend on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not (of := f.metadata["suites"]) or suite in of}

    def for_model(self, model: Evaluable) -> Options:
        """These options with no more sampler steps than the model's diffusion has, where the default would ask for more.

        Raises:
            ConfigError: more steps were asked for, or guidance of a network that takes no labels.
        """
        most = model.diffusion.T
        if self.steps > most and self.steps != Options().steps:
            raise ConfigError(f"steps {self.steps}: the model's diffusion has {most} steps")
        if self.guidance and not (math.isfinite(self.guidance) and model.draws_by_label):
            raise ConfigError(f"guidance {self.guidance}: a finite number, for a network with model.label_conditioning")
        return replace(self, steps=min(self.steps, most))
