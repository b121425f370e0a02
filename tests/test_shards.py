from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from hybvit.config import Config, DataConfig, override
from hybvit.data.batches import check_partners
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import BadFiles, Decoding, to_pixels
from hybvit.data.shards import Shards, ShardStream
from hybvit.errors import ConfigError, DataError
from hybvit.method.vit import ViTConfig
from hybvit.training.loop import lanes_note, train

from .conftest import batches_of, opened

STREAM = "order of labeled images"
ROW_LANES = DataConfig().lanes
stream_of = partial(ShardStream, row_lanes=ROW_LANES)


def png(number: int) -> bytes:
    """An image that encodes its number as a color: two digits in base 256."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number // 256, number % 256, 0)).save(file, "PNG")
    return file.getvalue()


def number_of(pixels: torch.Tensor) -> list[int]:
    return (pixels[:, 0, 0, 0].int() * 256 + pixels[:, 1, 0, 0].int()).tolist()


def write_shards(folder: Path, counts: list[int], labels: bool = True, prefix: str = "train") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    number, names = 0, []
    for k, count in enumerate(counts):
        names.append(str(folder / f"{prefix}-{k:03d}.tar"))
        with webdataset.TarWriter(names[-1]) as writer:
            for _ in range(count):
                sample = {"__key__": f"{number:06d}", "png": png(number)}
                writer.write(sample | ({"cls": number % 3} if labels else {}))
                number += 1
    return names


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_files_of_a_sample_that_are_apart_are_named_at_once(tmp_path):
    images, labels = [(f"{i}.png", png(i)) for i in range(3)], [(f"{i}.cls", b"1") for i in range(3)]
    apart = write_tar(tmp_path / "train-0.tar", [*images, *labels])
    with pytest.raises(DataError, match=r"train-0.tar: the files of the sample 0 are not next to each other: .*--sort=name"):
        shards([str(apart)])
    together = write_tar(tmp_path / "train-1.tar", sorted([*images, *labels]))
    assert shards([str(together)]).first(3).labels.tolist() == [1, 1, 1]


def test_a_sample_without_an_image_is_named_at_once(tmp_path):
    found = write_tar(tmp_path / "train-0.tar", [("0.cls", b"1"), ("0.png", png(0)), ("1.cls", b"1"), ("1.txt", b"a cat")])
    with pytest.raises(DataError, match=r"train-0.tar/1: the sample has no image, only .cls, .txt"):
        shards([str(found)])


def shards(names: list[str], max_bad_files: int = 0, classes: int = 3) -> Shards:
    return Shards(names, tuple(map(str, range(classes))), Decoding(3, 8, BadFiles(max_bad_files), 2**30))


def config(root: Path | str, **data) -> Config:
    model = ViTConfig(image_size=8, patch_size=4, dim=16, depth=1, heads=2, num_classes=3)
    return Config(model=model, data=DataConfig(name="shards", root=str(root), **data))


def test_an_epoch_has_every_sample_once_in_shuffled_order(tmp_path):
    names = write_shards(tmp_path, [13, 7, 11, 20])
    stream = stream_of(shards(names), 0, STREAM, 16, 16)
    n = 51
    # lanes differ by at most one sample, so whole epochs end together after n * ROW_LANES entries at most
    pixels, labels, keys = stream.take(torch.arange(n * ROW_LANES))
    numbers = number_of(pixels)
    assert numbers == keys[:, 1].tolist()
    assert labels.tolist() == [number % 3 for number in numbers]
    first_epoch = [number for number, epoch in zip(numbers, keys[:, 0].tolist(), strict=True) if epoch == 0]
    assert sorted(first_epoch) == list(range(n))
    assert first_epoch != sorted(first_epoch)
    second = [number for number, epoch in zip(numbers, keys[:, 0].tolist(), strict=True) if epoch == 1]
    assert sorted(second) == list(range(n))
    assert second != first_epoch
    assert np.corrcoef(first_epoch, range(n))[0, 1] < 0.6


def test_each_block_of_each_lane_is_shuffled_in_its_own_order(tmp_path):
    """In a single shard, the samples of a block are consecutive before they are shuffled."""
    stream = stream_of(shards(write_shards(tmp_path, [96])), 0, STREAM, 4, 32)
    orders = set()
    for lane in range(stream.lane_count):
        for block in range(2):
            numbers = [number for number, _ in stream._block(lane, 0, block)]
            assert sorted(numbers) == list(range(min(numbers), min(numbers) + stream.block_size))
            orders.add(tuple(number - min(numbers) for number in numbers))
    assert len(orders) == 2 * stream.lane_count > 2


def test_the_stream_can_be_entered_anywhere(tmp_path):
    names = write_shards(tmp_path, [13, 7, 11, 20])
    whole = number_of(stream_of(shards(names), 3, STREAM, 16, 16).take(torch.arange(300))[0])
    for start in (0, 17, 96, 250):
        part = stream_of(shards(names), 3, STREAM, 16, 16).take(torch.arange(start, start + 40))[0]
        assert number_of(part) == whole[start : start + 40]
    assert number_of(stream_of(shards(names), 4, STREAM, 16, 16).take(torch.arange(300))[0]) != whole


def test_repeats_are_a_lane_apart(tmp_path):
    names = write_shards(tmp_path, [16, 16])
    _, _, keys = stream_of(shards(names), 0, STREAM, 16, 16, repeats=3).take(torch.arange(96))
    assert keys[:, 1].bincount().tolist() == [3] * 32
    assert torch.equal(keys[:ROW_LANES, 1], keys[ROW_LANES : 2 * ROW_LANES, 1])
    assert keys[::ROW_LANES, 2].tolist() == [0, 1, 2] * 4


class Watched(Shards):
    """Shards that record which samples were read."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names, ("0", "1", "2"), Decoding(3, 8, BadFiles(0), 2**30))
        self.read = set[int]()

    def samples(self, shard: int, skip: int = 0):
        for i, sample in enumerate(super().samples(shard, skip), self.starts[shard] + skip):
            self.read.add(i)
            yield sample


@pytest.mark.slow
@pytest.mark.parametrize(("by", "parts", "lanes", "n"), [("rows", 4, 8, 2048), ("steps", 4, 8, 2048), ("rows", 16, 16, 512)])
def test_processes_and_workers_read_their_own_lanes_only(tmp_path, by, parts, lanes, n):
    names, batch = write_shards(tmp_path, [n // 8] * 8), 16
    reading = []
    for part in range(parts):
        watched = Watched(names)
        stream = stream_of(watched, 0, STREAM, batch, 512, row_lanes=lanes)
        entries = torch.arange(n).reshape(-1, batch)
        stream.take((entries[:, part::parts] if by == "rows" else entries[part::parts]).flatten())
        reading.append(watched.read)
        # its share; a lane may end inside a shard, whose next sample is then known
        assert stream.lane_count % parts == 0
        assert len(watched.read) <= n // parts + stream.lane_count // parts
    assert set.union(*reading) == set(range(n))


def test_lanes_that_processes_must_share_are_worth_a_note(tmp_path):
    write_shards(tmp_path / "train", [40])
    write_shards(tmp_path / "test", [3], prefix="test")
    stream = opened(config(tmp_path))
    assert [lanes_note(stream, 8, processes) for processes in (1, 2, 4, 8)] == [None] * 4
    assert all(f"{processes} processes share 8 lanes" in lanes_note(stream, 8, processes) for processes in (3, 6, 16))
    assert "--data.lanes 16" in lanes_note(stream, 8, 16)
    assert lanes_note(stream, 16, 16) is None
    in_memory = dataclasses.replace(stream, train=stream.train.pixels.first(20))
    assert lanes_note(in_memory, 8, 16) is None


def test_a_small_set_has_fewer_lanes(tmp_path):
    names = write_shards(tmp_path, [3])
    numbers = number_of(stream_of(shards(names), 0, STREAM, 16, 100).take(torch.arange(9))[0])
    assert all(sorted(numbers[i : i + 3]) == [0, 1, 2] for i in (0, 3, 6))


def test_the_buffer_bounds_what_is_in_memory(tmp_path):
    names = write_shards(tmp_path, [100, 100])
    stream = stream_of(shards(names), 0, STREAM, 16, 40)
    for start in range(0, 400, 50):
        stream.take(torch.arange(start, start + 50))
        assert sum(len(lane.samples) for lane in stream.lanes) <= 40


def test_bad_samples_are_named_and_replaced(tmp_path, capsys):
    path = tmp_path / "train-000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(20):
            writer.write({"__key__": f"{i:03d}", "png": b"\x89PNG rubbish" if i == 6 else png(i), "cls": 0})
    with pytest.raises(DataError, match=r"train-000\.tar/006: .*max_bad_files"):
        stream_of(shards([str(path)]), 0, STREAM, 16, 100).take(torch.arange(20))
    numbers = number_of(stream_of(shards([str(path)], 1), 0, STREAM, 16, 100).take(torch.arange(20))[0])
    assert 6 not in numbers
    assert len(numbers) == 20
    assert "train-000.tar/006" in capsys.readouterr().err


def test_damage_is_named(tmp_path):
    (name,) = write_shards(tmp_path, [30])
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "sizes.json").write_text(json.dumps({"train-000.tar": 30}))
    with pytest.raises(DataError, match=r"train-000\.tar: damaged or cut short"):
        stream_of(shards([name]), 0, STREAM, 16, 100).take(torch.arange(30))
    Path(name).write_bytes(whole)
    (tmp_path / "sizes.json").write_text(json.dumps({"train-000.tar": 31}))
    with pytest.raises(DataError, match="30 samples, but 31 were counted"):
        stream_of(shards([name]), 0, STREAM, 16, 100).take(torch.arange(31))
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(DataError, match=r"\.cls: class '2' is not one of the 2"):
        stream_of(shards([name], classes=2), 0, STREAM, 16, 100).take(torch.arange(30))
    Path(name).write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"train-000\.tar"):
        shards([name])


@pytest.mark.parametrize("number", ["1e999", "-4", "0", "1.5", "true", "null", '"30"', "[30]", "NaN"])
def test_a_number_of_samples_is_a_number(tmp_path, number):
    (name,) = write_shards(tmp_path, [4])
    (tmp_path / "sizes.json").write_text(f'{{"train-000.tar": {number}}}')
    with pytest.raises(DataError, match=r"sizes\.json: missing, damaged or without train-000\.tar"):
        shards([name])


def test_remote_shards_need_their_sizes():
    with pytest.raises(DataError, match=r"sizes\.json: missing, damaged or without a\.tar"):
        shards(["http://127.0.0.1:9/a.tar"])


def test_shards_over_http(tmp_path):
    """A local server: only sizes.json and the shards themselves are requested."""
    import functools
    import http.server
    import threading

    write_shards(tmp_path, [10, 12])
    (tmp_path / "sizes.json").write_text(json.dumps({"train-000.tar": 10, "train-001.tar": 12}))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *args: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = [f"http://127.0.0.1:{server.server_port}/train-{k:03d}.tar" for k in range(2)]
        remote = stream_of(shards(names), 0, STREAM, 16, 8).take(torch.arange(44))[0]
        server.shutdown()
    local = stream_of(shards([str(tmp_path / f"train-{k:03d}.tar") for k in range(2)]), 0, STREAM, 16, 8).take(
        torch.arange(44)
    )[0]
    assert torch.equal(remote, local)


@pytest.mark.parametrize("layout", ["folders", "names", "pattern"])
def test_layouts_of_shards(tmp_path, layout):
    if layout == "folders":
        write_shards(tmp_path / "train", [9, 9])
        write_shards(tmp_path / "val", [5], prefix="x")
        cfg = config(tmp_path)
    else:
        write_shards(tmp_path, [9, 9])
        write_shards(tmp_path, [5], prefix="test")
        cfg = config(tmp_path)
        if layout == "pattern":
            cfg = config(tmp_path / "train-{000..001}.tar", test_root=str(tmp_path / "test-000.tar"))
    data = opened(cfg)
    assert (len(data.train), len(data.test), data.classes) == (18, 5, ("0", "1", "2"))
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1]
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    assert opened(cfg).classes == ("red", "green", "blue")


def test_unusable_shards_are_named(tmp_path):
    write_shards(tmp_path, [9])
    with pytest.raises(DataError, match=r"no test shards .*--data\.test_root"):
        opened(config(tmp_path))
    with pytest.raises(DataError, match=r"train-7\.tar: no such shard"):
        opened(config(tmp_path / "train-{7..8}.tar"))
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        opened(override(config(tmp_path), data={"root": None}))
    write_shards(tmp_path, [9], prefix="test")
    with pytest.raises(DataError, match=r"9 test images take .* raise --data\.memory_gib"):
        opened(config(tmp_path, memory_gib=0.0))


def test_unlabeled_shards_are_for_genvit(tmp_path):
    write_shards(tmp_path, [9], labels=False)
    write_shards(tmp_path, [5], labels=False, prefix="test")
    cfg = override(config(tmp_path), train={"batch_size": 4})
    data = opened(cfg)
    assert data.test.labels is None
    with pytest.raises(DataError, match="without a label; train with --objective genvit"):
        batches_of(data, cfg)(0)
    assert batches_of(data, override(cfg, objective={"kind": "genvit"}))(0).x0.shape == (4, 3, 8, 8)


def test_shards_without_known_classes_have_no_labels(tmp_path):
    write_shards(tmp_path, [9])
    write_shards(tmp_path, [5], prefix="test")
    data = open_dataset(config(tmp_path).data, (3, 8, 8))
    assert (data.classes, data.test.labels, data.train.subsample(9).labels) == ((), None, None)
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    assert open_dataset(config(tmp_path).data, (3, 8, 8)).test.labels.tolist() == [0, 1, 2, 0, 1]


def test_strong_augmentation_of_a_stream(tmp_path):
    write_shards(tmp_path, [256])
    write_shards(tmp_path, [5], prefix="test")
    cfg = override(config(tmp_path, augment="strong", repeats=3, lanes=16), train={"batch_size": 16})
    data = opened(cfg)
    batch = batches_of(data, cfg)(5)
    assert batch.images.shape == (16, 3, 8, 8)
    assert torch.equal(batch.images, batches_of(data, cfg)(5).images)
    for other in ({"lanes": 8}, {"lanes": 8, "repeats": 2}):
        with pytest.raises(ConfigError, match=r"with 8 lanes and mini-batches of 16, .* own repeats: give 16 lanes"):
            batches_of(data, override(cfg, data=other))
    for other in ({"lanes": 8, "repeats": 1}, {"lanes": 8, "mixing": 0.0}):
        batches_of(data, override(cfg, data=other))


def test_lanes_that_are_refused_leave_no_run_folder(tmp_path):
    write_shards(tmp_path / "data", [40])
    write_shards(tmp_path / "data", [5], prefix="test")
    cfg = override(config(tmp_path / "data", augment="strong", repeats=3), train={"batch_size": 16})
    with pytest.raises(ConfigError, match=r"give 16 lanes, or data\.repeats 1"):
        train(cfg, tmp_path / "run", lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [2, 3])
def test_an_image_is_refused_as_its_own_partner_and_no_other_is(tmp_path, repeats):
    """Partners are half a batch apart."""
    found = shards(write_shards(tmp_path, [60]))
    for batch in (4, 8, 12):
        for lanes in (1, 2, 3, 6):
            stream = stream_of(found, 0, STREAM, batch, 64, row_lanes=lanes, repeats=repeats)
            numbers = stream.take(torch.arange(6 * batch))[2][:, 1].reshape(6, 2, batch // 2)
            itself = bool((numbers[:, 0] == numbers[:, 1]).any())
            with pytest.raises(ConfigError) if itself else contextlib.nullcontext():
                check_partners(stream)


@pytest.mark.parametrize(("lanes", "batch", "samples"), [(48, 128, 10_000), (64, 100, 10_000), (32, 64, 330)])
def test_lanes_that_would_favor_some_images_are_refused(tmp_path, lanes, batch, samples):
    found = shards(write_shards(tmp_path, [2]))
    found.starts[-1] = samples  # as if it held so many
    with pytest.raises(ConfigError, match=f"data.lanes {lanes}: .* do not divide a mini-batch of {batch} images"):
        stream_of(found, 0, STREAM, batch, 64, row_lanes=lanes)


def test_a_lane_has_enough_samples(tmp_path):
    """Else those of the smaller lanes would come much more often."""
    found = shards(write_shards(tmp_path, [2]))
    found.starts[-1] = 330  # as if it held so many
    assert [stream_of(found, 0, STREAM, 40, 64, row_lanes=lanes).row_lanes for lanes in (3, 8, 10, 40, 64)] == [
        3,
        8,
        10,
        20,
        20,
    ]


def test_a_bad_sample_is_skipped_in_the_mean_color(tmp_path, capsys):
    write_shards(tmp_path, [10], prefix="test")
    with webdataset.TarWriter(str(tmp_path / "train-000.tar")) as writer:
        for i in range(20):
            writer.write({"__key__": f"{i:03d}", "png": b"rubbish" if i == 3 else png(i), "cls": i % 3})
    cfg = override(config(tmp_path, augment="strong", max_bad_files=1), train={"batch_size": 4})
    data = opened(cfg)
    assert batches_of(data, cfg)(0).images.shape == (4, 3, 8, 8)
    cfg = override(cfg, data={"augment": "none"})
    for batch in map(batches_of(data, cfg), range(10)):  # 40 samples: the bad one's turn comes, and another's label with it
        assert [label % 3 for label in number_of(to_pixels(batch.images))] == batch.labels.tolist()
    assert "003" in capsys.readouterr().err
    first = data.train.subsample(19)
    assert number_of(first.in_memory) == [i for i in range(20) if i != 3]
    assert first.labels.tolist() == [i % 3 for i in range(20) if i != 3]


def test_a_test_folder_of_shards_with_any_names(tmp_path):
    write_shards(tmp_path / "mine", [9])
    write_shards(tmp_path / "theirs", [5], prefix="y")
    assert len(opened(config(tmp_path / "mine", test_root=str(tmp_path / "theirs"))).test) == 5


@pytest.mark.slow
def test_loader_workers_and_a_stream_give_the_same_batches(tmp_path):
    from hybvit.data.loader import batches_of_steps

    write_shards(tmp_path, [300, 300])
    write_shards(tmp_path, [5], prefix="test")
    cfg = override(config(tmp_path, augment="strong", shuffle_buffer=64), train={"batch_size": 16})
    data = opened(cfg)
    here = [batches_of(data, cfg)(step) for step in range(20)]
    there = list(batches_of_steps(batches_of(data, cfg), 0, 20, 2))
    assert all(torch.equal(a.images, b.images) and torch.equal(a.x0, b.x0) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("claimed", [1, 5, 9, 11, 100])
def test_sizes_that_are_wrong_are_refused_before_anything_is_read(tmp_path, claimed):
    (name,) = write_shards(tmp_path, [10])
    (tmp_path / "sizes.json").write_text(json.dumps({"train-000.tar": claimed}))
    with pytest.raises(DataError, match=f"10 samples, but {claimed} were counted in sizes.json"):
        shards([name])
    (tmp_path / "sizes.json").write_text(json.dumps({"train-000.tar": 10}))
    assert len(shards([name])) == 10


@pytest.mark.parametrize("in_sizes", [True, False])
@pytest.mark.parametrize("claimed", [[4, 9], [10, 3], [1, 1], [12, 9], [10, 20]])
def test_a_stream_ends_where_its_shards_end(tmp_path, claimed, in_sizes):
    """Remote shards are not counted: their sizes may be too small or too large. Local ones may be written anew."""
    found = shards(write_shards(tmp_path, [10, 9]))
    found.in_sizes = set(found.names if in_sizes else ())
    found.counts = claimed
    found.starts = [0, claimed[0], sum(claimed)]
    found.shape = torch.Size((sum(claimed), 3, 8, 8))
    cure = "correct sizes.json" if in_sizes else "it has changed since"
    with pytest.raises(DataError, match=rf"(more|10|9) samples, but .* were counted: {cure}"):
        stream_of(found, 0, STREAM, 16, 8).take(torch.arange(200))


def test_shards_count_their_images_not_themselves(tmp_path):
    from hybvit.data.fingerprint import numbers

    write_shards(tmp_path, [9, 9])
    write_shards(tmp_path, [5], prefix="test")
    assert numbers(opened(config(tmp_path)).fingerprint) == "18 training and 5 test images"


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (None, r"train-000\.tar/000003\.cls: missing, but other samples have one, such as .*/000000$"),
        ("json", r"000003\.cls: missing, but other .*a class in \.json is not read: write it to \.cls"),
        ("all json", r"000000\.cls: missing, as in all samples; a class in \.json is not read: write it to \.cls"),
        ("all", r"000000\.cls: missing, as in all samples; without labels train with --objective genvit"),
    ],
)
def test_a_sample_without_a_label_is_named_before_the_training(tmp_path, member, message):
    from hybvit.training.loop import open_images

    write_shards(tmp_path, [4], prefix="test", labels="all" not in (member or ""))
    with webdataset.TarWriter(str(tmp_path / "train-000.tar")) as writer:
        for i in range(6):
            bare = i == 3 or (member or "").startswith("all")
            found = {"json": {"label": 1}} if "json" in (member or "") else {}
            writer.write({"__key__": f"{i:06d}", "png": png(i)} | (found if bare else {"cls": i % 3}))
    with pytest.raises(DataError, match=message):
        open_images(config(tmp_path))
    if "all" in (member or ""):
        assert len(open_images(override(config(tmp_path), objective={"kind": "genvit"})).train) == 6


@pytest.mark.parametrize("text", ["\ufeff2", "\ufeffblue\r\n", " blue ", "2\n", "\u200bblue"])
def test_a_label_is_a_cell(tmp_path, text):
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    for split in ("train", "test"):
        with webdataset.TarWriter(str(tmp_path / f"{split}-000.tar")) as writer:
            writer.write({"__key__": "0", "png": png(1), "cls": text.encode()})
    assert opened(config(tmp_path)).test.labels.tolist() == [2]


def test_the_share_to_hold_out_has_its_cure(tmp_path):
    write_shards(tmp_path, [9])
    with pytest.raises(ConfigError, match=r"data\.held_out is 0\.1: .* give --data\.held_out 0$"):
        opened(config(tmp_path, held_out=0.1))
