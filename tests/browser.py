"""Chromium without a window, driven over the pipe of its DevTools protocol; it needs no package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# no request of its own, so that those that are seen are the page's
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--no-default-browser-check",
)  # fmt: skip

# Chromium reads from descriptor 3 and writes to 4.
RENUMBER = """
import fcntl, os, sys
spare = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(spare[0], 3), os.dup2(spare[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab.

    Attributes:
        requests: the address of everything that was asked for.
        faults: what was written to the console as an error.
    """

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        theirs_in, self.out = os.pipe()
        self.inward, theirs_out = os.pipe()
        command = [PROGRAM, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        renumbered = [sys.executable, "-ISc", RENUMBER, str(theirs_in), str(theirs_out), *command]
        self.process = subprocess.Popen(renumbered, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.requests, self.faults = list[str](), list[str]()
        self.buffer, self.number, self.session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.out)
        os.close(self.inward)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.inward, 1 << 16)
            assert part, "the browser ended"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        about = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif message.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.faults.append(about["entry"]["text"] + " " + about["entry"].get("url", ""))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.faults.append(about["exceptionDetails"].get("exception", {}).get("description", "exception"))
        return message

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, (script, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The first value of an expression that is neither null nor false, within so many seconds."""
        return until(lambda: self.run(script), seconds, script)

    def use(self, selector: str, words: str = "") -> None:
        """Press a button by keyboard: the first that is shown, and that says so."""
        script = f"""(() => {{
            const shown = [...document.querySelectorAll({json.dumps(selector)})].filter((found) => found.offsetParent);
            const found = shown.find((found) => found.textContent.includes({json.dumps(words)}));
            found?.focus();
            return found && document.activeElement === found;
        }})()"""
        self.wait(script)
        self.press("Enter")

    def use_until(self, selector: str, script: str) -> Any:
        """Press a button, again where nothing comes of it: a busy page can lose a press -> the value of the expression."""
        for _ in range(3):
            self.use(selector)
            with contextlib.suppress(AssertionError):
                return self.wait(script, 20)
        raise AssertionError(f"not after three times {selector}: {script}")

    def press(self, key: str, times: int = 1) -> None:
        text = {"Space": " ", "Enter": "\r"}.get(key, "")
        codes = {"Tab": 9, "Enter": 13, "Space": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        name = " " if key == "Space" else key
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                given = {"text": text} if text and kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=name, code=key, windowsVirtualKeyCode=codes[key], **given)

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in an input, which may be hidden."""
        script = f"document.querySelector({json.dumps(selector)})"
        self.wait(script)
        found = self.call("Runtime.evaluate", expression=script)
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def screenshot(self, path: Path, full: bool = True) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(found["data"]))


def until(found: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first value of a function that is neither None nor false, within so many seconds; an element of a page is {}."""
    end = time.monotonic() + seconds
    while (value := found()) in (None, False, 0, ""):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value
