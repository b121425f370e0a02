"""Pickles from a stranger: what is read are numbers from bytes that are there, or nothing; no file ends the process."""

from __future__ import annotations

import contextlib
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hybvit.data.datasets import read_split
from hybvit.data.pickles import NUMBERS, unpickle
from hybvit.data.readers import whole_numbers
from hybvit.errors import DataError

from . import official
from .test_datasets import decoding

HERE = Path("batch")


def text(value: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(value)) + value


def array(
    kind: bytes = b"u1", state: bytes = b"", shape: bytes = b"K\x04\x85", content: bytes = b"", order: bytes = b"\x89"
) -> bytes:
    """A pickle of one array, as Python 2 wrote it, of parts that may be forged."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n(" + text(kind) + b"K\x00K\x01tR"
    state = state or b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return b"\x80\x02" + made + b"(K\x01" + shape + dtype + state + order + (content or text(b"abcd")) + b"tb."


def test_the_parts_make_an_honest_pickle():
    assert unpickle(array(), HERE).tolist() == [97, 98, 99, 100]
    assert pickle.loads(array(), encoding="latin1").tolist() == [97, 98, 99, 100]


FORGED = {
    "flags": array(b"f8", b"(K\x03U\x01|N(U\x01at}U\x01a(K\x07K\x00tsK\x40K\xffK\x4btb", b"K\x01\x85", text(b"A" * 8)),
    "a sub-array": array(b"u1", b"(K\x03U\x01|(cnumpy\ndtype\n(U\x02u1tRK\x04\x85tNNK\x04K\x01K\x00tb"),
    "fields": array(b"u1", b"(K\x03U\x01|N(U\x01at}U\x01a(NK\x00tsK\x04K\x01K\x00tb"),
    "records": array(b"V4"),
    "objects": array(b"O8", content=b"](K\x01e"),
    "objects by their type": array(b"u1", content=b"](K\x01K\x02K\x03K\x04e"),
    "no bytes": array(shape=b"M\x10\x27M\x00\x0c\x86", content=text(b"")),
    "fewer bytes": array(shape=b"M\x10\x27\x85"),
    "a side below zero": array(shape=b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff\x86"),
    "a huge side": array(shape=b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"),
    "no memory of its own": b"cnumpy\nndarray\n(M\x10\x27M\x00\x0c\x86U\x02u1tR.",
    "an object of a class": b"cnumpy\nndarray\n)\x81.",
    "attributes of a function": b"cnumpy\ndtype\n}U\x01aK\x01sb.",
    "an array twice": b"(cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btRq\x01h\x01t.",
    "an array without content": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR.",
    "bytes used twice": b"cnumpy.core.multiarray\nscalar\nq\x010"
    b"cnumpy\ndtype\nU\x03c16\x85R(K\x03U\x01<NNNK\x00K\x00K\x00tbq\x020U\x10AAAABBBBCCCCDDDDq\x030("
    + b"h\x01h\x02h\x03\x86R" * 99 + b"t.",
    "a list in two places": b"(]q\x01h\x01t.",
    "a list in itself": b"]q\x01h\x01a.",
    "a set": pickle.dumps({1, 2}, 4),
    "a bytearray of sixteen million gigabytes": b"\x80\x05\x96" + b"\xff" * 6 + b"\0\0.",
    "an empty stack": b"\x85.",
    "no mark": b"t.",
    "an odd mapping": b"(U\x01ad.",
    "a mapping of tuples": b"(" + b"(" * 50 + b"t" * 50 + b"K\x01d.",
    "no end": b"\x80\x02](K\x01",
    "nothing": b"",
    "an extension": b"\x82\x01.",
    "a persistent object": b"Pabc\n.",
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_pickle_is_refused(case):
    with pytest.raises(DataError, match=r"^batch: unsupported or damaged pickle: "):
        unpickle(FORGED[case], HERE)


FUZZ = """
import random, struct, sys, warnings
import numpy as np
from tests.test_pickles import array, forged, HERE
from hybvit.data.pickles import unpickle
from hybvit.errors import DataError

counts = [0, 0]
for seed in range(int(sys.argv[1])):
    raw, given = forged(random.Random(seed))
    try:
        found = unpickle(raw, HERE)
    except DataError:
        counts[0] += 1
        continue
    if isinstance(found, np.ndarray):
        assert found.dtype.kind in "biufc" and not found.dtype.hasobject and found.dtype.fields is None, (seed, found.dtype)
        assert given is None or found.tobytes("A") == given, seed
        found.copy().sum()
        repr(found)
        counts[1] += 1
print(*counts)
"""


VALUES = [
    b"N", b"K\x00", b"K\x07", b"J\xff\xff\xff\xff", b"\x8a\xc8" + b"A" * 200, b"]", b"}", b")", b"G" + bytes(8), b"U\x01<",
    b"(U\x01at", b"}U\x01a(NK\x00ts", b"(cnumpy\ndtype\n(U\x02u1tRK\x04\x85t", b"cnumpy\nndarray\n", text(b"A" * 250),
]  # fmt: skip


def forged(draw: random.Random) -> tuple[bytes, bytes | None]:
    """A pickle whose dtype and array have states drawn at random, and the bytes that are in it; None if they were changed."""
    value = lambda: draw.choice(VALUES)  # noqa: E731
    kind = draw.choice(
        [*sorted(NUMBERS), *(["u1"] * 20), "O8", "V8", "S4", "U2", "M8", "m8", "u3", "f16", "|u1", "u1,u1", "(2,)u1"]
    ).encode()
    content = draw.randbytes(draw.choice([0, 1, 4, 8, 16, 64]))
    flags, honest = struct.pack("B", draw.randrange(256)), draw.random() < 0.6
    fields = [b"N" if honest or draw.random() < 0.7 else value() for _ in range(3)]
    state = b"(K\x03U\x01" + draw.choice([b"|", b"<", b">", b"=", b"x"]) + b"".join(fields) + b"K\x40K\x01K" + flags + b"tb"
    side = len(content) // draw.choice([1, 1, 1, 2, 4, 8])
    shape = draw.choice([b"K" + bytes([side]) + b"\x85"] * 4 + [b")", value(), b"M\x10\x27M\x00\x0c\x86", b"K\x00K\xff\x86"])
    whole = array(kind, state, shape, text(content) if draw.random() < 0.9 else value(), draw.choice([b"\x89", b"\x88"]))
    if draw.random() < 0.5:
        return whole, content
    changed = bytearray(whole)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(changed))
        changed[at : at + draw.randrange(2)] = draw.randbytes(draw.randrange(3))
    return bytes(changed), None


def test_no_forged_state_ends_the_process():
    """In a process of its own, which a signal would end."""
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "600"], capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    refused, read = map(int, done.stdout.split())
    assert refused > 200
    assert read > 30


HONEST = {
    "bytes": lambda draw: draw.integers(0, 256, (3, 4), dtype=np.uint8),
    "columns first": lambda draw: np.asfortranarray(draw.integers(0, 9, (3, 4))),
    "every second": lambda draw: draw.integers(0, 9, 20)[::2],
    "axes in another order": lambda draw: draw.integers(0, 9, (2, 3, 4)).transpose(1, 2, 0),
    "the other byte order": lambda draw: draw.integers(0, 9, 5).astype(">i4"),
    "floats": lambda draw: draw.normal(size=(2, 2)),
    "truth": lambda draw: draw.integers(0, 2, 4) > 0,
    "a number": lambda draw: np.int64(7),
    "lists of numbers": lambda draw: [np.int64(3), 2, -1, 2**40, 1.5, True, None],
    "one type for all": lambda draw: {"a": np.arange(2), "b": np.arange(3), "c": [np.int64(1), np.int64(1)]},
    "text": lambda draw: {"a": "ä\U0001f600", "b": b"\xff\0", "c": ("x", ("y",))},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", HONEST)
@pytest.mark.parametrize("numpy1", [False, True])
def test_honest_pickles_are_what_python_reads(case, protocol, numpy1):
    value = HONEST[case](np.random.default_rng(0))
    raw = pickle.dumps(value, protocol)
    if numpy1:  # the old name of the module, a character shorter
        raw = raw.replace(b"cnumpy._core.", b"cnumpy.core.").replace(
            b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
        )
        raw = raw.replace(b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric")
        if protocol >= 4:
            raw = raw[:2] + raw[11:]  # without the length of the frame
    found = unpickle(raw, HERE)
    np.testing.assert_equal(found, value)
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype


def test_a_batch_of_ten_thousand_images_takes_a_moment():
    content = {
        "batch_label": "b", "labels": [i % 10 for i in range(10_000)], "data": np.zeros((10_000, 3072), np.uint8),
        "filenames": [f"image_{i}.png" for i in range(10_000)],
    }  # fmt: skip
    raw = pickle.dumps(content, 2)
    started = time.process_time()
    found = unpickle(raw, HERE)
    assert time.process_time() - started < 3
    assert found["labels"] == content["labels"]
    assert found["data"].shape == (10_000, 3072)


LARGE = {
    "a value named two to the 27": b"\x80\x02Nr\x00\x00\x00\x08.",
    "the same in digits": b"Np134217728\n.",
    "a bytearray": b"\x80\x05\x96\x00\x00\x00\x80\x00\x00\x00\x00.",
    "bytes": b"\x80\x04\x8e\x00\x00\x00\x00\x02\x00\x00\x00.",
    "a frame": b"\x80\x04\x95\x00\x00\x00\x00\x02\x00\x00\x00N.",
    "a million lists": b"(" + b"]" * 1_200_000 + b"t.",
    "a million marks": b"(" * 1_200_000 + b".",
    "a million names": b"N" + b"\x94" * 1_200_000 + b".",
    "lists in lists, four times each": b"](K\x01K\x02e"
    + b"".join(b"q%c0](h%ch%ch%ch%ce" % ((i,) * 5) for i in range(25))
    + b".",
    "lists in lists, by duplication": b"]" + b"2\x86" * 60 + b".",
}


@pytest.mark.parametrize("case", LARGE)
def test_a_small_pickle_takes_little_memory(case):
    tracemalloc.start()
    started = time.process_time()
    with contextlib.suppress(DataError):
        unpickle(LARGE[case], HERE)
    peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - started
    tracemalloc.stop()
    assert peak < (1 << 20 if len(LARGE[case]) < 1000 else 300 << 20)
    assert seconds < 20


@pytest.mark.parametrize(
    "values",
    [
        [["a" * 1000] * 1000] * 1000, [np.zeros((100, 100), np.uint8)] * 100, ["x" * 100_000] * 100_000, [[[1]]] * 3, [1, [2]],
        [{}] * 3, [b"1"] * 3,
    ],
)  # fmt: skip
def test_lists_of_other_things_than_numbers_become_no_array(values):
    tracemalloc.start()
    with pytest.raises(DataError, match="its labels are"):
        whole_numbers(values, "labels", HERE)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("names", [["x" * 10**6] * 10**6, [b"airplane"] * 10**6, [[["a"] * 9] * 9] * 10, "airplane", None])
def test_class_names_are_counted_and_compared_before_they_are_read(tmp_path, monkeypatch, names):
    official.unpacked(tmp_path, official.cifar10())
    monkeypatch.setattr("hybvit.data.readers.unpickle", lambda raw, path: {"label_names": names})
    with pytest.raises(DataError, match="its class names differ from those of CIFAR-10"):
        read_split("cifar10", "train", str(tmp_path), decoding(), False)
