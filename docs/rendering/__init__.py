"""The figures of README.md and docs/*.md, from results/*.json."""

from . import cards, comparison, devices, edits, paper, readme, records, speed, studies, trust
from .blocks import BLOCKS, render
from .records import MODELS, ROOT

PAGES = (
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")),
    *(f"src/hybvit/assets/models/{name}/README.md" for name in MODELS),
)
__all__ = [
    "BLOCKS",
    "MODELS",
    "PAGES",
    "ROOT",
    "cards",
    "comparison",
    "devices",
    "edits",
    "paper",
    "readme",
    "records",
    "render",
    "speed",
    "studies",
    "trust",
]  # fmt: skip
