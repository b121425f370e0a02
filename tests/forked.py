"""Real processes without the seconds of their imports: they are forked from a server that imported the package once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["hybvit.cli.train", "hybvit.cli.evaluate", "hybvit.training.loop", "hybvit.evaluation.suites", "torch.distributed.fsdp"]
)


def run(words: list[str], exact: bool) -> None:
    """The command line. ``exact`` keeps Muon's products out of bfloat16, which turns a difference of the last bit into 1e-4."""
    from hybvit import cli
    from hybvit.training import optim

    if exact:
        optim.has_fast_bf16 = lambda device: False
    sys.exit(cli.main(words))


def with_its_own_output(out: Path, variables: Mapping[str, str], task: Callable[..., None], arguments: tuple) -> None:
    """In the new process: what it says goes to two files, as with pipes of a shell."""
    for descriptor, name in ((1, "out"), (2, "err")):
        opened = os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(variables)
    task(*arguments)


def together(
    processes: int, words: list[str], folder: Path, exact: bool = False, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Run one command in several processes that know each other, as torchrun would start them -> how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {name: str(value) for name, value in place.items()}
        process = SERVER.Process(
            target=with_its_own_output, args=(folder / str(rank), variables, run, (list(map(str, words)), exact))
        )
        process.start()
        started.append(process)
    ended = []
    for rank, process in enumerate(started):
        process.join(timeout)
        if process.exitcode is None:
            for other in started:
                other.kill()
            raise TimeoutError(f"{words}: process {rank} did not end in {timeout} s")
        said = [Path(f"{folder / str(rank)}.{name}").read_text() for name in ("out", "err")]
        ended.append(subprocess.CompletedProcess(words, process.exitcode, *said))
    return ended
