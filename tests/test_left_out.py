"""What is no image that can be read is counted and named, and a folder that has files is never downloaded to."""

from __future__ import annotations

import pytest

from hybvit.data.datasets import download
from hybvit.data.locate import locate
from hybvit.errors import DataError
from hybvit.presets import preset

from .conftest import opened
from .test_own_images import own, save


@pytest.mark.parametrize(
    ("suffixes", "said"),
    [
        ({".heic": 3}, "3 of 15 files left out: .heic (3) needs pillow-heif"),
        ({".CR2": 2, ".jxl": 1}, "3 of 15 files left out: .cr2 (2), .jxl (1)"),
        ({".mp4": 1, ".txt": 4}, "1 of 13 files left out: .mp4 (1)"),
        ({".txt": 2, ".db": 1}, ""),
    ],
)
def test_files_left_out_are_counted_in_one_line(tmp_path, capsys, suffixes, said):
    for i in range(12):
        save(tmp_path / "ab"[i % 2] / f"{i}.png")
    for suffix, n in suffixes.items():
        for i in range(n):
            (tmp_path / "a" / f"x{i}{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    opened(own(tmp_path))
    assert capsys.readouterr().err == (f"warning: {tmp_path}: {said}\n" if said else "")


@pytest.mark.parametrize("suffix", [".heic", ".dng", ".svg", ""])
def test_a_folder_without_any_readable_image_says_why(tmp_path, suffix):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"1{suffix}").write_bytes(b"x")
    with pytest.raises(
        DataError, match=rf"no image files in its class folders \(2 of 2 files left out: {suffix or 'no suffix'}"
    ):
        opened(own(tmp_path))
    named = locate(preset("cifar10").data, str(tmp_path))
    assert named.name == "folder"


@pytest.mark.parametrize("name", ["photo.heic", "notes.txt", "other.tar.gz"])
def test_a_folder_with_files_is_no_download_target(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    assert locate(preset("cifar10").data, str(tmp_path)).name == "folder"
    with pytest.raises(DataError, match=f"holds {name}, but not cifar10: download it to an empty folder"):
        download("cifar10", str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert locate(preset("cifar10").data, str(tmp_path / "empty")).name == "cifar10"
