"""Decoded images are kept, and whatever happens to them or to the files, the pixels are those of the files."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybvit.config import Config, override
from hybvit.data import decoded, image_set, own_images
from hybvit.data.image_set import Dataset
from hybvit.data.images import read_image
from hybvit.errors import DataError

from .conftest import hybvit, opened
from .test_own_images import own, table


@pytest.fixture(autouse=True)
def decodings(tmp_path, monkeypatch) -> list[object]:
    """What is decoded from now on, with a cache of its own for sets of any size."""
    calls: list[object] = []

    def read(path, *arguments, **more) -> torch.Tensor:
        calls.append(path)
        return read_image(path, *arguments, **more)

    monkeypatch.setattr(decoded, "FEWEST", 1)
    monkeypatch.setattr(decoded, "_refused", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (image_set, own_images):
        monkeypatch.setattr(module, "read_image", read)
    return calls


def images(root: Path, n: int = 10, dtype: type = np.uint8, top: int = 255, shape: tuple[int, ...] = (30, 30)) -> Path:
    """A folder of two classes, with noise."""
    for i in range(n):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, top + 1, shape).astype(dtype)).save(path)
    return root


def kept() -> list[Path]:
    return [path for _, _, path in decoded.kept()]


def same(a: Dataset, b: Dataset) -> bool:
    pairs = [(a.train, b.train), (a.test, b.test)]
    return all(torch.equal(x.pixels, y.pixels) and torch.equal(x.labels, y.labels) for x, y in pairs)


def as_folder(folder: Path) -> dict:
    return {"root": folder}


def as_zip(folder: Path) -> dict:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.glob("*/*")):
            archive.write(path, path.relative_to(folder))
    return {"root": folder.with_suffix(".zip")}


def as_manifest(folder: Path) -> dict:
    rows = [{"path": str(path.relative_to(folder.parent)), "label": path.parent.name} for path in sorted(folder.glob("*/*"))]
    return {"root": table(folder.parent, "csv", rows), "name": "manifest"}


@pytest.mark.parametrize("split", ["hash", "every_fifth", "none"])
@pytest.mark.parametrize("form", [as_folder, as_zip, as_manifest])
def test_the_second_opening_decodes_nothing_and_is_the_same(tmp_path, decodings, form, split):
    cfg = own(**form(images(tmp_path / "set")), split=split)
    first = opened(cfg)
    assert len(decodings) == 10
    second = opened(cfg)
    assert len(decodings) == 10
    assert same(first, second)
    assert len(kept()) == (2 if split == "hash" else 1)


@pytest.mark.parametrize(
    ("settings", "of_files"),
    [({"channels": 1}, {"shape": (40, 40, 3)}), ({"channels": 1}, {"dtype": np.uint16, "top": 3000}), ({}, {"shape": (12, 9)})],
)
def test_the_second_opening_says_the_same(tmp_path, capsys, decodings, settings, of_files):
    cfg = own(images(tmp_path / "set", **of_files), **settings)
    opened(cfg)
    said = capsys.readouterr().err
    assert bool(said) == bool(settings)
    before = len(decodings)
    opened(cfg)
    assert (capsys.readouterr().err, len(decodings)) == (said, before)


def replaced(path: Path) -> None:
    """Another content of the same size and time."""
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: os.utime(path, (1e9, 1e9)),
        lambda path: path.rename(path.with_name("new.png")),
        lambda path: shutil.copy(path, path.with_name("one more.png")),
        lambda path: path.unlink(),
        replaced,
    ],
)
@pytest.mark.parametrize("form", [as_folder, as_zip, as_manifest])
def test_a_changed_file_is_decoded(tmp_path, decodings, form: Callable[[Path], dict], change: Callable[[Path], object]):
    folder = images(tmp_path / "set")
    opened(own(**form(folder)))
    before = len(decodings)
    change(folder / "a" / "4.png")
    opened(own(**form(folder)))
    assert len(decodings) > before


def test_other_settings_are_decoded(tmp_path, decodings, monkeypatch):
    cfg = own(images(tmp_path / "set"))
    larger = override(cfg, model={"image_size": 16})
    gray = override(cfg, model={"channels": 1})
    for n, other in enumerate((cfg, larger, gray, override(cfg, data={"bits": 16}), override(cfg, data={"bits": 12})), 1):
        opened(other)
        opened(other)
        assert len(decodings) == 10 * n
    monkeypatch.setattr(decoded, "VERSION", decoded.VERSION + 1)
    opened(cfg)
    assert len(decodings) == 60
    monkeypatch.setattr(decoded.PIL, "__version__", "99")
    opened(cfg)
    assert len(decodings) == 70


def test_what_is_not_kept(tmp_path, capsys, decodings, monkeypatch):
    folder = images(tmp_path / "set")
    opened(own(folder, memory_gib=0.0))
    monkeypatch.setattr(decoded, "FEWEST", 11)
    opened(own(folder))
    monkeypatch.setattr(decoded, "FEWEST", 1)
    monkeypatch.setattr(decoded, "MOST", 10)
    opened(own(folder))
    assert kept() == []
    monkeypatch.setattr(decoded, "MOST", 1 << 30)
    (folder / "a" / "4.png").write_bytes(b"\x89PNG rubbish")
    for _ in range(2):
        capsys.readouterr()
        opened(own(folder, max_bad_files=1))
        assert "4.png" in capsys.readouterr().err
    assert kept() == []


def test_damage_is_found_wherever_it_is(tmp_path, capsys, decodings):
    cfg = own(images(tmp_path / "set"))
    first = opened(cfg)
    (path,) = kept()
    whole = path.read_bytes()
    where = [*range(0, 60, 7), *range(60, len(whole), 97), len(whole) - 1]
    damages = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in where]
    damages += [whole[:n] for n in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1)] + [whole + b"\0"]
    for damage in damages:
        path.write_bytes(damage)
        assert same(opened(cfg), first)
        assert path.read_bytes() == whole
    assert len(decodings) == 10 + 10 * len(damages)
    assert capsys.readouterr().err == ""


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path, capsys, decodings, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    cfg = own(images(tmp_path / "set"), split="hash")
    whole = opened(cfg)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    capsys.readouterr()
    assert same(opened(cfg), whole)
    opened(cfg)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"warning: {tmp_path / 'file' / 'hybvit' / 'decoded'}")
    assert "decoded images are not kept" in said


def test_a_full_disk_leaves_nothing_behind(tmp_path, capsys, decodings, monkeypatch):
    def full(tensors, path, facts) -> None:
        Path(path).write_bytes(b"half")
        raise decoded.SafetensorError("No space left on device")

    monkeypatch.setattr(decoded, "save_file", full)
    opened(own(images(tmp_path / "set")))
    assert "No space left on device" in capsys.readouterr().err
    assert kept() == []


def test_a_cache_that_is_only_readable_is_used(tmp_path, decodings, monkeypatch):
    cfg = own(images(tmp_path / "set"))
    opened(cfg)

    def refused(*arguments) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", refused)
    opened(cfg)
    assert len(decodings) == 10


def test_the_least_recently_used_go_first(tmp_path, decodings, monkeypatch):
    sets = [own(images(tmp_path / f"set{i}")) for i in range(4)]
    paths = []
    for i, cfg in enumerate(sets[:3]):
        opened(cfg)
        (path,) = set(kept()) - set(paths)
        paths.append(path)
        os.utime(path, (1000 + i, 1000 + i))
    opened(sets[0])  # now the latest
    monkeypatch.setattr(decoded, "MOST", sum(path.stat().st_size for path in paths))
    opened(sets[3])
    left = kept()
    assert paths[1] not in left
    assert {paths[0], paths[2]} < set(left)
    assert sum(path.stat().st_size for path in left) <= decoded.MOST + 300  # a header


def test_the_cache_is_mentioned_and_cleared(tmp_path, decodings):
    assert "decoded images" not in hybvit("datasets").stdout
    cfg = own(images(tmp_path / "set"))
    opened(cfg)
    (decoded.folder() / ".x.safetensors.host.1.part").write_bytes(bytes(200_000))  # of a process that was killed
    assert f"decoded images of 2 sets are kept in {decoded.folder()}: 0.2 MB" in hybvit("datasets").stdout
    assert hybvit("datasets", "digits", "--clear-cache").returncode == 2
    cleared = hybvit("datasets", "--clear-cache")
    assert cleared.stdout == f"deleted 0.2 MB of decoded images in {decoded.folder()}\n"
    assert kept() == []
    assert hybvit("datasets", "--clear-cache").stdout.startswith("deleted 0.0 MB")
    opened(cfg)
    assert len(decodings) == 20


def test_what_cannot_be_deleted_is_named(tmp_path):
    (decoded.folder() / "somebody's").mkdir(parents=True)
    with pytest.raises(DataError, match=r"somebody's: cannot be deleted"):
        decoded.clear()


def opens_often(cfg: Config) -> list[int]:
    sums = []
    for _ in range(30):
        for path in kept():
            if path.suffix == ".safetensors" and path.name[0] != ".":  # not what another process is about to rename
                path.unlink(missing_ok=True)
        sums.append(int(opened(cfg).train.pixels.long().sum()))
    return sums


@pytest.mark.slow
def test_processes_may_write_at_once(tmp_path, capfd):
    cfg = own(images(tmp_path / "set"))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(opens_often, [cfg, cfg], chunksize=1)
    assert {number for sums in found for number in sums} == {int(opened(cfg).train.pixels.long().sum())}
    assert capfd.readouterr().err == ""


def test_who_writes_into_the_pixels_changes_only_memory_of_its_own(tmp_path):
    cfg = own(images(tmp_path / "set"))
    expected = opened(cfg)
    (path,) = kept()
    before = path.read_bytes()
    mapped = decoded.read(path, (10, 3, 8, 8))
    assert mapped is not None
    mapped[0].zero_()
    assert path.read_bytes() == before
    path.unlink()  # as another process does that needs room
    assert mapped[0].sum() == 0
    assert torch.equal(opened(cfg).train.pixels, expected.train.pixels)
