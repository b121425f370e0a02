"""README.md: its figures are those of results/, its code runs, its commands exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from hybvit import cli
from hybvit.arguments import ArgumentParser
from hybvit.config import parse, preset

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def renderer():
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_rendered_from_results():
    assert renderer().render(README) == README, "run `make readme`"
    assert "-->\n<!-- end" not in README, "a block is empty"


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_six_lines_run(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1].replace("steps=20", "steps=2")
    names: dict = {}
    exec(code, names)
    assert names["labels"].shape == (16,)
    assert names["bits"].shape == (2,)
    assert names["threes"].shape == (16, 1, 8, 8)
    assert (tmp_path / "my-model" / "manifest.json").is_file()


def test_every_command_parses():
    commands = re.findall(r"^ {4}hybvit (.+)$", README, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        verb, *words = command.split()
        assert verb in cli.VERBS
        if verb == "train":
            parser = ArgumentParser()
            for option in ("--data", "--out", "--objective"):
                parser.add_argument(option)
            _, fields = parser.parse_known_args(words[1:])
            parse(fields, preset(words[0]))


@pytest.mark.parametrize("target", re.findall(r"(?:`|^ {4})make (\w+)", README, re.MULTILINE))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
