from __future__ import annotations

import hashlib
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybvit import cli
from hybvit.catalog import CATALOG, DEBIAN
from hybvit.config import Config, DataConfig, override
from hybvit.data import datasets
from hybvit.data.files import Files, read_idx
from hybvit.data.image_set import BadFiles, Dataset, Decoding, ImageSet, LazyImages
from hybvit.data.locate import locate
from hybvit.data.pickles import unpickle
from hybvit.data.readers import READERS, check_count, class_names
from hybvit.errors import ConfigError, DataError
from hybvit.method.vit import HybViT, ViTConfig
from hybvit.networks import number_of_parameters
from hybvit.presets import PRESETS, preset

from . import official
from .conftest import opened


def decoding(size: int = 32, channels: int = 3, memory: int = 2**30) -> Decoding:
    return Decoding(channels, size, BadFiles(0), memory)


def config(name: str, root: Path, size: int = 32, channels: int = 3, **data) -> Config:
    model = ViTConfig(image_size=size, patch_size=4, channels=channels, dim=16, depth=1, heads=2)
    kind = {"objective": {"kind": "genvit"}} if not CATALOG[name].num_classes else {}
    return override(Config(model=model, data=DataConfig(name=name, root=str(root), **data)), **kind)


def small(monkeypatch, name: str, root: Path, **changes) -> None:
    """Make the catalog describe the small archives in ``root``: their sizes and checksums."""
    info = CATALOG[name]
    sums = {file: hashlib.md5((root / file).read_bytes()).hexdigest() for file in info.md5 if (root / file).is_file()}
    monkeypatch.setitem(CATALOG, name, replace(info, md5=info.md5 | sums, **changes))


# facts known without opening a file: Appendix A of the paper, and the publications of the data sets


@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "size"),
    [
        ("cifar10", 10, 50_000, 10_000, 32),
        ("cifar100", 100, 50_000, 10_000, 32),
        ("stl10", 10, 5000, 8000, 96),
        ("tiny_imagenet", 200, 100_000, 10_000, 64),
        ("imagenet32", 1000, 1_281_167, 50_000, 32),
        ("mnist", 10, 60_000, 10_000, 28),
        ("fashion_mnist", 10, 60_000, 10_000, 28),
        ("svhn", 10, 73_257, 26_032, 32),
    ],
)
def test_published_sizes(name, classes, train, test, size):
    info = CATALOG[name]
    assert (info.num_classes, info.splits["train"], info.splits["test"], info.size) == (classes, train, test, size)


@pytest.mark.parametrize(
    ("name", "split", "per_class"),
    [
        ("cifar100", "train", 500), ("cifar100", "test", 100), ("stl10", "train", 500), ("stl10", "test", 800),
        ("tiny_imagenet", "train", 500), ("tiny_imagenet", "test", 50), ("cifar10", "train", 5000), ("cifar10", "test", 1000),
    ],
)  # fmt: skip
def test_published_balance(name, split, per_class):
    assert CATALOG[name].balance[split] == per_class


def test_unlabeled_images_of_stl10():
    assert CATALOG["stl10"].splits["unlabelled"] == 100_000


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_is_consistent(name):
    info = CATALOG[name]
    assert info.title
    assert info.source.startswith("http")
    assert info.license
    assert not info.classes or len(info.classes) == len(set(info.classes)) == info.num_classes
    for split, balance in info.balance.items():
        total = sum(balance) if isinstance(balance, tuple) else balance * info.num_classes
        assert total == info.splits[split]
    assert info.preset is None or info.preset in PRESETS
    assert name == "digits" or (info.files and info.needs)
    assert all(other in CATALOG or other == "interpolation" for other in info.out_of_distribution)


def test_label_order_is_the_published_one():
    for name in ("cifar10", "cifar100", "stl10"):
        assert list(CATALOG[name].classes) == sorted(CATALOG[name].classes)
    assert CATALOG["cifar10"].classes[:4] == ("airplane", "automobile", "bird", "cat")
    assert CATALOG["stl10"].classes[:4] == ("airplane", "bird", "car", "cat")  # not the order of CIFAR-10
    assert (CATALOG["cifar100"].classes[0], CATALOG["cifar100"].classes[99]) == ("apple", "worm")
    assert list(CATALOG["cifar100"].classes) == sorted(CATALOG["cifar100"].classes)
    assert CATALOG["fashion_mnist"].classes[9] == "Ankle boot"


def test_checksums_are_torchvisions():
    import torchvision.datasets as tv

    assert CATALOG["cifar10"].md5[tv.CIFAR10.filename] == tv.CIFAR10.tgz_md5
    assert CATALOG["cifar100"].md5[tv.CIFAR100.filename] == tv.CIFAR100.tgz_md5
    assert CATALOG["stl10"].md5 == {tv.STL10.filename: tv.STL10.tgz_md5}
    assert CATALOG["svhn"].md5 == {file: md5 for _, file, md5 in tv.SVHN.split_list.values()}
    assert CATALOG["mnist"].md5 == dict(tv.MNIST.resources)
    assert CATALOG["fashion_mnist"].md5 == dict(tv.FashionMNIST.resources)
    known = {file: md5 for _, md5, file in tv.CelebA.file_list}
    assert CATALOG["celeba"].md5.items() <= known.items()


@pytest.mark.parametrize("name", [name for name, info in CATALOG.items() if info.preset])
def test_the_preset_of_a_data_set_is_for_it(name):
    cfg = preset(CATALOG[name].preset)
    assert cfg.data.name == name
    assert cfg.model.channels == CATALOG[name].channels
    assert not CATALOG[name].num_classes or cfg.model.num_classes == CATALOG[name].num_classes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar10", 11_185_068), ("cifar100", 11_219_718), ("stl10", 12_929_884), ("tiny_imagenet", 11_368_954),
        ("imagenet32", 11_566_218), ("celeba_hq_128", 17_109_948),
    ],
)  # fmt: skip
def test_the_papers_presets_have_its_parameter_counts(name, parameters):
    with torch.device("meta"):
        assert number_of_parameters(HybViT(preset(name).model)) == parameters


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "tiny_imagenet", "imagenet32", "imagenet128", "imagenet224"])
def test_the_papers_presets_augment_strongly_with_three_times_the_images(name):
    cfg = preset(name)
    assert (cfg.data.augment, cfg.data.flip, cfg.data.repeats, cfg.objective.label_smoothing) == ("strong", True, 3, 0.1)
    assert not cfg.data.clean_flip
    epochs = {"stl10": 2500}.get(name, 500 if name in ("cifar10", "cifar100", "tiny_imagenet") else 100)
    per_epoch = 1170 if name.startswith("cifar") else 3 * (CATALOG[cfg.data.name].splits["train"] // 128)
    assert cfg.train.steps == epochs * per_epoch
    assert cfg.optim.warmup_steps == 10 * per_epoch


# readers on archives in the official form


def test_digits_are_scikit_learns_with_every_fifth_of_a_class_held_out():
    from sklearn.datasets import load_digits

    data, raw = opened(preset("digits")), load_digits()
    assert data.classes == tuple("0123456789")
    assert data.train.pixels.max() == 255
    for k in range(10):
        of_class = np.flatnonzero(raw.target == k)
        held_out = data.test.pixels[data.test.labels == k]
        assert torch.equal(held_out, torch.from_numpy(np.round(raw.images[of_class[::5]] * 255 / 16)).to(torch.uint8)[:, None])


@pytest.mark.parametrize("place", ["", "MNIST/raw"])
@pytest.mark.parametrize("compress", [True, False])
def test_mnist(tmp_path, monkeypatch, place, compress):
    official.unpacked(tmp_path / place, official.mnist(compress=compress))
    small(monkeypatch, "mnist", tmp_path / place, splits={"train": 20, "test": 10}, balance={"train": 2, "test": 1})
    data = opened(config("mnist", tmp_path, channels=1))
    assert data.train.pixels.shape == (20, 1, 32, 32)
    assert torch.equal(data.train.pixels[:, 0, 2:30, 2:30], torch.from_numpy(official.noise(20, 28, 28)))
    assert data.test.labels.tolist() == list(range(10))


def test_cifar10_from_the_archive_and_unpacked(tmp_path, monkeypatch):
    archive = official.tar_gz(tmp_path / "cifar-10-python.tar.gz", official.cifar10())
    small(monkeypatch, "cifar10", tmp_path, splits={"train": 50, "test": 10}, balance={"train": 5, "test": 1})
    data = opened(config("cifar10", tmp_path))
    assert data.train.pixels.shape == (50, 3, 32, 32)
    expected = np.concatenate([official.noise(10, 3072, seed=i) for i in range(5)]).reshape(50, 3, 32, 32)
    assert torch.equal(data.train.pixels, torch.from_numpy(expected))
    assert data.classes[data.test.labels[3]] == "cat"
    by_name = opened(config("cifar10", archive))
    official.unpacked(tmp_path / "loose", official.cifar10())
    for root in (tmp_path / "loose", tmp_path / "loose" / "cifar-10-batches-py"):
        loose = opened(config("cifar10", root))
        assert torch.equal(loose.train.pixels, by_name.train.pixels)
        assert torch.equal(loose.train.labels, data.train.labels)


def rewritten(members: dict[str, bytes], change, protocol: int = 4) -> dict[str, bytes]:
    """The pickles of a set as a program of Python 3 stores them again."""
    return {name: pickle.dumps(change(unpickle(raw, Path(name))), protocol=protocol) for name, raw in members.items()}


def with_bytes(value):
    if isinstance(value, dict):
        return {key.encode(): with_bytes(entry) for key, entry in value.items()}
    return value.encode() if isinstance(value, str) else [*map(with_bytes, value)] if isinstance(value, list) else value


def entries(change):
    return lambda content: {
        key: change(value) if key in ("data", "labels", "fine_labels") else value for key, value in content.items()
    }


REWRITTEN = {
    "as it is": lambda content: content,
    "bytes": with_bytes,
    "lists": entries(lambda value: value.tolist() if isinstance(value, np.ndarray) else value),
    "arrays": entries(lambda value: np.asarray(value, np.int32)),
    "columns first": entries(lambda value: np.asfortranarray(value)),
}


@pytest.mark.parametrize("form", REWRITTEN)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_pickles_that_python_3_wrote_again(tmp_path, monkeypatch, form, name):
    n = {"cifar10": 5, "cifar100": 1}[name] * CATALOG[name].num_classes
    monkeypatch.setitem(
        CATALOG, name, replace(CATALOG[name], splits={"train": n, "test": n // 5 if n == 50 else n}, balance={})
    )
    official.unpacked(tmp_path / "old", getattr(official, name)())
    whole = opened(config(name, tmp_path / "old"))
    for protocol in range(2, 6):
        root = tmp_path / str(protocol)
        official.unpacked(root, rewritten(getattr(official, name)(), REWRITTEN[form], protocol))
        again = opened(config(name, root))
        for split in ("train", "test"):
            ours, theirs = getattr(again, split), getattr(whole, split)
            assert torch.equal(ours.pixels, theirs.pixels)
            assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: [content], "holds a list, not a mapping with an entry 'data'"),
        (lambda content: {"images": content["data"], b"y": 3}, "has no entry 'data', only 'images', 'y'"),
        (lambda content: content | {"data": content["data"] / 255}, r"its images are float64 \[10, 3072\], not whole numbers"),
        (lambda content: content | {"data": content["data"].astype(int) - 1}, "the values of its images are -1 to 254"),
        (lambda content: content | {"data": content["data"].reshape(-1, 32, 32, 3)}, r"images are uint8 \[10, 32, 32, 3\]"),
        (lambda content: content | {"data": [*content["data"].tolist()[:9], [1]]}, "its images are lists of unequal lengths"),
        (lambda content: content | {"data": content["data"].tobytes()}, "its images are a bytes, not an array"),
        (lambda content: content | {"data": content["data"].astype(object)}, "it holds an array of object"),
        (lambda content: content | {"labels": [0.5] * 10}, r"its labels are float64 \[10\], not whole numbers"),
        (lambda content: content | {"labels": ["cat"] * 10}, r"its labels are lists with a str in them, not whole numbers"),
        (lambda content: content | {"labels": None}, "its labels are a NoneType"),
        (lambda content: content | {"labels": [2**70] * 10}, r"its labels are object \[10\]"),
    ],
)
def test_what_is_no_batch_of_cifar_says_what_it_holds(tmp_path, monkeypatch, change, said):
    monkeypatch.setitem(CATALOG, "cifar10", replace(CATALOG["cifar10"], splits={"train": 50, "test": 10}))
    members = official.cifar10()
    bad = "cifar-10-batches-py/data_batch_2"
    official.unpacked(tmp_path, members | rewritten({bad: members[bad]}, change))
    with pytest.raises(DataError, match=rf"data_batch_2: .*{said}") as refused:
        READERS["cifar10"](tmp_path / "cifar-10-batches-py", "train", decoding())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_binary_version_of_cifar_is_the_same_set(tmp_path, monkeypatch, name, packed):
    official.unpacked(tmp_path / "pickles", getattr(official, name)())
    members = official.cifar_binary(name)
    root = tmp_path / "binary"
    root.mkdir()
    if packed:
        official.tar_gz(root / f"cifar-{name[5:]}-binary.tar.gz", members)
    else:
        official.unpacked(root, members)
    n = {"cifar10": 50, "cifar100": 100}[name]
    small(monkeypatch, name, root, splits={"train": n, "test": 10 if n == 50 else n}, balance={})
    ours, theirs = (opened(config(name, tmp_path / form)) for form in ("binary", "pickles"))
    for split in ("train", "test"):
        assert torch.equal(getattr(ours, split).pixels, getattr(theirs, split).pixels)
        assert torch.equal(getattr(ours, split).labels, getattr(theirs, split).labels)
    file = {"cifar10": "data_batch_4.bin", "cifar100": "train.bin"}[name]
    if not packed:
        path = next(root.glob(f"*/{file}"))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DataError, match=rf"{file}: .* not a whole number of images"):
            opened(config(name, root))


@pytest.mark.parametrize(
    ("name", "members", "splits"),
    [
        ("cifar10", official.cifar10(), {"train": 50, "test": 10}),
        ("cifar10", official.cifar_binary("cifar10"), {"train": 50, "test": 10}),
        ("cifar100", official.cifar100(), {"train": 100, "test": 100}),
        ("cifar100", official.cifar_binary("cifar100"), {"train": 100, "test": 100}),
        ("stl10", official.stl10(), {"train": 10, "test": 20, "unlabelled": 7}),
        ("tiny_imagenet", official.tiny_imagenet(), {"train": 12, "test": 6, "unlabelled": 5}),
    ],
    ids=["cifar10", "cifar10 binary", "cifar100", "cifar100 binary", "stl10", "tiny_imagenet"],
)
def test_a_folder_of_another_name_is_the_set_too(tmp_path, monkeypatch, name, members, splits):
    official.unpacked(tmp_path / "published", members)
    (folder,) = (tmp_path / "published").iterdir()
    small(monkeypatch, name, tmp_path, splits=splits, balance={}, **({"num_classes": 3} if name == "tiny_imagenet" else {}))
    size, expected = CATALOG[name].size, opened(config(name, tmp_path / "published", CATALOG[name].size))
    moved = folder.rename(tmp_path / "mine")
    assert locate(DataConfig(name=name), str(moved)).name == name
    found = opened(config(name, moved, size))
    assert torch.equal(found.train.pixels, expected.train.pixels)
    assert torch.equal(found.test.labels, expected.test.labels)
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets, "cache_folder", lambda: cache)  # straight in the folder of the set
    cache.mkdir()
    moved.rename(cache / name)
    assert datasets.find(name) == cache / name
    if name == "cifar10":
        batch = next((cache / name).glob("data_batch_3*")).rename(tmp_path / "lost")
        with pytest.raises(DataError, match=r"data_batch_3(\.bin)?: missing"):
            opened(config(name, cache / name))
        batch.rename(cache / "data_batch_1")  # one file alone is no set
        assert datasets.find(name, str(cache)) == cache / name


NAMES = {"cifar10": {}, "fashion_mnist": {"T-shirt/top": "T-shirt_top", "Ankle boot": "ankle-boot"}, "svhn": {}}


def as_folders(root: Path, name: str, per_class: int = 2, side: int | None = None, test: str = "test") -> Path:
    """The classes of a named set as folders of small images: image k of class c has the value 10 * k + c."""
    info = CATALOG[name]
    for split, n in (("train", per_class), (test, 1)):
        for c, label in enumerate(info.classes):
            for k in range(n):
                place = root / split / NAMES[name].get(label, label) / f"{k}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L" if info.channels == 1 else "RGB", (side or info.size,) * 2, (10 * k + c,) * info.channels).save(
                    place
                )
    return root


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["folder", "wrapped", "zip", "val"])
def test_a_named_set_in_class_folders_is_that_set(tmp_path, monkeypatch, name, form):
    info = CATALOG[name]
    monkeypatch.setitem(CATALOG, name, replace(info, splits={"train": 20, "test": 10}, balance={"train": 2, "test": 1}))
    root = as_folders(tmp_path / "set" / "copy", name, test="val" if form == "val" else "test")
    if form == "zip":
        members = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob("*/*/*.png")}
        root = official.zip_file(tmp_path / "copy.zip", members)
    elif form == "wrapped":
        root = root.parent
    located = locate(DataConfig(name=name), str(root))
    assert located.name == name
    data = opened(config(name, root, channels=info.channels, memory_gib=0.0))
    assert data.classes == info.classes
    assert data.train.pixels[:, 0, 16, 16].sort().values.tolist() == list(range(20))
    assert torch.equal(data.train.pixels[:, 0, 16, 16] % 10, data.train.labels)
    assert sorted(data.test.labels.tolist()) == list(range(10))
    assert data.train.pixels.shape == (20, info.channels, 32, 32)
    assert bool((data.train.pixels[:, :, 0] == 0).all()) == (info.size == 28)  # padded, as from its own files


def test_other_images_with_the_names_of_a_set_are_the_users_own(tmp_path, monkeypatch):
    info = replace(CATALOG["cifar10"], splits={"train": 20, "test": 10}, balance={"train": 2, "test": 1})
    monkeypatch.setitem(CATALOG, "cifar10", info)
    named = preset("cifar10").data

    def name_of(root: Path) -> str:
        return locate(named, str(root)).name

    assert name_of(as_folders(tmp_path / "few", "cifar10", per_class=1)) == "folder"
    assert name_of(as_folders(tmp_path / "many", "cifar10", per_class=3)) == "folder"
    assert name_of(as_folders(tmp_path / "large", "cifar10", side=64)) == "folder"
    root = as_folders(tmp_path / "copy", "cifar10")
    assert locate(replace(named, name="folder"), str(root)).name == "folder"
    (root / "train" / "cat" / "0.png").rename(root / "train" / "dog" / "9.png")
    with pytest.raises(DataError, match=r"label 3 occurs 1 times .*; for other images, use --data\.name folder"):
        opened(config("cifar10", root))
    (root / "train" / "ship" / "0.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"ship/0\.png"):
        opened(config("cifar10", root))
    (root / "train" / "ship").rename(root / "train" / "boat")
    assert name_of(root) == "folder"


def test_a_part_of_a_named_set_is_said_to_be_the_users_own(tmp_path, monkeypatch, capsys):
    info = replace(CATALOG["cifar10"], splits={"train": 20, "test": 10}, balance={"train": 2, "test": 1})
    monkeypatch.setitem(CATALOG, "cifar10", info)
    root, named = as_folders(tmp_path / "copy", "cifar10"), preset("cifar10").data
    assert locate(named, str(root)).name == "cifar10"
    assert capsys.readouterr().err == ""
    (root / "train" / "cat" / "0.png").unlink()
    said = f"{root}: 19 train and 10 test images in the classes of CIFAR-10, which has 20 and 10"
    assert locate(named, str(root)).name == "folder"
    assert capsys.readouterr().err == f"warning: {said}: taken for your own images\n"
    assert locate(replace(named, name="folder"), str(root)).name == "folder"  # as asked
    locate(named, str(as_folders(tmp_path / "large", "cifar10", side=64)))
    assert capsys.readouterr().err == ""
    cli.main(["datasets", "cifar10", "--data", str(root)])
    assert f"incomplete: {said}; put cifar-10-python.tar.gz" in capsys.readouterr().out


def test_class_folders_hold_no_unlabeled_images(tmp_path, monkeypatch):
    info = CATALOG["stl10"]
    splits = {"train": 10, "test": 10, "unlabelled": 7}
    monkeypatch.setitem(CATALOG, "stl10", replace(info, splits=splits, balance={"train": 1, "test": 1}))
    monkeypatch.setitem(NAMES, "stl10", {})
    root = as_folders(tmp_path, "stl10", per_class=1)
    assert len(opened(config("stl10", root, size=96)).train) == 10
    with pytest.raises(DataError, match=r"hold no unlabelled images; give stl10_binary"):
        opened(config("stl10", root, size=96, unlabelled=True))


def test_cifar100_takes_the_fine_labels(tmp_path, monkeypatch):
    official.tar_gz(tmp_path / "cifar-100-python.tar.gz", official.cifar100())
    small(monkeypatch, "cifar100", tmp_path, splits={"train": 100, "test": 100}, balance={"train": 1, "test": 1})
    data = opened(config("cifar100", tmp_path))
    assert data.train.labels.tolist() == list(range(100))
    assert data.classes[data.train.labels[7]] == "beetle"


def test_svhn_calls_its_class_10_zero(tmp_path, monkeypatch):
    official.svhn(tmp_path)
    small(monkeypatch, "svhn", tmp_path, splits={"train": 20, "test": 10}, balance={"train": (2,) * 10, "test": (1,) * 10})
    data = opened(config("svhn", tmp_path))
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert torch.equal(data.test.pixels, torch.from_numpy(official.noise(10, 32, 32, 3)).permute(0, 3, 1, 2))


def test_stl10_is_stored_by_columns_and_its_unlabeled_images_can_be_denoised(tmp_path, monkeypatch):
    official.tar_gz(tmp_path / "stl10_binary.tar.gz", official.stl10())
    splits = {"train": 10, "test": 20, "unlabelled": 7}
    small(monkeypatch, "stl10", tmp_path, splits=splits, balance={"train": 1, "test": 2})
    data = opened(config("stl10", tmp_path, size=96, unlabelled=True))
    assert torch.equal(data.train.pixels, torch.from_numpy(official.noise(10, 3, 96, 96)))
    assert data.train.labels.tolist() == list(range(10))
    assert len(data.unlabelled) == 7
    assert data.unlabelled.labels is None
    resized = opened(config("stl10", tmp_path, size=32, resize=True))
    assert resized.train.pixels.shape == (10, 3, 32, 32)
    with pytest.raises(ConfigError, match=r"set it to 96, or --data\.resize true"):
        opened(config("stl10", tmp_path, size=32))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_tiny_imagenet(tmp_path, monkeypatch, packed, memory):
    if packed:
        official.zip_file(tmp_path / "tiny-imagenet-200.zip", official.tiny_imagenet())
    else:
        official.unpacked(tmp_path, official.tiny_imagenet())
    splits = {"train": 12, "test": 6, "unlabelled": 5}
    small(monkeypatch, "tiny_imagenet", tmp_path, splits=splits, balance={"train": 4, "test": 2}, num_classes=3)
    data = opened(config("tiny_imagenet", tmp_path, size=64, unlabelled=True, memory_gib=memory))
    assert isinstance(data.train.pixels, torch.Tensor if memory else LazyImages)
    assert data.classes == ("goldfish (n01443537)", "Egyptian cat (n02124075)", "reel (n04067472)")  # by sorted id
    assert data.test.labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    cat, label = data.train.take(torch.tensor([4]))
    assert label.tolist() == [1]
    assert (cat.float().mean(dim=(0, 2, 3)) - torch.from_numpy(official.noise(1, 3, seed=0)[0]).float()).abs().max() < 3
    assert len(data.unlabelled) == 5


@pytest.mark.parametrize("form", ["npz", "pickle", "zip"])
def test_imagenet32(tmp_path, monkeypatch, form):
    members = official.imagenet32(npz=form != "pickle")
    if form == "zip":
        train = {f"Imagenet32_train_npz/{name}": raw for name, raw in members.items() if name.startswith("train")}
        official.zip_file(tmp_path / "Imagenet32_train_npz.zip", train)
        official.zip_file(tmp_path / "Imagenet32_val_npz.zip", {"val_data.npz": members["val_data.npz"]})
    else:
        official.unpacked(tmp_path, members)
    small(monkeypatch, "imagenet32", tmp_path, splits={"train": 40, "test": 4}, balance={})
    found = datasets.read_split("imagenet32", "train", str(tmp_path), decoding(), False)
    assert found.labels[:4].tolist() == [0, 1, 998, 999]
    assert torch.equal(found.pixels[36:], torch.from_numpy(official.noise(4, 3072, seed=9)).reshape(4, 3, 32, 32))
    assert len(datasets.read_split("imagenet32", "test", str(tmp_path), decoding(), False)) == 4


def test_imagenet32_takes_its_names_from_map_clsloc(tmp_path, monkeypatch):
    official.unpacked(tmp_path, official.imagenet32())
    assert datasets.class_names("imagenet32", tmp_path / "val_data.npz")[:2] == ("1", "2")
    lines = [f"n{k:08d} {k} name_{k}" for k in range(1000, 0, -1)]
    (tmp_path / "map_clsloc.txt").write_text("\n".join(lines))
    assert datasets.class_names("imagenet32", tmp_path / "val_data.npz")[0] == "name_1 (n00000001)"


def test_imagenet_as_folders(tmp_path, monkeypatch):
    official.unpacked(tmp_path, official.imagenet())
    small(monkeypatch, "imagenet", tmp_path, splits={"train": 6, "test": 4}, balance={"test": 2}, num_classes=2)
    data = opened(config("imagenet", tmp_path, size=32))
    assert data.classes == ("tench (n01440764)", "crane (n02012849)")
    assert data.train.pixels.shape == (6, 3, 32, 32)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "val" / "stray.JPEG").write_bytes(official.jpeg(0))
    with pytest.raises(DataError, match=r"stray\.JPEG: not in a class folder"):
        opened(config("imagenet", tmp_path, size=32))


@pytest.mark.parametrize("packed", [True, False])
def test_celeba(tmp_path, monkeypatch, packed):
    images, partition = official.celeba()
    (tmp_path / "list_eval_partition.txt").write_bytes(partition)
    if packed:
        official.zip_file(tmp_path / "img_align_celeba.zip", images)
    else:
        official.unpacked(tmp_path, images)
    small(monkeypatch, "celeba", tmp_path, splits={"train": 6, "validation": 1, "test": 3})
    data = opened(config("celeba", tmp_path))
    assert data.train.pixels.shape == (6, 3, 32, 32)
    assert (len(data.test), data.test.labels, data.classes) == (3, None, ())
    with pytest.raises(ConfigError, match="--objective genvit"):
        opened(override(config("celeba", tmp_path), objective={"kind": "hybvit"}))


def test_a_part_of_celeba_without_its_list_is_divided_and_said_once(tmp_path, capsys):
    faces = {f"img_align_celeba/{i:06d}.jpg": official.jpeg(i, (178, 218)) for i in range(1, 22)}
    official.unpacked(tmp_path, faces)
    data = opened(config("celeba", tmp_path))
    assert (len(data.train), len(data.test)) == (18, 3)
    opened(config("celeba", tmp_path))
    said = capsys.readouterr().err
    assert said.count("list_eval_partition.txt: missing, so every tenth of 21 images is a test image") == 1


def test_celeba_hq(tmp_path, monkeypatch):
    official.zip_file(tmp_path / "CelebAMask-HQ.zip", official.celeba_hq())
    small(monkeypatch, "celeba_hq", tmp_path, splits={"train": 18, "test": 2})
    data = opened(config("celeba_hq", tmp_path, size=128))
    assert (len(data.train), len(data.test)) == (18, 2)
    tenth = torch.from_numpy(official.noise(1, 3, seed=10)[0]).float()
    assert (data.test.take(torch.tensor([1]))[0].float().mean(dim=(0, 2, 3)) - tenth).abs().max() < 3


@pytest.mark.skipif(not (DEBIAN / "fashion-mnist").is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    data = opened(preset("fashion_mnist_pocket"))
    assert data.train.pixels.shape == (60_000, 1, 32, 32)
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.classes[data.train.labels[0]] == "Ankle boot"  # the published first training image
    assert 70 < data.train.pixels[:, :, 2:30, 2:30].float().mean() < 75  # published mean 0.2860 * 255 = 72.9


# errors are named


def test_a_wrong_checksum_is_refused(tmp_path):
    official.tar_gz(tmp_path / "cifar-10-python.tar.gz", official.cifar10())
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: wrong checksum .*published c58f3010"):
        opened(config("cifar10", tmp_path))
    official.unpacked(tmp_path, official.mnist())
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: wrong checksum"):
        opened(config("mnist", tmp_path, channels=1))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("stl10", "stl10_binary.tar.gz"),
        ("tiny_imagenet", "tiny-imagenet-200.zip"),
        ("svhn", "train_32x32.mat"),
        ("imagenet32", "val_data.npz"),
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("celeba", "img_align_celeba.zip"),
    ],
)
def test_a_truncated_file_is_named(tmp_path, monkeypatch, name, file):
    members = {
        "cifar10": official.cifar10, "stl10": official.stl10, "tiny_imagenet": official.tiny_imagenet,
        "imagenet32": official.imagenet32, "mnist": official.mnist, "celeba": lambda: official.celeba()[0],
    }.get(name, dict)()  # fmt: skip
    if name == "svhn":
        official.svhn(tmp_path)
    elif file.endswith("tar.gz"):
        official.tar_gz(tmp_path / file, members)
    elif file.endswith("zip"):
        official.zip_file(tmp_path / file, members)
        (tmp_path / "list_eval_partition.txt").write_bytes(official.celeba()[1])
    else:
        official.unpacked(tmp_path, members)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    small(monkeypatch, name, tmp_path)
    split = "test" if name == "imagenet32" else "train"
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        datasets.read_split(name, split, str(tmp_path), decoding(channels=CATALOG[name].channels), True)


@pytest.mark.parametrize(
    ("name", "missing", "members"),
    [
        ("cifar10", "cifar-10-batches-py/batches.meta", official.cifar10),
        ("cifar100", "cifar-100-python/meta", official.cifar100),
        ("stl10", "stl10_binary/train_y.bin", official.stl10),
        ("tiny_imagenet", "tiny-imagenet-200/wnids.txt", official.tiny_imagenet),
        ("mnist", "train-labels-idx1-ubyte.gz", official.mnist),
    ],
)
def test_a_missing_label_file_is_named(tmp_path, monkeypatch, name, missing, members):
    official.unpacked(tmp_path, members())
    (tmp_path / missing).unlink()
    small(monkeypatch, name, tmp_path)
    with pytest.raises(DataError, match=Path(missing).name.removesuffix(".gz")):
        datasets.read_split(name, "train", str(tmp_path), decoding(channels=CATALOG[name].channels), True)


def test_missing_annotations_and_partitions_are_named(tmp_path, monkeypatch):
    members = official.tiny_imagenet()
    del members["tiny-imagenet-200/val/val_annotations.txt"]
    official.zip_file(tmp_path / "tiny-imagenet-200.zip", members)
    small(monkeypatch, "tiny_imagenet", tmp_path)
    with pytest.raises(DataError, match=r"val_annotations\.txt"):
        datasets.read_split("tiny_imagenet", "test", str(tmp_path), decoding(64), False)
    official.unpacked(tmp_path, official.celeba()[0])
    small(monkeypatch, "celeba", tmp_path, splits={"train": 6, "validation": 1, "test": 3})  # so this is all of it
    with pytest.raises(DataError, match=r"list_eval_partition\.txt"):
        datasets.read_split("celeba", "test", str(tmp_path), decoding(64), False)


def test_files_with_unexpected_content_are_refused(tmp_path, monkeypatch):
    members = official.cifar10()
    members["cifar-10-batches-py/batches.meta"] = official.python2_pickle({"label_names": ["x"] * 10})
    official.unpacked(tmp_path, members)
    with pytest.raises(DataError, match=r"batches\.meta: its class names"):
        datasets.read_split("cifar10", "train", str(tmp_path), decoding(), False)
    official.unpacked(tmp_path, official.cifar10())
    with pytest.raises(DataError, match="data_batch_1: 10 images where this file of CIFAR-10 has 10,000"):
        datasets.read_split("cifar10", "train", str(tmp_path), decoding(), False)
    small(monkeypatch, "cifar10", tmp_path, splits={"train": 50, "test": 10}, balance={"train": (6, 4, *[5] * 8)})
    with pytest.raises(DataError, match="label 0 occurs 5 times"):
        datasets.read_split("cifar10", "train", str(tmp_path), decoding(), False)


COUNTED = {  # set -> its small form, the counts of that, and the file that is made shorter, or given a wrong label
    "cifar10": (official.cifar10, {"train": 50, "test": 10}, "cifar-10-batches-py/data_batch_4"),
    "cifar100": (official.cifar100, {"train": 100, "test": 100}, "cifar-100-python/train"),
    "imagenet32": (lambda: official.imagenet32(npz=False), {"train": 40, "test": 4}, "train_data_batch_7"),
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, value: value[:-1], "{less} images where (this file|the train split) of .* has {n}: download it again"),
        (
            lambda n, value: [*value[:-1], 1001] if isinstance(value, list) else value,
            "labels from [01] to 1001: they must be in",
        ),
    ],
)
def test_the_batch_that_is_short_or_mislabeled_is_named(tmp_path, monkeypatch, name, change, said):
    make, splits, bad = COUNTED[name]
    members = make()
    n = len(unpickle(members[bad], tmp_path)["data"])
    monkeypatch.setitem(CATALOG, name, replace(CATALOG[name], splits=splits, balance={}))
    changed = rewritten({bad: members[bad]}, entries(lambda value: change(n, value)))
    official.unpacked(tmp_path, members | changed)
    with pytest.raises(DataError, match=f"{Path(bad).name}: {said.format(n=n, less=n - 1)}"):
        datasets.read_split(name, "train", str(tmp_path), decoding(), False)


def test_the_last_batch_holds_the_remainder():
    for batch in range(10):
        check_count("imagenet32", "train", 128_123 if batch == 9 else 128_116, tmp := Path("b"), batch, 10)
    with pytest.raises(DataError, match=r"128,116 images where this file of ImageNet 32x32 .* has 128,123"):
        check_count("imagenet32", "train", 128_116, tmp, 9, 10)
    check_count("imagenet32", "test", 50_000, tmp)
    for batch in range(5):
        check_count("cifar10", "train", 10_000, tmp, batch, 5)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["svhn", "mnist", "stl10", "imagenet"])
def test_a_set_of_several_files_names_the_one_that_is_short(tmp_path, monkeypatch, name, split):
    if name == "svhn":
        official.svhn(tmp_path)
    else:
        official.unpacked(tmp_path, getattr(official, name)())
    splits = {"train": {"imagenet": 6, "stl10": 10}.get(name, 20), "test": {"imagenet": 4, "stl10": 20}.get(name, 10)}
    small(monkeypatch, name, tmp_path, splits=splits | {split: splits[split] + 1}, balance={})
    file = {
        "svhn": f"{split}_32x32.mat", "mnist": f"{split.replace('test', 't10k')}-images-idx3-ubyte.gz",
        "stl10": f"{split}_X.bin", "imagenet": split.replace("test", "val"),
    }[name]  # fmt: skip
    with pytest.raises(
        DataError, match=f"{file}: {splits[split]} images where the {split} split of .* has {splits[split] + 1}"
    ):
        datasets.read_split(name, split, str(tmp_path), decoding(channels=CATALOG[name].channels), True)
    small(monkeypatch, name, tmp_path, splits=splits, balance={split: 9})
    labels = {"mnist": file.replace("images-idx3", "labels-idx1"), "stl10": f"{split}_y.bin"}.get(name, file)
    with pytest.raises(DataError, match=f"{labels}: label 0 occurs"):
        datasets.read_split(name, split, str(tmp_path), decoding(channels=CATALOG[name].channels), True)


class Trap:
    def __reduce__(self):
        return (print, ("the trap was sprung",))


@pytest.mark.parametrize("wrapped", [lambda trap: trap, lambda trap: {"data": [trap]}])
def test_a_pickle_with_other_objects_is_refused_by_name(tmp_path, capsys, wrapped):
    official.unpacked(tmp_path, official.cifar10())
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps(wrapped(Trap())))
    with pytest.raises(DataError, match=r"data_batch_1: .*it refers to builtins\.print"):
        datasets.read_split("cifar10", "train", str(tmp_path), decoding(), False)
    assert "sprung" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_python_3_are_read_in_every_protocol(tmp_path, protocol):
    content = {"data": official.noise(2, 5), "labels": [1, 2], "name": b"bytes", "text": "text"}
    found = unpickle(pickle.dumps(content, protocol=protocol), tmp_path)
    assert np.array_equal(found.pop("data"), content.pop("data"))
    assert found == content


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile"])
def test_the_unpickler_allows_no_other_globals(tmp_path, name):
    module, _, function = name.rpartition(".")
    with pytest.raises(DataError, match=f"it refers to {re.escape(name)};"):
        unpickle(f"c{module}\n{function}\n.".encode(), tmp_path)


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files(tmp_path, compress):
    array = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / ("a.gz" if compress else "a")
    path.write_bytes(official.idx(array, compress))
    assert np.array_equal(read_idx(path), array)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=str(path)):
        read_idx(path)
    path.write_bytes(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0")
    with pytest.raises(DataError, match=r"damaged|not an IDX file of unsigned bytes"):
        read_idx(path)


def test_missing_data_sets_are_reported_with_their_source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(
        DataError, match=r"imagenet32: .* hybvit cannot download it: put train_data_batch_1 .*or give --data DIR"
    ):
        datasets.read_split("imagenet32", "test", None, decoding(), False)
    with pytest.raises(DataError, match="no such folder"):
        datasets.read_split("cifar10", "test", str(tmp_path / "nowhere"), decoding(), False)


def test_a_download_that_fails_is_explained(tmp_path, monkeypatch):
    import torchvision.datasets as tv

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(tv, "CIFAR10", fail)
    with pytest.raises(DataError, match=r"the download failed \(no route to host\): put cifar-10-python"):
        datasets.read_split("cifar10", "test", str(tmp_path), decoding(), False)


def test_a_download_is_read_afterwards(tmp_path, monkeypatch):
    import torchvision.datasets as tv

    monkeypatch.setattr(tv, "CIFAR10", lambda root, download: official.unpacked(Path(root), official.cifar10()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(CATALOG, "cifar10", replace(CATALOG["cifar10"], splits={"train": 50, "test": 10}, balance={}))
    assert len(datasets.read_split("cifar10", "test", None, decoding(), False)) == 10


# other sizes, other channels, other sets


def test_out_of_distribution_sets_are_resized_to_the_models_size(tmp_path, monkeypatch):
    official.svhn(tmp_path)
    small(monkeypatch, "svhn", tmp_path, splits={"train": 20, "test": 10}, balance={})
    test = ImageSet(torch.zeros(4, 1, 28, 28, dtype=torch.uint8))
    found = datasets.out_of_distribution("svhn", str(tmp_path), test, decoding(28, 1))
    assert found.pixels.shape == (10, 1, 28, 28)
    assert datasets.out_of_distribution("digits", None, test, decoding(28, 1)).pixels.shape == (364, 1, 28, 28)


def test_interpolations_are_means_of_consecutive_batches():
    pixels = torch.randint(0, 256, (250, 3, 4, 4), dtype=torch.uint8)
    found = datasets.out_of_distribution("interpolation", None, ImageSet(pixels), decoding(4)).pixels
    assert found.shape == (150, 3, 4, 4)
    assert (found[7].float() - (pixels[7].float() + pixels[107].float()) / 2).abs().max() <= 0.5
    with pytest.raises(DataError, match="at least two"):
        datasets.out_of_distribution("interpolation", None, ImageSet(pixels[:1]), decoding(4))


def test_a_model_that_does_not_fit_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"model\.channels is 3"):
        opened(override(preset("digits"), model={"channels": 3}))
    with pytest.raises(ConfigError, match=r"model\.image_size is 4"):
        opened(override(preset("digits"), model={"image_size": 4}))
    with pytest.raises(ConfigError, match="no unlabeled images"):
        opened(override(preset("digits"), data={"unlabelled": True}))
    with pytest.raises(ConfigError, match=r"data\.test_root"):
        opened(override(preset("digits"), data={"test_root": "x"}))


def test_data_option_finds_the_files_of_the_named_set(tmp_path):
    official.unpacked(tmp_path / "FashionMNIST" / "raw", official.mnist(compress=False))
    assert locate(preset("fashion_mnist_pocket").data, str(tmp_path)).name == "fashion_mnist"
    assert locate(preset("cifar10").data, str(tmp_path)).name == "cifar10"  # it is to be downloaded there


def test_zip_archives_can_be_read_by_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    members = {f"{i}.bin": official.noise(1, 5000, seed=i).tobytes() for i in range(64)}
    files = Files(official.zip_file(tmp_path / "a.zip", members))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda name: files.open(name).read(), members))
    assert read == list(members.values())
    assert pickle.loads(pickle.dumps(files)).names() == sorted(members)


def test_a_folder_counts_as_present_only_with_something_in_it(tmp_path):
    (tmp_path / "celeba_hq").mkdir()
    assert datasets.find("celeba_hq", str(tmp_path)) is None
    official.zip_file(tmp_path / "celeba_hq" / "CelebAMask-HQ.zip", official.celeba_hq())
    assert datasets.find("celeba_hq", str(tmp_path / "celeba_hq")) == tmp_path / "celeba_hq" / "CelebAMask-HQ.zip"


def test_held_out_images_are_not_trained_on():
    cfg = override(preset("digits"), data={"held_out": 0.1})
    data, whole = opened(cfg), opened(override(preset("digits"), data={"held_out": 0.0}))
    assert len(data.train) + len(data.held_out) == len(whole.train)
    shares = data.held_out.labels.bincount() / whole.train.labels.bincount()
    assert ((shares > 0.09) & (shares < 0.11)).all()
    few = datasets._hold_out(
        Dataset(ImageSet(torch.zeros(5, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1])), data.test, ("a", "b")), 0.1
    )
    assert few.held_out.labels.tolist() == [0, 1]
    images = sorted(image.numpy().tobytes() for part in (data.train, data.held_out) for image in part.pixels)
    assert images == sorted(image.numpy().tobytes() for image in whole.train.pixels)


@pytest.mark.parametrize(("part", "every"), [(0.5, 2), (0.25, 4), (0.33, 3), (0.4, 2), (0.3, 3)])
def test_a_share_that_is_not_one_of_n_is_said(capsys, part, every):
    data = opened(override(preset("digits"), data={"held_out": 0.0}))
    held = datasets._hold_out(data, part).held_out
    assert len(held) == sum(n // every for n in data.train.labels.bincount().tolist())
    said = capsys.readouterr().err
    assert (f"image of a class is held out, {1 / every:.0%} of them" in said) == (abs(part * every - 1) > 0.09)


@pytest.mark.parametrize("text", ["n01 x a\n", "n01\n", "\n".join(f"n{k:02} {k} a" for k in range(1, 1000)), "n01 1\n"])
def test_a_damaged_table_of_classes_is_named(tmp_path, text):
    (tmp_path / "map_clsloc.txt").write_text(text)
    with pytest.raises(DataError, match="map_clsloc"):
        class_names("imagenet32", tmp_path / "train_data_batch_1")
