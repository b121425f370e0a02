"""The page of docs/browser in Chromium, without a window: its digits are those of the package."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import os
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

PAGE = Path(__file__).resolve().parent.parent / "docs" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(not (PAGE / "ort").is_dir(), reason="docs/browser/build.py has not fetched onnxruntime-web"),
]


class Browser:
    """A page in Chromium, by the DevTools protocol over two pipes."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self.numbers, self.events, self.session = itertools.count(1), list[dict[str, Any]](), {}
        self.left = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params, **self.session}
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while True:
            answer = json.loads(self.read())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def read(self) -> bytes:
        while b"\0" not in self.left:
            self.left += os.read(self.answers.fileno(), 1 << 16)
        message, self.left = self.left.split(b"\0", 1)
        return message

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's if it is one."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def requested(self) -> set[str]:
        return {e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"}

    def faults(self) -> list[Any]:
        wrong = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [e["params"] for e in self.events if e.get("method") in wrong]


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


@contextlib.contextmanager
def chromium(folder: Path, *options: str) -> Iterator[Browser]:
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()

    def as_three_and_four() -> None:
        kept = os.dup(theirs_out)  # which may be 3
        os.dup2(theirs_in, 3)
        os.dup2(kept, 4)

    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [*command, *options],
        close_fds=False,
        preexec_fn=as_three_and_four,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.terminate()
        process.wait(timeout=20)


WAIT = """new Promise((done) => { const look = () =>
  document.getElementById("status")?.textContent.startsWith("64 digits") ? done(true) : setTimeout(look, 50); look(); })"""


def stroke(browser: Browser, *points: tuple[int, int]) -> None:
    """A line with the mouse, in the coordinates of the canvas."""
    left, top = browser.evaluate("(({x, y}) => [x, y])(document.getElementById('drawing').getBoundingClientRect())")
    for kind, (x, y) in [("mousePressed", points[0]), *(("mouseMoved", p) for p in points[1:]), ("mouseReleased", points[-1])]:
        browser.call("Input.dispatchMouseEvent", type=kind, x=left + x, y=top + y, button="left", clickCount=1)


def test_the_page_classifies_and_draws_as_the_package_does(tmp_path):
    model = hybvit.load("digits", "cpu")
    noise = torch.randn(4, 1, 8, 8)
    drawn = run_to_pixels(model.predict_x0, model.diffusion, lambda: noise, "dpmpp_2m", 6)
    test = open_dataset(model.cfg.data, model.image_shape, 10).test.subsample(5).in_memory
    with served(PAGE) as url, chromium(tmp_path) as browser:
        browser.open(url)
        assert browser.evaluate(WAIT)
        browser.evaluate("(async () => { window.d = await import('./digits.js'); window.m = await d.open(); })()")
        x0 = browser.evaluate(f"d.sample(m, Float32Array.from({noise.flatten().tolist()}), 6).then((x) => [...x])")
        found = (torch.tensor(x0).reshape(4, 1, 8, 8) + 1) * 127.5
        assert (found - drawn.float()).abs().max() <= 1
        read = [browser.evaluate(f"d.classify(m, Float32Array.from({x.flatten().tolist()}))") for x in to_x(test)]
        torch.testing.assert_close(torch.tensor(read), model.predict(test).probabilities, rtol=1e-4, atol=1e-5)
        stroke(browser, (160, 50), (160, 160), (160, 270))
        top = browser.evaluate("new Promise((done) => setTimeout(() => done(document.querySelector('.top').textContent), 500))")
        assert top.startswith("1")
        assert {address for address in browser.requested() if not address.startswith((url, "data:", "blob:"))} == set()
        assert browser.faults() == []
