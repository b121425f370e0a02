"""Archives as other programs write them, and archives beside images."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from hybvit.config import Config, DataConfig
from hybvit.data.files import Files
from hybvit.data.image_set import LazyImages
from hybvit.data.locate import detect_format
from hybvit.errors import DataError
from hybvit.method.vit import ViTConfig

from . import official
from .conftest import opened
from .test_own_images import own, save


def pets(prefix: str = "", between: str = "/") -> dict[str, bytes]:
    return {f"{prefix}{kind}{between}{i}.jpg": official.jpeg(i) for kind in ("cat", "dog") for i in range(6)}


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("A.ZIP", pets()), ("a.Zip", pets("photos/")), ("b.zip", pets("photos\\", "\\")), ("c.zip", pets("./")),
        ("d.zip", pets("/x/")),
        ("e.zip", pets("deep/er/")), ("f.zip", pets() | {"__MACOSX/cat/._0.jpg": b"x", "__MACOSX/._cat": b"x"}),
        ("g.zip", pets() | {".ipynb_checkpoints/a.jpg": b"x", "cat/.ipynb_checkpoints/0-copy.jpg": b"x", ".DS_Store": b"x"}),
        ("h.zip", pets("all/") | {"__MACOSX/all/cat/._0.jpg": b"x", "Thumbs.db": b"x", "@eaDir/cat/0.jpg": b"x"}),
    ],
)  # fmt: skip
def test_zips_as_other_programs_write_them(tmp_path, capsys, name, members):
    root = official.zip_file(tmp_path / name, members)
    assert detect_format(str(root), "cifar10") == "folder"
    data = opened(own(root))
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.test) == 12
    assert "left out" not in capsys.readouterr().err


def patched(path: Path, field: int, value: bytes) -> Path:
    """The archive with a field of each entry of its index changed."""
    raw, at = bytearray(path.read_bytes()), 0
    while (at := raw.find(b"PK\x01\x02", at)) >= 0:
        raw[at + field : at + field + len(value)] = value
        at += 4
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (8, b"\x01", "encrypted: unpack the archive with its password"), (10, b"\x09", "compressed by Deflate64"),
        (10, b"\x5d", "compressed by Zstandard"), (10, b"\x62", "compressed by method 98"),
    ],
)  # fmt: skip
def test_zips_that_cannot_be_read_say_why(tmp_path, field, value, said):
    root = patched(official.zip_file(tmp_path / "a.zip", pets()), field, value)
    with pytest.raises(DataError, match=rf"a\.zip/cat/0\.jpg: {said}"):
        opened(own(root, max_bad_files=20))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_bound_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, raw in pets().items():
            archive.writestr(name, raw)
    with pytest.raises(DataError, match=r"compressed by .*: unpack the archive, and give the folder"):
        Files(tmp_path / "a.zip").names()


@pytest.mark.parametrize("name", ["braces {2020}", "a{0..3}", "{x}.d"])
def test_a_folder_with_braces_in_its_name_is_a_folder(tmp_path, name):
    for member in pets():
        save(tmp_path / name / member)
    assert detect_format(str(tmp_path / name)) == "folder"
    assert opened(own(tmp_path / name)).classes == ("cat", "dog")
    assert detect_format(str(tmp_path / "none-{0..3}.tar")) == "shards"


@pytest.mark.parametrize("extra", ["backup.tar", "cat/backup.tar", "old/old.tar", "metadata.parquet"])
def test_an_archive_beside_class_folders_is_no_set_of_shards(tmp_path, extra):
    for member in pets():
        save(tmp_path / member)
    (tmp_path / extra).parent.mkdir(exist_ok=True)
    (tmp_path / extra).write_bytes(b"x")
    assert detect_format(str(tmp_path)) == "folder"


def test_an_archive_is_opened_once_by_each_thread_and_not_for_each_batch(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat", "dog"):
            for i in range(20):
                file = io.BytesIO()
                Image.new("RGB", (8, 8), (i, 0, 0)).save(file, "PNG")
                archive.writestr(f"{name}/{i}.png", file.getvalue())
    opened_by, plain = list[int](), zipfile.ZipFile.__init__

    def opens(self, *arguments, **options):
        opened_by.append(threading.get_ident())
        plain(self, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "__init__", opens)
    data = opened(Config(model=ViTConfig(image_size=8), data=DataConfig("folder", str(tmp_path / "a.zip"), memory_gib=0)))
    assert isinstance(data.train.pixels, LazyImages)
    for _ in range(5):
        pixels, _ = data.train.take(torch.arange(16))
    assert pixels.shape == (16, 3, 8, 8)
    assert len(opened_by) == len(set(opened_by))


def test_a_preview_beside_shards_makes_no_folder(tmp_path):
    for name in ("train-0.tar", "train-1.tar", "test-0.tar"):
        (tmp_path / name).write_bytes(b"x")
    save(tmp_path / "preview.png")
    assert detect_format(str(tmp_path)) == "shards"
