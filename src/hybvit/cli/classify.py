"""`hybvit classify MODEL image.png ...`: classify image files, with an in-distribution score."""

from __future__ import annotations

import json

import torch

from ..data.images import read_image
from ..loading import load
from .arguments import ArgumentParser, positive_int


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
    pixels = torch.stack([read_image(path, model.cfg.model.channels, model.cfg.model.image_size) for path in args.images])
    labels, probabilities, scores = model.predict(pixels)
    width = max(map(len, args.images))
    for path, label, row, score in zip(args.images, labels.tolist(), probabilities, scores.tolist(), strict=True):
        top = row.topk(min(args.top, len(row)))
        named = {model.classes[k]: round(p, 6) for p, k in zip(top.values.tolist(), top.indices.tolist(), strict=True)}
        if args.json:
            print(json.dumps({"image": path, "label": model.classes[label], "probabilities": named, "log_density": score}))
        else:
            shown = "  ".join(f"{name} {100 * p:.1f} %" for name, p in named.items())
            print(f"{path:<{width}}  {shown}  log density {score:.2f}")
