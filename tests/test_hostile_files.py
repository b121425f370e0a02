"""Files that are not what their name says: whatever a decoder raises is a bad file, nothing waits or grows without end."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import socket
import struct
import tarfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybvit import cli
from hybvit.data import files, images, shards
from hybvit.data.files import Files
from hybvit.data.images import Originals, formats, read_image
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.loading import load

from .conftest import opened
from .test_own_images import own, save, table
from .test_shards import config, write_shards

WRITABLE = ["PNG", "JPEG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "QOI", "SGI"]


def encoded(form: str, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", WRITABLE)
def test_whatever_a_decoder_raises_is_a_bad_file(form):
    if form not in formats():
        pytest.skip(f"this Pillow does not read {form}")
    raw, draw = encoded(form), random.Random(form)
    assert read_image("whole", 3, 8, io.BytesIO(raw)).shape == (3, 8, 8)
    for _ in range(60):
        damaged = bytearray(raw[: draw.randrange(1, len(raw) + 1)])
        for _ in range(draw.randrange(4)):
            damaged[draw.randrange(min(len(damaged), 200))] = draw.randrange(256)
        with contextlib.suppress(DataError):
            assert read_image("damaged.img", 3, 8, io.BytesIO(bytes(damaged))).shape == (3, 8, 8)


@pytest.mark.parametrize(
    "error", [NotImplementedError("x"), struct.error("x"), RecursionError(), MemoryError(), ZeroDivisionError("a\nb")]
)
def test_any_exception_counts_as_one_bad_file(tmp_path, monkeypatch, error):
    save(tmp_path / "5.png")

    def wrong(*args):
        raise error

    monkeypatch.setattr(images, "as_pixels", wrong)
    with pytest.raises(DataError, match=r"5\.png: damaged image \(.+\)$"):
        read_image(tmp_path / "5.png", 3, 8)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
FOREIGN = {
    "eps": EPS,
    "dos eps": struct.pack("<IIIIIIIH", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + b"\0\0" + EPS,
    "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 8, 8, 96) + b"\0" * 6 + b"\x01\0\t\0" + b"\0" * 40,
    "html": b"<!doctype html><title>404</title>",
    "pointer to large storage": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "empty": b"",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_before_any_program_runs(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(os, "posix_spawn", None)
    monkeypatch.setattr("subprocess.Popen", None)
    (tmp_path / "photo.jpg").write_bytes(FOREIGN[kind])
    said = {"html": "a web page", "pointer to large storage": "a Git LFS pointer, .*: git lfs pull", "empty": "empty"}
    expected = said.get(kind, "not an image of a format that is read")
    for file in (None, io.BytesIO(FOREIGN[kind])):
        with pytest.raises(DataError, match=rf"photo\.jpg: {expected}"):
            read_image(tmp_path / "photo.jpg", 3, 8, file)


@pytest.mark.parametrize("side", [9_000, 12_000, 20_000])  # Pillow warns from 9,459 on, and refuses from 13,377 on
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_is_too_large_is_refused_in_the_same_line_at_any_size(tmp_path, capsys, side):
    path = tmp_path / "large.ppm"
    path.write_bytes(b"P6 %d %d 255\n" % (side, side))
    assert cli.main(["classify", "digits", str(path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"{path}: .*more than 64,000,000 pixels: reduce its size$", line)


def test_an_icon_cannot_claim_another_size_than_it_has(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    entry = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture.getvalue()), 22)
    (tmp_path / "a.ico").write_bytes(entry + picture.getvalue())
    with pytest.raises(DataError, match=r"a\.ico: not an image of a format that is read"):
        read_image(tmp_path / "a.ico", 3, 8)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", 6), ("LA", 4)])
def test_an_opaque_alpha_channel_does_not_hide_a_depth_of_12_bits(tmp_path, capsys, mode, kind):
    """Color types 4 and 6 of PNG with 16 bits per channel, which Pillow cannot write."""
    values = np.full((9, 9, len(mode)), 4000, dtype=">u2")
    values[..., -1] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    coded = (struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(coded))
    originals = Originals()
    read_image(tmp_path / "a.png", 1, 8, originals=originals)
    originals.warn("here", 8)
    assert "they look like 12 bits" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_that_stores_darkness_is_read_as_it_looks(tmp_path, dtype):
    white = np.iinfo(dtype).max
    stored = np.full((8, 8), round(0.9 * white), dtype=dtype)
    Image.fromarray(stored).save(tmp_path / "plain.tif")
    Image.fromarray(stored).save(tmp_path / "dark.tif", tiffinfo={262: 0})
    plain, dark = (int(read_image(tmp_path / name, 1, 8)[0, 0, 0]) for name in ("plain.tif", "dark.tif"))
    assert plain == pytest.approx(230, abs=1)
    # with this tag Pillow inverts what it writes and reads of 8 bits, and neither of 16: those are stored as they are here
    assert dark == pytest.approx(230 if dtype == np.uint8 else 25.5, abs=1)
    with Image.open(tmp_path / "dark.tif") as image:
        assert image.tag_v2[262] == 0


def special(path: Path, kind: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(path.parent)  # the address of a socket is short
            server.bind(path.name)
            os.chdir(here)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_pipes_sockets_and_devices_are_not_opened(tmp_path, kind):
    for i in range(12):
        save(tmp_path / "ab"[i % 2] / f"{i}.png")
    special(tmp_path / "a" / "odd.png", kind)
    with pytest.raises(DataError, match=r"odd\.png: a pipe, a socket or a device"):
        opened(own(tmp_path))
    data = opened(own(tmp_path, max_bad_files=1))
    assert len(data.train) + len(data.test) == 12
    listed = table(tmp_path, "csv", [{"path": "a/odd.png", "label": "a"}, {"path": "b/1.png", "label": "b"}])
    with pytest.raises(DataError, match=r"odd\.png: a pipe"):
        opened(own(listed, "manifest"))
    for name in ("odd.zip", "odd.csv", "odd.parquet"):
        special(tmp_path / name, kind)
        form = {"odd.zip": "folder", "odd.csv": "manifest", "odd.parquet": "huggingface"}[name]
        with pytest.raises(DataError, match=rf"{name}: a pipe"):
            opened(own(tmp_path / name, form))
    special(tmp_path / "train.tar", kind)
    with pytest.raises((DataError, ConfigError), match=r"train\.tar: (a pipe|no such shard)"):
        opened(config(tmp_path / "train.tar", test_root=str(tmp_path / "train.tar")))


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["config.yaml", "run.id", "checkpoints/*/manifest.json", "checkpoints/*/ema.safetensors"])
def test_a_run_with_a_pipe_in_it_does_not_wait(tiny_run, tmp_path, kind, name):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for path in run.glob(name):  # in every checkpoint, since an older one would do
        path.unlink()
        special(path, kind)
    with pytest.raises((ConfigError, CheckpointError, DataError), match=re.escape(Path(name).name)):
        load(run)


def zip_with(path: Path, method: int, member: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for i in range(6):
            archive.writestr(f"a/{i}.png", encoded("PNG", i))
            archive.writestr(f"b/{i}.png", encoded("PNG", i))
        archive.writestr("b/big.png", member)
    return path


def test_a_member_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_MEMBER", 5000)
    root = zip_with(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, bytes(5001))
    with pytest.raises(DataError, match=r"big\.png: 5,001 bytes unpacked, more than the 5,000"):
        opened(own(root))
    assert len(opened(own(root, max_bad_files=1)).classes) == 2


def test_a_member_that_inflates_to_more_than_it_claims_costs_no_memory(tmp_path):
    root = zip_with(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, bytes(100 << 20))
    raw = bytearray(root.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")  # the last one in the index
    raw[entry + 24 : entry + 28] = struct.pack("<I", 1000)
    root.write_bytes(raw)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"big\.png: damaged"):
        Files(root).open("b/big.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_member_of_a_shard_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_MEMBER", 5000)
    write_shards(tmp_path, [4])
    write_shards(tmp_path, [4], prefix="test")
    name = tmp_path / "test-000.tar"
    with tarfile.open(name, "a") as archive:
        entry = tarfile.TarInfo("zz.png")
        entry.size = 5001
        archive.addfile(entry, io.BytesIO(bytes(5001)))
    with pytest.raises(DataError, match=r"zz\.png: 5,001 bytes unpacked"):
        opened(config(tmp_path))


@pytest.mark.parametrize("sides", [[90] * 8, [100] * 5, [60, 90, 100, 50] * 3, [99] * 3 + [10] * 40])
def test_large_images_wait_for_each_other_and_small_ones_never(monkeypatch, sides):
    monkeypatch.setattr(images, "SMALL_PIXELS", 400)
    monkeypatch.setattr(images, "DECODING", images.PixelBudget(10_000))
    lock, now, most, done = threading.Lock(), [], [], []

    def decode(image, *args):
        pixels = image.width * image.height
        with lock:
            now.append(pixels)
            most.append(sum(n for n in now if n > 400))
        time.sleep(0.002)
        with lock:
            now.remove(pixels)
            done.append(pixels)
        if pixels == 9801:
            raise ValueError("damaged")  # gives back its share too
        return torch.zeros(1)

    monkeypatch.setattr(images, "as_pixels", decode)

    def read(side: int) -> None:
        file = io.BytesIO()
        Image.new("L", (side, side)).save(file, "PNG")
        with contextlib.suppress(DataError):
            read_image("x", 3, 8, file)

    with images.DECODING.hold(10_000), ThreadPoolExecutor(16) as pool:
        list(pool.map(read, [20, 10]))  # while the budget is spent
        assert sorted(done) == [100, 400]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, sides))
    assert len(done) == 2 + len(sides)
    assert max(most) <= 10_000
    assert images.DECODING.used == 0


# depth


def twelve_bits(path: Path, values: np.ndarray) -> None:
    """A TIFF file of 12 bits per value, two of them in three bytes."""
    h, w = values.shape
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = (
        np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        .astype(np.uint8)
        .tobytes()
    )
    tags = [
        (256, w),
        (257, h),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 1),
        (278, h),
        (279, len(packed)),
    ]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + packed)


def test_the_declared_depth_decides(tmp_path):
    twelve_bits(tmp_path / "12.tif", np.full((8, 8), 2048))
    (tmp_path / "10.pgm").write_bytes(b"P5 8 8 1023\n" + np.full(64, 512, ">u2").tobytes())
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(np.full((8, 8), 32768, np.int32)).save(tmp_path / "32.tif")
    for name in ("12.tif", "10.pgm", "16.png", "32.tif"):
        assert read_image(tmp_path / name, 1, 8).unique().tolist() in ([127], [128]), name


@pytest.mark.parametrize(
    ("dtype", "shape", "suffix", "top", "bits"),
    [
        (np.uint16, (9, 9), "png", 4095, 12), (np.uint16, (9, 9), "png", 255, 8), (np.int32, (9, 9), "tif", 200, 8),
        (np.uint16, (9, 9), "tif", 3000, 12), (np.uint16, (9, 9), "png", 4096, 0), (np.uint8, (9, 9, 3), "png", 200, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_a_set_that_looks_like_fewer_bits_is_said_once(tmp_path, capsys, dtype, shape, suffix, top, bits, memory):
    for i in range(12):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        values = np.random.default_rng(i).integers(0, top + 1, shape)
        values[0, 0] = top
        Image.fromarray(values.astype(dtype)).save(tmp_path / "ab"[i % 2] / f"{i}.{suffix}")
    opened(own(tmp_path, channels=1, memory_gib=memory))
    said = capsys.readouterr().err
    assert said.count("look like") == bool(bits)
    assert (f"{top:,}: they look like {bits} bits" in said) == bool(bits)
    assert (f"give --data.bits {bits}" in said) == bool(bits)
    declared = opened(own(tmp_path, channels=1, memory_gib=memory, bits=bits or 16))
    assert "look like" not in capsys.readouterr().err
    if bits:
        white = read_image(tmp_path / "a" / f"0.{suffix}", 1, 9, originals=images.Originals(bits))[0, 0, 0]
        assert int(white) == round(top * 255 / (2**bits - 1))  # by the depth of the set, not the largest value of the image
        assert declared.train.first(1).pixels.max() > 127


def test_files_that_declare_their_depth_keep_it(tmp_path):
    twelve_bits(tmp_path / "12.tif", np.full((8, 8), 2048))
    for maximum in (1023, 4095, 65535):
        (tmp_path / f"{maximum}.pgm").write_bytes(b"P5 8 8 %d\n" % maximum + np.full(64, 512, ">u2").tobytes())
    for name, value in {"12.tif": 128, "1023.pgm": 128, "4095.pgm": 32, "65535.pgm": 128}.items():
        assert read_image(tmp_path / name, 1, 8, originals=images.Originals(10)).unique().tolist() in ([value - 1], [value]), (
            name
        )


def test_a_value_beyond_the_declared_depth_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 4096, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: values from 4096 to 4096, not 0 to 4095: raise data\.bits"):
        read_image(tmp_path / "a.png", 1, 8, originals=images.Originals(12))
    for bits in (7, 17):
        with pytest.raises(ConfigError, match=rf"data\.bits is {bits}"):
            own(tmp_path, bits=bits)


def test_color_of_16_bits_is_looked_at_too(capsys):
    rows = b"".join(b"\0" + np.full(24, 3000, ">u2").tobytes() for _ in range(8))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    wide = images.Originals()
    pixels = read_image("color.png", 3, 8, io.BytesIO(raw), wide)
    assert torch.equal(pixels, torch.full((3, 8, 8), 3000 // 256, dtype=torch.uint8))
    assert 3000 <= wide.notes[0].largest <= 4095
    wide.warn("color", 8)
    assert "save them with values up to 65,535" in capsys.readouterr().err  # Pillow has cut off their lower bits
    with pytest.raises(DataError, match=r"which data\.bits cannot scale"):
        read_image("color.png", 3, 8, io.BytesIO(raw), images.Originals(12))
