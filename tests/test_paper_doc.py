"""docs/paper.md: what it names exists, and no table or figure is forgotten."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from hybvit.catalog import CATALOG
from hybvit.config import Config, value_of
from hybvit.method import vit
from hybvit.method.diffusion import Diffusion
from hybvit.method.samplers import SAMPLERS
from hybvit.presets import PRESETS
from hybvit.reproduce.tables import FIGURES, NAMES, rows, runs_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
DATA_SETS = "|".join(sorted(CATALOG, key=len, reverse=True))


def unresolved(text: str) -> list[str]:
    """Every ``file.py: name`` whose module or attribute is not there."""
    found = []
    for file, name in re.findall(r"`([\w/]+)\.py:\s+([\w.]+)`", text):
        try:
            thing = importlib.import_module("hybvit." + file.removesuffix("/__init__").replace("/", "."))
            for part in name.split("."):
                thing = getattr(thing, part)
        except (ImportError, AttributeError):
            found.append(f"{file}.py: {name}")
    return found


def cells_of(heading: str) -> list[list[str]]:
    """The rows of the table below a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def words_of(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_every_named_function_exists():
    assert len(re.findall(r"\.py: ", PAGE)) > 60
    assert unresolved(PAGE) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("method/diffusion.py: Diffusion.q_sample", "method/diffusion.py: Diffusion.q_sampled"),
        ("metrics/likelihood.py: prior_bits", "metrics/likelihood.py: prior_nats"),
        ("method/samplers.py: ddpm", "method/sampler.py: ddpm"),
    ],
)
def test_a_wrong_name_in_the_page_is_found(right, wrong):
    assert f"`{right}`" in PAGE
    assert unresolved(PAGE.replace(f"`{right}`", f"`{wrong}`")) == [wrong] * PAGE.count(f"`{right}`")


@pytest.mark.parametrize(("owner", "name"), [(Diffusion, "q_sample"), (vit, "attend")])
def test_a_renamed_function_is_found(owner, name, monkeypatch):
    monkeypatch.setattr(owner, "renamed", getattr(owner, name), raising=False)
    monkeypatch.delattr(owner, name)
    assert any(found.endswith(name) for found in unresolved(PAGE))


def test_every_equation_has_a_row():
    numbers = [int(number) for row in cells_of("Equations") for number in row[0].split(",")]
    assert numbers == list(range(1, 25))


def test_every_table_and_figure_has_a_command():
    commanded = re.findall(r"`hybvit reproduce (\w+)`", PAGE)
    assert set(commanded) <= {*NAMES, "all"}
    listed = [word for row in cells_of("Tables and figures") for word in re.findall(r"`(?:hybvit reproduce )?(\w+)`", row[0])]
    assert listed == list(NAMES)


def test_every_command_has_the_presets_that_it_trains_or_times():
    for command, _, presets, *_ in cells_of("Tables and figures"):
        for name in re.findall(r"`(?:hybvit reproduce )?(\w+)`", command):
            timed = () if name in FIGURES else tuple(row.run for row in rows(name) if row.run)
            assert words_of(presets) == set(runs_of(name) or timed), name


def test_every_preset_sampler_and_field_exists():
    for word in re.findall(rf"`((?:{DATA_SETS}|paper)(?:_\w+|\d+)?)`", PAGE):
        assert word in {*PRESETS, *CATALOG}, word
    for word in re.findall(r"`(dd\w+|dpm\w+|heun)`", PAGE):
        assert word in SAMPLERS, word
    for name in re.findall(r"--([a-z]+\.\w+)", PAGE):
        value_of(Config(), name)


def test_links_stay_inside_and_resolve():
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        if not link.startswith("https://"):
            target = (ROOT / "docs" / link).resolve()
            assert target.exists(), link
            assert target.is_relative_to(ROOT), link
    assert not re.search(r"/shared/|/work/|/home/", PAGE)


def test_lines_are_short():
    assert [line for line in PAGE.splitlines() if len(line) > 128 and not line.startswith("|")] == []
