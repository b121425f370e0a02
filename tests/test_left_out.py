"""What is no image that can be read is counted and named, and a folder that has files is never downloaded to."""

from __future__ import annotations

import pytest

from hybvit.data.datasets import download
from hybvit.data.images import formats
from hybvit.data.locate import locate
from hybvit.errors import DataError
from hybvit.presets import preset

from . import official
from .conftest import opened
from .test_hostile_files import encoded
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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "QOI", "JPEG2000", "TIFF"])
def test_the_content_decides_where_the_suffix_is_unknown(tmp_path, capsys, form, packed):
    if form not in formats():
        pytest.skip(f"this Pillow does not read {form}")
    members = {}
    for i in range(12):
        suffix = "" if form == "TIFF" else ("", ".img", ".000", ".jpe_")[i // 2 % 4]
        members[f"{'ab'[i % 2]}/{i}{suffix}"] = encoded(form, i)
    members["a/10.png"] = encoded("PNG")
    members |= {"a/README": b"Python", "a/BMW": b"BMW drivers", "b/LICENSE": b"P5 is a license", "b/raw.dng": b"II*\0raw"}
    members |= {"b/notes.txt": encoded("PNG"), "b/.cover": encoded("PNG"), "b/empty": b""}
    root = official.zip_file(tmp_path / "a.zip", members) if packed else official.unpacked(tmp_path / "a", members)
    data = opened(own(root))
    assert len(data.train) + len(data.test) == 13
    assert capsys.readouterr().err == f"warning: {root}: 1 of 14 files left out: .dng (1)\n"


def test_a_set_without_any_suffix_is_located_and_flat_or_split(tmp_path):
    members = {f"{split}/{kind}/{i}": encoded("JPEG", i) for split in ("train", "val") for kind in "ab" for i in range(3)}
    root = official.unpacked(tmp_path / "split", members)
    assert locate(preset("cifar10").data, str(root)).name == "folder"
    data = opened(own(root))
    assert (len(data.train), len(data.test), data.classes) == (6, 6, ("a", "b"))
    flat = official.unpacked(tmp_path / "flat", {str(i): encoded("PNG", i) for i in range(5)})
    assert len(opened(own(flat, kind="genvit")).train) == 4


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


@pytest.mark.parametrize(
    ("size", "channels", "colors", "said"),
    [
        ((90, 40), 3, "color", "reduced from 40 to 8 pixels"),
        (
            (90, 40),
            1,
            "color",
            "reduced from 40 to 8 pixels a side and turned gray; a model trained with a larger --model.image_size and --mo",
        ),
        ((12, 9), 1, "color", "are turned gray; a model trained with --model.channels 3 keeps"),
        ((12, 9), 1, "gray", ""),
        ((12, 9), 3, "color", ""),
        ((40, 90), 1, "gray stored as color", "reduced from 40 to 8 pixels a side; a model trained with a larger"),
    ],
)
def test_what_most_images_lose_is_said(tmp_path, capfd, size, channels, colors, said):
    for i in range(6):
        save(
            tmp_path / "ab"[i % 2] / f"{i}.png",
            (200, 30, 90) if colors == "color" else (90, 90, 90),
            "L" if colors == "gray" else "RGB",
            size,
        )
    opened(own(tmp_path, channels=channels))
    warned = capfd.readouterr().err
    assert said in warned
    assert warned.count("\n") == bool(said)
