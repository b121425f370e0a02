"""Build the documentation site into site/: copy docs/ with the model cards, run zensical, and check every link of the result.

The pages are written to be read in the repository too, so some of their links lead out of docs/. In the copy, build/docs, such
a link is replaced: by one to the copied page for a model card, by its text for a file of the source. The API page is made from
a copy of the source too, build/src, without the roles of Sphinx in its docstrings.

python docs/build_site.py    # needs pip install 'hybvit[docs]'
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from hybvit.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COPY = ROOT / "build" / "docs"
SOURCE = ROOT / "build" / "src"
SITE = ROOT / "site"
CARDS = ROOT / "src" / "hybvit" / "assets" / "models"

ROLE = re.compile(r":(?:class|meth|func|mod|attr):`[~.]*([^`]+)`")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
REQUESTED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src")}


def mended(text: str, page: Path) -> str:
    """The text of a page with each link that leads out of docs/ replaced; ``page`` is its path below docs/."""

    def replaced(found: re.Match[str]) -> str:
        words, target = found.groups()
        path = (DOCS / page.parent / urldefrag(target).url).resolve()
        copied = path.is_relative_to(DOCS) and path.suffix != ".py"
        if target.startswith(("http", "#")) or copied or not path.exists():
            return found[0]
        if path.is_relative_to(CARDS):
            return f"[{words}]({os.path.relpath(Path('models', f'{path.parent.name}.md'), page.parent)})"
        return words

    return LINK.sub(replaced, text)


def card(text: str, name: str) -> str:
    """A model card as a page: without its metadata for the hub, its picture beside it."""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).replace("(samples.png)", f"({name}.png)")


def plain(source: str) -> str:
    """A module without what Sphinx alone understands: roles become code, and the two colons before an example go."""
    return re.sub(r"^ *::\n", "", ROLE.sub(r"`\1`", source), flags=re.MULTILINE)


def copy() -> None:
    """Write the pages and the modules that zensical builds from."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(DOCS, COPY, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (COPY / "models").mkdir()
    for path in CARDS.glob("*/README.md"):
        name = path.parent.name
        (COPY / "models" / f"{name}.md").write_text(card(path.read_text(encoding="utf-8"), name), encoding="utf-8")
        shutil.copyfile(path.parent / "samples.png", COPY / "models" / f"{name}.png")
    for path in COPY.rglob("*.md"):
        page = path.relative_to(COPY)
        path.write_text(mended(path.read_text(encoding="utf-8"), page), encoding="utf-8")
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path in (ROOT / "src").rglob("*.py"):
        made = SOURCE / path.relative_to(ROOT / "src")
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(plain(path.read_text(encoding="utf-8")), encoding="utf-8")


def add_digits(folder: Path) -> None:
    """Put the model and its runtime beside the page that runs in the browser; where they are not to be had, it says so."""
    try:
        runpy.run_path(str(DOCS / "browser" / "build.py"))["build"](folder)
    except (OSError, subprocess.CalledProcessError, ConfigError) as error:
        print(f"{folder.relative_to(ROOT)}: without its model ({error})")


class Page(HTMLParser):
    """The ids of a page, what it links to, and what a browser requests when it opens it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.requests = set[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if given.get("rel") not in ("canonical", "next", "prev"):
            self.requests += [given[name] for name in ("src", "href") if name in given and (tag, name) in REQUESTED]


def faults(site: Path) -> Iterator[str]:
    """Links of the built site that lead nowhere, and requests to other hosts."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        where = path.relative_to(site)
        yield from (f"{where}: requests {url}" for url in page.requests if re.match(r"(https?:)?//", url))
        for url in {*page.links, *page.requests}:
            place, anchor = urldefrag(unquote(url))
            if re.match(r"\w+:|//", url):
                continue
            target = (path.parent / place).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{where}: {url} does not exist"
            elif anchor and target in pages and anchor not in pages[target].ids:
                yield f"{where}: {url}: no such place on that page"
    for path in site.rglob("*.css"):
        yield from (
            f"{path.relative_to(site)}: requests {url}" for url in re.findall(r"url\(['\"]?(https?:[^)]*)", path.read_text())
        )


def main() -> None:
    copy()
    add_digits(COPY / "browser")
    shutil.rmtree(SITE, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT)
    if done.returncode:
        sys.exit("zensical could not build the site: pip install 'hybvit[docs]', or mend what it names")
    found = sorted(set(faults(SITE)))
    if found:
        sys.exit("\n".join(found))
    place = SITE.relative_to(ROOT)
    pages = len(list(SITE.rglob("*.html")))
    print(f"{place}: {pages} pages, every link leads somewhere: python -m http.server --directory {place}")


if __name__ == "__main__":
    main()
