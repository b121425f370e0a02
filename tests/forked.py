"""Real processes without the seconds of their imports: they are forked from a server that imported the package once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "hybvit.cli.train", "hybvit.cli.evaluate", "hybvit.training.loop", "hybvit.evaluation.suites", "torch.distributed.fsdp",
        "torch._dynamo", "torchvision.transforms.v2", "sklearn.datasets", "sklearn.svm", "matplotlib.figure",
        "matplotlib.backends.backend_svg",
    ]
)  # fmt: skip

BEGUN: list[Forked] = []


class Forked:
    """A process and session of its own that calls ``task(*arguments)``, with a part of the interface of subprocess.Popen."""

    def __init__(self, task: Callable[..., None], *arguments: object, variables: dict[str, str] | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="hybvit-said-")
        for name in ("out", "err"):  # it may be killed before it opens them
            (Path(self.folder.name) / name).touch()
        self.process = SERVER.Process(target=begin, args=(self.folder.name, variables or {}, task, arguments))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        BEGUN.append(self)

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 120) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(str(self.process), timeout)
        return self.process.exitcode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for it -> what it said on standard output and standard error."""
        self.wait(timeout)
        out, err = ((Path(self.folder.name) / name).read_text() for name in ("out", "err"))
        return out, err


def until(running: Forked, reached: Callable[[], object]) -> None:
    """Wait for what a process reaches, or fail with what it said at its end."""
    while not reached():
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)


def end_all() -> None:
    """Kill what a failed test left running: Python would wait for it at its own end."""
    for process in BEGUN:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def begin(folder: str, variables: dict[str, str], task: Callable[..., None], arguments: tuple) -> None:
    """In the new process."""
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        opened = os.open(Path(folder) / name, os.O_WRONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    task(*arguments)


def command(words: list[str], exact: bool = False, plots: bool = True) -> None:
    """The command line. ``exact`` keeps Muon's products out of bfloat16, which turns a difference of the last bit into 1e-4;
    without ``plots`` they are empty, which saves most of the time of a small evaluation."""
    from hybvit import cli
    from hybvit.evaluation import plots as drawing
    from hybvit.training import optim

    if exact:
        optim.has_fast_bf16 = lambda device: False
    if not plots:
        drawing.svg = lambda figure: "<svg></svg>"
    sys.exit(cli.main(words))


def script(path: Path, words: list[str]) -> None:
    """A script, as ``python path words`` runs it."""
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def started(*words: object) -> Forked:
    """The command line in a process of its own."""
    return Forked(command, list(map(str, words)))


def together(processes: int, *words: object, exact: bool = False, plots: bool = True, timeout: float = 300) -> list[str]:
    """Run one command line in several processes that know each other, as torchrun would start them -> what each said on
    standard error, where all succeeded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    places = [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    running = [Forked(command, list(map(str, words)), exact, plots, variables=place) for place in places]
    try:
        said = [process.communicate(timeout)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert not any(process.poll() for process in running), said[0][-3000:]
    return said
