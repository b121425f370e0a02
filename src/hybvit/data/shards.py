"""Data sets larger than the disk: tar shards in the WebDataset format, read as a stream and shuffled in a buffer.

A sample consists of two members with the same base name: ``0001.png`` (or .jpg, .webp ...) and ``0001.cls``, its class.

The order is a pure function of the seed, so a run resumes exactly. The samples of an epoch, shard after shard in a shuffled
order, are divided into equal lanes. A lane is read sequentially, in blocks that fill its part of the buffer, and each block is
shuffled. Row i of step s comes from lane (i mod data.lanes, s mod STEP_LANES). So two, four or eight processes, which share the
rows of a batch, each read only their own lanes, and so do two, four or eight loader workers, which share the steps. More
processes need as many lanes of rows.
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
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from ..config import DataConfig
from ..errors import ConfigError, DataError, quantity
from ..method.seeds import generator
from .cells import check_classes, class_name
from .files import MAX_MEMBER, check_size, data_errors, read_text, refuse_special
from .fingerprint import ListedImage, fingerprint
from .image_set import Dataset, Decoding, ImageSet, load_images
from .images import read_image, readable_suffixes
from .listing import Listing, warn_of_copies, warn_of_leak
from .splits import KNOWN, Split, evaluation_split, split_of
from .trained_on import digests_of

STEP_LANES = 8
FEW_LANES = 8  # of rows: up to here any number of samples and rows is taken, as in 0.1.0
MIN_LANE_SIZE = 16  # samples; lane sizes differ by one, which must stay negligible
MAX_SHARDS = 100_000  # of a pattern
RANGE = re.compile(r"\{(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.-?([0-9]+))?\}")
LABEL = "cls"
SCHEMES = ("http", "https")
LISTED = 1_000_000  # images of shards, with about 300 bytes for each while they are compared
TIMEOUT = 30.0  # seconds to wait for a response from a server


OF_WRITER = re.compile(r"__[^/]*__($|/)")  # WebDataset's own notes


class Member(NamedTuple):
    """An image in a local shard, and where its bytes begin."""

    image: ListedImage
    shard: str
    offset: int


class Encoded(NamedTuple):
    """A sample as stored in its shard, not decoded."""

    name: str
    image: bytes
    label: bytes | None


def open_shards(data: DataConfig, decoding: Decoding, num_classes: int) -> Dataset:
    """Open shards. ``data.root`` is a folder with train/*.tar and test/*.tar (or val/), or with train*.tar and test*.tar; or a
    path or URL pattern such as train-{0000..0099}.tar, with the test shards in ``data.test_root``."""
    if data.root is None:
        raise ConfigError("data.root is not set: give --data DIR with tar shards, or a pattern such as train-{00..99}.tar")
    found = shard_names(data.root)
    train = found.get("train") or found.get(None)
    test = found.get(evaluation_split(found)) if evaluation_split(found) else None
    if data.test_root is not None:
        elsewhere = shard_names(data.test_root)
        test = elsewhere.get(evaluation_split(elsewhere)) or [name for names in elsewhere.values() for name in names]
    if not train:
        raise DataError(f"{data.root}: no training shards (train*.tar, or *.tar in train/)")
    if not test:
        raise DataError(f"{data.root}: no test shards (test*.tar, or *.tar in test/): name them with --data.test_root")
    classes = shard_classes(data.root, num_classes)
    stream, judged = Shards(train, classes, decoding), Shards(test, classes, decoding)
    kept = fingerprint(stream.listed(), judged.listed(), (len(stream), len(judged)))
    known = None
    if (of_train := stream.listing(data.root)) and (of_test := judged.listing(data.test_root or data.root)):
        if not warn_of_leak(map(Path, train), map(Path, test)):
            warn_of_copies(of_train, of_test)
        known = digests_of(of_train.images, of_train.read, range(len(stream)))
    stream.members = judged.members = []
    return Dataset(ImageSet(stream), judged.all_images(), classes, fingerprint=kept, trained_on=known)


def shard_names(root: str) -> dict[Split | None, list[str]]:
    """Split -> paths or URLs of its shards, in order. In a folder the name of a shard, or of its sub-folder, says the split; if
    none does, all shards are under None, like those of a pattern.

    Raises:
        DataError: a shard is missing, or its name does not say its split, unlike those of others.
    """
    path = Path(root)
    if path.is_dir():
        found: dict[Split | None, list[str]] = {}
        for shard in sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]):
            split = split_of(shard.parent.name) if shard.parent != path else None
            found.setdefault(split or split_of(shard.stem, anywhere=True), []).append(str(shard))
        if None in found and len(found) > 1:
            raise DataError(f"{found[None][0]}: neither its name nor its folder says {KNOWN}, unlike those of other shards")
        return found
    names = [root] if path.is_file() else expanded(root)
    for name in names:
        if not is_url(name) and not Path(name).is_file():
            raise DataError(f"{name}: no such shard")
    return {None: names}


def expanded(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for.

    Raises:
        ConfigError: they are more than :data:`MAX_SHARDS`, or a brace is not closed.
    """
    lists = webdataset().shardlists
    ranges = [(int(start[:18]), int(end[:18]), int(step or 1) or 1) for start, end, step in RANGE.findall(pattern)]
    # counted before they are made: first each range, then their products, one name at a time
    count = max((abs(end - start) // step for start, end, step in ranges), default=0)
    try:
        if count <= MAX_SHARDS:
            every = itertools.chain.from_iterable(map(lists.braceexpand.braceexpand, pattern.split("::")))
            count = sum(1 for _ in itertools.islice(every, MAX_SHARDS + 1))
    except ValueError:
        raise ConfigError(f"{pattern[:200]}: a brace is not closed") from None
    if count > MAX_SHARDS:
        raise ConfigError(f"{pattern[:200]}: more than {MAX_SHARDS:,} shards: give fewer")
    return list(lists.expand_urls(pattern))


def is_url(name: str) -> bool:
    """Whether a shard is a URL; otherwise it is a local path.

    Raises:
        ConfigError: its scheme is not in :data:`SCHEMES`. For some schemes WebDataset itself would execute a command.
    """
    scheme, colon, _ = name.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme) or Path(name).exists():
        return False  # a scheme has at least two letters: C:\\shards is a path
    if scheme.lower() not in SCHEMES or not name[len(scheme) :].startswith("://"):
        raise ConfigError(f"{name}: shards are read from local paths and {' and '.join(SCHEMES)} addresses only")
    return True


@cache
def opener() -> urllib.request.OpenerDirector:
    """A URL opener for HTTP(S) only; urllib's default one would also follow redirects to FTP."""
    director, request = urllib.request.OpenerDirector(), urllib.request
    for handler in (
        request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPRedirectHandler,
        request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor, request.UnknownHandler,
    ):  # fmt: skip
        director.add_handler(handler())
    return director


def open_shard(name: str) -> BinaryIO:
    """Open a shard for reading.

    Raises:
        ConfigError: see :func:`is_url`.
        DataError: it cannot be read or downloaded.
    """
    remote = is_url(name)
    try:
        if not remote:
            refuse_special(Path(name))
            return Path(name).open("rb")
        return cast(BinaryIO, opener().open(name, timeout=TIMEOUT))
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: an invalid URL
        raise DataError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def shard_classes(root: str, num_classes: int) -> tuple[str, ...]:
    """The names in classes.txt (one per line, in label order) next to the shards, else the numbers below model.num_classes."""
    path = (Path(root) if Path(root).is_dir() else Path(root).parent) / "classes.txt"
    if path.is_file():
        names = [line.strip() for line in read_text(path, "utf-8-sig").splitlines() if line.strip()]
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise DataError(f"{path}: lists {twice!r} twice: a line is the name of one class")
        check_classes(names, path, "names")
        return tuple(names)
    return tuple(str(k) for k in range(num_classes))


def webdataset() -> Any:
    try:
        import webdataset as library
    except ImportError:
        raise ConfigError("tar shards need the package webdataset: pip install 'hybvit[stream]'") from None
    return library


def tar_members(file: BinaryIO, shard: str) -> Iterator[dict[str, Any]]:
    """The files in a shard, in the form that WebDataset groups into samples."""
    with tarfile.open(fileobj=file, mode="r|*") as stream:
        for entry in stream:
            if not entry.isreg() or OF_WRITER.match(entry.name):
                continue
            check_size(entry.size, MAX_MEMBER, f"{shard}/{entry.name}")
            content = stream.extractfile(entry)
            assert content is not None
            yield {"fname": entry.name, "data": content.read(), "__url__": shard}
            stream.members = []  # type: ignore[attr-defined]  # else it keeps every header


class Shards:
    """The samples of a list of shards, numbered in file order."""

    def __init__(self, names: list[str], classes: tuple[str, ...], decoding: Decoding) -> None:
        self.names, self.decoding = names, decoding
        self.number = {name: k for k, name in enumerate(classes)}
        self.suffixes = {suffix.lstrip(".") for suffix in readable_suffixes()}
        self.members = list[Member]()  # the images of local shards
        self.examples = dict[bool, str]()  # the first sample with a label, and the first without one
        self.with_json = False
        self.in_sizes = set[str]()  # shards of which sizes.json says how many samples they have
        self.counts = [self._count(name) for name in names]
        self.starts = [0, *itertools.accumulate(self.counts)]
        self.shape = torch.Size((self.starts[-1], decoding.channels, decoding.size, decoding.size))

    def __len__(self) -> int:
        return self.starts[-1]

    def listed(self) -> list[ListedImage]:
        """The shards in place of their images, each with its number of samples as its size."""
        return [ListedImage(name.rpartition("/")[2], count) for name, count in zip(self.names, self.counts, strict=True)]

    def _count(self, shard: str) -> int:
        """The number of samples, from the headers of a local shard, and from sizes.json next to a remote one.

        Raises:
            DataError: the shard is damaged or empty, or sizes.json does not say what it holds.
        """
        listed = self._listed_count(shard)
        if listed is not None:
            self.in_sizes.add(shard)
        if is_url(shard):
            assert listed is not None
            return listed
        samples, last = dict[str, set[str]](), None
        with data_errors(Path(shard)), tarfile.open(shard) as archive:
            for entry in archive:
                key, suffix = webdataset().tariterators.base_plus_ext(entry.name)
                if entry.isfile() and key is not None and not OF_WRITER.match(entry.name):
                    if key != last and key in samples:
                        raise DataError(
                            f"{shard}: the files of the sample {key} are not next to each other: write the shard anew, sorted "
                            "by name (tar --sort=name)"
                        )
                    last = key
                    samples.setdefault(key, set()).add(suffix.lower())
                    if suffix.lower() in self.suffixes and len(self.members) <= LISTED:
                        self.members.append(Member(ListedImage(entry.name, entry.size), shard, entry.offset_data))
        if not samples:
            raise DataError(f"{shard}: the shard is empty: delete it")
        if listed not in (None, len(samples)):
            raise DataError(
                f"{shard}: {quantity(len(samples), 'sample')}, but {listed:,} were counted in sizes.json: correct or delete it"
            )
        for key, suffixes in samples.items():
            if not suffixes & self.suffixes:
                raise DataError(f"{shard}/{key}: the sample has no image, only .{', .'.join(sorted(suffixes))}: leave it out")
            self.examples.setdefault(LABEL in suffixes, f"{shard}/{key}")
            self.with_json |= "json" in suffixes
        return len(samples)

    def _listed_count(self, shard: str) -> int | None:
        """The number of samples in sizes.json next to the shard (shard name -> number); None for a local one without it."""
        folder, _, name = shard.rpartition("/")
        listing = f"{folder}/sizes.json" if folder else "sizes.json"
        if not is_url(shard) and not Path(listing).is_file():
            return None
        try:
            with open_shard(listing) as file:
                number = json.load(file)[name]
            if type(number) is not int or number < 1:
                raise ValueError
            return number
        except (DataError, OSError, ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{listing}: missing, damaged or without {name} (shard name -> number of samples)") from None

    def check_labels(self) -> None:
        """Raise DataError if a sample of a local shard has no label; the message names it, and what may be meant."""
        if (missing := self.examples.get(False)) is None:
            return
        unread = f"; a class in .json is not read: write it to .{LABEL}" if self.with_json else ""
        if (other := self.examples.get(True)) is not None:
            raise DataError(f"{missing}.{LABEL}: missing, but other samples have one, such as {other}{unread}")
        cure = unread or "; without labels train with --objective genvit"
        raise DataError(f"{missing}.{LABEL}: missing, as in all samples{cure}")

    def listing(self, where: object) -> Listing | None:
        """The images of local shards; None if some are remote, or there are more than :data:`LISTED`."""
        if len(self.members) != len(self):
            return None
        members, (channels, size, _, _, originals) = self.members, self.decoding

        def read(i: int) -> bytes:
            with data_errors(Path(members[i].shard)), open(members[i].shard, "rb") as file:
                file.seek(members[i].offset)
                return file.read(members[i].image.size)

        def load(index: Sequence[int]) -> ImageSet:
            def decode(i: int) -> Tensor:
                k = index[i]
                return read_image(members[k].image.name, channels, size, io.BytesIO(read(k)), originals)

            return load_images(len(index), decode, None, self.decoding, str(where))

        return Listing([member.image for member in members], None, load, read, where)

    def samples(self, shard: int, skip: int = 0) -> Iterator[Encoded]:
        """The samples of one shard in file order, without the first ``skip``."""
        library, name = webdataset(), self.names[shard]
        with data_errors(Path(name)):
            try:
                with open_shard(name) as file:
                    for sample in itertools.islice(library.tariterators.group_by_keys(tar_members(file, name)), skip, None):
                        yield self._encoded(sample, name)
            except tarfile.TarError as error:
                raise DataError(f"{name}: damaged or cut short ({error})") from None

    def _encoded(self, sample: dict[str, Any], shard: str) -> Encoded:
        name = f"{shard}/{sample['__key__']}"
        image = next((value for key, value in sample.items() if key in self.suffixes), None)
        if image is None:
            raise DataError(f"{name}: the sample has no image")
        return Encoded(name, image, sample.get(LABEL))

    def decode(self, sample: Encoded) -> tuple[Tensor, int]:
        """The pixels and the label of a sample; the label is -1 if it has none."""
        pixels = read_image(
            sample.name, self.decoding.channels, self.decoding.size, io.BytesIO(sample.image), self.decoding.originals
        )
        return pixels, self.label(sample)

    def label(self, sample: Encoded) -> int:
        """The label, stored as an integer or as a name in classes.txt; -1 without a label or without known classes."""
        if sample.label is None or not self.number:
            return -1
        text = class_name(sample.label.decode("utf-8-sig", "replace").strip())
        label = self.number.get(text, int(text) if re.fullmatch("[0-9]{1,9}", text) else -1)
        if not 0 <= label < len(self.number):
            raise DataError(
                f"{sample.name}.{LABEL}: class {text[:40]!r} is not one of the {len(self.number)} (classes.txt, "
                "model.num_classes)"
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
            DataError: they take more than data.memory_gib, or only some samples have a label.
        """
        needed = self.shape.numel()
        if needed > self.decoding.memory:
            raise DataError(
                f"{self.names[0]} ...: {len(self):,} test images take {needed / 2**30:.1f} GiB: raise --data.memory_gib"
            )
        samples = list(itertools.chain.from_iterable(self.samples(shard) for shard in range(len(self.names))))
        if len(samples) != len(self):
            raise DataError(f"{self.names[0]} ...: {len(samples):,} samples, but {len(self):,} were counted in sizes.json")
        labels = [self.label(sample) for sample in samples]
        if -1 in labels and max(labels) >= 0:
            raise DataError(f"{samples[labels.index(-1)].name}: no .{LABEL} file, but other samples have one")
        return load_images(
            len(samples), lambda i: self.decode(samples[i])[0], None if -1 in labels else labels, self.decoding, "test shards"
        )


class _Lane:
    """The state of one lane: a shuffled block of samples in memory, and the stream that the next block is read from."""

    def __init__(self) -> None:
        self.epoch = self.block = -1
        self.samples: list[tuple[int, Encoded]] = []
        self.next = (-1, -1)  # (epoch, position in the epoch's order) of the next sample of the stream
        self.stream: Iterator[tuple[int, Encoded]] = iter(())


class ShardStream:
    """An endless shuffled sequence of the samples of shards. Each sample occurs ``repeats`` times in turn in its lane.

    Args:
        stream: name of the random stream of the order (see ``seeds``).
        batch_size: rows per step; position p of the sequence is row p mod batch_size of its step.
        buffer: number of encoded samples kept in memory.
        row_lanes: lanes that the rows of a step come from, if the samples and the rows are enough for them.

    Raises:
        ConfigError: so many lanes cannot share the rows of a step equally.
    """

    def __init__(
        self, shards: Shards, seed: int, stream: str, batch_size: int, buffer: int, *, row_lanes: int, repeats: int = 1
    ) -> None:
        self.shards, self.seed, self.stream, self.repeats, self.batch_size = shards, seed, stream, repeats, batch_size
        enough = min(len(shards), max(FEW_LANES, len(shards) // MIN_LANE_SIZE))
        self.row_lanes = min(row_lanes, enough, batch_size)
        if row_lanes > FEW_LANES and batch_size % self.row_lanes:
            raise ConfigError(
                f"data.lanes {row_lanes}: {self.row_lanes} lanes do not divide a mini-batch of {batch_size} images, and some "
                "would come more often than others: give a divisor of it"
            )
        self.step_lanes = min(STEP_LANES, max(1, len(shards) // (self.row_lanes * MIN_LANE_SIZE)))
        self.lane_count = self.row_lanes * self.step_lanes
        self.most_lanes = row_lanes * STEP_LANES  # of an epoch, where the random numbers of its lanes begin
        self.block_size = max(1, buffer // self.lane_count)
        self.lanes = [_Lane() for _ in range(self.lane_count)]

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Positions int64 [B] in the sequence -> pixels, labels, and (epoch, sample number, repeat) int64 [B, 3]."""
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
        """Position in the sequence -> its lane, and the position in that lane."""
        step, row = divmod(position, self.batch_size)
        row_lane, step_lane = row % self.row_lanes, step % self.step_lanes
        rows_of_lane = -(-(self.batch_size - row_lane) // self.row_lanes)
        return step_lane * self.row_lanes + row_lane, (step // self.step_lanes) * rows_of_lane + row // self.row_lanes

    def _lane_size(self, lane: int) -> int:
        return -(-(len(self.shards) - lane) // self.lane_count)

    def _good_sample(self, lane: int, epoch: int, offset: int) -> tuple[Tensor, int, int]:
        """Pixels, label and number of a sample; a bad one is replaced by the next good one of its block."""
        block, place = divmod(offset, self.block_size)
        samples = self._block(lane, epoch, block)
        for i in range(len(samples)):
            number, sample = samples[(place + i) % len(samples)]
            try:
                pixels, label = self.shards.decode(sample)
                return pixels, label, number
            except DataError as error:
                self.shards.decoding.bad_files.add(error)
        raise DataError(f"{self.shards.names[0]} ...: none of the {len(samples):,} samples of a block can be read")

    def _block(self, lane: int, epoch: int, block: int) -> list[tuple[int, Encoded]]:
        state = self.lanes[lane]
        if (state.epoch, state.block) != (epoch, block):
            first = sum(self._lane_size(k) for k in range(lane)) + block * self.block_size
            size = min(self.block_size, self._lane_size(lane) - block * self.block_size)
            if state.next != (epoch, first):
                state.stream = self._samples_from(epoch, first)
            state.samples = []  # frees the old block before the new one is read
            samples = list(itertools.islice(state.stream, size))
            index = (epoch * self.most_lanes + lane) << 32 | block
            order = torch.randperm(size, generator=generator(self.seed, f"{self.stream}, in a buffer", index))
            state.samples = [samples[i] for i in order.tolist()]
            state.epoch, state.block, state.next = epoch, block, (epoch, first + size)
        return state.samples

    def _samples_from(self, epoch: int, first: int) -> Iterator[tuple[int, Encoded]]:
        """The (sample number, sample) pairs of an epoch in its order, starting at position ``first``."""
        order = torch.randperm(len(self.shards.names), generator=generator(self.seed, self.stream, epoch)).tolist()
        starts = [0, *itertools.accumulate(self.shards.counts[shard] for shard in order)]
        begin = bisect.bisect_right(starts, first) - 1
        for place in range(begin, len(order)):
            shard, skip = order[place], first - starts[place] if place == begin else 0
            number, end = self.shards.starts[shard] + skip, self.shards.starts[shard + 1]
            cure = (
                "correct sizes.json" if self.shards.names[shard] in self.shards.in_sizes else "it has changed since the start"
            )
            counted = f"{self.shards.counts[shard]:,} were counted: {cure}"
            samples = self.shards.samples(shard, skip)
            for sample in samples:
                number += 1
                if number == end and next(samples, None) is not None:  # looked for before a lane ends here
                    raise DataError(f"{self.shards.names[shard]}: it has more samples, but {counted}")
                yield number - 1, sample
            if number != end:
                found = f"{number - self.shards.starts[shard]:,} samples"
                raise DataError(f"{self.shards.names[shard]}: {found}, but {counted}")
