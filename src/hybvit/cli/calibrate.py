"""`hybvit calibrate MODEL --data DIR`: let a model know how sure it may be, from images that it was not trained on."""

from __future__ import annotations

from functools import partial

import torch

from ..data.image_set import to_x
from ..devices import announce
from ..errors import ConfigError
from ..evaluation.doubt import COVERAGES, RISKS
from ..evaluation.subject import with_own_data
from ..evaluation.unseen import calibration_images
from ..loading import calibration_folder, load, save_calibration
from ..metrics.doubt import Calibration
from ..model import export_folder
from ..waiting import Progress
from .arguments import ArgumentParser, location, naming, path
from .next_step import data_options, suggest


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit calibrate",
        description="Calibrate a model: its probabilities, when to abstain, and sets of classes. That is stored with the "
        "model, and `hybvit classify` uses it. The images must be labeled, and none that the model was trained on.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder or exported folder; hub id or bundled model with --out")
    parser.add_argument(
        "--data",
        type=location,
        help="location of the images: either images that were not used in training (all of them, or only the test images if "
        "they are divided), or the training data (only the held-out images). Default: the named data set that the model was "
        "trained on",
    )
    parser.add_argument("--data.test_root", dest="test_root", type=location, help="test images that lie outside of --data")
    parser.add_argument(
        "--half-of-test",
        action="store_true",
        help="use every second test image of each class; `hybvit evaluate` then judges the calibration by the others",
    )
    parser.add_argument("--out", type=path, help="folder for a calibrated copy of the model, which itself stays as it is")
    return parser


def main(arguments: list[str]) -> None:
    args = build_parser().parse_args(arguments)
    model = load(args.model)
    if args.out is None:
        folder = calibration_folder(args.model)
    else:
        export_folder(args.out)
    if not model.has_classes:
        raise ConfigError(f"{args.model}: was trained with objective genvit: it has no labels to calibrate")
    images, source = calibration_images(with_own_data(model, None, args.data, args.test_root), args.half_of_test)
    images = images.subsample(len(images))  # in memory
    assert images.labels is not None
    with naming(args.model), Progress(1, "calibrating"):
        few = to_x(images.in_memory[:256]).to(model.device)
        announce([(torch.no_grad()(partial(model.logits, few)), len(images) / len(few))], model.device)
        calibration = model.calibrate(images.in_memory, images.labels, source)
    describe(calibration)
    if args.out is None:
        print(f"{save_calibration(model, folder)} written")
    else:
        model.save_pretrained(args.out)
        print(f"{args.out}: a calibrated copy of {args.model}")
    new = args.data is not None and not args.half_of_test  # images that are all used, so that others have to judge
    where = data_options(args.data, args.test_root)
    suggest("calibrate with --data" if new else "calibrate", model=args.out or args.model, data=where)


def describe(calibration: Calibration) -> None:
    """Say what was found. How good it is, other images must show: `hybvit evaluate --suites calibration,doubt`."""
    temperature = calibration.scaling.temperature
    kinds = {
        "none": "no scaling: none is better on images that it was not fitted to",
        "temperature": f"temperature {temperature or 1:.3f}",
        "vector": "vector scaling: a factor and an offset for each class",
    }
    print(f"calibrated on {len(calibration):,} images ({calibration.source}): {kinds[calibration.scaling.kind]}")
    for risk in RISKS:
        threshold = calibration.threshold(risk)
        if threshold.bound > risk:
            print(f"risk {risk:.0%}: too few images to promise it (at best {threshold.bound:.1%})")
        else:
            answered = (calibration.confidence >= threshold.score).double().mean().item()
            print(f"risk {risk:.0%}: abstains below a probability of {threshold.score:.3f}, answers {answered:.1%} of these")
    for coverage in COVERAGES:
        least = max(1 - calibration.quantile(coverage), 0)
        held = f"the classes with a probability of at least {least:.4f}" if least else "all classes: too few images for fewer"
        print(f"{coverage:.0%} sets: {held}")
