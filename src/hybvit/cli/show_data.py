"""`hybvit show-data`: pictures of a preset's images under augmentation, under diffusion (Figure 1) and under corruptions."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..config import Config, parse
from ..data.batches import AUTO_AUGMENT, augment_weakly, cutmix, erase, mean_color, mixed_labels, mixup, policy_of, uniforms
from ..data.corruptions import SEVERITIES, applicable, check_corruption, corrupt
from ..data.datasets import open_dataset
from ..data.image_set import ImageSet, to_pixels, to_x
from ..data.images import save_image
from ..data.locate import image_folders, locate
from ..evaluation.plots import literal
from ..method.seeds import generator
from ..presets import preset
from ..storage import refuse_inside
from .arguments import ArgumentParser, location, path, positive_int
from .next_step import data_options, suggest

FIGURE_1_TIMES = (0, 0.25, 0.5, 0.75, 1)  # t / T
FIGURE_1_IMAGES = 4
SHARE, CENTER = 0.6, (0.6, 0.4)  # of the MixUp and CutMix examples


class Row(NamedTuple):
    """Images uint8 [N, C, H, W] side by side, with a label each and a title for the row."""

    title: str
    pixels: Tensor
    labels: list[str]


def augmentation_rows(train: ImageSet, classes: tuple[str, ...], cfg: Config, columns: int) -> list[Row]:
    """Raw, weak and strong augmentation (before mixing); for labeled images also MixUp and CutMix."""
    from ..data.auto_augment import auto_augment  # torchvision takes as long to import as torch

    shown = train.subsample(columns)
    pixels, labels = shown.in_memory, shown.labels
    index = torch.arange(len(shown))
    keys = torch.stack((torch.zeros_like(index), index, torch.zeros_like(index)), dim=1)
    u = uniforms(cfg.train.seed, "augmentation", keys)
    weakly = augment_weakly(pixels, u, cfg.data.crop_padding, cfg.data.flip)
    strongly = to_x(auto_augment(policy_of(replace(cfg.data, classes=classes))).apply(weakly, u[:, AUTO_AUGMENT]))
    strongly = erase(strongly, u, cfg.data.erasing, mean_color(train))
    names = [classes[k] for k in labels.tolist()] if labels is not None else [""] * len(pixels)
    rows = [Row("raw", pixels, names), Row("weak", weakly, names), Row("strong", to_pixels(strongly), names)]
    if labels is not None:
        cut, share = cutmix(strongly, SHARE, CENTER)
        for title, mixture, lam in (("MixUp", mixup(strongly, SHARE), SHARE), ("CutMix", cut, share)):
            targets = mixed_labels(labels, len(classes), lam)
            rows.append(Row(title, to_pixels(mixture), [describe_shares(target, classes) for target in targets]))
    return rows


def describe_shares(shares: Tensor, classes: tuple[str, ...]) -> str:
    """The classes of a mixed image with their shares, largest first."""
    order = [k for k in shares.argsort(descending=True).tolist() if shares[k] > 0]
    return "\n".join(f"{classes[k]} {100 * shares[k]:.0f} %" for k in order)


def figure_1_rows(train: ImageSet, cfg: Config) -> list[Row]:
    """Images at t = 0, T/4, T/2, 3T/4 and T of the configured diffusion, as in Figure 1 of the paper."""
    diffusion, x = cfg.diffusion.build(), to_x(train.subsample(FIGURE_1_IMAGES).in_memory)
    noise = torch.randn(x.shape, generator=generator(cfg.train.seed, "noise"))
    times = [round(share * diffusion.T) for share in FIGURE_1_TIMES]
    noisy = [x if t == 0 else diffusion.q_sample(x, torch.full((len(x),), t), noise) for t in times]
    columns = to_pixels(torch.stack(noisy, dim=1))
    return [Row("", row, [f"t = {t}" for t in times]) for row in columns]


def overview_rows(test: ImageSet, seed: int) -> list[Row]:
    """A row for each corruption that needs no photographs: a test image, clean and at each severity."""
    names = applicable(test.in_memory.shape[1], with_frost=False)
    labels = ["clean", *(f"severity {severity}" for severity in SEVERITIES)]
    rows = []
    for i, name in enumerate(names):
        image = test.in_memory[i % len(test)][None]
        rows.append(Row(name, torch.cat([image, *(corrupt(image, name, k, seed) for k in SEVERITIES)]), labels))
    return rows


def severity_rows(test: ImageSet, name: str, seed: int) -> list[Row]:
    """Test images, clean and at each severity of one corruption."""
    pixels, nameless = test.in_memory, [""] * len(test)
    corrupted = [Row(f"severity {k}", corrupt(pixels, name, k, seed), nameless) for k in SEVERITIES]
    return [Row("clean", pixels, nameless), *corrupted]


def sheet(rows: list[Row]) -> Image.Image:
    """Draw the rows as one image on white."""
    from matplotlib.figure import Figure

    wide = max(len(row.pixels) for row in rows)
    lines = max(label.count("\n") + 1 for row in rows for label in row.labels)
    figure = Figure(figsize=(1.3 * wide + 0.6, (1.15 + 0.16 * lines) * len(rows)), dpi=110, layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), wide, squeeze=False), rows, strict=True):
        for place in axes:
            place.set_axis_off()
        for place, image, label in zip(axes, row.pixels, row.labels, strict=False):
            place.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            place.set_title(literal(label), fontsize=7)
        axes[0].text(-0.12, 0.5, row.title, transform=axes[0].transAxes, rotation=90, ha="center", va="center", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return Image.open(buffer).convert("RGB")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit show-data",
        usage="hybvit show-data PRESET [--data DIR] [--out DIR] [--columns N] [--corruption CORRUPTION] "
        "[--any.nested.field VALUE ...]",
        description="Write augmentation.png (raw, weakly and strongly augmented and mixed images with their labels), "
        "figure1.png (images at five diffusion times) and corruptions.png (test images under each common corruption).",
    )
    parser.add_argument("preset", metavar="PRESET", help="`hybvit presets` lists them")
    parser.add_argument("--data", type=location, metavar="DIR", help="as for hybvit train")
    parser.add_argument("--out", type=path, metavar="DIR", help="output folder (runs/show-data/PRESET)")
    parser.add_argument("--columns", type=positive_int, default=10, help="images side by side (10)")
    parser.add_argument("--corruption", metavar="CORRUPTION", help="let corruptions.png show one of them, on several images")
    return parser


def main(arguments: list[str]) -> None:
    args, fields = build_parser().parse_known_args(arguments)
    if args.corruption:
        check_corruption(args.corruption)
    cfg = parse(fields, preset(args.preset))
    if args.data:
        cfg = replace(cfg, data=locate(cfg.data, args.data))
    data = open_dataset(cfg.data, cfg.model.image_shape, cfg.model.num_classes, labeled=cfg.objective.kind != "genvit")
    out = args.out or Path("runs") / "show-data" / args.preset
    refuse_inside(out, image_folders(cfg.data))
    save_image(sheet(augmentation_rows(data.train, data.classes, cfg, args.columns)), out / "augmentation.png")
    save_image(sheet(figure_1_rows(data.train, cfg)), out / "figure1.png")
    test, seed = data.test.subsample(args.columns), cfg.train.seed
    rows = severity_rows(test, args.corruption, seed) if args.corruption else overview_rows(test, seed)
    save_image(sheet(rows), out / "corruptions.png")
    print(", ".join(str(out / f"{name}.png") for name in ("augmentation", "figure1", "corruptions")))
    suggest("show-data", preset=args.preset, data=data_options(args.data), fields=fields)
