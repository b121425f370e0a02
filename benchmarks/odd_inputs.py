"""What lies in files and folders, for throw_inputs.py: images, archives, tables and known data sets with something odd in them.

Each function draws an input into the folder of its case, and returns where it lies.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from PIL import Image

from hybvit.catalog import CATALOG, IDX_FILES

NAMES = [
    "cat", "dog", "train", "test", "val", "Train", "None", "nan", "1", "01", "1.0", "-1", "1e999", "CON", "$x$", "%s%d", "{}",
    "{0..3}", "-n", "--out", "a\nb", "a\tb", " lead", "trail ", "é", "e\u0301", "日本語", "🙂", "\u202eabc", "x" * 200, "a'b",
    'a"b', "a;b", "a|b", "a*b", "[a]", "~", "..x", ".hidden", "\udcff", "a\\b", "#x", "<b>", "a,b", "a:b", "\x1b[31m", "\x7f",
    "\u2028", "\ufeffx", "__MACOSX", "x.png", "a.zip", "_x", "\\frac{", "^", "$", "@eaDir", "\x01", "Ω" * 60, "unlabelled",
]  # fmt: skip
VALUES = [
    "", " ", "nan", "inf", "-inf", "-1", "0", "1", "1.5", "-0.0", "1e308", "1e-320", "99999999999999999999", "0x10", "1_000",
    "²", "٣", "é", "🙂", "null", "None", "true", "[]", "[1, 2]", "{}", "{a: 1}", "a\nb", "\x1b[0m", "\udcff", "%s", "$HOME",
    "~", "~nobody", "/", ".", "/dev/null", "/dev/full", "/proc/self/mem", "x" * 5000, "!!python/object:os.system", "*a",
    "- 1", "2020-01-01", "'", '"', ",", ":", "--",
]  # fmt: skip
FORMS = [
    "PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "QOI", "SGI", "AVIF", "DIB", "PDF",
    "EPS",
]  # fmt: skip
MODES = ["1", "L", "P", "LA", "PA", "RGBA", "RGB", "CMYK", "YCbCr", "I;16", "I", "F"]


class Draw(random.Random):
    """All random choices of a case, and its folder."""

    def __init__(self, seed: int, number: int, folder: Path, shared: Path) -> None:
        super().__init__(f"{seed} {number}")
        self.folder, self.shared = folder, shared

    def maybe(self, chance: float = 0.5) -> bool:
        return self.random() < chance

    def usually(self, usual: Any, *others: Any, but: float = 0.15) -> Any:
        return self.choice(others) if self.maybe(but) else usual

    def name(self, suffix: str = "") -> str:
        """A name for a file or a class; plain in half of the cases."""
        return (self.choice(NAMES) if self.maybe() else self.choice("abcdefgh")) + suffix

    def noise(self, *shape: int) -> np.ndarray:
        return np.random.default_rng(self.getrandbits(32)).integers(0, 256, shape, dtype=np.uint8)

    def spoil(self, raw: bytes, chance: float = 1.0) -> bytes:
        """Bytes that are, by chance, cut, flipped, emptied, doubled, zeroed or exchanged."""
        if not self.maybe(chance):
            return raw
        at, flipped = self.randrange(max(1, len(raw))), bytearray(raw)
        for _ in range(self.choice((1, 4, 32)) if raw else 0):
            flipped[self.randrange(min(len(raw), self.choice((64, 512, 1 << 30))))] = self.randrange(256)
        extra = self.choice((b"\0", b"\xff\xfe", b"\n", b"x" * 200_000, raw))
        made = (bytes(flipped), raw[:at], raw + extra, raw[:at] + extra + raw[at:], b"", bytes(len(raw)), b"<html>")
        return self.choice((bytes(flipped), *made))


# images and folders


def picture(draw: Draw, form: str = "PNG", mode: str = "L") -> bytes:
    h, w = draw.choice(((8, 8), (9, 12), (1, 1), (1, 40), (300, 2), (32, 32)))
    kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16}.get(mode)
    pixels = draw.noise(h, w, 3) if kind is None else draw.noise(h, w).astype(kind) * 100
    whole = Image.fromarray(pixels).convert(mode) if kind is None else Image.fromarray(pixels)
    options: dict[str, Any] = {}
    if draw.maybe(0.3) and form in ("PNG", "JPEG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = draw.choice((0, 3, 6, 8, 99))
        options["exif"] = draw.spoil(exif.tobytes(), 0.2 if mode != "L" else 0)
    if draw.maybe(0.1) and form in ("GIF", "WEBP", "TIFF", "PNG"):
        options |= {"save_all": True, "append_images": [whole.resize((5, 5)), whole]}
    file = BytesIO()
    try:
        whole.save(file, form, **options)
    except Exception:  # a format that has no such mode, or that this Pillow does not write
        file = BytesIO()
        whole.convert("L").save(file, "PNG")
    return file.getvalue()


def odd_picture(draw: Draw) -> bytes:
    raw = picture(draw, draw.choice(FORMS), draw.choice(MODES))
    at = raw.find(b"IHDR")
    if draw.maybe(0.1) and at >= 0:  # its header claims more than it holds
        raw = raw[: at + 4] + struct.pack(">II", 1 << draw.randrange(10, 31), 1 << 16) + raw[at + 12 :]
    return draw.spoil(raw, 0.6)


def pictures(draw: Draw, odd: float = 0.01) -> bytes:
    return odd_picture(draw) if draw.maybe(odd) else picture(draw)


def put(path: Path, raw: bytes | str) -> Path:
    """Write a file, if the system allows its name."""
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape"))
    return path


def replace(draw: Draw, path: Path) -> None:
    """Put something else where a file or folder was."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    kind = draw.choice(("gone", "folder", "full folder", "pipe", "dangling", "loop", "device", "sparse", "empty", "itself"))
    links = {"dangling": "/nowhere/x", "loop": path.name, "device": "/dev/zero", "itself": "."}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in links:
        path.symlink_to(links[kind])
    elif kind in ("sparse", "empty"):
        path.touch()
        os.truncate(path, 8 << 30 if kind == "sparse" else 0)
    elif kind != "gone":
        path.mkdir()
        if kind == "full folder":
            put(path / "x.png", picture(draw))


def members(draw: Draw) -> dict[str, bytes]:
    """Path -> content of a set of images in class folders, a few of them odd."""
    classes = [draw.name() for _ in range(draw.choice((1, 2, 2, 3)))] if draw.maybe() else draw.usually(["a", "b"], [""])
    top = draw.usually("", "wrap/", f"{draw.name()}/", but=0.4)
    splits = draw.usually([""], ["train/", "test/"], ["train/", "val/", "test/"], ["seg_train/seg_train/", "test/"], but=0.4)
    found = {}
    for kind in (f"{top}{split}{kind}/" for split in splits for kind in classes):
        for i in range(draw.usually(6, 1, 2)):
            suffix = draw.choice((".png", ".jpg", ".tif", ".xyz", "", ".tar", ".heic"))
            name = draw.name(suffix) if draw.maybe(0.03) else f"{i}.png"
            found[(kind + name).lstrip("/")] = pictures(draw)
    for _ in range(draw.usually(0, 1, 2, but=0.3)):
        found[draw.choice(("", top, "a/")) + draw.name(draw.choice((".png", ".txt", "", "/x.png")))] = odd_picture(draw)
    return found


def folder(draw: Draw) -> Path:
    root = draw.folder / draw.usually("data", "d {2020}", "é", "a.tar", "x.csv", "-x", but=0.3)
    for name, raw in members(draw).items():
        put(root / name, raw)
    files = sorted(root.rglob("*"), key=os.fsencode)
    if files and draw.maybe(0.25):
        replace(draw, draw.choice(files))
    return root


# archives, tables and shards


def tarred(draw: Draw, path: Path, found: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w:gz" if "gz" in path.suffix else "w") as packed:
        for name, raw in found:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(raw), draw.usually(tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, but=0.01)
            packed.addfile(entry, BytesIO(raw))
    path.write_bytes(draw.spoil(path.read_bytes(), 0.1))


def archive(draw: Draw) -> Path:
    path = draw.folder / draw.usually("a.zip", "a.ZIP", "a.tar", "a.tar.gz", "a", "train-{00..01}.tar")
    found = members(draw)
    for name in ("/etc/x/1.png", "../up/1.png", "a\\1.png", "C:/a/1.png", "./a/9.png", "a//8.png", "", "a/", "a/../b/1.png"):
        if draw.maybe(0.04):
            found[name] = picture(draw)
    if path.suffix.lower() != ".zip":
        tarred(draw, path, list(found.items()))
        return path
    method = draw.usually(zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(path, "w", method) as zipped:
        for name, content in found.items():
            zipped.writestr(zipfile.ZipInfo(name.encode("utf-8", "replace").decode()), content, method)
    raw = bytearray(path.read_bytes())
    start = raw.find(b"PK\x01\x02")
    if draw.maybe(0.25) and start >= 0:  # of an entry of the index: flags, method, sum, sizes, lengths, attributes, place
        at = start + draw.choice((6, 8, 10, 16, 20, 24, 28, 30, 38, 42))
        raw[at : at + 2] = struct.pack("<H", draw.choice((0, 1, 9, 12, 14, 93, 99, 255, 65535)))
    path.write_bytes(draw.spoil(bytes(raw), 0.2))
    return path


CELLS = [*NAMES, 1, 1.5, -7, 10**30, True, None, math.nan, math.inf, [], {}, [[]], "x" * 200_000, "/dev/zero", "..", "\0", 'a"']
HEADS = [["path", "label", "split"], ["file", "class"], ["Path", "path", "label"], ["label"], ["path"], ["path", "label", "x"]]


def manifest(draw: Draw) -> Path:
    root = draw.folder / "data"
    head = draw.usually(["path", "label"], *HEADS, but=0.4)
    table: list[list[Any]] = [[f"{i}.png", "ab"[i % 2], ("train", "test")[i % 4 == 0]][: len(head)] for i in range(12)]
    for row in table:
        put(root / row[0], pictures(draw))
    for _ in range(draw.choice((0, 0, 1, 3))):
        row = draw.choice(table)
        row[draw.randrange(len(row))] = draw.choice(CELLS)
    table = draw.usually(
        table, [], table[:1], table * 2, [row[:1] for row in table], [[*row, "", "x"] for row in table], but=0.1
    )
    path = root / draw.choice(("set.csv", "set.jsonl"))
    if path.suffix == ".csv":
        separator, end = draw.usually(",", ";", "\t", "|"), draw.usually("\n", "\r\n", "\r")
        cell = draw.usually("{}", '"{}"', '"{}', "'{}'").format
        text = end.join(separator.join(map(cell, row)) for row in [head, *table])
    else:
        lines = (json.dumps(dict(zip(head, row, strict=False)), ensure_ascii=draw.maybe()) for row in table)
        text = "\n".join(lines).replace("{", draw.usually("{", "[", "{" * 5000, but=0.1), 1)
    coding = draw.usually("utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252")
    path.write_bytes(draw.spoil(text.encode(coding, draw.choice(("replace", "backslashreplace", "ignore"))), 0.15))
    if draw.maybe(0.04):
        replace(draw, path)
    return path


def parquet(draw: Draw) -> Path:
    root = draw.folder / "data"
    root.mkdir()
    for split in draw.choice((["data"], ["train", "test"], ["train"], ["train", "test", "validation"], ["test", "x"])):
        n = draw.usually(12, 0, 1)
        odd: list[Any] = [None, *({"bytes": None, "path": path} for path in (None, "/nowhere", "/dev/zero", "http://x/y.png"))]
        odd += [{"bytes": b"", "path": "x"}, {"bytes": odd_picture(draw), "path": "\n"}]
        images = [draw.usually({"bytes": picture(draw), "path": None}, *odd, but=0.02) for _ in range(n)]
        half = [i % 2 for i in range(n)]
        others: list[list[Any]] = [["ab"[i] for i in half], [i / 2 for i in half], [i == 0 for i in half], [[i] for i in half]]
        others += [[value] * n for value in (None, b"\xff", -1, math.nan, {"a": 1}, 2**40)]
        others += [[draw.choice(NAMES[:20]) for _ in half], [None if i == 3 else k for i, k in enumerate(half)]]
        labels = draw.usually(half, *others, but=0.6)
        names = draw.usually(("image", "label"), ("x", "y"), ("label", "image"), ("image", "class"))
        table = pa.table(dict(zip(names, (images, labels), strict=True)))
        table = draw.usually(table, table.select([0]), table.select([1]), but=0.1)
        if draw.maybe(0.4):  # the schema of the library datasets
            kinds = (
                {"_type": "ClassLabel", "names": ["a", "b"]},
                {"_type": "ClassLabel", "names": []},
                {"_type": "Nothing"},
                3,
            )
            known = {"image": {"_type": "Image"}, "label": draw.choice(kinds)}
            facts = json.dumps({"info": {"features": draw.usually(known, {}, [])}}).encode()
            table = table.replace_schema_metadata({"huggingface": draw.spoil(facts, 0.1)})
        pq.write_table(table, root / f"{split}.parquet")
        put(root / f"{split}.parquet", draw.spoil((root / f"{split}.parquet").read_bytes(), 0.1))
    return draw.choice((root, next(root.iterdir())))


def shards(draw: Draw) -> Path:
    root = draw.folder / "data"
    root.mkdir()
    for name in draw.usually(["train-0", "test-0"], ["train-0", "train-1", "test-0"], ["train-0"], ["x", "test"]):
        found = []
        for i in range(draw.usually(40, 0, 12)):
            odd = draw.maybe(0.01)
            base = draw.choice(("", "./", "a/", "../", "/")) + draw.name() if odd else f"{i:04}"
            label = draw.choice(VALUES[:40]) if odd else str(i % 10)
            parts = [(f"{base}.png", pictures(draw)), (f"{base}.cls", label.encode("utf-8", "replace"))]
            found += parts[: draw.randrange(3)] if odd else parts
        tarred(draw, root / f"{name}.tar", found)
    right = '{"train-0.tar": 40, "test-0.tar": 40}'
    wrong = (
        '{"train-0.tar": 9}',
        "{}",
        "[]",
        "",
        *(right.replace("40", n) for n in ("1e999", "-4", "1.5", "null", "9", "400")),
    )
    if draw.maybe(0.3):
        put(root / "sizes.json", draw.usually(right, *wrong, but=0.7))
    if draw.maybe(0.3):
        lists = ("0\n1\n", "a\na\n", "\n", "\udcff", "\n".join(NAMES), "a\0b\n")
        put(root / "classes.txt", draw.usually("\n".join("0123456789"), *lists, but=0.6))
    return draw.usually(root, root / "train-{0..1}.tar", root / "train-0.tar")


# known data sets


def idx_files(draw: Draw, root: Path, n: int) -> None:
    for i, file in enumerate(IDX_FILES):
        shape = [n, 28, 28][: 1 if i % 2 else 3]
        body = bytes(k % 10 for k in range(n)) if i % 2 else draw.noise(*shape).tobytes()
        shape = draw.usually(shape, shape[::-1], [], [0], [2**32 - 1] * 3, [2**31, 2**31, 4], shape * 80, but=0.1)
        raw = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body
        put(root / file, draw.spoil(raw, 0.05))


def pickles(draw: Draw, root: Path, n: int, name: str) -> None:
    ten = name == "cifar10"
    base = root / ("cifar-10-batches-py" if ten else "cifar-100-python")

    def write(file: str, content: object) -> None:
        raw = pickle.dumps(content, protocol=draw.randrange(6))
        foreign = (b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x95", b"(lp0\n.", pickle.dumps([content]))
        put(base / file, draw.usually(draw.spoil(raw, 0.03), *foreign, but=0.03))

    labels = [k % 10 for k in range(n)]
    pixels = draw.noise(n, 3072)
    if draw.maybe(0.4):
        shapes = (
            pixels.astype(np.float32),
            pixels[:, :100],
            pixels[:0],
            pixels[0],
            None,
            "x",
            [1],
            pixels[:, ::2],
            np.array("x"),
        )
        pixels = draw.usually(pixels, *shapes, but=0.4)
        rows = (labels[:3], [], None, "abc", [-1] * n, [10**30] * n, [None] * n, ["a"] * n, [[1], [2, 3]], [1.5] * n, {0: 1}, 7)
        labels = draw.usually(labels, *rows, [999] * n, but=0.7)
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]:
        write(file, {"data": pixels, "labels" if ten else "fine_labels": labels})
    names = list(CATALOG[name].classes)
    names = draw.usually(names, names[::-1], None, 3, [3] * 10, {}, but=0.1)
    write("batches.meta" if ten else "meta", {"label_names" if ten else "fine_label_names": names})


def matlab_files(draw: Draw, root: Path, n: int) -> None:
    root.mkdir()
    for split in ("train", "test"):
        x = draw.usually(draw.noise(32, 32, 3, n), draw.noise(32, 32, 3), "x", 3, {"a": 1}, [])
        labels = (
            np.full((n, 1), math.nan),
            "abc",
            {"a": 1},
            np.ones((n, 2)),
            np.full((n, 1), 1j),
            np.array([["a"], [3]], object),
        )
        y = draw.usually(np.arange(n)[:, None] % 10, *labels, but=0.4)
        scipy.io.savemat(root / f"{split}_32x32.mat", {"X": x, "y": y})
        put(root / f"{split}_32x32.mat", draw.spoil((root / f"{split}_32x32.mat").read_bytes(), 0.1))


def stl_files(draw: Draw, root: Path, n: int) -> None:
    for file in ("train", "test"):
        put(root / "stl10_binary" / f"{file}_X.bin", draw.spoil(draw.noise(n, 27648).tobytes(), 0.1))
        put(root / "stl10_binary" / f"{file}_y.bin", draw.spoil(bytes(k % 10 + 1 for k in range(n)), 0.2))


def npz_files(draw: Draw, root: Path, n: int) -> None:
    for file in [*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]:
        raw, labels = BytesIO(), np.arange(n) % 1000 + 1
        rows = (
            labels[:3],
            labels * 1.5,
            labels.astype(str),
            labels.astype(object),
            labels * 1j,
            labels[None],
            labels * 0,
            np.array(7),
        )
        np.savez(
            raw,
            data=draw.usually(draw.noise(n, 3072), draw.noise(n, 9), but=0.02),
            labels=draw.usually(labels, *rows, but=0.05),
        )
        put(root / f"{file}.npz", draw.spoil(raw.getvalue(), 0.03))
    lines = [f"n{k} {k} c{k}" for k in range(1, 1001)]
    if draw.maybe(0.4):
        put(
            root / "map_clsloc.txt",
            "\n".join(draw.usually(lines, lines[:9], ["n1"], ["n1 x y"], ["n1 1"] * 3, ["é 1 \udcff"], but=0.7)),
        )


def named(draw: Draw) -> tuple[str, Path]:
    """The files of a known data set, with a catalog that expects as few images as there are."""
    name, n, root = (
        draw.choice(("fashion_mnist", "cifar10", "cifar100", "svhn", "stl10", "imagenet32")),
        20,
        draw.folder / "data",
    )
    cifar = partial(pickles, name=name)
    writers = {"fashion_mnist": idx_files, "svhn": matlab_files, "stl10": stl_files, "imagenet32": npz_files}
    writers.get(name, cifar)(draw, root, n)
    if draw.maybe(0.1):
        replace(draw, draw.choice(sorted(root.rglob("*"))))
    if draw.maybe(0.8):
        CATALOG[name].splits.update({"train": n * {"cifar10": 5, "imagenet32": 10}.get(name, 1), "test": n})
        CATALOG[name].balance.clear()
        CATALOG[name].md5.clear()
    return name, root
