from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from hybvit import cli
from hybvit.catalog import CATALOG
from hybvit.cli.show_data import FIGURE_1_IMAGES, augmentation_rows, figure_1_rows
from hybvit.data.image_set import to_x
from hybvit.presets import preset

from . import official
from .conftest import hybvit, opened


def test_rows_show_what_training_sees():
    cfg = preset("digits")
    data = opened(cfg)
    raw, weakly, strongly, mixed, cut = augmentation_rows(data.train, data.classes, cfg, 10)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(data.train.pixels, data.train.labels, strict=True)}
    assert [known[image.numpy().tobytes()] for image in raw.pixels] == [int(label) for label in raw.labels]
    assert not torch.equal(weakly.pixels, raw.pixels)
    assert not torch.equal(strongly.pixels, weakly.pixels)
    for row in (mixed, cut):
        for label in row.labels:
            shares = [int(line.split()[1]) for line in label.splitlines()]
            assert 99 <= sum(shares) <= 101
            assert shares == sorted(shares, reverse=True)


def test_figure_1_goes_from_the_image_to_noise():
    cfg = preset("digits")
    data = opened(cfg)
    rows = figure_1_rows(data.train, cfg)
    assert len(rows) == FIGURE_1_IMAGES
    assert rows[0].labels == [f"t = {t}" for t in (0, 250, 500, 750, 1000)]
    assert torch.equal(rows[0].pixels[0], data.train.pixels[0])
    distances = [(to_x(row.pixels) - to_x(row.pixels[:1])).pow(2).mean(dim=(1, 2, 3)) for row in rows]
    assert all((distance.diff() > 0).all() for distance in distances)
    last = torch.stack([to_x(row.pixels[-1]) for row in rows])
    assert abs(last.mean()) < 0.15  # noise of mean 0, whatever the image was


@pytest.mark.slow
def test_the_pictures_are_written(tmp_path, capsys):
    for i in range(6):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (40 * i, 90, 0)).save(tmp_path / "flat" / f"{i}.png")
    flat = ["--data", str(tmp_path / "flat"), "--objective.kind", "genvit", "--out", str(tmp_path / "out")]
    assert cli.main(["show-data", "paper_32", *flat, "--columns", "3"]) == 0
    assert "augmentation.png" in capsys.readouterr().out
    for name in ("augmentation.png", "figure1.png", "corruptions.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 300


PARTIAL = {  # set -> its files, and one without which it is not complete
    "mnist": (official.mnist, "t10k-labels-idx1-ubyte.gz"),
    "cifar10": (official.cifar10, "cifar-10-batches-py/data_batch_3"),
    "cifar100": (lambda: official.cifar_binary("cifar100"), "cifar-100-binary/test.bin"),
    "stl10": (official.stl10, "stl10_binary/train_y.bin"),
    "tiny_imagenet": (official.tiny_imagenet, "tiny-imagenet-200/val/val_annotations.txt"),
    "imagenet32": (official.imagenet32, "train_data_batch_10.npz"),
    "imagenet": (official.imagenet, "val"),
    "celeba": (lambda: official.celeba()[0] | {"list_eval_partition.txt": b""}, "list_eval_partition.txt"),
    "svhn": (lambda: {"train_32x32.mat": b"x", "test_32x32.mat": b"x"}, "train_32x32.mat"),
    "zips": (lambda: {f"Imagenet32_{split}.zip": b"x" for split in ("train", "val")}, "Imagenet32_train.zip"),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_a_set_is_present_only_with_all_of_its_files(tmp_path, name):
    make, needed = PARTIAL[name]
    name = {"zips": "imagenet32"}.get(name, name)
    official.unpacked(tmp_path, make())
    assert "  present: " in hybvit("datasets", name, "--data", tmp_path).stdout
    (tmp_path / needed).rename(tmp_path / "elsewhere")
    said = hybvit("datasets", name, "--data", tmp_path).stdout
    assert f" is here, but not {tmp_path / needed}; put " in said
    assert json.loads(hybvit("datasets", name, "--json", "--data", tmp_path).stdout)["missing"] == [str(tmp_path / needed)]


@pytest.mark.parametrize("name", ["cifar10", "stl10", "tiny_imagenet"])
def test_an_archive_is_complete(tmp_path, name):
    (tmp_path / next(file for file in CATALOG[name].files if "." in file)).write_bytes(b"x")
    assert "  present: " in hybvit("datasets", name, "--data", tmp_path).stdout


def test_datasets_are_listed_with_what_to_do(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["datasets"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in CATALOG)
    assert "present: in scikit-learn" in said
    assert "hf://OWNER/NAME" in said
    assert cli.main(["datasets", "imagenet32", "stl10", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["to_do"].startswith("put train_data_batch_1 ... 10 and val_data")
    assert first["found"] is None
    assert second["splits"]["unlabelled"] == 100_000
    official.unpacked(tmp_path / "hybvit" / "stl10", official.stl10())
    assert cli.main(["datasets", "stl10"]) == 0
    assert f"present: {tmp_path / 'hybvit' / 'stl10' / 'stl10_binary'}" in capsys.readouterr().out


@pytest.mark.parametrize("name", CATALOG)
def test_every_data_set_can_be_described(name, capsys):
    assert cli.main(["datasets", name]) == 0
    assert "license: " in capsys.readouterr().out
