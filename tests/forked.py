"""Real processes without the seconds of their imports: they are forked from a server that imported the package once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["hybvit.cli.train", "hybvit.cli.evaluate", "hybvit.training.loop", "hybvit.evaluation.suites", "torch.distributed.fsdp"]
)


def fork(
    said: Path, task: Callable[..., None], *arguments: object, variables: dict[str, str] | None = None
) -> ForkServerProcess:
    """Start ``task`` in a new process and session; what it says goes to ``said.out`` and ``said.err``."""
    said.parent.mkdir(parents=True, exist_ok=True)
    process = SERVER.Process(target=begin, args=(said, variables or {}, task, arguments))
    process.start()
    return process


def begin(said: Path, variables: dict[str, str], task: Callable[..., None], arguments: tuple) -> None:
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        opened = os.open(f"{said}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(variables)
    task(*arguments)


def finished(process: ForkServerProcess, said: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Wait for it -> how it ended, and what it said."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{said}: still running after {timeout} s")
    out, err = (Path(f"{said}.{name}").read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess([], process.exitcode, out, err)


def command(words: list[str], exact: bool) -> None:
    """The command line. ``exact`` keeps Muon's products out of bfloat16, which turns a difference of the last bit into 1e-4."""
    from hybvit import cli
    from hybvit.training import optim

    if exact:
        optim.has_fast_bf16 = lambda device: False
    sys.exit(cli.main(words))


def script(path: Path, words: list[str]) -> None:
    """A script, as ``python path words`` runs it."""
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def together(
    processes: int, words: list, folder: Path, exact: bool = False, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Run one command line in several processes that know each other, as torchrun would start them -> how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    started = [
        fork(folder / rank, command, list(map(str, words)), exact, variables={**meeting, "RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(processes))
    ]
    try:
        return [finished(process, folder / str(rank), timeout) for rank, process in enumerate(started)]
    finally:
        for process in started:
            process.kill()
