"""Render the blocks of README.md and docs/*.md from results/*.json: python docs/render.py [--check]"""

from __future__ import annotations

import sys

from rendering import PAGES, ROOT, render

if __name__ == "__main__":
    for page in (ROOT / name for name in PAGES):
        rendered = render(page.read_text())
        if "--check" not in sys.argv:
            page.write_text(rendered)
        elif rendered != page.read_text():
            sys.exit(f"{page.name} differs from what results/ render to: run `make readme`")
