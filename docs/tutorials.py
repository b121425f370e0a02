"""Run the tutorials: write what their code prints below it, their pictures beside them, and three of them as notebooks.

python docs/tutorials.py [NAME ...]    # all of docs/tutorials/, or those named; --notebooks writes the notebooks alone
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "tutorials"
NOTEBOOKS = ROOT / "docs" / "notebooks"
AS_NOTEBOOKS = ("doubt", "edit", "timm_model")

FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FIRST, LAST = 8, 3  # lines that a page shows of a long output
PRINTED = re.compile(r"\n```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)  # directly below a cell


class Cell(NamedTuple):
    """A code block: of python, or of bash with a command on each line."""

    language: str
    source: str


def cells(page: str) -> list[Cell]:
    """The code blocks of a page that run, in order."""
    return [Cell(*found.groups()) for found in FENCE.finditer(page) if found[1] in ("python", "bash")]


def commands(source: str) -> list[list[str]]:
    """The words of each command of a bash block: comments left out, and lines that end in a backslash joined."""
    lines = source.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(found: list[Cell]) -> Iterator[str]:
    """Run cells in the current folder, one after the other in one namespace -> what each prints.

    Raises:
        RuntimeError: a command fails, or is not one of hybvit.
    """
    from hybvit import cli

    names: dict[str, Any] = {"__name__": "__main__"}
    for language, source in found:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if language == "python":
                exec(compile(source, "tutorial", "exec"), names)
            for words in commands(source) if language == "bash" else ():
                if words[0] != "hybvit" or cli.main(words[1:]):
                    raise RuntimeError(f"{shlex.join(words)}: failed")
        yield shortened(printed.getvalue())


def shortened(text: str) -> str:
    """A long output without its middle."""
    found = text.splitlines()
    if len(found) <= FIRST + LAST + 1:
        return text
    return "\n".join([*found[:FIRST], f"... ({len(found) - FIRST - LAST} more lines)", *found[-LAST:]]) + "\n"


def with_outputs(page: str, outputs: list[str]) -> str:
    """The page with what its cells print, in place of what stood there."""
    parts, end, rest = [], 0, iter(outputs)
    for found in FENCE.finditer(page):
        if found[1] not in ("python", "bash"):
            continue
        parts.append(page[end : found.end()])
        before = PRINTED.match(page, found.end())
        end = before.end() if before else found.end()
        printed = next(rest)
        parts.append(f"\n```text\n{printed.rstrip()}\n```\n" if printed.strip() else "")
    return "".join(parts) + page[end:]


def outputs_in(page: str) -> list[str]:
    """What a page says its cells print; empty for a cell without output."""
    after = (PRINTED.match(page, cell.end()) for cell in FENCE.finditer(page) if cell[1] in ("python", "bash"))
    return [found[1] if found else "" for found in after]


def notebook(page: str) -> dict[str, Any]:
    """The page as a Jupyter notebook (nbformat 4.5): text, code and outputs. Commands get an exclamation mark."""
    made, end = list[dict[str, Any]](), 0

    def add(kind: str, source: str, **more: Any) -> None:
        made.append({"cell_type": kind, "id": f"cell-{len(made)}", "metadata": {}, "source": lines(source.strip()), **more})

    def add_text(text: str) -> None:
        text = re.sub(r"\]\((?!https?:)([^)#]+\.(?:png|md)[^)]*)\)", r"](../tutorials/\1)", text)
        if text.strip():
            add("markdown", text)

    for found in FENCE.finditer(page):
        if found[1] not in ("python", "bash"):
            continue
        add_text(page[end : found.start()])
        printed = PRINTED.match(page, found.end())
        end = printed.end() if printed else found.end()
        shown = [{"output_type": "stream", "name": "stdout", "text": lines(printed[1])}] if printed else []
        source = found[2] if found[1] == "python" else re.sub(r"^(?=hybvit)", "!", found[2], flags=re.MULTILINE)
        add("code", source, execution_count=None, outputs=shown)
    add_text(page[end:])
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def cells_of_notebook(book: dict[str, Any]) -> list[Cell]:
    """The code cells of a notebook, as those of a page; a cell of commands has an exclamation mark before each."""
    found = []
    for cell in book["cells"]:
        source = "".join(cell["source"]) + "\n"
        if cell["cell_type"] == "code":
            command = source.startswith("!")
            found.append(Cell("bash", re.sub(r"^!", "", source, flags=re.MULTILINE)) if command else Cell("python", source))
    return found


def as_json(book: dict[str, Any]) -> str:
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def rerun(path: Path) -> None:
    """Run a page in a folder of its own, and write its outputs and its pictures."""
    page = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path.write_text(with_outputs(page, list(run(cells(page)))), encoding="utf-8")
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
            shutil.copyfile(name, path.parent / name)


def main(words: list[str]) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    wanted = [word for word in words if word != "--notebooks"]
    known = [path.stem for path in sorted(PAGES.glob("*.md"))]
    if unknown := set(wanted) - set(known):
        sys.exit(f"{', '.join(sorted(unknown))}: no tutorial of that name; there are {', '.join(known)}")
    if "--notebooks" not in words:
        for path in sorted(PAGES.glob("*.md")):
            if not wanted or path.stem in wanted:
                rerun(path)
                print(f"{path.relative_to(ROOT)}: run")
    NOTEBOOKS.mkdir(exist_ok=True)
    for name in AS_NOTEBOOKS:
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        (NOTEBOOKS / f"{name}.ipynb").write_text(as_json(notebook(page)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
