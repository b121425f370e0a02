from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hybvit.config import Config, DataConfig, override
from hybvit.data.image_set import LazyImages
from hybvit.data.locate import locate
from hybvit.errors import ConfigError, DataError
from hybvit.method.vit import ViTConfig
from hybvit.presets import preset

from . import official
from .conftest import batches_of, opened


def own(root: Path | str, name: str = "folder", channels: int = 3, kind: str = "hybvit", **data) -> Config:
    data = {"split": "every_fifth"} | data  # these tests count; test_splits.py tests the hash
    model = ViTConfig(image_size=8, patch_size=2, channels=channels, dim=16, depth=1, heads=2)
    return override(Config(model=model, data=DataConfig(name=name, root=str(root), **data)), objective={"kind": kind})


def save(path: Path, color: tuple[int, int, int] = (200, 30, 90), mode: str = "RGB", size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


# folders


def test_a_folder_of_classes(tmp_path):
    for i in range(6):
        save(tmp_path / "cat" / f"{i}.png", (10 * i, 0, 0))
        save(tmp_path / "dog" / f"{i}.jpg", mode="L")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    data = opened(own(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.train.pixels.shape == (8, 3, 8, 8)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.test.pixels[:2, 0, 0, 0].tolist() == [0, 50]  # the first and the sixth cat
    assert opened(own(tmp_path, channels=1)).train.pixels.shape == (8, 1, 8, 8)


def test_copies_of_training_images_are_said(tmp_path, capsys):
    for split in ("train", "test"):
        for i in range(20):
            save(tmp_path / split / "a" / f"{i}.bmp", (9 * i if split == "train" else 9 * i + 3, 0, 0))
            save(tmp_path / split / "b" / f"{i}.bmp", (0, 9 * i if split == "train" else 9 * i + 3, 0))
    opened(own(tmp_path))
    assert not capsys.readouterr().err  # the names and sizes are equal, not the images
    for i in range(20):
        save(tmp_path / "test" / "b" / f"{i}.bmp", (0, 9 * i, 0))
    opened(own(tmp_path))
    assert "20 of 40 test images that were compared are copies of training images, such as b/" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["images/", ""])
def test_a_table_beside_images_without_classes_is_named(tmp_path, capsys, folder):
    for i in range(5):
        save(tmp_path / f"{folder}{i}.png")
    opened(own(tmp_path, kind="genvit"))
    assert not capsys.readouterr().err
    (tmp_path / "train.csv").write_text("id,label\n")
    opened(own(tmp_path, kind="genvit"))
    assert f"beside train.csv: if that table names the classes, give --data {tmp_path / 'train.csv'}" in capsys.readouterr().err


def test_a_folder_with_its_own_split(tmp_path):
    for split, n in (("train", 3), ("val", 2)):
        for i in range(n):
            save(tmp_path / split / "a" / f"{i}.png")
            save(tmp_path / split / "b" / f"{i}.png")
    data = opened(own(tmp_path))
    assert (len(data.train.labels), len(data.test.labels)) == (6, 4)
    save(tmp_path / "val" / "c" / "0.png")
    with pytest.raises(DataError, match="'c'"):
        opened(own(tmp_path))


@pytest.mark.parametrize("images", [0, 1])
def test_a_class_without_a_training_image_is_named(tmp_path, images):
    for i in range(6):
        save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "dog").mkdir()
    for i in range(images):
        save(tmp_path / "dog" / f"{i}.png")
    with pytest.raises(DataError, match="class 'dog' has no training image"):
        opened(own(tmp_path))


def test_other_files_are_ignored(tmp_path):
    for i in range(6):
        save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "cat" / "paper.pdf").write_text("%PDF")
    (tmp_path / "cat" / "film.mpg").write_text("film")
    assert len(opened(own(tmp_path)).train) == 4


def test_unusable_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no such folder$"):
        opened(own(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match=r"imagenet: no such folder; a data set by name is --dataset imagenet, in training --data\.name"
    ):
        opened(own(tmp_path / "imagenet"))
    with pytest.raises(DataError, match="contains no class subfolders and no images"):
        opened(own(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no image files"):
        opened(own(tmp_path))
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"broken\.png"):
        opened(own(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        opened(override(own(tmp_path), data={"root": None}))


def test_a_flat_folder_is_for_genvit(tmp_path):
    for i in range(11):
        save(tmp_path / f"{i:02d}.png", (20 * i, 0, 0))
    with pytest.raises(ConfigError, match="no labels: train on them with --objective genvit"):
        opened(own(tmp_path))
    data = opened(own(tmp_path, kind="genvit"))
    assert (len(data.train), len(data.test), data.train.labels, data.classes) == (8, 3, None, ())
    assert data.test.pixels[:, 0, 0, 0].tolist() == [0, 100, 200]
    save(tmp_path / "cat" / "0.png")
    with pytest.raises(DataError, match=r"00\.png: not in a class folder \(cat"):
        opened(own(tmp_path))


def test_a_zip_works_like_a_folder(tmp_path):
    members = {f"{kind}/{i}.jpg": official.jpeg(i) for kind in ("cat", "dog") for i in range(6)}
    root = official.zip_file(tmp_path / "pets.zip", members | {"__MACOSX/cat/._0.jpg": b"not an image"})
    assert locate(preset("digits").data, str(root)).name == "folder"
    data = opened(own(root))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (8, 4)


def test_a_test_folder_elsewhere(tmp_path):
    for i in range(3):
        save(tmp_path / "mine" / "a" / f"{i}.png")
    save(tmp_path / "held out" / "a" / "9.png")
    data = opened(own(tmp_path / "mine", test_root=str(tmp_path / "held out")))
    assert (len(data.train), len(data.test)) == (3, 1)
    with pytest.raises(DataError, match="nowhere"):
        opened(own(tmp_path / "mine", test_root=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_bad_files_are_named_counted_and_skipped_up_to_a_limit(tmp_path, capsys, memory):
    for i in range(10):
        save(tmp_path / "abc"[i % 3] / f"{i}.png", (10 * i, 0, 0))
    for i in (3, 7):
        (tmp_path / "abc"[i % 3] / f"{i}.png").write_bytes(b"\x89PNG rubbish")

    def read(limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = opened(own(tmp_path, max_bad_files=limit, memory_gib=memory))
        pixels, labels = zip(*data.train.batches(4), strict=True)
        return torch.cat(pixels), torch.cat(labels)

    with pytest.raises(DataError, match=r"3\.png.*--data\.max_bad_files N"):
        read(0)
    with pytest.raises(DataError, match=r"7\.png.*bad file number 2, more than data\.max_bad_files = 1"):
        read(1)
    capsys.readouterr()
    pixels, labels = read(2)
    shades = pixels[:, 0, 0, 0].tolist()
    said = capsys.readouterr().err
    assert "3.png" in said
    assert "7.png" in said
    assert "(2 of at most 2)" in said
    assert set(shades) <= {10 * i for i in range(10) if i not in (3, 7)}
    assert labels.tolist() == [shade // 10 % 3 for shade in shades]  # the label of a replacement is its own


def test_images_that_do_not_fit_into_memory_are_decoded_on_access(tmp_path):
    for i in range(10):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", (10 * i, 0, 0))
    now, later = (opened(own(tmp_path, memory_gib=gib)) for gib in (1.0, 0.0))
    assert isinstance(later.train.pixels, LazyImages)
    assert later.train.pixels.shape == now.train.pixels.shape
    index = torch.tensor([3, 0, 3])
    for a, b in zip(now.train.take(index), later.train.take(index), strict=True):
        assert torch.equal(a, b)


# manifests


def table(tmp_path: Path, form: str, rows: list[dict]) -> Path:
    path = tmp_path / f"images.{form}"
    if form == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        names = list(dict.fromkeys(key for row in rows for key in row))
        lines = [",".join(str(row.get(name, "")) for name in names) for row in rows]
        path.write_text("\ufeff" + "\n".join([",".join(names), *lines]) + "\n", encoding="utf-8")  # as spreadsheets write it
    return path


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_manifest(tmp_path, form):
    for i in range(12):
        save(tmp_path / "pictures" / f"{i}.png", (10 * i, 0, 0))
    rows = [{"path": f"pictures/{i}.png", "label": 2 + 8 * (i % 2)} for i in range(12)]
    path = table(tmp_path, form, rows)
    assert locate(preset("paper_32").data, str(path)).name == "manifest"
    data = opened(own(path, "manifest"))
    assert data.classes == ("2", "10")  # by value, not as text
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    split = table(tmp_path, form, [{**row, "split": "val" if i < 3 else "train"} for i, row in enumerate(rows)])
    assert len(opened(own(split, "manifest")).test) == 3
    flat = table(tmp_path, form, [{"filename": row["path"]} for row in rows])
    assert opened(own(flat, "manifest", kind="genvit")).classes == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "0.png", "label": "a"}, {"path": "1.png"}], r"images\.jsonl, line 2: has no label"),
        ([{"label": "a"}], r"line 1: no image path \(in a column path, file"),
        ([{"path": "gone.png", "label": "a"}], r"gone\.png: no such file"),
        ([{"path": "0.png", "label": "a", "split": "exam"}], r"the split of 0\.png is 'exam'"),
        ([], "lists no images"),
    ],
)
def test_errors_in_manifests_name_the_line(tmp_path, rows, message):
    save(tmp_path / "0.png")
    save(tmp_path / "1.png")
    with pytest.raises(DataError, match=message):
        opened(own(table(tmp_path, "jsonl", rows), "manifest"))


def test_a_manifest_that_is_not_json(tmp_path):
    (tmp_path / "images.jsonl").write_text('{"path": "0.png"}\nnonsense\n')
    with pytest.raises(DataError, match="line 2: not JSON"):
        opened(own(tmp_path / "images.jsonl", "manifest"))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("again", ["0.png", "./0.png", "a/../0.png", "absolute"])
def test_an_image_under_two_classes_is_named_with_both_lines(tmp_path, form, again, capsys):
    again = str(tmp_path / "0.png") if again == "absolute" else again
    rows = [{"path": f"{i}.png", "label": "ab"[i % 2]} for i in range(4)]
    for split in ({}, {"split": "test"}):
        path = table(
            tmp_path,
            form,
            [{**row, **({"split": "train"} if split else {})} for row in rows] + [{"path": again, "label": "b"} | split],
        )
        lines = (2, 6) if form == "csv" else (1, 5)
        (tmp_path / "a").mkdir(exist_ok=True)
        for i in range(4):
            save(tmp_path / f"{i}.png")
        opened(own(path, "manifest"))
        said = capsys.readouterr().err
        assert f"line {lines[1]}: " in said
        assert f"0.png has the class 'b', but 'a' in line {lines[0]}: one of them is wrong" in said


@pytest.mark.parametrize("elsewhere", [False, True])
def test_test_images_that_are_training_images_are_counted_once(tmp_path, capsys, elsewhere):
    for i in range(6):
        save(tmp_path / f"{i}.png", (40 * i, 0, 0))
    rows = [{"path": f"{i}.png", "label": "ab"[i % 2]} for i in range(5)]
    test = [{"path": f"./{i}.png", "label": "ab"[i % 2]} for i in (1, 2, 5)]
    if elsewhere:
        root = table(tmp_path, "csv", test).rename(tmp_path / "test.csv")
        cfg = own(table(tmp_path, "csv", rows), "manifest", test_root=str(root))
    else:
        rows, test = ([{**row, "split": split} for row in part] for part, split in ((rows, "train"), (test, "test")))
        cfg = own(table(tmp_path, "csv", rows + test), "manifest")
    assert len(opened(cfg).test) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"warning: 2 of 3 test images are training images too, such as {tmp_path / '1.png'}: ")
    assert said.count("\n") == 1
    opened(own(table(tmp_path, "csv", rows[:5] + test[2:]), "manifest"))
    assert capsys.readouterr().err == ""


def test_a_test_folder_that_is_the_training_folder_is_said(tmp_path, capsys):
    for i in range(4):
        save(tmp_path / "ab"[i % 2] / f"{i}.png")
    opened(own(tmp_path, test_root=f"{tmp_path}/a/.."))
    assert "4 of 4 test images are training images too" in capsys.readouterr().err


def test_the_same_names_in_another_folder_are_other_images(tmp_path, capsys):
    for part in ("train", "test"):
        for i in range(4):
            save(tmp_path / part / "ab"[i % 2] / f"{i}.png", (9 * i, 99 if part == "train" else 0, 0))
        rows = [{"path": f"{'ab'[i % 2]}/{i}.png", "label": "ab"[i % 2]} for i in range(4)]
        table(tmp_path / part, "csv", rows)
    opened(own(tmp_path))
    tables = [next((tmp_path / part).glob("*.csv")) for part in ("train", "test")]
    opened(own(tables[0], "manifest", test_root=str(tables[1])))
    assert capsys.readouterr().err == ""


# Hugging Face


def labelled_parquet(path: Path, names: list[str], labels: list[str], colors: list[tuple[int, int, int]], **more) -> Path:
    """A table whose labels are numbers of these names."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for color in colors:
        content = io.BytesIO()
        Image.new("RGB", (8, 8), color).save(content, "PNG")
        pictures.append({"bytes": content.getvalue(), "path": None})
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)} | {
        name: datasets.Value("string") for name in more
    }
    rows = {"image": pictures, "label": [names.index(label) for label in labels], **more}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(str(path))
    return path


def test_each_table_is_read_with_its_own_names_of_classes(tmp_path, capsys):
    red, blue = (200, 0, 0), (0, 0, 200)
    both = {"labels": ["red", "blue"] * 3, "colors": [red, blue] * 3}
    labelled_parquet(tmp_path / "d" / "train.parquet", ["red", "blue"], **both)
    other = labelled_parquet(tmp_path / "d" / "test.parquet", ["blue", "red"], **both)
    for cfg in (own(tmp_path / "d", "huggingface"), own(tmp_path / "d" / "train.parquet", "huggingface", test_root=str(other))):
        data = opened(cfg)
        for images in (data.train, data.test):
            assert [data.classes[label] for label in images.labels] == ["red", "blue"] * 3
            assert (images.pixels[:, 0, 0, 0] > 100).tolist() == [True, False] * 3
    shutil.copy(other, tmp_path / "d" / "train-2.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: its columns or the names of its classes differ"):
        opened(own(tmp_path / "d", "huggingface"))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert all("6 of 6 test images that were compared are copies" in line for line in warnings)
    table = labelled_parquet(tmp_path / "e.parquet", ["red", "blue"], **both, usage=["Training"] * 6)
    opened(own(table, "huggingface"))
    assert "the column 'usage' is not read" in capsys.readouterr().err


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 12), (10 * i, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("labels", ["names", "text", "none"])
def test_parquet_files(tmp_path, labels):
    import datasets

    features = {"image": datasets.Image()}
    rows: dict[str, list] = {"image": [{"bytes": png(i), "path": None} for i in range(12)]}
    if labels == "names":
        features["label"] = datasets.ClassLabel(names=["zebra", "ant"])
        rows["label"] = [i % 2 for i in range(12)]
    elif labels == "text":
        features["label"] = datasets.Value("string")
        rows["label"] = [("zebra", "ant")[i % 2] for i in range(12)]
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    made.select(range(3)).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert locate(preset("paper_32").data, str(tmp_path)).name == "huggingface"
    data = opened(own(tmp_path, "huggingface", kind="genvit" if labels == "none" else "hybvit"))
    assert (len(data.train), len(data.test)) == (12, 3)
    assert data.train.pixels[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]
    assert data.classes == {"names": ("zebra", "ant"), "text": ("ant", "zebra"), "none": ()}[labels]
    if labels != "none":
        assert [data.classes[k] for k in data.test.labels] == ["zebra", "ant", "zebra"]
    single = opened(own(tmp_path / "train-00000-of-00001.parquet", "huggingface", kind="genvit"))
    assert (len(single.train), len(single.test)) == {"none": (9, 3)}.get(labels, (8, 4))


def test_hugging_face_sets_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(DataError, match=r"a\.parquet: not readable"):
        opened(own(tmp_path / "a.parquet", "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="hf://nobody/nothing: not readable"):
        opened(own("hf://nobody/nothing", "huggingface"))


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": None}])
def test_an_empty_cell_is_a_bad_image(tmp_path, empty):
    import pyarrow
    import pyarrow.parquet

    images = [empty, *({"bytes": png(i), "path": None} for i in range(12))]
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet, image 0: the cell is empty"):
        opened(own(tmp_path / "train.parquet", "huggingface", kind="genvit"))
    data = opened(own(tmp_path / "train.parquet", "huggingface", kind="genvit", max_bad_files=1))
    assert len(data.train) + len(data.test) == 12


@pytest.mark.parametrize("labels", [[], ["a"]])
def test_a_table_of_one_row_has_no_test_image(tmp_path, labels):
    import pyarrow
    import pyarrow.parquet

    columns = {"image": [{"bytes": png(0), "path": None}]} | ({"label": labels} if labels else {})
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: the (test|training) split has no images"):
        opened(own(tmp_path / "train.parquet", "huggingface", kind="genvit"))


def test_the_library_of_hugging_face_adds_no_lines(tmp_path, capfd):
    import datasets

    (tmp_path / "bad.parquet").write_bytes(b"")
    made = datasets.Dataset.from_dict({"image": [{"bytes": png(i), "path": None} for i in range(12)]})
    made.to_parquet(tmp_path / "good.parquet")
    capfd.readouterr()
    before = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    with pytest.raises(DataError):
        opened(own(tmp_path / "bad.parquet", "huggingface"))
    assert len(opened(own(tmp_path / "good.parquet", "huggingface", kind="genvit")).classes) == 0
    assert capfd.readouterr().err == ""
    assert before == (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled())


def test_data_option_detects_the_format(tmp_path):
    save(tmp_path / "a" / "0.png")
    assert locate(preset("fashion_mnist_pocket").data, str(tmp_path)).name == "folder"
    assert locate(preset("digits").data, "anywhere").name == "folder"
    assert locate(preset("digits").data, "hf://owner/name").name == "huggingface"
    assert locate(preset("digits").data, "train-{000..009}.tar").name == "shards"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["classes", "split", "only train", "one folder"])
def test_layouts_of_folders_and_zips(tmp_path, packed, layout):
    top = {"classes": "", "split": "train/", "only train": "train/", "one folder": "photos/"}[layout]
    members = {f"{top}{kind}/{i}.jpg": official.jpeg(i) for kind in ("cat", "dog") for i in range(6)}
    if layout == "split":
        members |= {f"val/{kind}/{i}.jpg": official.jpeg(50 + i) for kind in ("cat", "dog") for i in range(2)}
    if packed:
        root = official.zip_file(tmp_path / "a.zip", members)
    else:
        root = official.unpacked(tmp_path / "a", members) / ("photos" if layout == "one folder" else "")
    data = opened(own(root))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == ((12, 4) if layout == "split" else (8, 4))


def test_damaged_zips_and_stray_images_are_named(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"bad\.zip: damaged"):
        opened(own(tmp_path / "bad.zip"))
    official.unpacked(tmp_path / "a", {"train/cat/0.jpg": official.jpeg(0), "train/dog/0.jpg": official.jpeg(1)})
    official.unpacked(tmp_path / "a", {"test/0.jpg": official.jpeg(2)})
    with pytest.raises(DataError, match=r"0\.jpg: not in a class folder"):
        opened(own(tmp_path / "a"))


def test_a_link_to_a_parent_multiplies_nothing(tmp_path):
    for i in range(6):
        save(tmp_path / "cat" / f"{i}.png")
        save(tmp_path / "dog" / f"{i}.png")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    data = opened(own(tmp_path))
    assert (len(data.train), len(data.test)) == (8, 4)


@pytest.mark.parametrize(
    "names", [("train/a", "test/b"), ("train-0", "validation-0"), ("test-0",), ("x", "y"), ("train-0", "x")]
)
def test_splits_of_parquet_files(tmp_path, names):
    import datasets

    for k, name in enumerate(names):
        rows = {"image": [{"bytes": png(i + 10 * k), "path": None} for i in range(10)], "label": [i % 2 for i in range(10)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        (tmp_path / name).parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    if names == ("train-0", "x"):
        with pytest.raises(DataError, match=r"x\.parquet: neither its name nor its folder"):
            opened(own(tmp_path, "huggingface"))
        return
    data = opened(own(tmp_path, "huggingface"))
    sizes = {("test-0",): (8, 2), ("x", "y"): (16, 4)}.get(names, (10, 10))
    assert (len(data.train), len(data.test)) == sizes
    train, test = (set(part.pixels[:, 0, 0, 0].tolist()) for part in (data.train, data.test))
    assert not train & test


def test_a_bad_file_in_a_worker_is_reported_in_one_line(tmp_path):
    from hybvit.data.loader import batches_of_steps

    for i in range(10):
        save(tmp_path / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "a" / "4.png").write_bytes(b"rubbish")
    cfg = override(own(tmp_path, memory_gib=0.0), train={"batch_size": 8})
    batches = batches_of(opened(cfg), cfg)
    with pytest.raises(DataError) as caught:
        list(batches_of_steps(batches, 0, 8, 2))
    assert str(caught.value).startswith(str(tmp_path / "a" / "4.png"))
    assert "Traceback" not in str(caught.value)


def test_a_relative_data_option_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    save(tmp_path / "photos" / "a" / "0.png")
    monkeypatch.chdir(tmp_path)
    assert locate(preset("digits").data, "photos").root == str(tmp_path / "photos")


def pictures(colors: range, more: int = 0) -> list[dict]:
    found = []
    for color in colors:
        content = io.BytesIO()
        Image.new("RGB", (8 + more, 8), (color, 0, 0)).save(content, "PNG")
        found.append({"bytes": content.getvalue(), "path": None})
    return found


def columns_of(path: Path, **columns) -> Path:
    import datasets

    classes = {"c": datasets.ClassLabel(names=["no", "yes"]), "i": datasets.Image(), "n": datasets.Value("int64")}
    kinds = {name: classes[name[0]] for name in columns}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    table.rename_columns({name: name[2:] for name in columns}).to_parquet(str(path))
    return path


NUMBERS = [0, 1] * 4


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        ({"i_image": range(8), "c_domain": NUMBERS[::-1], "c_label": NUMBERS}, range(8)),
        ({"i_mask": range(50, 58), "i_image": range(8), "c_label": NUMBERS}, range(8)),
        ({"i_mask": range(50, 58), "i_Image": range(8), "c_domain": NUMBERS[::-1], "c_Category": NUMBERS}, range(8)),
        ({"i_picture": range(8), "c_fine": NUMBERS}, range(8)),
        ({"i_image": range(8), "c_domain": NUMBERS[::-1], "n_label": NUMBERS}, range(8)),
    ],
)
def test_a_column_that_is_named_so_is_the_image_or_the_label(tmp_path, columns, read):
    cells = {name: pictures(cells) if name[0] == "i" else cells for name, cells in columns.items()}
    data = opened(own(columns_of(tmp_path / "a.parquet", **cells), "huggingface", split="every_fifth"))
    red = torch.cat([data.train.pixels, data.test.pixels])[:, 0, 0, 0]
    labels = torch.cat([data.train.labels, data.test.labels])
    assert sorted(red.tolist()) == list(read)
    assert (red % 2).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"i_mask": 8, "i_photo": 8, "c_label": NUMBERS},
            "several columns of images, mask, photo: name the one that is meant image",
        ),
        ({"i_image": 8, "c_fine": NUMBERS, "c_coarse": NUMBERS}, "several columns of classes, fine, coarse: .* label"),
    ],
)
def test_columns_that_nothing_tells_apart_are_refused(tmp_path, columns, message):
    cells = {name: pictures(range(8)) if name[0] == "i" else cells for name, cells in columns.items()}
    with pytest.raises(DataError, match=message):
        opened(own(columns_of(tmp_path / "a.parquet", **cells), "huggingface"))


def test_a_row_of_another_table_is_another_image(tmp_path):
    """Stored images are known by their contents: their rows, and often their sizes, are those of other images too."""
    from hybvit.data.trained_on import recognize

    first, other, part = (
        columns_of(tmp_path / f"{name}.parquet", i_image=pictures(colors), c_label=NUMBERS[: len(colors)])
        for name, colors in (("first", range(8)), ("other", range(100, 108)), ("part", range(6, 2, -1)))
    )
    kept = opened(own(first, "huggingface", split="hash")).trained_on
    assert 0 < len(kept) < 8
    assert not any(recognize(kept, *listed_in(other)))
    reds = {i for i, known in zip(range(6, 2, -1), recognize(kept, *listed_in(part)), strict=True) if known}
    assert reds == set(opened(own(first, "huggingface", split="hash")).train.pixels[:, 0, 0, 0].tolist()) & set(range(3, 7))


def listed_in(path: Path) -> tuple[list, None]:
    import datasets

    from hybvit.data.huggingface import load_huggingface, stored_images

    raw = load_huggingface(str(path))["train"].cast_column("image", datasets.Image(decode=False))
    return stored_images(raw, "image"), None


@pytest.mark.parametrize("form", ["folder", "csv", "parquet", "shards"])
def test_copies_under_other_names_are_said_in_every_form(tmp_path, capsys, form):
    from .test_shards import config, write_shards

    for i in range(24):
        k = i - 12 if 12 <= i < 16 else i
        save(tmp_path / f"{i}.png", (9 * k, 5 * k, 0), size=(12 + k % 5, 9))
    rows = [{"path": f"{i}.png", "label": "ab"[i % 2], "split": "train" if i < 12 else "test"} for i in range(24)]
    if form == "csv":
        cfg = own(table(tmp_path, "csv", rows), "manifest")
    elif form == "folder":
        for row in rows:
            place = tmp_path / "d" / row["split"] / row["label"]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / row["path"], place)
        cfg = own(tmp_path / "d")
    elif form == "parquet":
        for split, colors in (("train", range(12)), ("test", [*range(4), *range(50, 58)])):
            columns_of(tmp_path / f"{split}.parquet", i_image=pictures(colors), c_label=NUMBERS + NUMBERS[:4])
        cfg = own(tmp_path, "huggingface")
    else:
        write_shards(tmp_path, [12])
        write_shards(tmp_path, [4], prefix="test")  # the first four
        cfg = config(tmp_path)
    opened(cfg)
    said = capsys.readouterr().err
    assert "warning: " in said
    assert " of 4 " if form == "shards" else "4 of " in said
    assert "that were compared are copies of training images" in said


RECYCLED = [
    "$RECYCLE.BIN/S-1-5-21",
    "#recycle",
    "@Recycle",
    "lost+found",
    "System Volume Information",
    "$Recycle.Bin",
    "@eaDir",
]


@pytest.mark.parametrize("name", RECYCLED)
@pytest.mark.parametrize("packed", [False, True])
def test_what_systems_leave_behind_is_no_class(tmp_path, name, packed):
    members = {f"{kind}/{i}.jpg": official.jpeg(i) for kind in ("cat", "dog", name) for i in range(5)}
    root = official.zip_file(tmp_path / "a.zip", members) if packed else official.unpacked(tmp_path / "a", members)
    assert opened(own(root)).classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["recycle", "#1", "$5", "@home", "lost", "found", "trash"])
def test_classes_with_such_names_stay(tmp_path, name):
    members = {f"{kind}/{i}.jpg": official.jpeg(i) for kind in ("cat", name) for i in range(5)}
    assert set(opened(own(official.unpacked(tmp_path / "a", members))).classes) == {"cat", name}
