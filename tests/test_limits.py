"""What a small file, a name or a stranger's code may cost: memory, time, the terminal, the exit code."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import signal
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import hybvit
from hybvit import checkpoint, cli
from hybvit.checkpoint import step_folder
from hybvit.cli.output import printable
from hybvit.config import Config, override
from hybvit.data import files, shards
from hybvit.data.cells import read_table
from hybvit.data.files import Files, data_errors, read_idx, read_mat, read_members, read_npz
from hybvit.data.images import FORMATS, WRITTEN, check_image_suffix, read_image, save_image
from hybvit.data.own_images import list_files
from hybvit.data.readers import read_lines
from hybvit.data.shards import expanded, shard_classes
from hybvit.errors import CheckpointError, ConfigError, DataError
from hybvit.evaluation.adapters import adapt
from hybvit.networks import build_network, fill_network, layers_of
from hybvit.training.run_folder import RunFolder

from .conftest import opened
from .test_datasets import decoding
from .test_hostile_files import encoded
from .test_own_images import own

MIB = 1 << 20
CFG = Config(model=hybvit.ViTConfig(image_size=8, patch_size=4, channels=1, dim=16, depth=1, heads=2))


@contextmanager
def at_most(mib: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mib * MIB
    finally:
        tracemalloc.stop()


# files that unpack to more than they weigh


def npy(shape: tuple[int, ...], kind: str = "|u1", body: int = 0) -> bytes:
    head = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(body)


def npz(**arrays: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in arrays.items():
            archive.writestr(f"{name}.npy", raw)
    return file.getvalue()


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        (npy((100 * MIB,), body=100 * MIB), "claims 104,857,600 values, more than the 40"),
        (npy((1 << 40, 0)), "shape|claims|buffer|0"),
        (npy((1 << 20, 1 << 20)), "claims 1,099,511,627,776 values"),
        (npy((5,), "|O", 40), "only arrays of numbers"),
        (npy((5,), "|V8", 40), "only arrays of numbers"),
        (npy((5,), "<U9999999", 40), "only arrays of numbers"),
        (npy((40,), "<u8"), "damaged"),
    ],
)
def test_an_array_is_refused_by_its_header(forged, said):
    raw = npz(data=forged, labels=npy((2,), body=2), mean=npy((200 * MIB,), body=1))
    assert read_npz(raw, Path("a.npz"), ("labels", "absent"), 40)["labels"].tolist() == [0, 0]
    with at_most(4):
        if said.startswith("shape"):
            found = read_npz(raw, Path("a.npz"), ("data",), 40)["data"]  # no element, so no memory
            assert found.size == 0
        else:
            with pytest.raises(DataError, match=said):
                read_npz(raw, Path("a.npz"), ("data",), 40)


def test_an_idx_file_is_read_as_far_as_its_header_says(tmp_path):
    for claimed, there in ((100 * MIB, 100 * MIB), (7840, 100 * MIB), (100 * MIB, 10)):
        path = tmp_path / "a.gz"
        path.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", claimed) + bytes(there), 1))
        with at_most(4), pytest.raises(DataError, match=r"a\.gz: (its header claims 104,857,600|more bytes of data)"):
            read_idx(path, limit=784 * 10)
    path.write_bytes(gzip.compress(b"\0\0\x08\x02" + struct.pack(">2I", 2, 3) + bytes(range(6))))
    assert read_idx(path, limit=6).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(gzip.compress(b"\0\0\x08\xff" + b"\0\1\0\0" * 255))
    with pytest.raises(DataError, match="its header claims"):
        read_idx(path)


def test_a_matlab_file_inflates_to_what_its_set_may_hold(tmp_path):
    path, x = tmp_path / "train.mat", np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    savemat(path, {"X": x, "y": np.array([[1], [10]]), "other": np.zeros(3)}, do_compression=True)
    assert np.array_equal(read_mat(path, ("X", "y"), 10_000)["X"], x)
    assert "other" not in read_mat(path, ("X", "y"), 10_000)
    savemat(path, {"X": x}, do_compression=False)
    assert np.array_equal(read_mat(path, ("X",), 10_000)["X"], x)
    savemat(path, {"X": np.zeros(64 * MIB, np.uint8)}, do_compression=True)
    forged = path.read_bytes()
    with at_most(4), pytest.raises(DataError, match="more than the"):
        read_mat(path, ("X",), MIB)
    path.write_bytes(forged[:-100])
    with pytest.raises(DataError, match=r"damaged|more than"):
        read_mat(path, ("X",), 100 * MIB)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_member_of_a_set_is_no_larger_than_its_share(tmp_path, kind):
    import tarfile

    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("top/data", bytes(64 * MIB))
    else:
        with tarfile.open(path, "w:gz") as stream:
            entry = tarfile.TarInfo("top/data")
            entry.size = 64 * MIB
            stream.addfile(entry, io.BytesIO(bytes(64 * MIB)))
    with at_most(6), pytest.raises(DataError, match=r"data: 67,108,864 bytes unpacked, more than the 1,048,576"):
        read_members(path, ["data"], MIB)


# images in archives


def bmp(width: int, height: int, body: int) -> bytes:
    header = struct.pack("<IIiiHHIIiiII", 40, 0, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, body, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + body, 0, 0, 54) + header + bytes(body)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bmp", bytes(80 * MIB), "not an image of a format that is read"),
        ("a.bmp", bmp(30_000, 30_000, 80 * MIB), "more than 64,000,000 pixels"),
        ("a.ppm", b"P6 90000 9000 255\n" + bytes(80 * MIB), "more than 64,000,000 pixels"),
        ("a.png", b"<html>" + bytes(80 * MIB), "a web page"),
    ],
)
def test_an_image_in_an_archive_is_refused_by_its_beginning(tmp_path, name, content, said):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(6):
            archive.writestr(f"b/{i}.png", encoded("PNG", i))
            archive.writestr(f"a/{i}.png", encoded("PNG", i))
        archive.writestr(f"a/{name}", content)
    del content
    with at_most(24), pytest.raises(DataError, match=f"{name}: .*({said})"):
        opened(own(tmp_path / "a.zip"))


def test_checksums_of_an_archive_are_those_of_its_files(tmp_path):
    forms = {"a.bmp": "BMP", "b.tif": "TIFF", "c.ppm": "PPM", "d.png": "PNG"}
    (tmp_path / "x" / "k").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, form in forms.items():
            (tmp_path / "x" / "k" / name).write_bytes(encoded(form))
            archive.writestr(f"k/{name}", encoded(form))
    folder, zipped = (list_files(Files(tmp_path / place), ("k",), decoding()).images for place in ("x", "a.zip"))
    assert folder == zipped
    assert [image.content for image in folder] == [zlib.crc32(encoded(forms[name])) if name != "d.png" else 0 for name in forms]


def test_a_file_of_many_gigabytes_has_no_checksum(tmp_path):
    with (tmp_path / "a.bmp").open("wb") as file:
        file.truncate(12 << 30)
    started = time.process_time()
    assert Files(tmp_path).checksum("a.bmp") == 0
    assert time.process_time() - started < 1


# text


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_table(path), lambda path: read_lines(path), lambda path: Files(path.parent).text(path.name),
        lambda path: shard_classes(str(path.parent), 3),
    ],
)  # fmt: skip
def test_a_text_of_gigabytes_is_not_read(tmp_path, read: Callable[[Path], object]):
    path = tmp_path / "classes.txt"
    with path.open("wb") as file:
        file.truncate(12 << 30)
    with at_most(1), pytest.raises(DataError, match=r"classes\.txt: cannot be read \(12,884,901,888 bytes, more than any"):
        read(path)


def test_a_text_in_an_archive_is_limited_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXT", 100)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "x" * 101)
        archive.writestr("b.txt", "ä" * 50)
    assert Files(tmp_path / "a.zip").text("b.txt") == "ä" * 50
    with pytest.raises(DataError, match=r"a\.txt: 101 bytes unpacked, more than the 100"):
        Files(tmp_path / "a.zip").text("a.txt")


# names of shards

MANY = [
    "train-{0..99999999}.tar", "a-{0..999}-{0..999}-{0..999}.tar", "{a,b,{1..100000000}}.tar", "{9..-99999999}.tar",
    "x{0..999999999999999999999999}.tar", "{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar", "{1..50000}.tar::{1..60000}.tar",
]  # fmt: skip


@pytest.mark.parametrize("pattern", MANY)
def test_a_pattern_of_too_many_shards_is_refused_at_once(pattern):
    pytest.importorskip("webdataset")
    started = time.process_time()
    with at_most(24), pytest.raises(ConfigError, match="more than 100,000 shards"):
        expanded(pattern)
    assert time.process_time() - started < 5


def test_other_patterns_are_expanded():
    pytest.importorskip("webdataset")
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{a,b}{0..4..2}") == ["a0", "a2", "a4", "b0", "b2", "b4"]
    assert len(expanded("{0..99999}.tar")) == shards.MAX_SHARDS
    assert len(expanded("{0..100000000..10000}.tar")) == 10_001
    with pytest.raises(ConfigError, match="a brace is not closed"):
        expanded("a{1..2.tar")


# configurations


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"name": "unet", "layers": 1024, "channels": (32,) * 6}}, "at most 128 blocks"),
        ({"network": {"name": "unet", "layers": 1, "channels": (32,) * 10_000}}, "at most 128 blocks"),
        ({"network": {"layers": 43, "channels": (32,) * 3}}, "at most 128 blocks"),
        ({"network": {"name": "wide_resnet"}, "model": {"image_size": 4096}}, "image_size is 4096: for a wide_resnet"),
        ({"network": {"name": "preact_resnet18"}, "model": {"image_size": 2048}}, "image_size is 2048: for a preact_resnet18"),
        ({"network": {"name": "unet"}, "model": {"image_size": 4096}}, "image_size is 4096: for a unet"),
    ],
)
def test_a_network_is_bounded_as_a_whole(changes, said):
    kind = {"unet": "genvit", "wide_resnet": "vit", "preact_resnet18": "vit"}.get(changes["network"].get("name", ""), "hybvit")
    with pytest.raises(ConfigError, match=said):
        override(CFG, objective={"kind": kind}, **changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("hybvit", {"model": {"depth": 1024}}), ("vit", {"network": {"name": "wide_resnet", "depth": 1000}}),
        ("genvit", {"network": {"name": "unet", "layers": 32, "channels": (32,) * 4}, "model": {"image_size": 8}}),
    ],
)  # fmt: skip
def test_layers_are_counted_before_they_are_built(monkeypatch, tmp_path, kind, changes):
    monkeypatch.setattr("hybvit.networks.build_network", None)
    with pytest.raises(CheckpointError, match=r"30 tensors, one is missing for each of the (1,024|1,000|128) layers"):
        fill_network(override(CFG, objective={"kind": kind}, **changes), dict.fromkeys(map(str, range(30))), tmp_path / "w")


def test_every_layer_has_a_tensor():
    """Of all networks of the presets, or a sound one would be refused."""
    import torch

    from hybvit.presets import PRESETS, preset

    for name in PRESETS:
        cfg = preset(name)
        if cfg.network.name == "unet":
            pytest.importorskip("diffusers")
        with torch.device("meta"):
            assert layers_of(cfg) <= len(build_network(cfg).state_dict()), name


# the terminal

STEERING = [
    "\x1b[31m",
    "\x1b]0;title\x07",
    "a\rb",
    "\u202egnp.exe",
    "\u2066x",
    "\x9b2J",
    "\x08",
    "\u00ad",
    "\x00",
    "\u2028",
    "\U000e0041",
]


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_terminal_is_written_as_text(text):
    shown = printable(f"hybvit: {text} end\n")
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()
    assert shown.startswith("hybvit: ")
    assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == f"hybvit: {text} end\n"


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "ä 中文 \U0001f600",
        "\u0645\u06cc\u200c\u062e\u0648",
        "\U0001f468\u200d\U0001f469",
        "a\tb\nc\n",
        "\r 50%|###  | 1/2\r",
        "\n\n\x1b[A\x1b[A",
        "",
    ],
)
def test_what_a_terminal_shows_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize("name", ["\x1b[2Jx.png", "\u202egnp.png", "x\x9b31m.png"])
def test_names_of_files_do_not_reach_the_terminal_raw(tmp_path, capfd, tiny_run, name):
    (tmp_path / name).write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / f"good{name}")
    assert cli.main(["classify", str(tiny_run), str(tmp_path / name), str(tmp_path / f"good{name}")]) == 3
    assert not {"\x1b", "\u202e", "\x9b"} & set("".join(capfd.readouterr()))


# the machine, the system


@pytest.mark.parametrize(
    "make", [lambda path: path / "loop", lambda path: path / "file.png" / "x", lambda path: path / ("n" * 300)]
)
def test_what_the_system_does_not_open_is_not_called_damaged(tmp_path, make):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read \([A-Z][a-z ]+\)$"):
        read_image(make(tmp_path), 3, 8)
    with pytest.raises(DataError, match=r"cannot be read \([A-Z][a-z ]+\)$"):
        read_table(make(tmp_path))


def test_threads_that_are_used_up_are_not_the_fault_of_a_file(capsys, monkeypatch):
    with pytest.raises(RuntimeError, match="can't start new thread"), data_errors("innocent.npz"):
        raise RuntimeError("can't start new thread")
    with pytest.raises(DataError, match=r"guilty\.npz: damaged"), data_errors("guilty.npz"):
        raise RuntimeError("bad header")

    def used_up(arguments: list[str]) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("hybvit.cli.presets.main", used_up)
    assert cli.main(["presets"]) == 2
    assert capsys.readouterr().err.startswith("hybvit: not enough threads")


@pytest.mark.parametrize("code", ["0", "3", "'words'", "None"])
@pytest.mark.parametrize("place", ["on import", "in the function"])
def test_code_of_a_stranger_that_leaves_is_no_success(tmp_path, capsys, code, place):
    leave = f"raise SystemExit({code})"
    text = leave if place == "on import" else f"def f():\n    {leave}\n"
    (tmp_path / "ext.py").write_text(text)
    said = "cannot be imported" if place == "on import" else r"f\(\) failed"
    with pytest.raises(ConfigError, match=rf"ext\.py: {said}: SystemExit"):
        adapt(f"{tmp_path / 'ext.py'}:f", (1, 8, 8), 10)


def test_a_command_that_is_left_halfway_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr("hybvit.cli.presets.main", lambda arguments: sys.exit(0))
    assert cli.main(["presets"]) == 2
    assert "test_limits.py, line " in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(SystemExit) as left:
        cli.main(["presets", "--help"])
    assert left.value.code == 0


# what is written


@pytest.mark.parametrize("suffix", ["qoi", "blp", "xbm", "msp", "palm", "h5", "grib", "wmf", "bufr", "eps", "mpo", "txt", ""])
def test_other_formats_are_not_written(tmp_path, suffix):
    with pytest.raises(ConfigError, match="is not an image format that can be written"):
        check_image_suffix(tmp_path / f"g.{suffix}".rstrip("."))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_format_that_is_offered_can_be_written(tmp_path, mode):
    Image.init()
    offered = sorted(suffix for suffix, name in Image.registered_extensions().items() if name in WRITTEN and name in Image.SAVE)
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".bmp"} <= {*offered}
    for suffix in offered:
        path = tmp_path / f"{mode}{suffix}"
        save_image(Image.new(mode, (40, 30)), path)
        assert path.stat().st_size > 0
        if Image.registered_extensions()[suffix] in FORMATS:
            assert read_image(path, 3, 8).shape == (3, 8, 8)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_whoever_may_read_the_manifest_may_read_the_weights(tmp_path, mask):
    import torch

    before = os.umask(mask)
    try:
        checkpoint.write_folder(tmp_path / "m", {"model": {"a": torch.zeros(2)}}, {"config.yaml": "x"})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "m").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_file_of_another_owner_is_not_called_damaged(tmp_path, monkeypatch, name):
    import torch

    checkpoint.write_folder(tmp_path / "m", {"model": {"a": torch.zeros(2)}}, {})
    opens = Path.open

    def refused(path: Path, *arguments: object, **more: object) -> object:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "read_bytes", lambda path: refused(path, "rb").read())
    for read in (checkpoint.verify, lambda folder: checkpoint.read_verified(folder, "model.safetensors")):
        with pytest.raises(CheckpointError, match=f"{name}: no permission to read it: ask its owner"):
            read(tmp_path / "m")


# locks and signals


def test_the_lock_of_a_run_is_closed_with_it(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with RunFolder(tmp_path / "run", CFG) as run:
            lock = run._lock
            run.write_checkpoint(step_folder(run.path / "checkpoints", 1), 1, {})
        assert lock is not None
        assert lock.closed
        for other in itertools.repeat(override(CFG, train={"seed": 5}), 2):  # a refusal keeps no lock either
            with pytest.raises(ConfigError, match=r"started with train\.seed"):
                RunFolder(tmp_path / "run", other)
        RunFolder(tmp_path / "run", CFG).release()


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("hybvit.cli", -signal.SIGINT),
        ("hybvit.errors", -signal.SIGINT),
        ("hybvit.cli.output", -signal.SIGINT),
        ("hybvit.cli.presets", 130),
    ],
)
def test_ctrl_c_while_modules_are_imported_shows_no_traceback(tmp_path, module, code):
    """Sent when a module is looked for; before the first of our own, Python itself starts."""
    script = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
from hybvit.__main__ import main
class Finder:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["hybvit", "presets"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_a_second_ctrl_c_while_python_ends_shows_no_traceback(tmp_path):
    script = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from hybvit.__main__ import main
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.argv = ["hybvit", "--version"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert not done.stderr
