"""Image sets that outgrow a disk: tar shards in the WebDataset format, read as a stream that is shuffled with a buffer.

A shard holds samples as members of one name: ``0001.png`` (or .jpg, .webp ...) and ``0001.cls``, its class. The order is a pure
function of the seed, so a run resumes exactly: the samples of an epoch, shard after shard in a shuffled order, are cut into
equal lanes; a lane is read from start to end in blocks that fill its share of the buffer, each block is shuffled. Row i of step
s comes from lane (i mod ROW_LANES, s mod STEP_LANES). So two, four or eight processes, which share the rows of a batch, each
read their own lanes only, and so do two, four or eight loader workers, which share the steps.
"""

from __future__ import annotations

import bisect
import http.client
import io
import itertools
import json
import re
import tarfile
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError
from ..method.seeds import generator
from .files import naming
from .image_set import Dataset, Decoding, ImageSet, pictures
from .images import read_image, readable_suffixes
from .own_images import TEST_NAMES

ROW_LANES = STEP_LANES = 8
SHORTEST_LANE = 16  # samples; lanes differ by one, which must not matter
LABEL = "cls"
SCHEMES = ("http", "https")
TIMEOUT = 30.0  # seconds without an answer from a server


class Encoded(NamedTuple):
    """A sample as it lies in its shard."""

    name: str
    image: bytes
    label: bytes | None


def open_shards(data: DataConfig, decoding: Decoding, num_classes: int) -> Dataset:
    """Shards in ``data.root``: a folder with train/*.tar and test/*.tar (or val/), or train*.tar and test*.tar; or a pattern as
    train-{0000..0099}.tar, a path or URL, with the test shards in ``data.test_root``."""
    if data.root is None:
        raise ConfigError("data.root is not set: give --data DIR with tar shards, or a pattern such as train-{00..99}.tar")
    train = shard_names(data.root, ("train",))
    test = shard_names(data.test_root, ("",)) if data.test_root else shard_names(data.root, TEST_NAMES)
    if not train:
        raise DataError(f"{data.root}: no shards for training (train*.tar, or *.tar in train/)")
    if not test or (test == train and data.test_root is None):
        raise DataError(f"{data.root}: no test shards (test*.tar, or *.tar in test/): name them with --data.test_root")
    classes = shard_classes(data.root, num_classes)
    stream = Shards(train, classes, decoding)
    held_out = Shards(test, classes, decoding)
    return Dataset(ImageSet(stream), held_out.all_images(), classes)


def shard_names(root: str, splits: tuple[str, ...]) -> list[str]:
    """Paths or URLs of the shards of one split, in order."""
    path = Path(root)
    if path.is_dir():
        for split in splits:
            found = sorted((path / split).glob("*.tar")) or sorted(path.glob(f"{split}*.tar"))
            if found:
                return [str(shard) for shard in found]
        any_name = splits != TEST_NAMES and not any(path.glob("*/*.tar"))
        return [str(shard) for shard in sorted(path.glob("*.tar"))] if any_name else []
    names = list(webdataset().shardlists.expand_urls(root))
    for name in names:
        if not is_address(name) and not Path(name).is_file():
            raise DataError(f"{name}: no such shard")
    return names


def is_address(name: str) -> bool:
    """Whether a shard is fetched; it lies on the disk otherwise.

    Raises:
        ConfigError: its scheme is none of :data:`SCHEMES`. WebDataset itself would run a command for some.
    """
    scheme, colon, _ = name.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme) or Path(name).exists():
        return False  # a scheme has two letters at least: C:\\shards is a path
    if scheme.lower() not in SCHEMES or not name[len(scheme) :].startswith("://"):
        raise ConfigError(f"{name}: shards are read from local paths and {' and '.join(SCHEMES)} addresses only")
    return True


@cache
def opener() -> urllib.request.OpenerDirector:
    """Fetches over HTTP(S) alone: urllib's usual one would follow a redirection to FTP too."""
    found, request = urllib.request.OpenerDirector(), urllib.request
    for handler in (
        request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPRedirectHandler,
        request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor, request.UnknownHandler,
    ):  # fmt: skip
        found.add_handler(handler())
    return found


def open_shard(name: str) -> BinaryIO:
    """A shard's bytes from its beginning.

    Raises:
        ConfigError: see :func:`is_address`.
        DataError: it cannot be read, or the server does not give it.
    """
    fetched = is_address(name)
    try:
        if not fetched:
            return Path(name).open("rb")
        return cast(BinaryIO, opener().open(name, timeout=TIMEOUT))
    except (OSError, ValueError, http.client.HTTPException) as error:  # an address that is none is a ValueError
        raise DataError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def shard_classes(root: str, num_classes: int) -> tuple[str, ...]:
    """Names from classes.txt (one per line, in label order) beside the shards, else the numbers below model.num_classes."""
    path = (Path(root) if Path(root).is_dir() else Path(root).parent) / "classes.txt"
    if path.is_file():
        with naming(path):
            return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(str(k) for k in range(num_classes))


def webdataset() -> Any:
    try:
        import webdataset as library
    except ImportError:
        raise ConfigError("tar shards need the package webdataset: pip install 'hybvit[stream]'") from None
    return library


class Shards:
    """The samples of some shards, numbered in file order."""

    def __init__(self, names: list[str], classes: tuple[str, ...], decoding: Decoding) -> None:
        self.names, self.decoding = names, decoding
        self.number = {name: k for k, name in enumerate(classes)}
        self.suffixes = {suffix.lstrip(".") for suffix in readable_suffixes()}
        self.counts = [self._count(name) for name in names]
        self.starts = [0, *itertools.accumulate(self.counts)]
        self.shape = torch.Size((self.starts[-1], decoding.channels, decoding.size, decoding.size))

    def __len__(self) -> int:
        return self.starts[-1]

    def _count(self, shard: str) -> int:
        """From sizes.json beside the shard (shard name -> number of samples), else by reading a local shard's headers."""
        folder, _, name = shard.rpartition("/")
        listing = f"{folder}/sizes.json" if folder else "sizes.json"
        if is_address(shard) or Path(listing).is_file():
            try:
                with open_shard(listing) as file:
                    return int(json.load(file)[name])
            except (DataError, OSError, ValueError, KeyError, TypeError):
                raise DataError(f"{listing}: missing, damaged or without {name} (shard name -> number of samples)") from None
        with naming(Path(shard)), tarfile.open(shard) as archive:
            keys = {webdataset().tariterators.base_plus_ext(entry.name)[0] for entry in archive if entry.isfile()} - {None}
        if not keys:
            raise DataError(f"{shard}: an empty shard")
        return len(keys)

    def samples(self, shard: int, skip: int = 0) -> Iterator[Encoded]:
        """One shard's samples in file order, from number ``skip`` on."""
        library, name = webdataset(), self.names[shard]
        with naming(Path(name)):
            try:
                with open_shard(name) as file:
                    entries = ({**entry, "__url__": name} for entry in library.tariterators.tar_file_iterator(file))
                    for sample in itertools.islice(library.tariterators.group_by_keys(entries), skip, None):
                        yield self._encoded(sample, name)
            except tarfile.TarError as error:
                raise DataError(f"{name}: damaged or cut short ({error})") from None

    def _encoded(self, sample: dict[str, Any], shard: str) -> Encoded:
        name = f"{shard}/{sample['__key__']}"
        image = next((value for key, value in sample.items() if key in self.suffixes), None)
        if image is None:
            raise DataError(f"{name}: a sample without an image")
        return Encoded(name, image, sample.get(LABEL))

    def decode(self, sample: Encoded) -> tuple[Tensor, int]:
        """Pixels and label (-1 without one)."""
        pixels = read_image(sample.name, self.decoding.channels, self.decoding.size, io.BytesIO(sample.image))
        return pixels, self.label(sample)

    def label(self, sample: Encoded) -> int:
        """The class as a whole number or a name of classes.txt; -1 without one, or where no classes are known."""
        if sample.label is None or not self.number:
            return -1
        text = sample.label.decode("utf-8", "replace").strip()
        label = self.number.get(text, int(text) if text.isdecimal() else -1)
        if not 0 <= label < len(self.number):
            raise DataError(
                f"{sample.name}.{LABEL}: class {text!r} is none of the {len(self.number)} (classes.txt, model.num_classes)"
            )
        return label

    def first(self, n: int) -> ImageSet:
        """The first n readable samples, in memory."""
        pixels, labels = [], []
        for sample in itertools.chain.from_iterable(self.samples(shard) for shard in range(len(self.names))):
            try:
                image, label = self.decode(sample)
            except DataError as error:
                self.decoding.bad_files.add(error)
                continue
            pixels.append(image)
            labels.append(label)
            if len(pixels) == n:
                break
        if not pixels:
            raise DataError(f"{self.names[0]} ...: no sample can be read")
        return ImageSet(torch.stack(pixels), None if -1 in labels else torch.tensor(labels))

    def all_images(self) -> ImageSet:
        """Every sample with its label, in memory.

        Raises:
            DataError: they take more than data.memory_gib, or some samples have a label and some none.
        """
        needed = self.shape.numel()
        if needed > self.decoding.memory:
            raise DataError(
                f"{self.names[0]} ...: {len(self):,} test images take {needed / 2**30:.1f} GiB: raise --data.memory_gib"
            )
        samples = list(itertools.chain.from_iterable(self.samples(shard) for shard in range(len(self.names))))
        labels = [self.label(sample) for sample in samples]
        if -1 in labels and max(labels) >= 0:
            raise DataError(f"{samples[labels.index(-1)].name}: has no .{LABEL} file, others have")
        return pictures(
            len(samples), lambda i: self.decode(samples[i])[0], None if -1 in labels else labels, self.decoding, "test shards"
        )


class _Lane:
    """Where one lane stands: a shuffled block of samples in memory, and the stream that the next block comes from."""

    def __init__(self) -> None:
        self.epoch = self.block = -1
        self.samples: list[tuple[int, Encoded]] = []
        self.next = (-1, -1)  # (epoch, number in the epoch's order) of what the stream gives next
        self.stream: Iterator[tuple[int, Encoded]] = iter(())


class ShardStream:
    """The endless shuffled sequence of the samples of some shards; each stands ``repeats`` times in it, ROW_LANES rows apart.

    Args:
        stream: name of the random stream for the order (``seeds``).
        batch_size: rows of a step; entry p of the sequence is row p mod batch_size of its step.
        buffer: encoded samples kept in memory.
    """

    def __init__(self, shards: Shards, seed: int, stream: str, batch_size: int, buffer: int, repeats: int = 1) -> None:
        self.shards, self.seed, self.stream, self.repeats, self.batch_size = shards, seed, stream, repeats, batch_size
        self.row_lanes = min(ROW_LANES, len(shards), batch_size)
        self.step_lanes = min(STEP_LANES, max(1, len(shards) // (self.row_lanes * SHORTEST_LANE)))
        self.lane_count = self.row_lanes * self.step_lanes
        self.block_size = max(1, buffer // self.lane_count)
        self.lanes = [_Lane() for _ in range(self.lane_count)]

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Entries of the sequence at int64 [B] -> pixels, labels, and (epoch, sample number, repeat) int64 [B, 3] of each."""
        decoded: dict[tuple[int, int, int], tuple[Tensor, int, int]] = {}
        rows, keys = [], []
        for position in positions.tolist():
            lane, at = self._place(position)
            epoch, within = divmod(at, self._lane_size(lane) * self.repeats)
            offset, repeat = divmod(within, self.repeats)
            if (epoch, lane, offset) not in decoded:
                decoded[epoch, lane, offset] = self._good_sample(lane, epoch, offset)
            pixels, label, number = decoded[epoch, lane, offset]
            rows.append((pixels, label))
            keys.append((epoch, number, repeat))
        labels = torch.tensor([label for _, label in rows])
        return torch.stack([pixels for pixels, _ in rows]), None if (labels < 0).all() else labels, torch.tensor(keys)

    def _place(self, position: int) -> tuple[int, int]:
        """The lane of an entry, and its number there."""
        step, row = divmod(position, self.batch_size)
        row_lane, step_lane = row % self.row_lanes, step % self.step_lanes
        rows_of_lane = -(-(self.batch_size - row_lane) // self.row_lanes)
        return step_lane * self.row_lanes + row_lane, (step // self.step_lanes) * rows_of_lane + row // self.row_lanes

    def _lane_size(self, lane: int) -> int:
        return -(-(len(self.shards) - lane) // self.lane_count)

    def _good_sample(self, lane: int, epoch: int, offset: int) -> tuple[Tensor, int, int]:
        """A bad sample is replaced by the next good one of its block."""
        block, place = divmod(offset, self.block_size)
        samples = self._block(lane, epoch, block)
        for i in range(len(samples)):
            number, sample = samples[(place + i) % len(samples)]
            try:
                pixels, label = self.shards.decode(sample)
                return pixels, label, number
            except DataError as error:
                self.shards.decoding.bad_files.add(error)
        raise DataError(f"{self.shards.names[0]} ...: no sample of a whole block can be read")

    def _block(self, lane: int, epoch: int, block: int) -> list[tuple[int, Encoded]]:
        state = self.lanes[lane]
        if (state.epoch, state.block) != (epoch, block):
            first = sum(self._lane_size(k) for k in range(lane)) + block * self.block_size
            size = min(self.block_size, self._lane_size(lane) - block * self.block_size)
            if state.next != (epoch, first):
                state.stream = self._from(epoch, first)
            state.samples = []  # the old block goes before the new one comes
            samples = list(itertools.islice(state.stream, size))
            index = (epoch * ROW_LANES * STEP_LANES + lane) << 32 | block
            order = torch.randperm(size, generator=generator(self.seed, f"{self.stream}, in a buffer", index))
            state.samples = [samples[i] for i in order.tolist()]
            state.epoch, state.block, state.next = epoch, block, (epoch, first + size)
        return state.samples

    def _from(self, epoch: int, first: int) -> Iterator[tuple[int, Encoded]]:
        """(sample number, sample) of an epoch's order, from its entry ``first`` on."""
        order = torch.randperm(len(self.shards.names), generator=generator(self.seed, self.stream, epoch)).tolist()
        starts = [0, *itertools.accumulate(self.shards.counts[shard] for shard in order)]
        begin = bisect.bisect_right(starts, first) - 1
        for place in range(begin, len(order)):
            shard, skip = order[place], first - starts[place] if place == begin else 0
            number = self.shards.starts[shard] + skip
            for sample in self.shards.samples(shard, skip):
                yield number, sample
                number += 1
            if number != self.shards.starts[shard + 1]:
                raise DataError(
                    f"{self.shards.names[shard]}: {number - self.shards.starts[shard]:,} samples where "
                    f"{self.shards.counts[shard]:,} were counted"
                )
