"""The code of README.md and docs/ runs, their commands parse, quoted messages exist, and the site has every page."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import hybvit
from hybvit import cli
from hybvit.cli.arguments import ArgumentParser
from hybvit.config import Config, parse, value_of
from hybvit.presets import PRESETS, preset

from .test_docs import ROOT, script

DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))]
TUTORIALS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.md"))
tutorials = script("docs/tutorials.py")

SHORT = {  # what would take the most seconds, and what a test takes
    "own_folder": [("--train.steps 1000", "--train.steps 4")],
    "few_labels": [("--train.steps 1500", "--train.steps 4")],
}

# A page with code that is no tutorial: what it takes as given, and what is replaced so that it takes seconds.
GIVEN = {
    "docs/index.md": ("", [("steps=20", "steps=2")]),
    "docs/certified.md": ("pixels = hybvit.load('fashion-mnist').sample(1, steps=1)", [("votes=1000", "votes=10")]),
    "docs/corruptions.md": (
        "pixels = hybvit.load('digits').sample(2, steps=1)",
        [
            ('evaluate("fashion-mnist", suites="corruptions")', 'evaluate("digits", suites="corruptions", options=options)'),
        ],
    ),
    "docs/doubt.md": (
        "images = hybvit.load('digits').sample(200, steps=2)\npixels, x = images, images[:4]\n"
        "labels = hybvit.load('digits').predict(images).labels",
        [('"runs/photos"', '"digits"'), ("abstain_above=0.01", "abstain_above=0.9")],
    ),
    "docs/editing.md": (
        "import torch\nimages = hybvit.load('fashion-mnist').sample(2, labels=[7, 7], steps=2)\nfirst, second = images\n"
        "first, second = first[None], second[None]\nmask = torch.ones(28, 28, dtype=torch.bool)",
        [
            ("images, mask)", "images, mask, steps=1, repeats=1)"), ("strength=0.6", "strength=0.6, steps=2"),
            ("frames=9", "frames=2, steps=2"), ("sample(64", "sample(2, steps=2"),
            ('images, "Ankle boot")', 'images[:1], "Ankle boot", 0.5)'),
        ],
    ),
    "docs/evaluation.md": ("", []),
    "docs/ood.md": ("", [("limit=60", "limit=20"), ("bound_images=4", "bound_images=2")]),
    "docs/serve.md": ("", []),
    "docs/sklearn.md": ("", [("max_iter=200", "max_iter=2"), ("max_iter=20,", "max_iter=1,")]),
    "docs/readings.md": ("", [("sample(4, labels=9)", "sample(2, labels=9, steps=1)")]),
}  # fmt: skip
ELSEWHERE = {  # page -> the test that runs its code
    "README.md": "test_docs.py",
    "docs/timm.md": "test_timm.py",
    "docs/diffusers.md": "test_timm.py",
    "docs/export.md": "test_export.py",  # its export_graphs of both bundled models: exporting takes seconds
}
OPTIONS = (
    "options = hybvit.EvaluationOptions(limit=8, corruption_images=8, bound_images=2, bound_draws=2, corruptions=('fog',))"
)


NOT_OURS = {"docs/paper.md", "docs/log.md"}  # the published code's options, and those that were removed
OF_OTHERS = {"--gpus", "--build-arg", "--user", "--shm-size", "--input-img-mode"}  # of Docker, and of timm's training script


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page: str) -> list[str]:
    return [cell.source for cell in tutorials.cells(text_of(page)) if cell.language == "python"]


def replaced(source: str, pairs: list[tuple[str, str]]) -> str:
    for words, instead in pairs:
        assert words in source, f"{words!r} is gone from the page: replace something else"
        source = source.replace(words, instead)
    return source


def test_every_page_with_code_is_run():
    with_code = {page for page in PAGES if python_of(page) and "/tutorials/" not in page}
    assert with_code == {*GIVEN, *ELSEWHERE}
    for page, test in ELSEWHERE.items():
        assert Path(page).stem in (ROOT / "tests" / test).read_text(encoding="utf-8"), f"{test} does not run {page}"


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("page", GIVEN)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, pairs = GIVEN[page]
    names: dict[str, Any] = {}
    exec(f"import hybvit\n{OPTIONS}\n{given}", names)
    exec(replaced("\n".join(python_of(page)), pairs), names)


def masked(text: str) -> list[str]:
    """An output without its numbers, which the machine may change, and without its spaces."""
    return [re.sub(r"[\d.,%\[\] -]+", " ", line).strip() for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs_and_prints_what_its_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = text_of(f"docs/tutorials/{name}.md")
    book = DOCS / "notebooks" / f"{name}.ipynb"
    found = tutorials.cells_of_notebook(json.loads(book.read_text())) if book.exists() else tutorials.cells(page)
    pairs = SHORT.get(name, [])
    for words, instead in pairs:
        assert words in page
        found = [cell._replace(source=cell.source.replace(words, instead)) for cell in found]
    outputs = list(tutorials.run(found))
    if not pairs:
        assert [masked(output) for output in outputs] == [masked(output) for output in tutorials.outputs_in(page)]
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert Path(picture).is_file()
        assert (DOCS / "tutorials" / picture).is_file()


@pytest.mark.parametrize("name", tutorials.AS_NOTEBOOKS)
def test_a_notebook_is_its_tutorial(name):
    page, path = text_of(f"docs/tutorials/{name}.md"), DOCS / "notebooks" / f"{name}.ipynb"
    book = tutorials.notebook(page)
    assert path.read_text(encoding="utf-8") == tutorials.as_json(book), "run `python docs/tutorials.py --notebooks`"
    assert tutorials.cells_of_notebook(book) == tutorials.cells(page)
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", "".join("".join(cell["source"]) for cell in book["cells"])):
        assert (path.parent / link).exists(), link


def test_outputs_replace_those_that_stood_there():
    old, kept = "\n```text\nold\n```\n", "\n```text\nkept\n```\n"
    page = f"a\n\n```python\nprint(1)\n```\n{old}\nb\n\n```bash\nhybvit x\n```\n{old}{kept}"
    made = tutorials.with_outputs(page, ["1\n", ""])
    assert tutorials.outputs_in(made)[0] == "1\n"
    assert "old" not in made
    assert made.endswith("```bash\nhybvit x\n```\n\n```text\nkept\n```\n")
    assert tutorials.with_outputs(made.replace("\n```text\nkept\n```\n", ""), ["1\n", ""]) == made.replace(
        "\n```text\nkept\n```\n", ""
    )
    assert tutorials.shortened("\n".join(map(str, range(30)))).splitlines()[8] == "... (19 more lines)"


class Parsed(Exception):
    """A command line was accepted."""


@contextlib.contextmanager
def parsing_only() -> Iterator[None]:
    """Let a command end once its arguments are parsed, with them and the fields that remain."""
    known = ArgumentParser.parse_known_args

    def parse_known(self: ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        found, fields = known(self, *args, **kwargs)
        raise Parsed(self, found, fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, "parse_known_args", parse_known)
        yield


def parsed(words: list[str]) -> tuple[Any, list[str]]:
    """The arguments of a command and the fields of the configuration; ConfigError if it would be refused."""
    command = importlib.import_module(f"hybvit.cli.{words[0].replace('-', '_')}")
    with parsing_only(), pytest.raises(Parsed) as caught:
        command.main(words[1:])
    _, found, fields = caught.value.args
    return found, fields


AT = ("hybvit", "hybvit.cli")  # what a command follows


def commands_of(page: str) -> list[list[str]]:
    """The words of every hybvit command in the code blocks of a page, fenced or indented."""
    text = text_of(page)
    fenced = [cell.source for cell in tutorials.cells(text) if cell.language == "bash"]
    indented = re.findall(r"^ {4}(\S.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    found = tutorials.commands("\n".join([*fenced, *(line for line in indented if "hybvit " in line)]))
    words = [
        line[line.index(at) + 1 :] for line in found if line[0] != "docker" or "run" in line for at in AT if at in line[:-1]
    ]
    to_shell = [next((i for i, word in enumerate(line) if word in (">", "|", "&&")), len(line)) for line in words]
    return [[word for word in line[:end] if word != "..."] for line, end in zip(words, to_shell, strict=True)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page) and page not in NOT_OURS])
def test_the_commands_of_a_page_parse(page):
    for words in commands_of(page):
        assert words[0] in cli.COMMANDS, words
        found, fields = parsed(words)
        if fields:
            assert words[0] in ("train", "show", "bench", "reproduce", "show-data"), words
            parse(fields, preset(getattr(found, "preset", None) or "digits"))


def options_of(command: str) -> set[str]:
    module = importlib.import_module(f"hybvit.cli.{command.replace('-', '_')}")
    with parsing_only(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, "error", lambda self, message: (_ for _ in ()).throw(Parsed(self, None, [])))
        with pytest.raises(Parsed) as caught:
            module.main([])
    return set(caught.value.args[0]._option_string_actions)


def test_options_in_the_text_exist():
    """``--option`` and `hybvit COMMAND --option` in prose: of that command, of any, or a field of the configuration."""
    known = {command: options_of(command) for command in cli.COMMANDS}
    anywhere = set().union(*known.values()) | {"--debug", "--quiet", "--version"} | OF_OTHERS
    for page in set(PAGES) - NOT_OURS:
        for span in re.findall(r"`((?:hybvit|--[a-z])[^`\n]*)`", text_of(page)):
            words = span.split()
            command = words[1] if words[0] == "hybvit" and words[1:2] and words[1] in known else None
            for option in (word.split("=")[0] for word in words if word.startswith("--")):
                if "." in option and option not in anywhere:
                    value_of(Config(), option[2:])
                else:
                    assert option in ((known[command] | {"--debug", "--quiet"}) if command else anywhere), (page, span)


def templates() -> Iterator[str]:
    """Every text of the source, with "..." for what is filled in."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_of_the_trouble_page_are_those_of_the_program():
    messages = re.findall(r"^```text\n(.*?)\n```$", text_of("docs/trouble.md"), re.MULTILINE | re.DOTALL)
    known = {re.sub(r"(\.\.\.)+", "...", text) for text in templates()}
    assert len(messages) > 12
    for message in messages:
        shown = message.removeprefix("...: ")
        as_patterns = (re.escape(text).replace(re.escape("..."), ".+") for text in known if len(text.replace("...", "")) > 20)
        assert any(shown in text for text in known) or any(re.search(p, message) for p in as_patterns), message


def pages_in(navigation: Any) -> Iterator[str]:
    for entry in navigation:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [value] if isinstance(value, str) else pages_in(value)


def test_every_page_is_in_the_navigation():
    site = script("docs/build_site.py")
    listed = list(pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    beside = {"browser/index.html", *(f"models/{path.parent.name}.md" for path in site.CARDS.glob("*/README.md"))}
    assert len(listed) == len(set(listed))
    assert set(listed) == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} | beside


def slug(heading: str) -> str:
    """The anchor of a heading, as Markdown makes it."""
    text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@pytest.mark.parametrize("page", PAGES)
def test_linked_places_exist(page):
    without_code = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", without_code):
        if target.startswith("http"):
            continue
        place = (ROOT / page).parent / target if target else ROOT / page
        headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in map(slug, headings), f"{target}#{anchor}"


def test_the_api_page_has_every_public_name():
    page = text_of("docs/api.md")
    shown = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    objects = [getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in shown]
    for name in set(hybvit.__all__) - {"__version__", "PRESETS"}:
        assert any(getattr(hybvit, name) is found for found in objects), name
    assert "`PRESETS`" in page
    assert PRESETS


def test_links_that_lead_out_of_the_docs_are_mended():
    site = script("docs/build_site.py")
    card, stays = "src/hybvit/assets/models/digits/README.md", "[b](data.md#speed) [d](https://x.y) ![e](a.svg)"
    text = f"[a](../src/hybvit/networks.py) [c](../{card}) {stays}"
    assert site.mended(text, Path("paper.md")) == f"a [c](models/digits.md) {stays}"
    assert site.mended(f"[c](../../{card})", Path("tutorials/x.md")) == "[c](../models/digits.md)"
    assert site.mended("[x](draw_imports.py)", Path("architecture.md")) == "x"
    assert site.plain("As :meth:`~a.B.predict`.\n\n    ::\n\n        x\n") == "As `a.B.predict`.\n\n\n        x\n"
    assert site.card("---\na: 1\n---\n\n# digits\n![](samples.png)", "digits") == "\n# digits\n![](digits.png)"


def test_the_check_of_the_site_finds_dead_links_and_other_hosts(tmp_path):
    site = script("docs/build_site.py")
    (tmp_path / "a").mkdir()
    (tmp_path / "index.html").write_text('<a href="a/#there">x</a><a href="https://ok.example">y</a><h1 id="top">z</h1>')
    (tmp_path / "a" / "index.html").write_text('<h1 id="there">z</h1><a href="..#top">x</a>')
    assert list(site.faults(tmp_path)) == []
    (tmp_path / "a" / "index.html").write_text('<img src="gone.png"><script src="https://cdn.example/x.js"></script>')
    (tmp_path / "x.css").write_text("a { background: url(https://cdn.example/font) }")
    assert sorted(site.faults(tmp_path)) == [
        "a/index.html: gone.png does not exist",
        "a/index.html: requests https://cdn.example/x.js",
        "index.html: a/#there: no such place on that page",
        "x.css: requests https://cdn.example/font",
    ]


def test_the_compared_programs_are_those_that_ran():
    made, record = script("benchmarks/compare/run.py"), json.loads((ROOT / "results" / "compare.json").read_text())
    programs = {path.name: path for path in made.programs()}
    assert record["programs"].keys() == programs.keys()
    for name, found in record["programs"].items():
        assert found["sha256"] == hashlib.sha256(programs[name].read_bytes()).hexdigest(), name
        assert found["lines"] == made.lines_of_code(programs[name])
