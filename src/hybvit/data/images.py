"""Image files: read any format, convert to a given size and number of channels, write grids."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import os
import re
import statistics
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import ConfigError, DataError, is_used_up
from ..storage import atomic_write, make_folder
from .files import Files, refuse_special, refused_by_system

MODES = {1: "L", 3: "RGB"}
WHITE_IS_ZERO = (262, 0)  # tag and value of a TIFF file that stores darkness; Pillow inverts it for 8 bits only
# Pillow's names. None of them starts another program, and their headers tell the size. The content decides, not the suffix.
FORMATS = (
    "PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "JPEG2000", "PPM", "TGA", "PCX", "QOI", "SGI",
)  # fmt: skip
# those that Pillow writes by itself, gray or color, whatever their size
WRITTEN = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "JPEG2000", "BMP", "GIF", "PPM", "TGA", "PCX", "SGI", "PDF")
MUCH_LARGER = 4  # as a multiple of the model's size
RESAVE = "save them with values up to 65,535"  # the cure of images that look nearly black, where data.bits cannot be set
VISIBLE_COLOR = 16  # levels between the channels of a pixel; below, a gray image was stored as color
MAX_IMAGE_PIXELS = 64_000_000  # larger images are rejected before they are decoded
TOO_LARGE = f"more than {MAX_IMAGE_PIXELS:,} pixels: reduce its size"
LARGE_MEMBER = 16 << 20  # bytes of a file in an archive from which on its beginning is looked at before the rest is unpacked
LARGEST_HEADER = 1 << 20
SIGNATURES = re.compile(rb"II|MM|\xff\xd8\xff|\0\0\0.(ftyp|jP  )", re.DOTALL)  # formats whose header may lie further behind
SMALL_PIXELS = 1_000_000  # images up to this size are decoded whatever else is


def fit(pixels: Tensor, size: int, resize: bool = False) -> Tensor:
    """Change the size of square images uint8 [N, C, H, H]: by padding with black, as the published code does for 28 -> 32, or
    with ``resize`` by bicubic resampling.

    Raises:
        ValueError: the images are larger than ``size``, and ``resize`` is false.
    """
    native = pixels.shape[-1]
    if native == size:
        return pixels
    if resize:
        from torchvision.transforms.v2 import InterpolationMode  # takes as long to import as torch
        from torchvision.transforms.v2.functional import resize as resampled

        return torch.cat([resampled(part, [size, size], InterpolationMode.BICUBIC) for part in pixels.split(1024)])
    if native > size:
        raise ValueError(f"{native} x {native} images do not fit into {size} x {size} without resizing")
    left, right = (size - native) // 2, size - native - (size - native) // 2
    return torch.nn.functional.pad(pixels, (left, right, left, right))


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Grayscale to color by repetition, color to grayscale by luminance (ITU-R 601); uint8 [N, C, H, W]."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 3:
        return pixels.expand(-1, 3, -1, -1)
    from torchvision.transforms.v2.functional import rgb_to_grayscale  # takes as long to import as torch

    return rgb_to_grayscale(pixels)


class PixelBudget:
    """A bound on the pixels of large images that the threads of a process decode at the same time: with its copies, each takes
    about ten bytes. An image that does not fit waits until others are done."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.used, self.changed = pixels, 0, threading.Condition()

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        pixels = 0 if pixels <= SMALL_PIXELS else min(pixels, self.pixels)
        with self.changed:
            self.changed.wait_for(lambda: not pixels or self.used + pixels <= self.pixels)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


DECODING = PixelBudget(2 * MAX_IMAGE_PIXELS)


class Note(NamedTuple):
    """What an image was: its short side; whether it was colorful and becomes gray; its largest value if it has more than 8 bits
    per channel, else 0; and whether those were of color."""

    short_side: int
    colorful: bool = False
    largest: int = 0
    wide_color: bool = False


class Originals:
    """What the images of a set were before they were brought to the model's size, channels and 8 bits.

    Args:
        bits: ``data.bits``, the depth of files that do not declare one below 16 themselves; None means 16.
    """

    def __init__(self, bits: int | None = None) -> None:
        self.bits = bits
        self.notes: list[Note] = []  # a list, because threads may add to it
        self.closed = False

    def add(self, *notes: Note) -> None:
        if not self.closed:
            self.notes.extend(notes)

    def warn_of_depth(self, where: str, cure: str = "give --data.bits {bits}") -> None:
        """Say on standard error if the images are probably of fewer bits than their files say, and so read as nearly black."""
        top = max((note.largest for note in self.notes), default=0)
        if 0 < top <= 4095 and self.bits is None:
            bits = 8 if top <= 255 else 12
            wide_color = any(note.wide_color for note in self.notes)
            cure = RESAVE if wide_color else cure.format(bits=bits)
            print(
                f"warning: {where}: no value of its images of 16 or 32 bits is above {top:,}: they look like {bits} bits and "
                f"are read as nearly black; {cure}",
                file=sys.stderr,
            )

    def warn(self, where: str, size: int) -> None:
        """Say on standard error what most of the images lose, and which setting keeps it; later ones are not kept."""
        self.warn_of_depth(where)
        notes, self.notes, self.closed = self.notes or [Note(0)], [], True
        lost, cures = [], []
        middle = statistics.median(note.short_side for note in notes)
        if middle > MUCH_LARGER * size:
            lost.append(f"reduced from {middle:g} to {size} pixels a side")
            cures.append("model.image_size")
        if sum(note.colorful for note in notes) > len(notes) / 2:
            lost.append("turned gray")
            cures.append("--model.channels 3")
        if lost:
            cure = " and ".join(cures).replace("model.image_size", "a larger --model.image_size", 1)
            print(
                f"warning: {where}: its images are {' and '.join(lost)}; a model trained with {cure} keeps more of them",
                file=sys.stderr,
            )


def is_colorful(image: Image.Image) -> bool:
    """Whether a few of its pixels are far from gray."""
    few = np.asarray(image.resize((16, 16), Image.Resampling.NEAREST).convert("RGB"), dtype=np.int16)
    return bool(np.ptp(few, axis=2).max() > VISIBLE_COLOR)


def white_of(image: Image.Image, originals: Originals) -> int:
    """The value of white in an image of more than 8 bits per channel: by the depth that a TIFF file declares, else by
    ``data.bits``, else 16 bits.

    Integers of 32 bits have no range of their own, and are read as 16 bits.
    """
    if any(tile[0] == "ppm" for tile in getattr(image, "tile", ())):  # Pillow scales by what a PGM file declares
        return 65535
    declared = min(int(getattr(image, "tag_v2", {}).get(258, (16,))[0]), 16)
    return 2 ** (declared if declared < 16 else originals.bits or 16) - 1


def as_pixels(image: Image.Image, channels: int, size: int, originals: Originals | None = None) -> Tensor:
    """Any PIL image -> uint8 [channels, size, size]: EXIF orientation applied, short side resized to ``size``, center crop."""
    originals = originals or Originals()
    if channels not in MODES:
        raise DataError(f"images can be read with 1 or 3 channels, not model.channels = {channels}")
    white = white_of(image, originals)
    reduced = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # Pillow keeps the upper half of color values
    image.load()  # EXIF data may follow the pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    note = Note(min(image.size), channels == 1 and is_colorful(image))
    if reduced and image.mode.startswith("RGB"):
        if white < 65535:
            raise DataError("color of 16 bits is read by its upper 8 bits, which data.bits cannot scale: convert it to 8 bits")
        note = note._replace(largest=int(np.asarray(image)[..., :3].max()) * 256 + 255, wide_color=True)
    if reduced and image.mode == "LA":
        note = note._replace(largest=int(np.asarray(image)[..., 0].max()) * 256 + 255, wide_color=True)
    if image.mode.startswith("I"):  # PIL would clip 16-bit values at 255 instead of scaling them
        values = np.array(image.convert("F"))
        if getattr(image, "tag_v2", {}).get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]:
            values = white - values
        if values.min() < 0 or values.max() > white:
            cure = "raise data.bits" if originals.bits and white < 65535 else "convert it to 8 or 16 bits per channel"
            raise DataError(f"values from {values.min():g} to {values.max():g}, not 0 to {white}: {cure}")
        if white == 65535:
            note = note._replace(largest=int(values.max()))
        image = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    if image.mode == "F":
        raise DataError("32-bit float values have no standard range: convert it to 8 or 16 bits per channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode != MODES[channels]:
        image = image.convert(MODES[channels])
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    originals.add(note)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(size, size, channels).permute(2, 0, 1)


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that can be read here: those of :data:`FORMATS` that this Pillow knows, and HEIF with pillow-heif."""
    Image.init()
    with contextlib.suppress(Exception):  # not installed, or not for this machine
        importlib.import_module("pillow_heif").register_heif_opener()
    return tuple(name for name in (*FORMATS, "HEIF") if name in Image.OPEN)


def read_image(
    path: str | os.PathLike[str], channels: int, size: int, file: BinaryIO | None = None, originals: Originals | None = None
) -> Tensor:
    """An image file of any of the :func:`formats` -> uint8 [channels, size, size].

    Args:
        file: its content, if it is not a file on disk; ``path`` is then only used in messages.
        originals: how to scale images with more than 8 bits per channel, and where to note what the images were.

    Raises:
        DataError: the file is missing, is not an image, is cut short, or is too large to be decoded safely. Whatever a decoder
            raises becomes one.
    """
    if file is None:
        refuse_special(Path(path))
    try:
        with Image.open(path if file is None else file, formats=formats()) as image:
            check_pixels(image)
            with DECODING.hold(image.width * image.height):
                return as_pixels(image, channels, size, originals)
    except MemoryError:  # which damaged files raise as well
        raise DataError(f"{path}: damaged image (or not enough memory to decode it)") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: {'a link to a file that is gone' if os.path.islink(path) else 'no such file'}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, not an image") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: {what_it_is(path, file)}") from None
    except Image.DecompressionBombError:  # Pillow's own limit, which is higher, and met as the file is opened
        raise DataError(f"{path}: {TOO_LARGE}") from None
    except Exception as error:
        if is_used_up(error):
            raise
        if words := refused_by_system(error):
            raise DataError(f"{path}: cannot be read ({words})") from None
        raise DataError(f"{path}: damaged image ({' '.join(str(error).split()) or type(error).__name__})") from None


NOT_IMAGES = (  # how files begin that often lie in an image's place, and what they are
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer, not the image itself: git lfs pull"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page, not an image: the download failed; repeat it"),
    (re.compile(rb"\Z"), "empty: copy or download it again"),
)


def what_it_is(path: str | os.PathLike[str], file: BinaryIO | None) -> str:
    """What a file is that no decoder knows, and the cure."""
    start = b"?"
    with contextlib.suppress(OSError):
        if file is not None:
            file.seek(0)
            start = file.read(64)
        else:
            with open(path, "rb") as content:
                start = content.read(64)
    known = (words for pattern, words in NOT_IMAGES if pattern.match(start))
    return next(known, "not an image of a format that is read (PNG, JPEG, WebP, TIFF ...): convert it")


def check_start(files: Files, name: str) -> None:
    """Raises DataError for a large member of an archive that does not begin like an image, or says that it is too large, before
    all of it is unpacked."""
    if not files.zipped or files.size(name) <= LARGE_MEMBER:
        return
    start, where = files.start(name, LARGEST_HEADER), files.where / name
    try:
        with Image.open(io.BytesIO(start), formats=formats()) as image:
            check_pixels(image)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{where}: {TOO_LARGE}") from None
    except Exception:
        if not SIGNATURES.match(start):
            raise DataError(f"{where}: {what_it_is(name, io.BytesIO(start))}") from None


def check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise DataError(f"{image.width} x {image.height} is {TOO_LARGE}")


def size_of(files: Files, name: str) -> tuple[int, int] | None:
    """Width and height that the header of an image file says; None if it cannot be read."""
    with contextlib.suppress(Exception), files.open(name) as file, Image.open(file, formats=formats()) as image:
        return image.size
    return None


def readable_suffixes() -> set[str]:
    """Suffixes of the image formats that can be read here."""
    known = {*formats(), "MPO"}  # MPO is opened as JPEG
    return {suffix for suffix, name in Image.registered_extensions().items() if name in known}


def written_format(path: Path) -> str | None:
    """Pillow's name of the format in which an image file of this name is written; None if it is in none of :data:`WRITTEN`."""
    Image.init()
    name = Image.registered_extensions().get(path.suffix.lower(), "")
    return name if name in WRITTEN and name in Image.SAVE else None


def check_image_suffix(path: Path) -> None:
    """Raises ConfigError if the suffix is not an image format that can be written."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder: give a file in it, such as {path / 'picture.png'}")
    if written_format(path) is None:
        raise ConfigError(f"{path}: {path.suffix or 'no suffix'} is not an image format that can be written; use .png")


def grid(pixels: Tensor, columns: int | None = None, scale: int = 1, gap: int = 2) -> Image.Image:
    """uint8 [N, C, H, W] -> one image with all of them in raster order, each enlarged ``scale`` times without smoothing."""
    n, c, h, w = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = torch.full((c, rows * (h * scale + gap) + gap, columns * (w * scale + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)):
        top, left = gap + (i // columns) * (h * scale + gap), gap + (i % columns) * (w * scale + gap)
        sheet[:, top : top + h * scale, left : left + w * scale] = image
    array = sheet.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if c == 1 else array)


CAPTION_LINE, CAPTION_LETTER = 12, 6  # height of a line and width of a letter in Pillow's own font, in pixels


def captioned_grid(pixels: Tensor, captions: Sequence[str], columns: int, scale: int = 1, gap: int = 4) -> Image.Image:
    """uint8 [N, C, H, W] -> one image with all of them in raster order and a caption below each, on several lines if needed."""
    _, _, height, width = pixels.shape
    cell = width * scale
    wrapped = [textwrap.wrap(words, max(1, cell // CAPTION_LETTER)) for words in captions]
    row = height * scale + gap + CAPTION_LINE * max(map(len, wrapped))
    rows = math.ceil(len(pixels) / columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (row + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(zip(pixels, wrapped, strict=True)):
        left, top = gap + i % columns * (cell + gap), gap + i // columns * (row + gap)
        sheet.paste(grid(image[None], scale=scale, gap=0), (left, top))
        for k, line in enumerate(lines):
            draw.text(
                (left, top + height * scale + gap // 2 + CAPTION_LINE * k),
                line,
                fill="black",
                font=ImageFont.load_default(),
            )
    return sheet


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image file atomically.

    Raises:
        ConfigError: the suffix is not an image format.
        DataError: the folder is not writable.
    """
    check_image_suffix(path)
    make_folder(path.parent)
    with atomic_write(path) as temporary:
        image.save(temporary, written_format(path))
