"""Write docs/report.html, the report of the best bundled model, as the documentation shows it: its pictures in fewer bytes.

    python docs/report.py                                      # what its card has, with the options below
    python docs/report.py --suites accuracy --limit 200        # a quick try, in runs/report; later options replace earlier ones

The evaluation is that of `benchmarks/ship.py`, and kept where that keeps it: what is there is not measured again.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from hybvit.evaluation.suites import SUITES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "report.html"
MODEL, RUN, TRY = "fashion-mnist", ROOT / "runs" / "shipped" / "fashion-mnist", ROOT / "runs" / "report"
OPTIONS = ("--samples", "5000", "--sampler", "dpmpp_2m", "--steps", "20")  # of benchmarks/ship.py for this model
QUALITY = 40  # of WebP
EMBEDDED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
TILES = "<div class=tiles>"


def with_lead(page: str, measured: list[str]) -> str:
    """The page with a paragraph above its numbers: that it is a selection, and the command for the suites that it lacks."""
    others = [name for name in SUITES if name not in measured]
    command = html.escape(f"hybvit evaluate {MODEL} --suites {','.join(others)} --report")
    lead = (
        f"<p class=warn>A selection: {len(measured)} of the {len(SUITES)} suites. <code>{command}</code> measures the others, "
        "which takes longer. The model's card has the stages of its training before the last one.</p>"
    )
    return page.replace(TILES, lead + TILES, 1) if others else page


def small(page: str) -> str:
    """The same page with pictures that lose what is hardly seen, and drawings to a tenth of a point."""
    return DRAWING.sub(lambda found: small_drawing(found[0]), EMBEDDED.sub(lambda found: small_picture(found[1]), page))


def small_picture(encoded: str) -> str:
    """The data URL of a PNG as WebP."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def small_drawing(svg: str) -> str:
    """An SVG without what no browser draws, its coordinates rounded; identifiers and scales stay as they are."""
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>| transform=\"rotate\(-0 [^\"]*\"", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", svg)
    svg = re.sub(r' (d|x|y|width|height|points)="([^"]*)"', lambda found: f' {found[1]}="{rounded(found[2])}"', svg)
    return re.sub(r">\s+<", "><", svg)


def rounded(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), " ".join(numbers.split()))


def main(options: list[str]) -> None:
    run, page = (TRY, TRY / "small.html") if options else (RUN, PAGE)
    call = [sys.executable, "-m", "hybvit", "evaluate", MODEL, *OPTIONS, *options, "--report", "--out", str(run)]
    code = subprocess.run(call).returncode
    if code:
        sys.exit(code)
    measured = list(json.loads((run / "results.json").read_text(encoding="utf-8"))["suites"])
    page.write_text(small(with_lead((run / "report.html").read_text(encoding="utf-8"), measured)), encoding="utf-8")
    print(f"{page.relative_to(ROOT)}: {page.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
