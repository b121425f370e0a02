"""The static page of docs/browser in Chromium: its digits are those of the package."""

from __future__ import annotations

import contextlib
import functools
import http.server
import runpy
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hybvit
from hybvit.data.datasets import open_dataset
from hybvit.data.image_set import to_x
from hybvit.model import run_to_pixels

from .browser import PROGRAM, Browser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "browser"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, which fetches onnxruntime-web: apt-get install npm"),
]


@pytest.fixture
def page(tmp_path) -> Path:
    """What docs/browser/build.py makes of the page."""
    folder = tmp_path / "page"
    try:
        runpy.run_path(str(PAGE / "build.py"))["build"](folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm fetched no onnxruntime-web: {error.stderr.strip()[-200:]}")
    return folder


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def stroke(browser: Browser, *points: tuple[int, int]) -> None:
    """A line with the mouse, in the coordinates of the canvas."""
    left, top = browser.run("(({x, y}) => [x, y])(document.getElementById('drawing').getBoundingClientRect())")
    for kind, (x, y) in [("mousePressed", points[0]), *(("mouseMoved", p) for p in points[1:]), ("mouseReleased", points[-1])]:
        browser.call("Input.dispatchMouseEvent", type=kind, x=left + x, y=top + y, button="left", clickCount=1)


def test_the_page_classifies_and_draws_as_the_package_does(page, tmp_path):
    model = hybvit.load("digits", "cpu")
    noise = torch.randn(4, 1, 8, 8)
    drawn = run_to_pixels(model.predict_x0, model.diffusion, lambda: noise, "dpmpp_2m", 6)
    test = open_dataset(model.cfg.data, model.image_shape, 10).test.subsample(5).in_memory
    with served(page) as url, Browser(tmp_path / "profile") as browser:
        browser.open(url)
        browser.wait("document.getElementById('status')?.textContent.startsWith('64 digits')")
        browser.run("(async () => { window.d = await import('./digits.js'); window.m = await d.open(); })()")
        x0 = browser.run(f"d.sample(m, Float32Array.from({noise.flatten().tolist()}), 6).then((x) => [...x])")
        found = (torch.tensor(x0).reshape(4, 1, 8, 8) + 1) * 127.5
        assert (found - drawn.float()).abs().max() <= 1
        read = [browser.run(f"d.classify(m, Float32Array.from({x.flatten().tolist()}))") for x in to_x(test)]
        torch.testing.assert_close(torch.tensor(read), model.predict(test).probabilities, rtol=1e-4, atol=1e-5)
        stroke(browser, (160, 50), (160, 160), (160, 270))
        browser.wait("document.querySelector('.top')?.textContent.startsWith('1')", 10)
        assert {address for address in browser.requests if not address.startswith((url, "data:", "blob:"))} == set()
        with served(PAGE) as bare:
            browser.open(bare)
            browser.wait("document.getElementById('status')?.textContent.startsWith('The model is not here')")
        assert browser.faults == []
