"""`hybvit edit MODEL PICTURE ...`: edit image files, and show what the classifier says before and after."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..data.image_set import to_x
from ..data.images import RESAVE, Originals, captioned_grid, check_image_suffix, grid, read_image, save_image
from ..devices import announce
from ..errors import ConfigError, quantity
from ..loading import load
from ..method.editing import Search
from ..metrics.autoattack import GRADIENT
from ..model import HybridModel, Prediction
from ..waiting import Progress, percent
from .arguments import ArgumentParser, naming, path, positive_int
from .next_step import suggest
from .sample import open_folder

STEPS, REPEATS, FLOW_STEPS = 20, 4, 30  # of the samplers, and of the way to noise and back
BATCH = 128  # images that are edited at a time
SHOWN_SIZE = 112  # pixels of an image in the picture, at least: a caption fits below it


class Pair(NamedTuple):
    """An original and what became of it, as uint8 [C, H, W], with the words below them."""

    before: Tensor
    after: Tensor
    words_before: str
    words_after: str


def main(arguments: list[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    check_image_suffix(args.out)
    check_used(args)
    model, results = load(args.model), results_of(args)
    pixels = read_pictures(model, args.pictures)
    label, into = (class_of(model, parser, option, getattr(args, option)) for option in ("label", "into"))
    files = [f"{i:06d}.png" for i in range(results * len(pixels))]
    with naming(args.model), contextlib.ExitStack() as held:
        if args.folder is not None:
            held.enter_context(open_folder(args.folder, files))
        announce_edits(model, pixels, args)
        with Progress(len(pixels) if args.toward is not None else 1, "editing"):
            pairs = edit(model, pixels, args, label, into)
        for name, pair in zip((name for name in args.pictures for _ in range(results)), pairs, strict=True):
            print(f"{' '.join(name.split())}  {pair.words_before} -> {pair.words_after}")
        if args.folder is not None:
            for file, pair in zip(files, pairs, strict=True):
                save_image(grid(pair.after[None], gap=0), args.folder / file)
    save_image(picture_of(pairs, results, max(1, SHOWN_SIZE // model.cfg.model.image_size)), args.out)
    print(
        f"{args.out}: before and after" + ("" if args.folder is None else f"; {args.folder}: {quantity(len(pairs), 'image')}")
    )
    suggest("edit", model=args.model)


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit edit",
        description="Edit image files of any format and size, and write a picture of each before and after, with the class "
        "that the model's classifier sees and its probability. Choose one of --box, --mask, --vary, --toward and --into.",
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, hub id, or bundled model")
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="image files")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--box", type=box, metavar="X0,Y0,X1,Y1",
        help="redraw this box to fit the rest, which stays unchanged; in pixels at the model's size, X1 and Y1 excluded",
    )  # fmt: skip
    kind.add_argument("--mask", metavar="FILE", help="draw anew what is white in this image, resized like the pictures")
    kind.add_argument(
        "--vary", type=float, metavar="STRENGTH", help="variations; in 0 to 1: 0.3 changes texture, 0.8 the object"
    )
    kind.add_argument("--toward", metavar="PICTURE", help="the images on the way to this one")
    kind.add_argument("--into", metavar="CLASS", help="what would make each picture one of this class, by name or number")
    parser.add_argument("-n", type=positive_int, help="results for each picture (1; with --toward the images on the way: 9)")
    parser.add_argument("--label", help="draw as one of this class (--box, --mask, --vary; models with label conditioning)")
    parser.add_argument("--confidence", type=float, help=f"probability that --into has to reach ({Search().confidence})")
    parser.add_argument("--seed", type=int, help="of the noise of --box, --mask and --vary (0)")
    parser.add_argument("--out", type=path, default=Path("edit.png"), help="file for the picture (edit.png)")
    parser.add_argument("--folder", type=path, help="write the results alone, 000000.png, ..., to this folder too")
    return parser


def box(text: str) -> tuple[int, int, int, int]:
    """An argparse type: x0,y0,x1,y1 with x0 < x1 and y0 < y1."""
    try:
        x0, y0, x1, y1 = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not four whole numbers X0,Y0,X1,Y1") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise argparse.ArgumentTypeError(f"{text}: it must be X0 < X1 and Y0 < Y1, from 0")
    return x0, y0, x1, y1


def results_of(args: argparse.Namespace) -> int:
    """The number of results for each picture."""
    given: int | None = args.n
    return given or (9 if args.toward is not None else 1)


def read_pictures(model: HybridModel, pictures: Sequence[str]) -> Tensor:
    """Image files -> uint8 [N, C, H, W] of the model's size, with a warning where they look nearly black."""
    shape, originals = model.cfg.model, Originals(model.cfg.data.bits)
    pixels = [read_image(picture, shape.channels, shape.image_size, originals=originals) for picture in pictures]
    originals.warn_of_depth(pictures[0], RESAVE)
    return torch.stack(pixels)


def class_of(model: HybridModel, parser: ArgumentParser, option: str, given: str | None) -> int | None:
    """The number of the class that an option names; None where it is not given."""
    if given is None:
        return None
    try:
        return model.class_number(given)
    except ValueError as error:
        parser.error(f"--{error}" if option == "label" else f"--{option}: {error}")


def edit(model: HybridModel, pixels: Tensor, args: argparse.Namespace, label: int | None, into: int | None) -> list[Pair]:
    """Edit the pictures as asked, ``args.n`` times each, the results of a picture beside each other."""
    results = results_of(args)
    repeated = pixels.repeat_interleave(results, dim=0)
    if into is not None:
        confidence = Search().confidence if args.confidence is None else args.confidence
        changed = model.counterfactual(pixels, into, confidence=confidence, batch_size=BATCH)
        words = [
            f"{said}, changed by {distance:.1f}" + ("" if accepted else " (not accepted)")
            for said, distance, accepted in zip(
                answers(model, changed.after, len(pixels)), changed.distance.tolist(), changed.accepted.tolist(), strict=True
            )
        ]
        return pairs_of(pixels, changed.pixels, answers(model, changed.before, len(pixels)), words)
    if args.toward is not None:
        other = read_pictures(model, [args.toward])
        found = [model.interpolate(image[None], other, results, FLOW_STEPS) for image in pixels]
        before = [said for edited in found for said in answers(model, edited.before, 2)[:1] * results]
        after = [said for edited in found for said in answers(model, edited.after, results)]
        return pairs_of(repeated, torch.cat([edited.pixels for edited in found]), before, after)
    if args.vary is not None:
        edited = model.vary(repeated, args.vary, label, STEPS, args.seed or 0, BATCH)
    else:
        edited = model.inpaint(repeated, mask_of(model, args), label, STEPS, REPEATS, args.seed or 0, BATCH)
    said = [answers(model, prediction, len(repeated)) for prediction in (edited.before, edited.after)]
    return pairs_of(repeated, edited.pixels, *said)


def announce_edits(model: HybridModel, pixels: Tensor, args: argparse.Namespace) -> None:
    """Say what the edits will take, from one call of the denoiser. Counterfactuals may need less than all their attempts."""
    if not model.has_denoiser or not (args.vary is None or 0 < args.vary <= 1):  # which the edit itself says
        return
    search = Search()
    calls, evaluations = (STEPS - 1) * REPEATS + 1, 1
    if args.vary is not None:
        calls = math.ceil(STEPS * args.vary)
    elif args.toward is not None:
        calls = 4 * FLOW_STEPS
    elif args.into is not None:  # each call has a gradient
        calls, evaluations = 2 * search.steps * (1 + len(search.holds)), 1 + GRADIENT
    n = len(pixels) * results_of(args)
    x = to_x(pixels[:1].expand(min(n, BATCH), -1, -1, -1)).to(model.device)
    t = torch.full((len(x),), model.diffusion.T, device=model.device)
    call = torch.no_grad()(partial(model.predict_x0, x, t))
    announce([(call, calls * evaluations * n / len(x))], model.device, at_most=args.into is not None)


def check_used(args: argparse.Namespace) -> None:
    """Raises ConfigError where an option is given that the kind of edit does not use."""
    if args.label is not None and (args.into is not None or args.toward is not None):
        raise ConfigError("--label goes with --box, --mask and --vary; --into names the class of a counterfactual")
    if args.n is not None and args.into is not None:
        raise ConfigError("-n is given, but --into has one result for each picture: leave it out")
    if args.seed is not None and (args.into is not None or args.toward is not None):
        raise ConfigError("--seed is of the noise of --box, --mask and --vary; --into and --toward have none: leave it out")
    if args.confidence is not None and args.into is None:
        raise ConfigError("--confidence is that of --into: leave it out")
    if args.confidence is not None and not 0 < args.confidence < 1:
        raise ConfigError(f"--confidence is {args.confidence:g}: it must be between 0 and 1")


def mask_of(model: HybridModel, args: argparse.Namespace) -> Tensor:
    """bool [H, W], True where pixels are drawn."""
    side = model.cfg.model.image_size
    if args.mask is not None:
        return read_image(args.mask, 1, side)[0] > 127
    x0, y0, x1, y1 = args.box
    if x1 > side or y1 > side:
        raise ConfigError(f"--box {x0},{y0},{x1},{y1} reaches outside the {side} x {side} pixels of this model")
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def answers(model: HybridModel, said: Prediction | None, n: int) -> list[str]:
    """The class and its probability for each of n images; a dash from a model without classes."""
    if said is None:
        return ["-"] * n
    best = said.probabilities.max(dim=1).values.tolist()
    return [f"{model.classes[k]} {percent(p)}" for k, p in zip(said.labels.tolist(), best, strict=True)]


def pairs_of(before: Tensor, after: Tensor, words_before: Sequence[str], words_after: Sequence[str]) -> list[Pair]:
    return [Pair(*pair) for pair in zip(before, after, words_before, words_after, strict=True)]


def picture_of(pairs: list[Pair], results: int, scale: int) -> Image.Image:
    """A row for each original, followed by its ``results``, with what the classifier says of each."""
    shown, words = list[Tensor](), list[str]()
    for i in range(0, len(pairs), results):
        row = pairs[i : i + results]
        shown += [row[0].before, *(pair.after for pair in row)]
        words += [row[0].words_before, *(pair.words_after for pair in row)]
    return captioned_grid(torch.stack(shown), words, 1 + results, scale)
