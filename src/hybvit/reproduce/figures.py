"""The paper's figures, drawn from the stored results of the runs: pictures as PNG, plots as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ..config import Config
from ..data.datasets import open_dataset
from ..data.image_set import to_pixels, to_x
from ..data.images import captioned_grid
from ..evaluation import plots
from ..evaluation.fidelity import GRID_IMAGES
from ..evaluation.quality import PER_CLASS
from ..evaluation.suites import read_result
from ..method.seeds import generator
from .runs import snapshots_of
from .scales import Scale
from .tables import FIGURES, Row, measured

Drawn = Image.Image | str
FIRST_CLASS_FIGURE = 15
GRID_COLUMNS = 10  # of a sample grid
NOISE_TIMES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # fractions of T
SHORT_NAMES = {
    "cifar10": "HybViT",
    "cifar10_vit": "ViT",
    "cifar10_genvit": "GenViT",
    "cifar10_weak": "HybViT, weak aug.",
    "cifar10_vit_weak": "ViT, weak aug.",
    "cifar10_wrn28_10": "WRN",
    "cifar10_jem": "JEM",
    "imagenet32": "HybViT, ImageNet 32",
    "imagenet32_vit": "ViT, ImageNet 32",
    "imagenet32_genvit": "GenViT, ImageNet 32",
}


def draw(
    name: str,
    folders: Mapping[str, Path],
    configs: Mapping[str, Config],
    records: Mapping[str, dict[str, Any]],
    scale: Scale,
) -> dict[str, Drawn]:
    """File name without extension -> picture; empty while no run is available.

    Args:
        folders, configs, records: run folder, configuration and record, each by preset.
    """
    there = [run for run in FIGURES[name].runs if run in records]
    number = name.removeprefix("figure")
    if name == "figure1":
        return {name: noising(configs["cifar10"])} if "cifar10" in configs else {}
    if name in ("figure6", "figure12"):
        return calibration(name, there, records)
    if name == "figure8":
        return along_training(name, there, records, scale)
    if name == "figure8b":
        return under_attack(name, there, records, scale)
    if name in ("figure4", "figure5", "figure14"):
        found = {run: stored(folders[run], "fidelity", "samples") for run in there}
        several = len(FIGURES[name].runs) > 1
        return {f"{name}_{run}" if several else name: picture for run, picture in found.items() if picture is not None}
    if not there:
        return {}
    if name in ("figure10", "figure11"):
        return view_of_samples(name, folders["cifar10"], "logpx" if name == "figure10" else "confidence")
    if name == "figure13":
        return samples_along_training(name, folders["cifar10"], configs["cifar10"]) if "cifar10" in there else {}
    return best_and_worst(name, folders["cifar10"], int(number) - FIRST_CLASS_FIGURE)


def noising(cfg: Config) -> Image.Image:
    """A few images (rows) at increasing times (columns): q(x_t | x_0), Eqs. 9-10."""
    diffusion, images = cfg.diffusion.build(), open_dataset(cfg.data, cfg.model.image_shape).test.first(4)
    x = to_x(images.take(torch.arange(4))[0])
    noise = torch.randn(x.shape, generator=generator(0, "noise"))
    times = [round(share * diffusion.T) for share in NOISE_TIMES]
    columns = [diffusion.q_sample(x, torch.full((4,), t), noise) for t in times]
    pixels = to_pixels(torch.stack(columns, dim=1).flatten(0, 1))
    captions = [f"t = {t}" for t in times] * len(x)
    return captioned_grid(pixels, captions, columns=len(times), scale=max(1, 64 // x.shape[-1]))


def calibration(name: str, there: list[str], records: Mapping[str, dict[str, Any]]) -> dict[str, Drawn]:
    found = {}
    for run in there:
        bins = records[run].get("tables", {}).get("reliability")
        if bins:
            ece = 100 * records[run]["metrics"]["calibration/ece_20"]["value"]
            found[f"{SHORT_NAMES[run]}, ECE {ece:.1f} %"] = (
                filled(bins["confidence"]),
                filled(bins["accuracy"]),
                bins["count"],
            )
    return {name: plots.panels(found)} if found else {}


def filled(values: list[float | None]) -> list[float]:
    return [0.0 if value is None else value for value in values]


def along_training(name: str, there: list[str], records: Mapping[str, dict[str, Any]], scale: Scale) -> dict[str, Drawn]:
    """Accuracy and Frechet distance against the training step."""
    found: dict[str, Drawn] = {}
    for column, label in (("accuracy", "accuracy in %"), ("fid", "Frechet distance")):
        lines = {}
        for run in there:
            points = []
            for step, metrics in records[run]["snapshots"].items():
                at = measured(column, Row(run, "", None, run), {"metrics": metrics, "parameters": 0}, scale)
                if at is not None:
                    points.append((float(step), at.value))
            if points:
                lines[SHORT_NAMES[run]] = points
        if lines:
            found[f"{name}_{column}"] = plots.curves(lines, "step", label, from_zero=column == "fid")
    return found


def under_attack(name: str, there: list[str], records: Mapping[str, dict[str, Any]], scale: Scale) -> dict[str, Drawn]:
    found: dict[str, Drawn] = {}
    for norm, label in (("linf", "L-inf"), ("l2", "L2")):
        lines = {}
        for run in there:
            prefix = f"robustness/pgd_{norm}_"
            points = [
                (float(metric.removeprefix(prefix)), 100 * entry["value"])
                for metric, entry in records[run]["metrics"].items()
                if metric.startswith(prefix)
            ]
            if points:
                lines[SHORT_NAMES[run]] = sorted(points)
        if lines:
            found[f"{name}_{norm}"] = plots.curves(lines, f"eps ({label}) in 1/255", "accuracy in %")
    return found


def stored(run: Path, suite: str, name: str) -> Drawn | None:
    """A picture that a run's stored evaluation lists, or None."""
    folder = run / "evaluation" / suite
    found = read_result(folder)
    if found is None or name not in found["pictures"]:
        return None
    if (folder / f"{name}.png").is_file():
        return Image.open(folder / f"{name}.png").copy()
    return (folder / f"{name}.svg").read_text(encoding="utf-8") if (folder / f"{name}.svg").is_file() else None


def view_of_samples(name: str, run: Path, score: str) -> dict[str, Drawn]:
    """The model's scores of its own samples by class, and the best and worst samples of each class."""
    parts = {"by_class": f"{score}_by_class", "best": f"best_{score}", "worst": f"worst_{score}"}
    found = {f"{name}_{word}": stored(run, "quality", picture) for word, picture in parts.items()}
    return {word: picture for word, picture in found.items() if picture is not None}


def samples_along_training(name: str, run: Path, cfg: Config) -> dict[str, Drawn]:
    """One row of the same ten seeds per snapshot, from the earliest at the top to the finished run at the bottom."""
    strips = []
    for folder in (*snapshots_of(run, cfg), run):
        picture, found = stored(folder, "fidelity", "samples"), read_result(folder / "evaluation" / "fidelity")
        if isinstance(picture, Image.Image) and found is not None:
            shown_rows = -(-min(found["settings"]["samples"], GRID_IMAGES) // GRID_COLUMNS)
            strips.append(picture.crop((0, 0, picture.width, picture.height // shown_rows)))
    if len(strips) < 2:
        return {}
    whole = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)), 255)
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return {name: whole}


def best_and_worst(name: str, run: Path, k: int) -> dict[str, Drawn]:
    """One class: its best samples by log p(x) above, its worst below; empty if too few samples were assigned to the class."""
    stored_result = read_result(run / "evaluation" / "quality")
    if stored_result is None:
        return {}
    by_class = stored_result["tables"]["samples_by_class"]
    classes = list(by_class)
    n = stored_result["settings"]["samples"]
    shown = [kind for kind in classes if round(by_class[kind]["share"] * n) >= PER_CLASS]
    if k >= len(classes) or classes[k] not in shown:
        return {}
    rows = []
    for part in ("best_logpx", "worst_logpx"):
        picture = stored(run, "quality", part)
        if not isinstance(picture, Image.Image):
            return {}
        height = picture.height // len(shown)
        top = shown.index(classes[k]) * height
        rows.append(picture.crop((0, top, picture.width, top + height)))
    whole = Image.new(rows[0].mode, (rows[0].width, 2 * rows[0].height + 14), 255)
    ImageDraw.Draw(whole).text((2, 1), f"{classes[k]}: best above, worst below", fill=0)
    whole.paste(rows[0], (0, 14))
    whole.paste(rows[1], (0, 14 + rows[0].height))
    return {name: whole}
