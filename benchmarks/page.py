"""Time the page of `hybvit serve` in Chromium: its first paint, and 64 images of 20 steps -> results/page.json.

    python benchmarks/page.py [--model fashion-mnist] [--write]

In milliseconds, of each repeat: from the request to the first paint, and from the press of Draw until the first view of the
images and until they are done.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from recording import ROOT, command, keep, options

from hybvit.devices import environment

sys.path.insert(0, str(ROOT))

from tests.browser import PROGRAM, Browser

REPEATS, IMAGES, STEPS = 5, 64, 20  # the page starts with this number of steps
PAINTED = 'performance.getEntriesByName("first-contentful-paint")[0]?.startTime'
ASK_FOR_IMAGES = """(() => {
    const number = [...document.querySelectorAll("input[type=number]")].find((found) => found.offsetParent);
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(number, IMAGES);
    for (const kind of ["input", "change", "blur"]) number.dispatchEvent(new Event(kind, { bubbles: true }));
    return true;
})()""".replace("IMAGES", str(IMAGES))
DRAW = """(async () => {
    const image = () => document.querySelector("#drawn img"), before = image()?.src, start = performance.now();
    const until = (there) => new Promise((done) => {
        const look = () => there() ? done(performance.now() - start) : requestAnimationFrame(look);
        look();
    });
    document.querySelector("#draw").click();
    const first = await until(() => image() && image().src !== before && image().complete);
    return [first, await until(() => document.querySelector("#drawn a"))];
})()"""


def measure(browser: Browser, address: str) -> tuple[list[float], list[list[float]]]:
    """First paints, and of each drawing, when the first view was there and when all images were."""
    paints = []
    for _ in range(REPEATS):
        browser.open("about:blank")
        browser.open(address)
        paints.append(browser.wait(PAINTED))
    browser.use("[role=tab]", "Draw")
    browser.wait('Boolean(document.querySelector("#draw")?.offsetParent)')
    browser.wait(ASK_FOR_IMAGES)
    views = []
    for _ in range(REPEATS):
        time.sleep(1)  # a press while the page still takes in the last images is lost
        views.append(browser.run(DRAW))
    return paints, views


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="fashion-mnist")
    args = parser.parse_args()
    words = [sys.executable, "-m", "hybvit", "serve", args.model, "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().split()[0]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Browser(Path(profile)) as browser:
            paints, views = measure(browser, address)
    finally:
        server.terminate()
    chromium = subprocess.run([str(PROGRAM), "--version"], capture_output=True, text=True, check=True).stdout
    first, done = ([round(span) for span in spans] for spans in zip(*views, strict=True))
    record = {
        "command": command(),
        "model": args.model,
        "images": IMAGES,
        "steps": STEPS,
        "milliseconds": {"first paint": paints, "first view of the images": first, "all images": done},
        "environment": environment() | {"gradio": version("gradio"), "chromium": chromium.split()[1]},
    }
    keep("page", record, args.write)


if __name__ == "__main__":
    main()
