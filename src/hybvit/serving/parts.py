"""What the tabs of the page share: the picture that is dropped on it, and handlers whose errors are a line on the page."""

from __future__ import annotations

import concurrent.futures
import functools
import random
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import gradio as gr

from ..data.images import grid
from ..errors import DivergedError
from .drawing import SAMPLER, SEEDS
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


def taken_as_sent(component: T) -> T:
    """Let a component hand over whatever was sent: gradio would raise before our handler runs, on the terminal too.
    :func:`on` checks it."""
    as_sent: Any = lambda payload: payload  # noqa: E731
    component.preprocess = as_sent  # type: ignore[attr-defined]
    return component


def slider(least: float, most: float, value: float, step: float, label: str, **options: Any) -> gr.Slider:
    return taken_as_sent(gr.Slider(least, most, value=value, step=step, label=label, buttons=[], **options))


def seed_field() -> gr.Number:
    return taken_as_sent(gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1))


def checked(component: Any, value: Any) -> Any:
    """What was sent for a component.

    Raises:
        ValueError: the page itself could not have sent it.
    """
    if isinstance(component, (gr.Dropdown, gr.Radio)):
        known = [choice for _, choice in component.choices]
        if value not in known:
            raise ValueError(f"{component.label} is {value!r}: it must be one of {', '.join(map(str, known))}")
    if isinstance(component, gr.Number) and value is None:
        return 0
    if isinstance(component, (gr.Number, gr.Slider)):
        least, most = component.minimum, component.maximum
        assert least is not None
        assert most is not None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            name = str(component.label).partition(":")[0]
            raise ValueError(f"{name} is {value!r}: it must be a number from {least:,} to {most:,}")
    return value


class Given(NamedTuple):
    """The picture of a tab, and the button that has the model draw one."""

    picture: gr.Image
    drawn: gr.Button


def answered(handler: Handler, inputs: Sequence[Any]) -> Handler:
    """A handler that yields HTML, whose errors become a notice."""

    @functools.wraps(handler)
    def steps(*arguments: Any) -> Iterator[str]:
        try:
            yield from handler(*map(checked, inputs, arguments))
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
    handler = answered(handler, inputs if isinstance(inputs, list) else [inputs])
    return event(handler, inputs, output, show_progress="hidden", concurrency_limit=None, api_visibility="private")


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
    return taken_as_sent(gr.Dropdown([ANY, *names], value=ANY, label="Class", filterable=len(names) > 12, visible=visible))


def number_of(service: Service, name: str) -> int | None:
    """The number of a class of :func:`classes_of`; None for any."""
    return None if name == ANY else service.model.class_number(name)
