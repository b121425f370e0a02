"""The suites of an evaluation: each is run, or read back if it is already stored."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .. import __version__
from ..data.files import Files, stamp
from ..data.image_set import ImageSet
from ..data.images import save_image
from ..devices import environment
from ..distributed import all_gather, rank
from ..errors import ConfigError, DataError
from ..evaluation import (
    accuracy,
    calibration,
    certified,
    corruptions,
    doubt,
    fidelity,
    likelihood,
    ood,
    probe,
    quality,
    readings,
    robustness,
    speed,
)
from ..storage import make_folder, read_bytes, write_text
from ..versions import FIRST
from ..waiting import tells
from .context import Context, Metric, Picture, Result, Suite, missing_requirement
from .expected import announce_suites

SUITES: dict[str, Suite] = {
    "accuracy": Suite("Accuracy", "How often the predicted class is correct", frozenset({"classes", "labels"}), accuracy.run),
    "calibration": Suite(
        "Calibration",
        "Whether predicted probabilities match observed frequencies",
        frozenset({"classes", "labels"}),
        calibration.run,
    ),
    "doubt": Suite(
        "Doubt",
        "Which answers to trust: what abstaining gains, and sets that hold the true class",
        frozenset({"classes", "labels"}),
        doubt.run,
    ),
    "probe": Suite(
        "Features",
        "What a simple classifier makes of the features",
        frozenset({"classes", "labels"}),
        probe.run,
        by_default=False,
    ),
    "ood": Suite(
        "Out-of-distribution detection",
        "Whether the model recognizes images unlike its training data",
        frozenset(),
        ood.run,
        ood.cured,
    ),
    "robustness": Suite(
        "Adversarial robustness", "How the classifier withstands attacks", frozenset({"classes", "labels"}), robustness.run
    ),
    "certified": Suite(
        "Certified robustness",
        "What no attack within a radius can change, by randomized smoothing",
        frozenset({"classes", "labels", "denoiser"}),
        certified.run,
        by_default=False,
    ),
    "corruptions": Suite(
        "Common corruptions",
        "How noise, blur, weather and digital faults of an image change the answers",
        frozenset({"classes", "labels"}),
        corruptions.run,
        by_default=False,
    ),
    "readings": Suite(
        "Three readings",
        "What the denoiser makes of the label, beside the label read-out",
        frozenset({"classes", "labels", "denoiser"}),
        readings.run,
        by_default=False,
    ),
    "likelihood": Suite(
        "Likelihood", "How likely the test images are under the model", frozenset({"denoiser"}), likelihood.run
    ),
    "fidelity": Suite(
        "Sample fidelity",
        "How closely the samples resemble the training images",
        frozenset({"samples"}),
        fidelity.run,
        fidelity.cured,
    ),
    "quality": Suite(
        "The model's view of its own samples",
        "How likely and how certain the classifier finds them",
        frozenset({"samples", "classes"}),
        quality.run,
    ),
    "speed": Suite("Speed", "What the model costs on this machine", frozenset(), speed.run),
}
DEFAULT = tuple(name for name, suite in SUITES.items() if suite.by_default)
EVERY = "all"  # in place of names
CALIBRATED = ("calibration", "doubt")  # suites that depend on the calibration stored with the model
DRAWN = ("fidelity", "quality", "speed")  # suites of samples
DIGESTED = 256  # images that are not in memory
DIGEST = "sha256"  # of a stored record; 0.1.0 wrote none


def check_suites(suites: Sequence[str] | str) -> tuple[str, ...]:
    """Names of suites, as a sequence or one comma-separated string, or "all" -> the names in the order of execution.

    Raises:
        ConfigError: a suite is unknown.
    """
    if suites == EVERY:
        return tuple(SUITES)
    names = suites.split(",") if isinstance(suites, str) else suites
    for name in names:
        if name not in SUITES:
            raise ConfigError(f"suites: {name!r} is unknown: choose from {', '.join(SUITES)}")
    return tuple(name for name in SUITES if name in names)


def run_suites(ctx: Context, suites: Sequence[str], say: Callable[[str], None] = print, again: bool = False) -> dict[str, Any]:
    """Run the suites that apply to this model, or read their stored results -> the record for results.json.

    Results that an earlier call stored for other suites are included. With several processes only the first writes files.

    Args:
        again: run a suite even if its result with these settings is stored.
    """
    record: dict[str, Any] = {"suites": {}, "left_out": {}, "metrics": {}, "tables": {}, "notes": {}}
    weights = ctx.fingerprint  # computed here because all processes must take part
    named = ctx.options.extractor or ctx.options.inception
    if named and "fidelity" in suites and missing_requirement(ctx, SUITES["fidelity"].requires) is None:
        fidelity.extractor_of(ctx)  # raises now, not after the suites before it
    if tells():
        announce_suites(ctx, [name for name in suites if is_to_measure(ctx, name, again)])
    for name in SUITES:
        if name not in suites:
            earlier = stored_before(ctx, name, weights)
            if earlier is not None:
                add(record, name, earlier)
            continue
        reason = missing_requirement(ctx, SUITES[name].requires)
        if reason is not None:
            record["left_out"][name] = reason
            say(f"{name}: left out, {reason}")
            continue
        stored = run_or_read(ctx, name, say, again)
        add(record, name, stored)
        for note in stored["notes"]:
            say(f"  note: {note}")
        for metric, entry in stored["metrics"].items():
            say(line_of(metric, entry))
    return record


def run_or_read(ctx: Context, name: str, say: Callable[[str], None], again: bool) -> dict[str, Any]:
    """The record of one suite: read if it is stored with the same settings, measured otherwise."""
    settings, folder = settings_of(ctx, name), ctx.folder / "evaluation" / name
    stored: dict[str, Any] | None = all_gather(None if again else read_whole(ctx, name, settings))[0]
    if stored is not None:
        say(f"{name}: read from {folder} (--again measures it again)")
        return stored
    started = time.monotonic()
    say(f"{name}: {SUITES[name].description.lower()} ...")
    result = SUITES[name].run(ctx)
    stored = as_record(result, settings, time.monotonic() - started)
    if rank() == 0:
        store(folder, stored, result.pictures)
    return stored


def settings_of(ctx: Context, name: str) -> dict[str, Any]:
    """What the result of a suite depends on."""
    facts = {"version": __version__, "data": ctx.data_name, "test_images": test_digest(ctx), "weights": ctx.fingerprint}
    settings = facts | ctx.options.of_suite(name)
    settings |= {"training_images": digest_of_images(ctx.data.train), "files": digests_of_files(ctx.options.places_of(name))}
    if name in DRAWN and ctx.precision:
        settings["precision"] = ctx.precision
    if name in CALIBRATED and ctx.own_calibration is not None:
        settings["calibration"] = hashlib.sha256(ctx.own_calibration.to_bytes()).hexdigest()
    return settings


def is_to_measure(ctx: Context, name: str, again: bool) -> bool:
    """Whether a suite applies to the model and has no stored result."""
    if missing_requirement(ctx, SUITES[name].requires) is not None:
        return False
    return again or read_whole(ctx, name, settings_of(ctx, name)) is None


def read_whole(ctx: Context, name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The stored record of a suite with these settings, unless it was measured without something that is there now."""
    stored = read_stored(ctx.folder / "evaluation" / name, settings)
    return None if stored is not None and SUITES[name].cured(ctx, stored["tables"]) else stored


def add(record: dict[str, Any], name: str, stored: dict[str, Any]) -> None:
    record["suites"][name] = {key: stored[key] for key in ("seconds", "settings", "environment")}
    for part in ("metrics", "tables"):
        record[part] |= stored[part]
    record["notes"][name] = stored["notes"]


def stored_before(ctx: Context, name: str, weights: str) -> dict[str, Any] | None:
    """What an earlier call measured of a suite on these weights and test images, whatever its other settings; else None."""
    stored = read_result(ctx.folder / "evaluation" / name)
    if stored is None:
        return None
    settings = stored["settings"]
    same = (settings.get("weights"), settings.get("test_images")) == (weights, test_digest(ctx))
    return stored if same else None


def test_digest(ctx: Context) -> str:
    return digest_of_images(ctx.data.test)


def digest_of_images(images: ImageSet) -> str:
    """Number of images and a digest of all, or of some if they are not in memory, so that results on others are not reused."""
    seen = images if isinstance(images.pixels, Tensor) else images.subsample(DIGESTED)
    digest = hashlib.sha256(seen.in_memory.contiguous().numpy().data)
    for labels in (seen.labels, images.labels):
        if labels is not None:
            digest.update(labels.numpy().tobytes())
    return f"{len(images)}-{digest.hexdigest()[:16]}"


def digests_of_files(places: Sequence[str]) -> list[str]:
    """Where these are files or folders, digests of their names, sizes and times."""
    found = []
    for text in (place.rpartition("@")[2] if place.startswith("timm:") else place for place in places):  # timm:NAME@FILE
        if os.path.exists(text):
            files = Files(Path(text)) if os.path.isdir(text) else None
            stamps = [stamp(os.path.abspath(text))] if files is None else files.stamps(files.names())
            found.append(hashlib.sha256("\n".join(stamps).encode(errors="surrogateescape")).hexdigest()[:16])
    return found


def as_record(result: Result, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    for name, metric in result.metrics.items():
        if not math.isfinite(metric.value):
            raise DataError(f"{name} is {metric.value}: the model's outputs are not finite")
    return {
        "settings": settings,
        "seconds": round(seconds, 2),
        "environment": environment(),
        "metrics": {
            name: {k: v for k, v in m._asdict().items() if v is not None and not (k in ("low", "high") and math.isnan(v))}
            for name, m in result.metrics.items()
        },
        "tables": result.tables,
        "notes": result.notes,
        "pictures": {name: picture.caption for name, picture in result.pictures.items()},
    }


def store(folder: Path, stored: dict[str, Any], pictures: dict[str, Picture]) -> None:
    """Write a suite's files, result.json last: a folder that has it is complete."""
    make_folder(folder)
    (folder / "result.json").unlink(missing_ok=True)  # else, after a kill, with the pictures of this measurement
    for old in (*folder.glob("*.png"), *folder.glob("*.svg")):
        old.unlink()  # an earlier measurement may have left others
    for name, picture in pictures.items():
        if isinstance(picture.content, Image.Image):
            save_image(picture.content, folder / f"{name}.png")
        else:
            write_text(folder / f"{name}.svg", picture.content)
    write_text(folder / "result.json", json.dumps(stored | {DIGEST: digest(stored)}, indent=1, allow_nan=False) + "\n")


def digest(stored: dict[str, Any]) -> str:
    """Of a record, so that a changed figure in a file that is still valid is noticed."""
    return hashlib.sha256(json.dumps(stored).encode()).hexdigest()


def read_stored(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The stored record of a suite, if it was measured with these settings on these weights; else None."""
    stored = read_result(folder)
    return stored if stored is not None and stored["settings"] == json.loads(json.dumps(settings)) else None


def read_result(folder: Path) -> dict[str, Any] | None:
    """The stored record of a suite, complete and with its pictures; None where there is none, or a damaged one."""
    try:
        stored = json.loads(read_bytes(folder / "result.json").decode())
        written = stored.pop(DIGEST, None)
        complete = (
            (written == digest(stored) or (written is None and stored["settings"]["version"] == FIRST))
            and all(isinstance(stored[part], dict) for part in ("settings", "environment", "metrics", "tables", "pictures"))
            and isinstance(stored["seconds"], (int, float))
            and all(isinstance(note, str) for note in stored["notes"])
            and all(is_metric(entry) for entry in stored["metrics"].values())
            and all(any((folder / f"{name}{end}").is_file() for end in (".png", ".svg")) for name in stored["pictures"])
            and all(isinstance(caption, str) for caption in stored["pictures"].values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # where a value has another type
        return None
    return stored if complete else None


def is_metric(entry: Any) -> bool:
    """Whether an entry of a record holds what a :class:`Metric` does."""
    if not isinstance(entry, dict):
        return False
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in entry.values())
    return numbers and {"value", "n"} <= entry.keys() <= set(Metric._fields)


def line_of(name: str, metric: dict[str, Any]) -> str:
    value = metric["value"]
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    interval = f"  [{metric['low']:.4f}, {metric['high']:.4f}]" if "low" in metric else ""
    return f"  {name:<46}{shown:>10}{interval}  n {metric['n']:,}"
