"""The options of an evaluation: each is stated once, with its default, its help text and the suites that depend on it."""

from __future__ import annotations

import argparse
import math
import numbers
import os
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..catalog import CATALOG
from ..data.corruptions import check_corruption
from ..errors import ConfigError, DataError, did_you_mean
from ..method.samplers import SAMPLERS
from ..metrics.autoattack import AUTOATTACK_CURE, has_autoattack
from ..metrics.certified import check_votes
from .adapters import Evaluable
from .extractors import unknown_extractor


def number_or_all(text: str) -> int:
    """A number of at least 1, or 0 for ``all``."""
    if text != "all" and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a positive integer nor all")
    return 0 if text == "all" else int(text)


INTERPOLATION, NOISE = "interpolation", "noise"  # out-of-distribution sets that are made here
OPTIONAL = " | None"
KINDS = {  # annotation of a field -> in words
    "int": "a whole number", "float": "a number", "str": "a string",
    "tuple[str, ...]": "a tuple of names", "tuple[float, ...]": "a tuple of numbers",
}  # fmt: skip
LARGEST_SEED = 2**63 - 1  # of every generator that takes it


def is_of(value: Any, annotation: str) -> bool:
    """Whether a value is of a field's type. Numbers may be of numpy; a list may stand for a tuple, but not a string, whose
    letters would be read as names."""
    kind = annotation.removesuffix(OPTIONAL)
    if value is None:
        return kind != annotation
    if kind.startswith("tuple"):
        return isinstance(value, (tuple, list)) and all(is_of(one, kind[6:-6]) for one in value)
    types = {"int": numbers.Integral, "float": numbers.Real, "str": str}
    return isinstance(value, types[kind]) and not isinstance(value, bool)


CERTIFIED_CONFIDENCE = 0.999  # of each certificate, as in the literature


def comma_separated_numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None


def comma_separated(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def option(
    default: Any, text: str, suites: str = "", *, minimum: int | None = None, names_files: bool = False, **argument: Any
) -> Any:
    """A field of :class:`Options`.

    Args:
        text: help text for `hybvit evaluate --help`; ``{default}`` stands for the default.
        suites: the suites whose results depend on it, separated by spaces; empty means all.
        minimum: the smallest value of an integer option.
        names_files: whether it may name files or folders, on whose content the results depend too.
        argument: further keyword arguments for argparse; ``flag`` if the flag differs from the field's name.
    """
    metadata = {
        "help": text,
        "suites": frozenset(suites.split()),
        "minimum": minimum,
        "names_files": names_files,
        "argument": argument,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Sample sizes and settings of an evaluation; `hybvit evaluate --help` explains each.

    A suite's result is stored with the options that it depends on, and measured again when one of them changes.

    Raises:
        ConfigError: a number is too small, or a name is unknown.
        DataError: an out-of-distribution set is neither a name nor a place.
    """

    limit: int | None = option(None, "use at most this many test images, evenly spaced, for a quick check", minimum=1)
    seed: int = option(0, "seed of samples, noise, attacks and resampling (0)", minimum=0)
    batch_size: int = option(256, "images per forward pass ({default})", minimum=1)
    out_of_distribution: tuple[str, ...] = option(
        (),
        "comma-separated out-of-distribution sets: names, folders, interpolation, noise",
        "ood",
        names_files=True,
        flag="--ood",
        metavar="OOD",
        type=comma_separated,
    )
    bound_images: int = option(256, "images for the likelihood bound ({default})", "ood likelihood", minimum=1)
    bound_draws: int = option(  # 0 takes all
        32, "diffusion times drawn per image for the bound, or all ({default})", "ood likelihood", minimum=0, type=number_or_all
    )
    attack_images: int = option(256, "images attacked by PGD ({default})", "robustness", minimum=1)
    autoattack_images: int = option(64, "images attacked by AutoAttack, 0 for none ({default})", "robustness", minimum=0)
    attack_steps: int = option(50, "PGD steps ({default})", "robustness certified readings", minimum=1)
    certified_images: int = option(100, "images certified by randomized smoothing ({default})", "certified", minimum=1)
    certified_votes: int = option(
        1000, "noisy copies of an image whose votes certify its label ({default})", "certified", minimum=1
    )
    certified_noise: tuple[float, ...] = option(
        (0.12, 0.25, 0.5),
        "comma-separated standard deviations of the noise of these copies, on the [0, 1] scale of pixels (0.12,0.25,0.5)",
        "certified",
        metavar="NOISE",
        type=comma_separated_numbers,
    )
    corruption_images: int = option(500, "test images for each corruption and severity ({default})", "corruptions", minimum=2)
    corruptions: tuple[str, ...] = option(
        (),
        "comma-separated corruptions, such as fog,pixelate (all)",
        "corruptions",
        metavar="NAMES",
        type=comma_separated,
    )
    frost: str | None = option(
        None,
        "folder with photographs of frost, for the corruption of that name",
        "corruptions",
        names_files=True,
        metavar="DIR",
    )
    reading_images: int = option(500, "test images for the readings by the denoiser ({default})", "readings", minimum=1)
    reading_attacks: int = option(16, "images attacked through each reading, 0 for none ({default})", "readings", minimum=0)
    samples: int = option(1000, "number of generated images ({default})", "fidelity quality", minimum=1)
    sampler: str = option("ddpm", "sampler ({default})", "fidelity quality speed", choices=tuple(SAMPLERS))
    steps: int = option(100, "sampler steps ({default}; the paper uses all 1000)", "fidelity quality speed", minimum=1)
    guidance: float = option(
        0.0, "strength of classifier-free guidance; needs model.label_conditioning (0)", "fidelity quality", type=float
    )
    extractor: str | None = option(
        None,
        "feature network of the Frechet distance: inception, efficientnet-lite0, cnn-..., timm:NAME, or a hybvit run folder",
        "fidelity",
        names_files=True,
    )
    inception: str | None = option(
        None, "file with the canonical Inception weights, for FID", "fidelity", names_files=True, metavar="PATH"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value, minimum = getattr(self, f.name), f.metadata["minimum"]
            if not is_of(value, str(f.type)):
                raise ConfigError(f"{f.name} is {value!r}: it must be {KINDS[str(f.type).removesuffix(OPTIONAL)]}")
            if minimum is not None and value is not None and value < minimum:
                raise ConfigError(f"{f.name} is {value}: it must be at least {minimum}")
            choices = f.metadata["argument"].get("choices")
            if choices and value not in choices:
                raise ConfigError(f"{f.name} is {value!r}: it must be one of {', '.join(choices)}")
        if self.seed > LARGEST_SEED:
            raise ConfigError(f"seed is {self.seed}: it must be at most {LARGEST_SEED}")
        for name in self.corruptions:
            check_corruption(name)
        if said := unknown_extractor(self.extractor):
            raise ConfigError(said)
        if self.inception and self.extractor not in (None, "inception"):
            raise ConfigError(f"--inception {self.inception} requires --extractor inception, not {self.extractor}")
        for name in self.out_of_distribution:
            if name not in (*CATALOG, INTERPOLATION, NOISE) and not os.path.exists(name) and "://" not in name:
                known = did_you_mean(name, [*CATALOG, INTERPOLATION, NOISE])
                raise DataError(f"{name}: neither the name of a data set (`hybvit datasets` lists them) nor a folder{known}")
        if "frost" in self.corruptions and not self.frost:
            raise ConfigError("corruptions: frost needs photographs of frost, which hybvit may not pass on (--frost DIR)")
        if self.frost and not os.path.exists(self.frost):
            raise ConfigError(f"frost: {self.frost} does not exist: give a folder with photographs of frost")
        if not (self.certified_noise and all(0 < noise < math.inf for noise in self.certified_noise)):
            raise ConfigError(f"certified_noise is {self.certified_noise}: it must be one or more finite numbers above 0")
        try:
            check_votes(self.certified_votes, 1, CERTIFIED_CONFIDENCE)
        except ValueError as error:
            raise ConfigError(f"certified_{error}") from None

    def of_suite(self, suite: str) -> dict[str, Any]:
        """The options that a suite's results depend on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not (of := f.metadata["suites"]) or suite in of}

    def places_of(self, suite: str) -> list[str]:
        """What may be files or folders among them."""
        named = {f.name for f in fields(self) if f.metadata["names_files"]}
        values = [value for name, value in self.of_suite(suite).items() if name in named and value is not None]
        return [place for value in values for place in ([value] if isinstance(value, str) else value)]

    def for_model(self, model: Evaluable) -> Options:
        """These options, with the default number of sampler steps limited to the model's number of diffusion steps, and no
        AutoAttack by default where it is not installed.

        Raises:
            ConfigError: more was requested, or guidance for a network without label conditioning.
        """
        most, attacked = model.diffusion.T, self.autoattack_images
        if self.steps > most and self.steps != Options().steps:
            raise ConfigError(f"steps {self.steps}: the model's diffusion has {most} steps")
        if self.guidance and not (math.isfinite(self.guidance) and model.draws_by_label):
            raise ConfigError(f"guidance {self.guidance}: it must be finite, and needs a network with model.label_conditioning")
        if attacked and not has_autoattack():
            if attacked != Options().autoattack_images:
                raise ConfigError(f"autoattack_images {attacked}: AutoAttack {AUTOATTACK_CURE}")
            attacked = 0
        return replace(self, steps=min(self.steps, most), autoattack_images=attacked)
