"""Take the three pictures of docs/serve.md in Chromium, of the page as it is now; it needs Fashion-MNIST and gradio.

    python docs/screenshots.py [--axe axe.min.js]

With the file of that name from the npm package axe-core, each tab is checked for faults of accessibility, at two widths and in
both color schemes. They are printed; the exit code is 1 where one is serious or critical.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image

import hybvit
from hybvit.data.datasets import open_dataset
from tests.browser import Browser

DOCS = Path(__file__).resolve().parent
BOOT, PULLOVER = 0, 1  # test images
TABS = ("Classify", "Draw", "Edit", "Attack", "Report")
SIZES = {1280: 900, 390: 844}
FAULTS = """axe.run().then((found) => found.violations.map((fault) =>
    [fault.impact, fault.id, fault.nodes.length, fault.nodes[0].target.join(" ")]))"""


def show(browser: Browser, tab: str) -> None:
    browser.use("[role=tab]", tab)
    browser.wait(f'document.querySelector("[role=tab][aria-selected=true]").textContent.includes("{tab}")')


def choose(browser: Browser, picture: Path) -> None:
    browser.upload(".picture input[type=file]", picture)
    browser.wait('document.querySelector("#labels .seen b")?.textContent')


def paint(browser: Browser, left: int, top: int, right: int, bottom: int) -> None:
    """Paint a rectangle with the mouse, in pixels of the brush."""
    browser.wait('document.querySelector("#brush img")?.naturalWidth === 28')
    x, y = browser.run("(({x, y}) => [x, y])(document.querySelector('#brush canvas').getBoundingClientRect())")
    for row in range(top, bottom, 10):
        moves = [("mouseMoved", at) for at in range(left, right, 10)]
        for kind, at in (("mousePressed", left), *moves, ("mouseReleased", right)):
            browser.call("Input.dispatchMouseEvent", type=kind, x=x + at, y=y + row, button="left", clickCount=1)


def picture(browser: Browser, name: str) -> None:
    browser.run("document.activeElement.blur()")  # the ring of the keyboard's focus
    browser.screenshot(DOCS / f"{name}.png", full=False)


def take(browser: Browser, address: str, boot: Path, pullover: Path) -> None:
    browser.call("Emulation.setScrollbarsHidden", hidden=True)
    browser.open(address, *next(iter(SIZES.items())))
    choose(browser, boot)
    for button, answer in (("Bits per dimension", "bits"), ("Certificate", "certificate")):
        browser.use("button", button)
        browser.wait(f'document.querySelector("#{answer} b")?.textContent')
    picture(browser, "serve_classify")

    browser.open(address, 1280, 820, dark=True)
    choose(browser, pullover)
    show(browser, "Edit")
    paint(browser, 75, 75, 200, 120)
    browser.use("#edit")
    browser.wait('document.querySelectorAll("#edited figure").length === 5')
    picture(browser, "serve_edit")

    browser.open(address, 390, 1250)
    choose(browser, boot)
    show(browser, "Attack")
    browser.use("#attack")
    browser.wait('document.querySelectorAll("#attacked tbody tr").length === 3')
    picture(browser, "serve_attack")


def check(browser: Browser, address: str, axe: str, boot: Path) -> int:
    """Print the faults of each tab -> the number of those that are serious or critical."""
    serious = 0
    for (width, height), dark in ((size, dark) for size in SIZES.items() for dark in (False, True)):
        browser.open(address, width, height, dark)
        choose(browser, boot)
        browser.run(axe)
        for tab in TABS:
            show(browser, tab)
            for impact, *fault in browser.run(FAULTS):
                print(f"{width} {'dark' if dark else 'light'} {tab}: {impact}:", *fault, flush=True)
                serious += impact in ("serious", "critical")
    return serious


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axe", type=Path, metavar="FILE", help="axe.min.js of the npm package axe-core")
    args = parser.parse_args()
    model = hybvit.load("fashion-mnist", "cpu")
    images, _ = open_dataset(model.cfg.data, model.image_shape, 10).test.take(torch.tensor([BOOT, PULLOVER]))
    command = [sys.executable, "-m", "hybvit", "serve", "fashion-mnist", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        Browser(Path(name, "profile")) as browser,
    ):
        assert server.stdout is not None
        try:
            boot, pullover = Path(name, "boot.png"), Path(name, "pullover.png")
            for path, pixels in zip((boot, pullover), images, strict=True):
                Image.fromarray(pixels[0].numpy()).save(path)
            address = server.stdout.readline().split()[0]
            take(browser, address, boot, pullover)
            serious = check(browser, address, args.axe.read_text(encoding="utf-8") + ";0", boot) if args.axe else 0
        finally:
            server.terminate()
    sys.exit(1 if serious else 0)


if __name__ == "__main__":
    main()
