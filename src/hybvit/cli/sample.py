"""`hybvit sample MODEL`: generate images, as one grid or as single files in a folder."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from ..data.images import check_image_suffix, grid, readable_suffixes, save_image
from ..devices import announce
from ..errors import DataError, quantity
from ..loading import load
from ..method.samplers import SAMPLERS, timesteps
from ..model import HybridModel
from ..storage import lock_folder, make_folder
from .arguments import ArgumentParser, naming, path, positive_int
from .next_step import suggest


def main(arguments: list[str]) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    model = load(args.model)
    label = None
    if (args.label is None) != (args.guidance == 0) and not (model.takes_labels if args.label else model.draws_by_label):
        parser.error("this model needs --label and --guidance together, e.g. --label 3 --guidance 2")
    if args.label is not None:
        try:
            label = model.class_number(args.label)
        except ValueError as error:
            parser.error(f"--{error}")
    of_class = "" if label is None else f" of class {model.classes[label]!r} (number {label})"
    files = [f"{i:06d}.png" for i in range(args.n)] if args.folder is not None else []
    out = args.out or (None if args.folder else Path("grid.png"))
    if out is not None:
        check_image_suffix(out)
    with contextlib.nullcontext() if args.folder is None else open_folder(args.folder, files):
        with naming(args.model):
            announce_samples(model, args, label)
            pixels = model.sample(
                args.n,
                sampler=args.sampler,
                steps=args.steps,
                labels=label,
                guidance=args.guidance,
                seed=args.seed,
                batch_size=args.batch_size,
                progress=True,
                tries=args.tries,
            )
        if out is not None:
            save_image(grid(pixels, scale=max(1, 64 // pixels.shape[-1])), out)
        for name, image in zip(files, pixels if files else (), strict=True):
            save_image(grid(image[None], gap=0), args.folder / name)
    print(f"{' and '.join(str(place) for place in (args.folder, out) if place)}: {quantity(args.n, 'image')}{of_class}")
    if args.folder is None:
        assert out is not None
        suggest("sample", arguments=arguments, folder=out.with_suffix(""))
    elif model.has_classes:
        suggest("sample --folder", model=args.model, image=args.folder / files[0])
    else:
        suggest("sample --folder without classes", model=args.model)


def announce_samples(model: HybridModel, args: argparse.Namespace, label: int | None) -> None:
    """Say what the samples will take, from one step of the first batch."""
    batch = min(args.n, args.batch_size)
    labels = None if label is None else torch.full((batch,), label, device=model.device)
    calls = 2 * args.steps - 1 if args.sampler == "heun" else args.steps

    def step() -> None:
        timesteps(model.diffusion, args.steps, SAMPLERS[args.sampler].spacing)  # raises what no single step would
        model.draw(range(batch), args.sampler, 1, args.seed, args.guidance, labels=labels)

    announce([(step, calls * args.n / batch * args.tries)], model.device, held=2 * args.n * math.prod(model.image_shape))


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="hybvit sample", description="Generate images and write them as one grid, or as single files with --folder."
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, exported folder, hub id, or bundled model")
    parser.add_argument("-n", type=positive_int, default=64, help="number of images (64)")
    parser.add_argument(
        "--sampler", choices=tuple(SAMPLERS), default="dpmpp_2m", help="sampler (dpmpp_2m; the paper uses ddpm with all steps)"
    )
    parser.add_argument("--steps", type=positive_int, default=20, help="sampler steps (20)")
    parser.add_argument(
        "--label",
        help="generate this class, by its name, or by its number from 0 where no class has that name; a model without label "
        "conditioning also needs --guidance",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=0.0,
        help="guidance strength (0). For a class-conditional model without learned guidance try 0.3 to 1. For an unconditional "
        "model try 1 or 2, and expect misses unless its classifier was also trained on noisy images",
    )
    parser.add_argument(
        "--tries",
        type=positive_int,
        default=1,
        help="draw an image anew, up to so many times in all, while the classifier does not see its class (1); without --label "
        "the classes take turns",
    )
    parser.add_argument("--seed", type=int, default=0, help="image i of a seed is always the same (0)")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="images per batch (256)")
    parser.add_argument("--out", type=path, help="file for the grid (grid.png, or none with --folder)")
    parser.add_argument("--folder", type=path, help="write single images 000000.png, ... to this folder instead")
    return parser


@contextlib.contextmanager
def open_folder(folder: Path, files: Collection[str]) -> Iterator[None]:
    """Create a folder for these files, and lock it, so that no other call mixes its images with them.

    Raises:
        ConfigError: another call writes to it.
        DataError: it, or a folder in it, has images that are not those of this call, which would be taken for one set.
    """
    make_folder(folder)
    lock = lock_folder(folder)
    try:
        suffixes = readable_suffixes()
        found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix.lower() in suffixes)
        others = sorted(name for path in found if (name := path.relative_to(folder).as_posix()) not in files)
        if others:
            raise DataError(f"{folder}: holds {others[0]}, not one of these {len(files)}: choose another folder, or empty it")
        yield
    finally:
        if lock is not None:
            lock.close()
