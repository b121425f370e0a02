"""`hybvit classify MODEL image.png ...`: classify image files, and say how much they are like the training images."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import Files
from ..data.images import RESAVE, Originals, read_image
from ..data.own_images import image_names
from ..errors import DataError
from ..loading import load
from ..metrics.doubt import RISK
from ..model import COVERAGE, HybridModel, classify
from ..waiting import Progress, percent
from .arguments import ArgumentParser, naming, positive_int
from .next_step import suggest


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit classify",
        description="Classify image files of any format and size. The log density is higher for images like the training "
        "data. A calibrated model (`hybvit calibrate`) gives calibrated probabilities, abstains where it is not sure enough, "
        "and names the classes that hold the true one with a probability of 95 % (the set).",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, hub id, or bundled model")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=positive_int, default=3, help="classes shown per image (3)")
    parser.add_argument(
        "--abstain-above",
        type=float,
        metavar="RISK",
        help="abstain where that is needed to keep the share of wrong answers at or below this, with a confidence of 95 %% "
        f"(calibrated models: {RISK}, if their calibration images suffice)",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        help=f"probability with which a set holds the true class, for a calibrated model ({COVERAGE})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    return parser


def main(arguments: list[str]) -> None:
    args = build_parser().parse_args(arguments)
    model = load(args.model)
    named, pixels, bad = list[str](), list[Tensor](), list[DataError]()
    shape, originals = model.cfg.model, Originals(model.cfg.data.bits)
    files = list[str]()
    for place in args.images:
        try:
            files += image_files(place)
        except DataError as error:
            bad.append(error)
    with Progress(len(files), "reading") as progress:
        for image in files:
            try:
                pixels.append(read_image(image, shape.channels, shape.image_size, originals=originals))
                named.append(image)
            except DataError as error:
                bad.append(error)
            progress.update()
    originals.warn_of_depth(f"{args.images[0]}{' and others' if args.images[1:] else ''}", RESAVE)
    if pixels:
        with naming(args.model):
            answer(model, named, torch.stack(pixels), args)
    for other in bad[:-1]:
        print(f"hybvit: {' '.join(str(other).split())}", file=sys.stderr)  # a name may have line breaks
    if bad:
        raise bad[-1]
    if not args.json:
        suggest("classify" if model.has_denoiser else "classify without a denoiser", model=args.model, image=named[0])


def image_files(place: str) -> list[str]:
    """The image files below a folder; any other place is taken for one itself."""
    if not os.path.isdir(place):
        return [place]
    if not (names := image_names(Files(Path(place)))):
        raise DataError(f"{place}: no image files in this folder")
    return [os.path.join(place, name) for name in names]


def answer(model: HybridModel, images: list[str], pixels: Tensor, args: Namespace) -> None:
    """Print a line for each image, by its name; what is of one kind stands in one column."""
    with Progress(1 if model.calibration is None else 2, "classifying"):
        found = classify(model, pixels, args.abstain_above, args.coverage)
    records = [one.record(model.classes, args.top) for one in found]
    if args.json:
        for path, record in zip(images, records, strict=True):
            print(json.dumps({"image": path, **record}))
        return
    rows = []
    for path, one, record in zip(images, found, records, strict=True):
        cells = [" ".join(path.split()), *["abstains:" if one.abstains else ""] * any(other.abstains for other in found)]
        cells += [f"{name} {percent(p)}" for name, p in record["probabilities"].items()]
        cells.append(f"log density {one.log_density:.2f}")
        cells += [] if one.held is None else [f"{one.coverage:.3g} set: {', '.join(record['set'])}"]
        rows.append(cells)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())
