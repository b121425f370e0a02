"""Cells of manifests and columns: what is missing, what is text, in which order classes are numbered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybvit.config import override
from hybvit.data.cells import checked_classes, natural_order, read_table, says_split, text_of
from hybvit.data.image_set import reorder_classes
from hybvit.errors import DataError

from .conftest import opened
from .test_own_images import own, png, save


def photos(folder: Path, n: int = 12) -> list[str]:
    for i in range(n):
        save(folder / f"{i}.png", (10 * i, 0, 0))
    return [f"{i}.png" for i in range(n)]


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", "None", "NaN", "nan", "null", "NULL", " <NA> ", "N/A"])
def test_missing_is_missing(value):
    assert text_of(value) is None


@pytest.mark.parametrize(
    ("value", "text"), [(" cat\t", "cat"), (3, "3"), (2.0, "2.0"), ("Nancy", "Nancy"), ("a\u00a0b", "a\u00a0b")]
)
def test_cells_are_stripped(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("value", [["a"], {"a": 1}, "a\nb", "a\0b", "\ud800", "a\u2028b"])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(ValueError, match=r"neither text|holds a line break"):
        text_of(value)


@pytest.mark.parametrize(
    "order",
    [
        ("2", "10"), ("2.0", "10.0"), ("-2", "-1", "0.25", "0.5"), ("img2", "img10"), ("a1", "a02", "b"), ("1", "9" * 5000),
        ("Zebra", "ant", "bee"), ("1 cat", "2 dog", "11 emu"),
    ],
)  # fmt: skip
def test_one_natural_order(order):
    assert natural_order(reversed(order)) == order


@pytest.mark.parametrize(
    "same", [("1", "1.0"), ("07", "7"), ("-2", "-2.00"), ("+3", "3", "4"), ("1", "1e0"), (".5", "0.5"), ("1.", "1")]
)
def test_one_number_is_one_class(same):
    with pytest.raises(DataError, match=r"m\.csv: the labels .* are the same number: write them alike"):
        checked_classes(same, "m.csv")
    assert checked_classes(["1", "1.5", "a1", "a01"], "m.csv")


@pytest.mark.parametrize("same", [("1", "\uff11"), ("cat", "ca\u200bt"), ("\u00adcat", "cat"), ("\uff43at", "cat")])
def test_what_looks_the_same_is_one_class(same):
    with pytest.raises(DataError, match=r"m\.csv: the labels .* look the same: merge them"):
        checked_classes(same, "m.csv")
    assert checked_classes(["A", "a", "\u00e9", "e"], "m.csv")


def test_json_as_json_means_it(tmp_path):
    photos(tmp_path, 2)
    for row, message in (
        ('{"path": "0.png", "label": "cat", "label": "x"}', "two columns named label"),
        ('{"path": "0.png", "label": 1e400}', "neither text nor a number"),
        ('[["path", "0.png"]]', "not a JSON object"),
        ('{"path": "http://x/0.png", "label": 1}', "is an address: download"),
    ):
        (tmp_path / "m.jsonl").write_text(row)
        with pytest.raises(DataError, match=f"line 1.*{message}"):
            opened(own(tmp_path / "m.jsonl", "manifest"))
    assert (text_of(True), text_of(False)) == ("true", "false")


def test_a_long_cell_that_is_not_read_is_no_damage(tmp_path):
    names = photos(tmp_path)
    (tmp_path / "m.csv").write_text("\n".join(["path,label,caption", *(f"{name},a,{'x' * 200_000}" for name in names)]))
    assert opened(own(tmp_path / "m.csv", "manifest")).classes == ("a",)


@pytest.mark.parametrize("name", ["is_test", "Usage", "fold", "subset", "train", "is_val", "Image Set", "data_split"])
def test_a_column_that_may_say_the_split(name):
    assert says_split(name)


@pytest.mark.parametrize("name", ["training_notes", "is_animal", "moon_phase", "dataset", "image", "is", "caption"])
def test_a_column_that_does_not(name):
    assert not says_split(name)


def test_columns_that_are_not_read_are_said(tmp_path, capsys):
    names = photos(tmp_path)
    save(tmp_path / "shared.png")
    table = tmp_path / "m.csv"
    table.write_text(
        "\n".join(["File_Name,category,Usage,caption", *(f"{name},{i % 2},Training,x" for i, name in enumerate(names))])
    )
    assert opened(own(table, "manifest")).classes == ("0", "1")
    said = capsys.readouterr().err
    assert "the column 'usage' is not read" in said
    assert "caption" not in said
    table.write_text(
        "\n".join(["path,species,split", *(f"{name},a,{'test' if i < 3 else 'train'}" for i, name in enumerate(names))])
    )
    opened(own(table, "manifest", kind="genvit"))
    said = capsys.readouterr().err
    assert "the images have no labels" in said
    assert "species" in said
    assert "is not read" not in said


def test_a_row_listed_twice_counts_once(tmp_path, capsys):
    names = photos(tmp_path, 10)
    table = tmp_path / "m.csv"
    table.write_text("\n".join(["path,label", *(f"{name},a" for name in names), "3.png,a", "./4.png,a"]))
    data = opened(own(table, "manifest"))
    assert len(data.train) + len(data.test) == 10
    said = capsys.readouterr().err
    assert "line 12: 3.png is listed in line 5 too (and 1 more such lines): it counts once" in said


@pytest.mark.parametrize("form", ["folder", "csv", "jsonl"])
def test_folders_and_manifests_have_the_same_order(tmp_path, form):
    names = ["1", "2", "10", "11"]
    for name in names:
        photos(tmp_path / name, 3)
    rows = [(f"{name}/{i}.png", name) for i in range(3) for name in names]
    (tmp_path / "m.csv").write_text("\n".join(["Path , LABEL", *(f"{a}, {b} " for a, b in rows)]))
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"File": a, "Class": int(b)}) for a, b in rows))
    cfg = own(tmp_path) if form == "folder" else own(tmp_path / f"m.{form}", "manifest")
    data = opened(cfg)
    assert data.classes == tuple(names)
    old = ("1", "10", "11", "2")  # as 0.1.0 sorted them
    again = opened(override(cfg, data={"classes": old}))
    assert again.classes == old
    assert [old[k] for k in again.test.labels] == [names[k] for k in data.test.labels]
    assert reorder_classes(data, ("1", "2", "3", "4")) is data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path;label\n0.png;a\n", "its columns are separated by semicolons: save it with commas"),
        ("path\tlabel\n0.png\ta\n", "separated by tabs"),
        ("id|image|label\n1|0.png|a\n", "separated by bars"),
        ('path,label\n0.png,a\n1.png,"b\n2.png,a\n', "line 3: damaged .*is a quote not closed"),
        ('path,label\n0.png,a\n1.png,"b\n2.png,"\n3.png,a\n', "line 3: label: .*a quote that is not closed"),
        ("path,label\n0.png," + "x" * 2_000_000, "line 2: damaged .*field larger than field limit"),
        ("path,label\n0.png,a\n1.p\0ng,b\n", "line 3: a NUL byte"),
        ("path,label\na,0.png,b\n", "line 2: 3 cells, but 2 columns"),
        ("path,label,Label\n0.png,a,b\n", "line 2: two columns named label"),
        ("path,label\n0.png,a\n1.png,None\n", "line 3: has no label, but earlier lines have one"),
        ("name,label\n0.png,a\n", "its header has no column named path"),
        ("", "lists no images"),
    ],
)
def test_damaged_tables_are_refused_with_line_and_cure(tmp_path, text, message):
    photos(tmp_path, 4)
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(own(tmp_path / "m.csv", "manifest"))


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbfPATH,Label\r\n0.png,cat \r\n1.png, dog\r\n\r\n",
        b'path,label,caption\n0.png,cat,"two\nlines, one comma"\n1.png,"dog", x\n',
        b"path,label,\n0.png,cat,\n1.png,dog,\n",
    ],
)
def test_tables_as_other_programs_write_them(tmp_path, raw):
    (tmp_path / "m.csv").write_bytes(raw)
    assert [row for _, row in read_table(tmp_path / "m.csv").rows] == [
        {"path": "0.png", "label": "cat"},
        {"path": "1.png", "label": "dog"},
    ]


def test_lines_of_json_may_hold_other_separators(tmp_path):
    rows = [{"path": name, "label": "ab"[i % 2], "caption": "a\u2028b\x85c"} for i, name in enumerate(photos(tmp_path))]
    (tmp_path / "m.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert opened(own(tmp_path / "m.jsonl", "manifest")).classes == ("a", "b")
    (tmp_path / "m.jsonl").write_text('{"path": ' + "[" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="line 1: not JSON"):
        opened(own(tmp_path / "m.jsonl", "manifest"))


@pytest.mark.parametrize("labels", [[0, None, 1], ["a", None, "b"], ["a", "nan", "b"], [0.0, float("nan"), 1.0]])
def test_missing_labels_of_parquet_files_are_named(tmp_path, labels):
    import datasets

    rows = {"image": [{"bytes": png(i), "path": None} for i in range(12)], "label": labels * 4}
    value = "string" if isinstance(labels[0], str) else "int64" if isinstance(labels[0], int) else "float64"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(value)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="image 1: has no label: leave out"):
        opened(own(tmp_path, "huggingface"))


def test_a_class_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    photos(tmp_path / "a")
    photos(tmp_path / "caf\udce9")
    with pytest.raises(DataError, match=r"'caf\\udce9' is not one line of UTF-8 text: rename it"):
        opened(own(tmp_path))


def test_labels_that_look_the_same_are_the_same(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png")
    same = ("caf\u00e9", "cafe\u0301", "\u200bcaf\u00e9", "caf\u00e9\ufeff")
    rows = [f"{i}.png,{same[i] if i < 4 else 'tea'}" for i in range(6)]
    (tmp_path / "images.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert opened(own(tmp_path / "images.csv", "manifest")).classes == ("caf\u00e9", "tea")
    for name in (*same[:2], "tea"):
        save(tmp_path / "folder" / name / "0.png")
        save(tmp_path / "folder" / name / "1.png")
    with pytest.raises(DataError, match="look the same"):
        opened(own(tmp_path / "folder"))


@pytest.mark.parametrize("alike", [("Cat", "cat"), ("STRASSE", "stra\u00dfe"), ("dog 1", "Dog 1")])
def test_classes_that_differ_in_case_are_said(alike, capsys):
    assert set(checked_classes(alike, "m.csv")) == set(alike)
    assert "are two classes, though only their case differs" in capsys.readouterr().err


def test_single_letters_may_differ_in_case(capsys):
    assert checked_classes(["a", "A", "b", "bird"], "m.csv")
    assert capsys.readouterr().err == ""
