"""What is a split, in folders, zips, manifests, parquet files and shards alike."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from hybvit.data.huggingface import parquet_splits
from hybvit.data.locate import locate
from hybvit.data.shards import shard_names
from hybvit.data.splits import hash_split, split_of
from hybvit.errors import DataError
from hybvit.presets import preset

from . import official
from .conftest import opened
from .test_own_images import labelled_parquet, own, save, table

SPELLINGS = {
    "train": ["train", "Train", "TRAINING", "seg_train", "train2017", "Train-Images", "trainset", "trainval", "segTrain"],
    "validation": ["valid", "Validation", "VAL", "dev", "val2017", "Val_Set", "development", "valid images"],
    "test": ["test", "TESTING", "Test_Images", "eval", "seg_test", "test-set", "Evaluation", "test01"],
}  # fmt: skip


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in SPELLINGS.items() for name in names])
def test_spellings(split, name):
    assert split_of(name) == split
    assert split_of(f"birds-{name}-00001-of-00010", anywhere=True) == split


@pytest.mark.parametrize(
    "name", ["cat", "test_tube", "train_station", "trainer", "valley", "devil", "contest", "train_val", "", "7"]
)
def test_other_names_are_no_splits(name):
    assert split_of(name) is None


def layout(tmp_path: Path, packed: bool, *folders: str, classes: tuple[str, ...] = ("cat", "dog"), n: int = 3) -> Path:
    members = {f"{top}/{kind}/{i}.jpg": official.jpeg(i) for top in folders for kind in classes for i in range(n)}
    if packed:
        return official.zip_file(tmp_path / "a.zip", members)
    return official.unpacked(tmp_path / "a", members)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "valid"), ("Training", "Validation"), ("TRAIN", "TEST"), ("seg_train", "seg_test"), ("train2017", "val2017"),
        ("train", "dev"), ("training_set", "test_set"), ("a/train", "a/eval"), ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)  # fmt: skip
def test_folders_of_splits(tmp_path, packed, train, test):
    root = layout(tmp_path, packed, train, test)
    for i in range(2):
        if not packed:
            save(root / test / "cat" / f"more{i}.png")
    data = opened(own(root))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (6, 6 if packed else 8)


@pytest.mark.parametrize(
    "tops", ["trainA trainB testA testB", "train_cat train_dog test_cat test_dog", "cats_train dogs_train cats_test dogs_test"]
)
def test_splits_of_several_folders_are_no_classes(tmp_path, tops):
    for top in tops.split():
        save(tmp_path / top / "0.png")
    with pytest.raises(DataError, match="look like the splits of one set"):
        opened(own(tmp_path))


@pytest.mark.parametrize("tops", ["tr te", "fold0 fold1 fold2", "a b"])
def test_folders_that_hold_the_same_folders_are_said(tmp_path, capsys, tops):
    for top in tops.split():
        for name in ("cat", "dog"):
            for i in range(2):
                save(tmp_path / top / name / f"{i}.png")
    opened(own(tmp_path))
    assert "hold the same folders (cat, dog): if they are splits or folds" in capsys.readouterr().err
    save(tmp_path / tops.split()[0] / "bird" / "0.png")
    opened(own(tmp_path))
    assert "hold the same folders" not in capsys.readouterr().err


def test_validation_images_are_test_images_only_without_a_test_folder(tmp_path, capsys):
    root = layout(tmp_path, False, "train", "valid")
    save(root / "test" / "cat" / "only.png")
    data = opened(own(root))
    assert (len(data.train), len(data.test)) == (6, 1)
    assert f"warning: {root}: left out: valid (only train and test are used)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "holdout", "extra"), r"train is named like a split, but not extra and holdout"),
        (("train", "part2"), "part2"),
        (("train", "Training", "test"), "Training and train both look like the train split"),
        (("train", "test", "eval"), "eval and test both look like the test split"),
        (("test", "val"), "test looks like the test split, but none looks like train"),
    ],
)
def test_folders_that_cannot_be_told_apart_are_refused_by_name(tmp_path, folders, message):
    with pytest.raises(DataError, match=message):
        opened(own(layout(tmp_path, False, *folders)))


def test_folders_without_images_are_no_splits(tmp_path):
    root = layout(tmp_path, False, "train", "test")
    (root / "annotations").mkdir()
    (root / "annotations" / "boxes.xml").write_text("<xml/>")
    assert len(opened(own(root)).test) == 6


def test_classes_may_be_named_like_a_split(tmp_path):
    for kind, i in itertools.product(("bus", "train", "test tube"), range(6)):
        save(tmp_path / kind / f"{i}.png")
    assert opened(own(tmp_path)).classes == ("bus", "test tube", "train")


def test_test_root_beside_or_with_splits(tmp_path):
    first, second = layout(tmp_path / "1", False, "Train", "Val"), layout(tmp_path / "2", False, "train", "testing")
    save(second / "testing" / "cat" / "more.png")
    data = opened(own(first, test_root=str(second)))
    assert (len(data.train), len(data.test)) == (6, 7)


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("training", "valid"), ("train", "dev"), (" train ", "eval")])
def test_splits_of_manifests(tmp_path, train, test):
    for i in range(8):
        save(tmp_path / f"{i}.png")
    rows = [{"path": f"{i}.png", "label": "ab"[i % 2], "split": train if i < 5 else test} for i in range(8)]
    data = opened(own(table(tmp_path, "csv", rows), "manifest"))
    assert (len(data.train), len(data.test)) == (5, 3)
    rows[0]["split"] = "holdout"
    with pytest.raises(DataError, match=r"the split of 0\.png is 'holdout'"):
        opened(own(table(tmp_path, "csv", rows), "manifest"))


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["pets-Train-0", "pets-VALID-0"], {"train", "validation"}),
        (["data/training/0000", "data/testing/0000"], {"train", "test"}),
        (["train_0", "dev_0", "eval_0"], {"train", "validation", "test"}),
        (["0000", "0001"], {"train"}),
    ],
)
def test_splits_of_parquet_files(tmp_path, names, splits):
    files = [tmp_path / f"{name}.parquet" for name in names]
    assert set(parquet_splits(tmp_path, files)) == splits
    with pytest.raises(DataError, match="neither its name nor its folder says"):
        parquet_splits(tmp_path, [*files, tmp_path / "odd.parquet", tmp_path / "test.parquet"])


@pytest.mark.parametrize(
    "names", [["Train-0", "valid-0"], ["training/0", "eval/0"], ["pets-train-0", "pets-test-0", "pets-dev-0"]]
)
def test_splits_of_shards(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tar").touch()
    found = shard_names(str(tmp_path))
    assert found["train"] == [str(tmp_path / f"{names[0]}.tar")]
    assert len(found) == len(names)
    (tmp_path / "odd.tar").touch()
    with pytest.raises(DataError, match=r"odd\.tar: neither its name"):
        shard_names(str(tmp_path))


# own images without a split


def everything(data) -> tuple[list[int], list[int]]:
    return sorted(data.train.pixels[:, 0, 0, 0].tolist()), sorted(data.test.pixels[:, 0, 0, 0].tolist())


def test_the_hash_depends_on_each_file_alone():
    names = [f"cat/{i:04d}.png" for i in range(1000)] + [f"dog/{i:04d}.png" for i in range(500)]
    labels = [0] * 1000 + [1] * 500
    test = dict(zip(names, hash_split(names, labels), strict=True))
    assert 0.17 < sum(test.values()) / 1500 < 0.23
    assert hash_split(names[::-1], labels[::-1]) == list(test.values())[::-1]
    fewer = dict(zip(names[1:-1], hash_split(names[1:-1], labels[1:-1]), strict=True))
    assert fewer == {name: test[name] for name in names[1:-1]}
    more = dict(zip(["cat/new.png", *names], hash_split(["cat/new.png", *names], [0, *labels]), strict=True))
    assert all(more[name] == test[name] for name in names)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_a_class_of_two_or_more_has_training_and_test_images(n):
    for k in range(60):
        test = hash_split([f"{k}/{i}.png" for i in range(n)], [k] * n)
        assert 1 <= sum(test) < n
    assert hash_split(["caf\udce9.png", "b.png"], None).count(True) == 1


@pytest.mark.parametrize("form", ["folder", "zip", "manifest", "huggingface", "flat"])
def test_one_more_file_moves_no_other(tmp_path, form):
    import datasets

    def build(numbers: list[int]) -> Path:
        root = tmp_path / f"{len(numbers)}"
        if form == "huggingface":
            files = [(tmp_path / f"{i}.png").read_bytes() for i in numbers]
            rows = {"image": [{"bytes": raw, "path": None} for raw in files], "label": ["ab"[i % 2] for i in numbers]}
            features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
            datasets.Dataset.from_dict(rows, features=features).to_parquet(f"{root}.parquet")
            return Path(f"{root}.parquet")
        if form == "manifest":
            lines = [f"{i}.png,{'ab'[i % 2]}" for i in numbers]
            Path(f"{root}.csv").write_text("\n".join(["path,label", *lines]))
            return Path(f"{root}.csv")
        members = {
            f"{'' if form == 'flat' else 'ab'[i % 2] + '/'}{i}.png": (tmp_path / f"{i}.png").read_bytes() for i in numbers
        }
        return official.zip_file(Path(f"{root}.zip"), members) if form == "zip" else official.unpacked(root, members)

    for i in range(60):
        save(tmp_path / f"{i}.png", (4 * i, 0, 0))
    name = "folder" if form in ("zip", "flat") else form
    kind = "genvit" if form == "flat" else "hybvit"
    first, second = (opened(own(build(n), name, split="hash", kind=kind)) for n in (list(range(1, 60)), list(range(60))))
    (train, test), (more_train, more_test) = everything(first), everything(second)
    assert len(train) + len(test) == 59
    assert test
    assert set(train) <= set(more_train)
    assert set(test) <= set(more_test)
    counted = everything(opened(own(build(list(range(60))), name, kind=kind)))[1]
    assert len(counted) == 12


@pytest.mark.parametrize(
    "names", [("birds_train", "birds_test"), ("trainA", "testA"), ("train.v2", "valid.v2"), ("cropped train", "cropped test")]
)
def test_folders_that_differ_in_their_split_alone_are_no_classes(tmp_path, names):
    for name in names:
        for i in range(3):
            save(tmp_path / name / f"{i}.png")
    with pytest.raises(DataError, match="splits of one set"):
        opened(own(tmp_path))


@pytest.mark.parametrize("names", [("train_station", "test_tube"), ("express train", "freight train"), ("trainers", "testers")])
def test_classes_with_a_word_of_a_split_stay_classes(tmp_path, names):
    for name in names:
        for i in range(3):
            save(tmp_path / name / f"{i}.png")
    assert opened(own(tmp_path)).classes == tuple(sorted(names))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("folders", "named"),
    [
        ("cat/train cat/test dog/train dog/test", "cat/test lies below the class folder cat"),
        ("cat/Training cat/Testing dog/Training dog/Testing", "cat/Testing"),
        ("cat/train cat/val dog/train dog/test", "cat/val"),
        ("cat dog/val dog", "dog/val"),
        ("cat/a/train cat/a/test dog/a", "cat/a/test"),
        ("train/cat/train train/cat/test train/dog test/cat test/dog", "cat/test"),
    ],
)
def test_splits_below_classes_are_refused_by_name(tmp_path, folders, named, packed):
    members = {f"{folder}/{k}{i}.jpg": official.jpeg(i) for k, folder in enumerate(folders.split()) for i in range(3)}
    root = official.zip_file(tmp_path / "a.zip", members) if packed else official.unpacked(tmp_path / "a", members)
    with pytest.raises(DataError, match=rf"{named}.*put the splits above the classes"):
        opened(own(root))


@pytest.mark.parametrize(
    "folders", ["cat/images dog/images", "cat/val dog/val", "cat/train dog/train", "cat/day cat/night dog"]
)
def test_folders_below_classes_that_divide_nothing_are_read(tmp_path, folders):
    members = {f"{folder}/{k}{i}.jpg": official.jpeg(i) for k, folder in enumerate(folders.split()) for i in range(5)}
    assert opened(own(official.unpacked(tmp_path / "a", members))).classes == ("cat", "dog")


SPLIT_ROWS = ["train"] * 6 + ["val"] * 2 + ["test"] * 4


def divided(tmp_path: Path, form: str, name: str, first: int, splits: list[str]) -> Path:
    """Images with these splits, or without any, in one of the forms of the user's own images."""
    rows = []
    for i, split in enumerate(splits, first):
        label, folder = "ab"[i % 2], tmp_path / name / split if form == "folder" else tmp_path / name
        save(folder / label / f"{i}.png", (5 * i, 0, 0))
        rows.append({"path": f"{name}/{label}/{i}.png", "label": label} | ({"split": split} if split else {}))
    if form == "folder":
        return tmp_path / name
    return table(tmp_path, form, rows).rename(tmp_path / f"{name}.{form}")


@pytest.mark.parametrize("form", ["folder", "csv", "jsonl"])
@pytest.mark.parametrize("theirs", [True, False])
def test_beside_a_test_root_the_training_images_stay_those_of_the_training_split(tmp_path, form, theirs):
    """And of a test root that is divided itself, only its test images count."""
    root = divided(tmp_path, form, "mine", 0, SPLIT_ROWS)
    other = divided(tmp_path, form, "theirs", 20, SPLIT_ROWS if theirs else [""] * 12)
    data = opened(own(root, "folder" if form == "folder" else "manifest", test_root=str(other)))
    assert everything(data)[0] == [5 * i for i in range(6)]
    assert everything(data)[1] == [5 * i for i in range(28 if theirs else 20, 32)]


def test_a_test_root_names_test_images(tmp_path):
    root = divided(tmp_path, "csv", "mine", 0, SPLIT_ROWS)
    with pytest.raises(DataError, match=r"theirs\.csv: no row has the split test or val"):
        opened(own(root, "manifest", test_root=str(divided(tmp_path, "csv", "theirs", 20, ["train"] * 4))))
    odd = divided(tmp_path, "csv", "odd", 30, ["test", "", "test", "fold1"])
    with pytest.raises(DataError, match=r"odd\.csv: the split of odd/b/31\.png is None"):
        opened(own(root, "manifest", test_root=str(odd)))


def test_folders_of_splits_in_a_list_are_said(tmp_path, capsys):
    rows = []
    for i in range(12):
        name = f"{['train', 'test'][i % 3 == 0]}/{i}.png"
        save(tmp_path / name, (9 * i, 0, 0))
        rows.append({"path": name, "label": "ab"[i % 2]})
    opened(own(table(tmp_path, "csv", rows), "manifest"))
    assert "its images lie in folders named like splits, but no column is named split" in capsys.readouterr().err
    opened(own(table(tmp_path, "csv", [row for row in rows if row["path"].startswith("train")]), "manifest"))
    assert capsys.readouterr().err == ""


def test_the_folders_of_the_hub_are_found(tmp_path):
    """CONFIGURATION/SPLIT/0000.parquet, and what its client leaves beside it."""
    names = ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"]
    for i, name in enumerate([*names, ".cache/huggingface/download/default/train/0000.parquet"]):
        colors = [(20 * i + k, 0, 0) for k in range(4)]
        labelled_parquet(tmp_path / name, ["red", "blue"], ["red", "blue"] * 2, colors)
    assert locate(preset("digits").data, str(tmp_path)).name == "huggingface"
    data = opened(own(tmp_path, "huggingface"))
    assert (len(data.train), len(data.test)) == (8, 4)
    for other in ("other/train/0000.parquet", "other/train-0.parquet"):
        copy = tmp_path / other
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((tmp_path / names[0]).read_bytes())
        with pytest.raises(DataError, match=r"several data sets, .*\(default, other\): give the folder of one"):
            opened(own(tmp_path, "huggingface"))
        copy.unlink()
