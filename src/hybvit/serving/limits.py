"""What a request may ask for, and the one line in which requests wait."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..data.images import Originals, read_image
from ..errors import DataError
from ..model import HybridModel

T = TypeVar("T")
Say = Callable[[T], None]

# the most that one request may ask for
UPLOAD = 20 << 20  # bytes of a request's body
PICTURES = 16  # to classify
BOUNDS = 4  # pictures whose bits per dimension are computed, at T evaluations each
IMAGES = 64  # to generate
STEPS = 100  # of a sampler
WAITING = 8  # requests in line behind the one that is worked on


class Busy(RuntimeError):
    """The line is full."""


class Gone(RuntimeError):
    """Nobody waits for the answer any more."""


class Caller:
    """Who waits for work. Once they leave, what is in line for them is taken out of it, and what runs ends at its next step."""

    def __init__(self) -> None:
        self.gone, self.waiting = False, list[Future[Any]]()

    def leave(self) -> None:
        self.gone = True
        for future in self.waiting:
            future.cancel()


class Desk:
    """One thread that does all work with the model, in the order in which it was asked for.

    A second pass of the network beside the first would make both slower, and each thread that calls torch would keep a team of
    its own.

    Args:
        waiting: how many may wait; one more gets :class:`Busy`.
    """

    def __init__(self, waiting: int = WAITING) -> None:
        self.places, self.taken, self.lock = 1 + waiting, 0, threading.Lock()
        self.pool = ThreadPoolExecutor(1, "model")
        self.served: Caller | None = None

    def submit(self, work: Callable[[], T], caller: Caller | None = None) -> Future[T]:
        """
        Args:
            caller: who waits for it; None for somebody who does not leave.

        Raises:
            Busy: the line is full.
        """
        with self.lock:
            if self.taken >= self.places:
                raise Busy(f"busy: {self.taken} requests are being answered or wait; try again in a few seconds")
            self.taken += 1
        caller = caller or Caller()

        def turn() -> T:
            self.served = caller
            try:
                self.go_on()
                return work()
            finally:
                self.served = None

        future = self.pool.submit(turn)
        caller.waiting.append(future)
        future.add_done_callback(self._leave)
        return future

    def go_on(self) -> None:
        """To be called at each step of work, in whatever thread.

        Raises:
            Gone: nobody waits for it any more.
        """
        caller = self.served
        if caller is not None and caller.gone:
            raise Gone("nobody waits for the answer any more")

    def _leave(self, future: Future[T]) -> None:
        with self.lock:
            self.taken -= 1

    def spare(self, work: Iterator[object]) -> None:
        """Do work that nobody waits for, in pieces: whoever is in line gets a turn between two of them."""

        def piece() -> None:
            self.served = Caller()  # whom close() lets leave
            try:
                goes_on = next(work, None) is not None
            except Gone:
                return
            except Exception as error:  # nobody waits for its result, which says so
                print(f"warning: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
                return
            finally:
                self.served = None
            if goes_on:
                with suppress(RuntimeError):  # the line is closed
                    self.pool.submit(piece)

        self.pool.submit(piece)

    def stream(self, work: Callable[[Say[T]], T]) -> Iterator[T]:
        """What ``work`` says on its way, and what it returns; what was overtaken before anybody looked is left out.

        The work ends at its next step once nobody listens.

        Raises:
            Busy: the line is full.
        """
        said: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
        caller = Caller()

        def say(words: T) -> None:
            self.go_on()
            said.put((words,))

        future = self.submit(lambda: work(say), caller)
        future.add_done_callback(lambda _: said.put(None))
        try:
            while (words := said.get()) is not None:
                if said.empty():
                    yield words[0]
            yield future.result()
        finally:
            caller.leave()

    def close(self) -> None:
        """End what runs at its next step, and all that waits."""
        if (caller := self.served) is not None:
            caller.leave()
        self.pool.shutdown(wait=True, cancel_futures=True)


def read_pictures(model: HybridModel, contents: Sequence[tuple[str, bytes]]) -> Tensor:
    """Uploaded files (name, content) of any image format -> uint8 [N, C, H, W] of the model's size.

    Raises:
        DataError: one is not an image, is damaged, or has more pixels than are decoded.
    """
    shape, originals = model.cfg.model, Originals(model.cfg.data.bits)
    return torch.stack(
        [
            read_image(name or "the upload", shape.channels, shape.image_size, BytesIO(content), originals)
            for name, content in contents
        ]
    )


def read_picture(model: HybridModel, path: str | None) -> Tensor:
    """A picture of the page, uint8 [1, C, H, W].

    Raises:
        DataError: there is none, or as in :func:`read_pictures`.
    """
    if not path:
        raise DataError("no picture yet: drop one on the page, or let the model draw one")
    return read_pictures(model, [(Path(path).name, Path(path).read_bytes())])
