"""Render the blocks of README.md and docs/*.md from results/*.json: python docs/render.py [--check] [PAGE ...]"""

from __future__ import annotations

import sys

from rendering import PAGES, ROOT, render

if __name__ == "__main__":
    asked = [word for word in sys.argv[1:] if word != "--check"]
    if unknown := set(asked) - set(PAGES):
        sys.exit(f"{', '.join(sorted(unknown))}: no page with blocks; there are {', '.join(PAGES)}")
    for page in (ROOT / name for name in asked or PAGES):
        rendered = render(page.read_text())
        if "--check" not in sys.argv:
            page.write_text(rendered)
        elif rendered != page.read_text():
            sys.exit(f"{page.name} differs from what results/ render to: run `make readme`")
