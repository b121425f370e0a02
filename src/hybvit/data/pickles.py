"""Pickles of numpy arrays and plain containers, read by an interpreter of our own.

Python's unpickler calls whatever a file names, and numpy trusts the state that a file gives a dtype or an array. Nothing is
called here. The file's numpy objects are recorded as what they say (:class:`NumberType`, :class:`EmptyArray`), an array is
made from bytes that are there, and a container has one place: what is read is no larger than a small multiple of its file.
"""

from __future__ import annotations

import codecs
import io
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError
from .files import data_errors

MAX_OBJECTS = (
    1 << 20
)  # containers, arrays, and values that are named for later use: ImageNet 32x32 has 128,123 images in a file
MAX_DIMENSIONS = 8
NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}
OTHER_KINDS = {"O": "objects", "S": "text", "U": "text", "V": "records", "M": "dates", "m": "durations"}
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # of numpy 1 and 2
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
Damaged = pickle.UnpicklingError


def unpickle(raw: bytes, path: Path) -> Any:
    """The content of a Python 2 or 3 pickle of arrays and containers.

    Raises:
        DataError: it is damaged, or refers to any other class or function.
    """
    with data_errors(path):
        try:
            return Interpreter(raw).load()
        except (Damaged, ValueError) as error:  # ValueError: digits or characters that are none
            raise DataError(f"{path}: unsupported or damaged pickle: {error}") from None


class Name(NamedTuple):
    """A class or function that a pickle refers to."""

    module: str
    name: str


class NumberType:
    """A numpy dtype: its code, such as u1, and its byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "|"

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class EmptyArray:
    """An array whose shape, type and bytes follow."""


class Interpreter:
    """The stack machine of pickle, protocols 0 to 5, for the instructions that such files need; see ``pickletools``."""

    def __init__(self, raw: bytes) -> None:
        self.file, self.size = io.BytesIO(raw), len(raw)
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.objects = self.array_bytes = self.unfinished = 0

    def load(self) -> Any:
        while (code := self.take(1)) != b".":
            if (step := STEPS.get(code)) is None:
                raise Damaged(f"its instruction {code!r} makes something else than numpy arrays and plain containers")
            step(self)
        value = self.pop()
        if self.unfinished:
            raise Damaged("an array without content")
        return value

    def take(self, size: int) -> bytes:
        """The next bytes of the file, which are there."""
        if len(found := self.file.read(size) if 0 <= size <= self.size else b"") != size:
            raise Damaged("cut short")
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        if not (found := self.file.readline()).endswith(b"\n"):
            raise Damaged("cut short")
        return found[:-1]

    def pop(self) -> Any:
        if not self.stack:
            raise Damaged("an instruction without its values")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise Damaged("a mark is missing")
        found, self.stack = self.stack, self.marks.pop()
        return found

    def counted(self, value: Any) -> Any:
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            raise Damaged(f"more than {MAX_OBJECTS:,} lists, mappings and arrays")
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.counted(self.stack))
        self.stack = []

    def put(self, index: int) -> None:
        value = self.pop()
        if len(self.memo) >= MAX_OBJECTS and index not in self.memo:
            raise Damaged(f"more than {MAX_OBJECTS:,} values are named for later use")
        self.memo[index] = value
        self.push(value)

    def get(self, index: int) -> None:
        """A value that was named. A tree has no shared containers, so it cannot grow by being walked through."""
        if index not in self.memo:
            raise Damaged(f"value {index} is used before it is named")
        value = self.memo[index]
        if isinstance(value, (list, dict, np.ndarray, EmptyArray)) or (
            isinstance(value, tuple) and not isinstance(value, Name)
        ):
            raise Damaged(f"a {type(value).__name__} is in two places; each must have one")
        self.push(value)

    def extend(self, values: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, list):
            raise Damaged(f"values for a {type(target).__name__} that is no list")
        target.extend(values)
        self.push(target)

    def update(self, pairs: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, dict) or len(pairs) % 2:
            raise Damaged("entries for what is no mapping")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, bytes)):  # to hash a nest of tuples may take forever, or the stack
                raise Damaged(f"a mapping with a {type(key).__name__} as a key; only text is read")
            target[key] = value
        self.push(target)

    def refer(self, module: object, name: object) -> None:
        found = Name(str(module), str(name)) if isinstance(module, str) and isinstance(name, str) else None
        if found not in CALLS and found not in (NDARRAY,):
            words = f"{module}.{name}" if found else "something without a name"
            raise Damaged(f"it refers to {words[:200]}; only numpy arrays and plain containers are read")
        self.push(found)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or function not in CALLS or type(arguments) is not tuple:
            raise Damaged("it calls what is no function of numpy")
        self.push(self.counted(CALLS[function](self, *arguments[:6])))

    def build(self) -> None:
        """Give a dtype its byte order, or an array its content; no other object has a state."""
        state, target = self.pop(), self.pop()
        if isinstance(target, NumberType) and type(state) is tuple:
            target.order = order_of(state)
            self.push(target)
        elif isinstance(target, EmptyArray) and type(state) is tuple and len(state) == 5:
            self.unfinished -= 1
            _, shape, kind, columns_first, content = state
            self.push(self.array(shape, kind, "F" if columns_first is True else "C", content))
        else:
            raise Damaged(f"a state for a {type(target).__name__}")

    def array(self, shape: object, kind: object, order: str, content: object) -> np.ndarray:
        """An array of numbers from as many bytes as it takes."""
        if not isinstance(kind, NumberType):
            raise Damaged("an array without a type of numbers")
        raw, dtype = as_bytes(content), kind.numpy()
        sides = (shape,) if type(shape) is int else shape
        if (
            type(sides) is not tuple
            or len(sides) > MAX_DIMENSIONS
            or not all(type(side) is int and side >= 0 for side in sides)
        ):
            raise Damaged("an array whose shape is no list of sides")
        if math.prod(sides) * dtype.itemsize != len(raw):
            raise Damaged(f"an array of shape {list(sides)} and type {dtype} in {len(raw):,} bytes: cut short")
        self.array_bytes += len(raw)
        if self.array_bytes > self.size:  # the same bytes, named once and used again
            raise Damaged("arrays that share their bytes")
        return np.frombuffer(raw, dtype).reshape(sides, order="F" if order == "F" else "C")


def as_bytes(content: object) -> bytes:
    """Bytes, which Python 2 stored as text."""
    if not isinstance(content, (bytes, str)):
        raise Damaged(f"an array of objects, or of a {type(content).__name__}; only arrays of numbers are read")
    return content.encode("latin1") if isinstance(content, str) else content


def order_of(state: tuple[Any, ...]) -> str:
    """The byte order in the state of a dtype: (version, order, sub-array, names, fields, ...)."""
    order = state[1] if len(state) > 4 else None
    order = order.decode("latin1") if isinstance(order, bytes) else order
    if order not in ("|", "<", ">", "=") or any(part is not None for part in state[2:5]):
        raise Damaged("an array of a type with fields, or without a byte order; only arrays of numbers are read")
    return str(order)


def dtype(machine: Interpreter, code: object = None, *flags: object) -> NumberType:
    code = code.decode("latin1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or code not in NUMBERS:
        kind = OTHER_KINDS.get(str(code)[:1], repr(code)[:40])
        raise Damaged(f"it holds an array of {kind}; only arrays of numbers are read")
    return NumberType(code)


def reconstruct(machine: Interpreter, kind: object = None, *rest: object) -> EmptyArray:
    if kind != NDARRAY:
        raise Damaged("it makes an array of another class than numpy's")
    machine.unfinished += 1
    return EmptyArray()


def scalar(machine: Interpreter, kind: object = None, content: object = b"") -> Any:
    return machine.array((), kind, "C", content)[()]


def from_buffer(
    machine: Interpreter,
    content: object = None,
    kind: object = None,
    shape: object = None,
    order: object = "C",
    axes: object = None,
) -> np.ndarray:
    if order in ("C", "F"):
        return machine.array(shape, kind, str(order), content)
    made = machine.array(shape, kind, "C", content)
    if order != "K" or type(axes) is not tuple or any(type(axis) is not int for axis in axes):
        raise Damaged("an array in no order")
    return made.transpose(axes)


def encode(machine: Interpreter, text: object = None, encoding: object = None) -> bytes:
    """Python 3 stores bytes this way in old protocols."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Damaged("it refers to another codec than latin1")
    return text.encode("latin1")


NDARRAY = Name("numpy", "ndarray")
CALLS: dict[Any, Callable[..., Any]] = {
    Name("numpy", "dtype"): dtype,
    Name("_codecs", "encode"): encode,
    **{Name(module, "_reconstruct"): reconstruct for module in MULTIARRAY},
    **{Name(module, "scalar"): scalar for module in MULTIARRAY},
    **{Name(module, "_frombuffer"): from_buffer for module in NUMERIC},
}


def decimal(text: bytes) -> Any:
    """A number of protocol 0, where 00 and 01 are False and True."""
    return text == b"01" if text in (b"00", b"01") else int(text.removesuffix(b"L"))


def quoted(text: bytes) -> str:
    """A string of protocol 0, which Python 2 wrote between quotes."""
    if len(text) < 2 or text[:1] not in b"'\"" or text[:1] != text[-1:]:
        raise Damaged("a string without its quotes")
    return codecs.escape_decode(text[1:-1])[0].decode("latin1")


def pushed(read: Callable[[Interpreter], Any]) -> Callable[[Interpreter], None]:
    return lambda machine: machine.push(read(machine))


def made(read: Callable[[Interpreter], Any]) -> Callable[[Interpreter], None]:
    return lambda machine: machine.push(machine.counted(read(machine)))


def utf8(machine: Interpreter, form: str) -> str:
    return machine.take(machine.number(form)).decode("utf-8", "surrogatepass")


def last(machine: Interpreter, n: int) -> tuple[Any, ...]:
    return tuple([machine.pop() for _ in range(n)][::-1])


def mapping(machine: Interpreter) -> None:
    pairs = machine.since_mark()
    machine.push(machine.counted({}))
    machine.update(pairs)


STEPS: dict[bytes, Callable[[Interpreter], Any]] = {
    b"\x80": lambda m: m.take(1),  # the protocol
    b"\x95": lambda m: m.take(8),  # the length of a frame
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": pushed(lambda m: decimal(m.line())),
    b"L": pushed(lambda m: decimal(m.line())),
    b"J": pushed(lambda m: m.number("i")),
    b"K": pushed(lambda m: m.number("B")),
    b"M": pushed(lambda m: m.number("H")),
    b"\x8a": pushed(lambda m: int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    b"F": pushed(lambda m: float(m.line())),
    b"G": pushed(lambda m: struct.unpack(">d", m.take(8))[0]),
    b"S": pushed(lambda m: quoted(m.line())),
    b"T": pushed(lambda m: m.take(m.number("i")).decode("latin1")),
    b"U": pushed(lambda m: m.take(m.number("B")).decode("latin1")),
    b"V": pushed(lambda m: m.line().decode("raw-unicode-escape")),
    b"X": pushed(lambda m: utf8(m, "I")),
    b"\x8c": pushed(lambda m: utf8(m, "B")),
    b"\x8d": pushed(lambda m: utf8(m, "Q")),
    b"B": pushed(lambda m: m.take(m.number("I"))),
    b"C": pushed(lambda m: m.take(m.number("B"))),
    b"\x8e": pushed(lambda m: m.take(m.number("Q"))),
    b"\x96": pushed(lambda m: m.take(m.number("Q"))),  # a bytearray, which nothing here changes
    b"]": made(lambda m: []),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.since_mark()),
    b"l": made(lambda m: m.since_mark()),
    b")": lambda m: m.push(()),
    b"t": made(lambda m: tuple(m.since_mark())),
    b"\x85": made(lambda m: last(m, 1)),
    b"\x86": made(lambda m: last(m, 2)),
    b"\x87": made(lambda m: last(m, 3)),
    b"}": made(lambda m: {}),
    b"d": mapping,
    b"s": lambda m: m.update(list(last(m, 2))),
    b"u": lambda m: m.update(m.since_mark()),
    b"(": lambda m: m.mark(),
    b"0": lambda m: m.pop(),
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(m.number("B")),
    b"r": lambda m: m.put(m.number("I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(int(m.line())),
    b"h": lambda m: m.get(m.number("B")),
    b"j": lambda m: m.get(m.number("I")),
    b"c": lambda m: m.refer(*(m.line().decode(errors="replace") for _ in range(2))),
    b"\x93": lambda m: m.refer(*last(m, 2)),
    b"R": lambda m: m.call(),
    b"b": lambda m: m.build(),
}
