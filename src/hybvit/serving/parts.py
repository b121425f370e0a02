"""What the tabs of the page share: the picture that is dropped on it, and handlers whose errors are a line on the page."""

from __future__ import annotations

import concurrent.futures
import functools
import random
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TypeVar

import gradio as gr

from ..data.images import grid
from ..errors import DivergedError
from .drawing import SAMPLER
from .limits import Busy, Caller, Gone
from .markup import hint, notice
from .service import Service

ANY = "any class"
BEAT = 0.2  # seconds
PLAIN = (ValueError, DivergedError, Busy)  # errors whose message is for the user

T = TypeVar("T")
Handler = Callable[..., Iterator[str]]


def picture() -> gr.Image:
    """Where a picture is dropped. It arrives as the path of a file, since gradio would decode it whatever its size."""
    shown = gr.Image(label="Picture", format="png", sources=["upload"], height=280, buttons=[], elem_classes="picture")
    path_of: Any = lambda payload: payload and payload.path  # noqa: E731
    shown.preprocess = path_of  # type: ignore[method-assign]  # for a subclass gradio would write a stub beside this file
    return shown


class Given(NamedTuple):
    """The picture of a tab, and the button that has the model draw one."""

    picture: gr.Image
    drawn: gr.Button


def answered(handler: Handler) -> Handler:
    """A handler that yields HTML, whose errors become a notice."""

    @functools.wraps(handler)
    def steps(*arguments: Any) -> Iterator[str]:
        try:
            yield from handler(*arguments)
        except Gone:
            pass
        except PLAIN as error:
            yield notice(str(error))
        except OSError as error:
            yield notice(f"the picture cannot be read ({error.strerror}): drop it again")
        except Exception as error:
            traceback.print_exception(error)
            yield notice(f"internal error: {type(error).__name__}; the terminal of the server says where")

    return steps


def on(event: Any, handler: Handler, inputs: Any, output: gr.HTML) -> Any:
    """Answer an event; the line before the model is ours, so gradio holds nobody up."""
    return event(answered(handler), inputs, output, show_progress="hidden", concurrency_limit=None, api_visibility="private")


def waited(service: Service, words: str, work: Callable[[], T]) -> Generator[str, None, T]:
    """Say what is being done until it is -> what it gives. It ends with the page: gradio ends a handler where it yields."""
    caller = Caller()
    future = service.desk.submit(work, caller)
    try:
        while not concurrent.futures.wait([future], BEAT).done:
            yield hint(words)
        return future.result()
    finally:
        caller.leave()


def forget(picture: gr.Image, *outputs: gr.HTML) -> None:
    """Let what was said of a picture go with it."""
    picture.change(None, None, list(outputs), js=f"() => Array({len(outputs)}).fill('')", api_visibility="private")


def draw_one(service: Service) -> Any:
    """An image of a random seed, as PIL has it, for those who have none at hand."""
    try:
        index = random.randrange(2**31)
        pixels = service.desk.submit(
            lambda: service.model.draw([index], SAMPLER, min(20, service.model.diffusion.T), seed=0)
        ).result()
    except PLAIN as error:
        raise gr.Error(str(error)) from None
    return grid(pixels, gap=0)


def classes_of(service: Service, visible: bool = True) -> gr.Dropdown:
    names = list(service.model.classes)
    return gr.Dropdown([ANY, *names], value=ANY, label="Class", filterable=len(names) > 12, visible=visible)


def number_of(service: Service, name: str) -> int | None:
    """The number of a class of :func:`classes_of`; None for any."""
    return None if name == ANY else service.model.class_number(name)
