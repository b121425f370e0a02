"""The published results are the paper's own: every number of its tables, and none besides."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from hybvit.errors import DataError
from hybvit.reproduce import published

PAPER = Path(__file__).resolve().parent.parent.parent / "shared" / "paper" / "paper.txt"
TABLES = [f"table{n}" for n in range(1, 14)]
IN_THE_TEXT = [name for name in TABLES if name != "table4"]  # in the order of the text, which lost one
COLUMN = re.compile(
    r"accuracy|inception_score|fid|auroc_(svhn|interpolation|cifar100|celeba)|bits_per_dim|parameters_millions"
    r"|minutes_per_epoch|hours|runtime|value|augmentation|pgd_linf_(1|2|4|8|12|16|22|30)|pgd_l2_[1-4]?[05]0"
)
NUMBER = re.compile(r"\d*\.?\d+")
GROUPS_WITHOUT_A_HEADING = {  # the text of these has none, or lost it: index of the first row -> group
    "table1": {0: "ViT-based Models"},
    "table8": {9: "Other Models"},
    "table11": {0: "density", 8: "max_probability"},
    "table12": {0: "L-inf", 4: "L2"},
}
VENUES = {
    "NeurIPS": "Neural Information Processing",
    "ICLR": "Learning Representations",
    "ICML": "on Machine Learning",
    "ICCV": "on Computer Vision",
    "CVPR": "computer vision and pattern recognition",
}

needs_the_paper = pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not beside the repository")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def printed_tables() -> dict[str, list[list[str]]]:
    """Table -> its lines in cells, the heading first; an equation has bars too, but no rule under its first line."""
    found: list[list[list[str]]] = []
    lines = PAPER.read_text(encoding="utf-8").splitlines()
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if after.startswith("|---"):
            found.append([cells(line)])
        elif line.startswith("|") and not line.startswith("|---") and before.startswith("|") and not line.startswith("| ("):
            found[-1].append(cells(line))
    return dict(zip(IN_THE_TEXT, found, strict=True))


def printed_rows(table: str) -> list[tuple[str, str, dict[str, str]]]:
    """(group, label, column id -> cell) of a table of the text; digits as they are printed."""
    heading, *lines = printed_tables()[table]
    columns = list(published.tables()[table].columns)
    rows: list[tuple[str, str, dict[str, str]]] = []
    group = label = ""
    for line in lines:
        if line == heading:  # the second half of Table 12 has its heading again
            continue
        if not any(line[1:]) and line[0] != "Loss Type":  # a heading over the rows below; the value of that row was lost
            group = line[0]
            continue
        if line[0] in ("Strong", "Weak"):  # the label spans two rows
            line = [label, *line]
        label, *values = line
        group = GROUPS_WITHOUT_A_HEADING.get(table, {}).get(len(rows), group)
        ids = columns
        if table == "table12":
            ids = ["accuracy", *(id for id in columns if id.startswith("pgd_linf" if group == "L-inf" else "pgd_l2"))]
        pairs = [(id, cell) for id, cell in zip(ids, values, strict=False) if cell not in ("", "-")]
        assert not any(values[len(ids) :])
        if "runtime" in columns:  # words stand in whichever column of numbers comes next
            pairs = [("runtime" if re.search("GPU|TPU|day", cell) else id, cell) for id, cell in pairs]
        rows.append((group, label, dict(pairs)))
    return rows


def as_printed(value: str) -> str:
    """Digits without what one table prints and another does not: .93 and 0.93, 12.9M and 12.9."""
    return re.sub(r"^\.", "0.", re.sub(r"(?<=\d)M$", "", value))


def exact() -> dict:
    """The asset with its numbers as strings, so that 8.30 is not 8.3."""
    return json.loads(published.FILE.read_text(encoding="utf-8"), parse_float=str, parse_int=str)


@needs_the_paper
def test_the_text_has_the_tables_that_the_parser_takes_them_for():
    marks = {
        "table1": "StyleGAN2-ADA", "table2": "BigGAN", "table3": "WRN*", "table5": "ViT (epoch=100)", "table6": "HybViT(=1)",
        "table7": "HybViT(ps=12)", "table8": "VAEBM*", "table9": "Warmup Epochs", "table10": "Weak", "table11": "ImCD [16]",
        "table12": "- Weak Aug", "table13": "KL-EBM",
    }  # fmt: skip
    found = printed_tables()
    for table, mark in marks.items():
        assert mark in [line[0] for line in found[table]], table
    assert not re.search(r"bits.*\|", PAPER.read_text(encoding="utf-8")), "Table 4 is there after all"


@needs_the_paper
@pytest.mark.parametrize("table", IN_THE_TEXT)
def test_every_row_is_the_papers(table):
    rows = exact()["tables"][table]["rows"]
    ours = [(row["group"], row.get("printed", row["model"]), row["values"]) for row in rows]
    papers = [(group, label, {id: as_printed(cell) for id, cell in row.items()}) for group, label, row in printed_rows(table)]
    assert ours == papers


@needs_the_paper
def test_no_number_of_the_papers_tables_is_missing_and_none_is_added():
    """The same without the parser's understanding of rows and columns."""
    lines = [line for line in PAPER.read_text(encoding="utf-8").splitlines() if re.match(r"\| (?!\(\d+\))", line)]
    in_the_text = Counter(float(n) for line in lines for cell in cells(line)[1:] for n in NUMBER.findall(cell))
    in_headings = Counter({10: 1, 100: 2})  # CIFAR10 Interp, CIFAR100, C100
    values = [value for table in exact()["tables"].values() for row in table["rows"] for value in row["values"].values()]
    assert Counter(float(n) for value in values for n in NUMBER.findall(value)) == in_the_text - in_headings


@needs_the_paper
@pytest.mark.parametrize("table", IN_THE_TEXT)
def test_headings_are_the_papers(table):
    printed = [heading for heading in printed_tables()[table][0][1:] if heading]
    ours = list(published.tables()[table].columns.values())
    assert len(ours) >= len(printed)
    for heading, papers in zip(ours, printed, strict=False):
        assert heading.replace(" ", "").startswith(papers.replace(" ", ""))


@needs_the_paper
def test_numbered_sources_are_in_the_papers_list():
    entries = dict(re.findall(r"^- \[(\d+)\] (.*)$", PAPER.read_text(encoding="utf-8"), re.MULTILINE))
    for table in published.tables().values():
        for row in table.rows:
            if row.source == "this paper" or row.source.endswith("as cited in the paper"):
                continue
            author, venue, year, number = re.fullmatch(r"(\w+) .*, (\w+) (\d{4}) \[(\d+)\]", row.source).groups()
            entry = entries[number]
            assert author in entry
            assert year in entry
            assert re.search(VENUES[venue], entry)
            cited = re.search(r"\[(\d+)\]", row.printed)
            assert cited is None or cited[1] == number


def test_the_tables_in_order():
    assert list(published.tables()) == TABLES
    for name, table in published.tables().items():
        assert table.name == name
        assert table.title
        assert table.data
        assert bool(table.rows) == (name != "table4")
    assert "missing" in published.tables()["table4"].note
    assert "Radii inferred" in published.tables()["table12"].note


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_a_source_and_known_columns(table):
    columns = published.tables()[table].columns
    assert all(COLUMN.fullmatch(id) and heading for id, heading in columns.items())
    keys = set()
    for row in published.tables()[table].rows:
        assert row.table == table
        assert row.model
        assert row.source
        assert (row.source == "this paper") == (table == "table9" or bool(re.match("(Gen|Hyb)?ViT", row.model)))
        assert row.values.keys() <= columns.keys()
        assert row.values or row.model == "Loss Type"
        keys.add((row.group, row.model))
    assert len(keys) == len(published.tables()[table].rows), "two rows cannot be told apart"


def test_numbers_are_in_the_units_of_their_columns():
    for row in (row for table in published.tables().values() for row in table.rows):
        for id, value in row.values.items():
            if id.startswith("auroc"):
                assert 0 < value < 1
            elif id == "accuracy" or id.startswith("pgd"):
                assert 0 <= value < 100
            elif id in ("runtime", "augmentation"):
                assert isinstance(value, str)
            elif id != "value":
                assert value > 0


def test_a_row_by_its_label():
    assert published.row("table1", "HybViT").values == {"accuracy": 95.9, "inception_score": 7.68, "fid": 26.4}
    assert published.row("table2", "HybViT", "STL10").values["fid"] == 109
    assert published.row("table11", "JEM", group="density").values["auroc_svhn"] == 0.67
    assert published.row("table6", "HybViT (alpha=10)").printed == "HybViT(=10)"
    assert published.row("table1", "GenViT").printed == "GenViT"
    with pytest.raises(TypeError):
        published.row("table1", "HybViT").values["fid"] = 0.0


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("table14", "ViT"), "no 'table14': its tables are table1 to table13"),
        (("table1", "JEM+"), "table1 has no 'JEM+': the nearest is 'JEM'"),
        (("table1", "qqq"), "the nearest is "),
        (("table2", "ViT"), "table2 has 'ViT' in several groups: name one of CIFAR100, Tiny-ImageNet, STL10, ImageNet 32x32"),
        (("table2", "ViT", "STL-10"), "no group 'STL-10': the nearest is 'STL10'"),
        (("table2", "Vit", "STL10"), "table2, STL10, has no 'Vit': the nearest is 'ViT'"),
        (("table2", "ViT", "CelebA 128"), "has no 'ViT': the nearest is 'GenViT'"),
        (("table4", "HybViT"), "table4 has no 'HybViT': it has no rows"),
    ],
)
def test_a_row_that_is_not_there_is_named_with_the_nearest(wanted, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        published.row(*wanted)


def test_later_systems_have_sources_and_figures():
    rows = published.later()
    assert {"EGC", "U-ViT-S/2", "DiffiT", "EDM U-Net"} <= {row.model for row in rows}
    assert len({(row.group, row.model) for row in rows}) == len(rows)
    for row in rows:
        assert row.table == "later"
        assert row.group
        assert row.source
        assert row.source != "this paper"
        assert {"accuracy", "fid"} & row.values.keys()
        assert row.values.keys() <= published.later_columns().keys()


def test_an_asset_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "FILE", tmp_path / "published.json")
    published._content.cache_clear()
    for text in (None, "{"):
        if text:
            published.FILE.write_text(text)
        with pytest.raises(DataError, match=r"published\.json"):
            published._content()
