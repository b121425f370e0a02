"""Time the page of `hybvit serve` in Chromium: its first paint, and 64 images of 20 steps.

    python benchmarks/page.py [MODEL]

It prints a line of JSON with medians, in milliseconds: from the request to the first paint, and from the press of Draw until
the first view of the images and until they are done.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.browser import Browser

REPEATS = 5
PAINTED = 'performance.getEntriesByName("first-contentful-paint")[0]?.startTime'
ASK_FOR_64 = """(() => {
    const number = [...document.querySelectorAll("input[type=number]")].find((found) => found.offsetParent);
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(number, 64);
    for (const kind of ["input", "change", "blur"]) number.dispatchEvent(new Event(kind, { bubbles: true }));
    return true;
})()"""
DRAW = """(async () => {
    const image = () => document.querySelector("#drawn img"), before = image()?.src, start = performance.now();
    const until = (there) => new Promise((done) => {
        const look = () => there() ? done(performance.now() - start) : requestAnimationFrame(look);
        look();
    });
    document.querySelector("#draw").click();
    const first = await until(() => image() && image().src !== before && image().complete);
    return [first, await until(() => document.querySelector("#drawn a")), image().naturalWidth];
})()"""


def measure(browser: Browser, address: str) -> tuple[list[float], list[list[float]]]:
    """First paints, and of each drawing when the first view was there, when all images were, and how wide their sheet is."""
    paints = []
    for _ in range(REPEATS):
        browser.open("about:blank")
        browser.open(address)
        paints.append(browser.wait(PAINTED))
    browser.use("[role=tab]", "Draw")
    browser.wait('Boolean(document.querySelector("#draw")?.offsetParent)')
    browser.wait(ASK_FOR_64)
    views = []
    for _ in range(REPEATS):
        time.sleep(1)  # a press while the page still takes in the last images is lost
        views.append(browser.run(DRAW))
    return paints, views


def main() -> None:
    model = sys.argv[1] if sys.argv[1:] else "fashion-mnist"
    command = [sys.executable, "-m", "hybvit", "serve", model, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().split()[0]
        with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
            paints, views = measure(browser, address)
    finally:
        server.terminate()
    first, done, width = (statistics.median(column) for column in zip(*views, strict=True))
    print(json.dumps({"first_paint": statistics.median(paints), "first_view": first, "all_images": done, "sheet_width": width}))


if __name__ == "__main__":
    main()
