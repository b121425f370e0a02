"""`hybvit classify MODEL image.png ...`: classify image files, with an in-distribution score."""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from ..data.images import Originals, read_image
from ..errors import DataError
from ..loading import load
from ..model import HybridModel
from .arguments import ArgumentParser, naming, positive_int


def main(arguments: list[str]) -> None:
    parser = ArgumentParser(
        prog="hybvit classify",
        description="Classify image files of any format and size. The log density is higher for images like the training data.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, hub id, or bundled model")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--top", type=positive_int, default=3, help="classes shown per image (3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image")
    args = parser.parse_args(arguments)
    model = load(args.model)
    named, pixels, bad = list[str](), list[Tensor](), list[DataError]()
    shape, originals = model.cfg.model, Originals(model.cfg.data.bits)
    for image in args.images:
        try:
            pixels.append(read_image(image, shape.channels, shape.image_size, originals=originals))
            named.append(image)
        except DataError as error:
            bad.append(error)
    originals.warn_of_depth(f"{args.images[0]}{' and others' if args.images[1:] else ''}", "save them with values up to 65,535")
    if pixels:
        with naming(args.model):
            answer(model, named, torch.stack(pixels), args.top, args.json)
    for other in bad[:-1]:
        print(f"hybvit: {' '.join(str(other).split())}", file=sys.stderr)  # a name may have line breaks
    if bad:
        raise bad[-1]


def answer(model: HybridModel, images: list[str], pixels: Tensor, top_classes: int, as_json: bool) -> None:
    """Print a line for each image, by its name."""
    labels, probabilities, scores = model.predict(pixels)
    width = max(map(len, images))
    for path, label, row, score in zip(images, labels.tolist(), probabilities, scores.tolist(), strict=True):
        top = row.topk(min(top_classes, len(row)))
        named = {model.classes[k]: round(p, 6) for p, k in zip(top.values.tolist(), top.indices.tolist(), strict=True)}
        if as_json:
            print(json.dumps({"image": path, "label": model.classes[label], "probabilities": named, "log_density": score}))
        else:
            shown = "  ".join(f"{name} {100 * p:.1f} %" for name, p in named.items())
            print(f"{' '.join(path.split()):<{width}}  {shown}  log density {score:.2f}")
