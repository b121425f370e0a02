"""Small archives in the exact form in which each data set is distributed: same names, same byte layout, fewer images."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from hybvit.catalog import CATALOG


def python2_pickle(content: dict[str, Any]) -> bytes:
    """A protocol-2 pickle as Python 2 wrote it: byte strings, and numpy's functions under their old names."""

    def text(value: str | bytes) -> bytes:
        raw = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<I", len(raw)) + raw

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)

    def encode(value: Any) -> bytes:
        if isinstance(value, np.ndarray):
            empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text("b") + b"\x87R"
            kind = b"cnumpy\ndtype\n" + text("u1") + number(0) + number(1) + b"\x87R"
            kind += b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
            shape = b"(" + b"".join(number(side) for side in value.shape) + b"t"
            return empty + b"(" + number(1) + shape + kind + b"\x89" + text(value.tobytes()) + b"tb"
        if isinstance(value, (list, tuple)):
            return b"](" + b"".join(encode(item) for item in value) + b"e"
        return number(value) if isinstance(value, int) else text(value)

    return b"\x80\x02}(" + b"".join(text(key) + encode(value) for key, value in content.items()) + b"u."


def noise(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def jpeg(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    colour = tuple(int(v) for v in noise(1, 3, seed=seed)[0])
    Image.new("RGB", size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def tar_gz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return path


def zip_file(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return path


def unpacked(folder: Path, members: dict[str, bytes]) -> Path:
    for name, raw in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


def idx(array: np.ndarray, compress: bool = True) -> bytes:
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    return gzip.compress(raw) if compress else raw


def mnist(train: int = 20, test: int = 10, compress: bool = True) -> dict[str, bytes]:
    end = ".gz" if compress else ""
    return {
        f"train-images-idx3-ubyte{end}": idx(noise(train, 28, 28), compress),
        f"train-labels-idx1-ubyte{end}": idx(np.arange(train) % 10, compress),
        f"t10k-images-idx3-ubyte{end}": idx(noise(test, 28, 28, seed=1), compress),
        f"t10k-labels-idx1-ubyte{end}": idx(np.arange(test) % 10, compress),
    }


def cifar10() -> dict[str, bytes]:
    """Five batches of 10 and a test batch of 10, one image of each class in each."""
    names = list(CATALOG["cifar10"].classes)
    members = {"batches.meta": python2_pickle({"label_names": names, "num_vis": 3072, "num_cases_per_batch": 10})}
    for i, batch in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        content = {
            "batch_label": batch,
            "labels": list(range(10)),
            "data": noise(10, 3072, seed=i),
            "filenames": ["a.png"] * 10,
        }
        members[batch] = python2_pickle(content)
    return {f"cifar-10-batches-py/{name}": raw for name, raw in members.items()}


def cifar100() -> dict[str, bytes]:
    labels = list(range(100))
    coarse = [k // 5 for k in labels]
    meta = {"fine_label_names": list(CATALOG["cifar100"].classes), "coarse_label_names": ["people"] * 20}
    members = {"meta": python2_pickle(meta)}
    for i, name in enumerate(("train", "test")):
        content = {"fine_labels": labels, "coarse_labels": coarse, "data": noise(100, 3072, seed=i), "batch_label": name}
        members[name] = python2_pickle(content)
    return {f"cifar-100-python/{name}": raw for name, raw in members.items()}


def cifar_binary(name: str) -> dict[str, bytes]:
    """The images of :func:`cifar10` or :func:`cifar100` in the binary version."""
    ten = name == "cifar10"
    folder = "cifar-10-batches-bin" if ten else "cifar-100-binary"
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    names = ("\n".join(CATALOG[name].classes) + "\n\n").encode()
    members = {f"{folder}/{'batches.meta' if ten else 'fine_label_names'}.txt": names}
    for i, batch in enumerate(batches):
        images = noise(10 if ten else 100, 3072, seed=i)
        labels = np.arange(len(images), dtype=np.uint8)[:, None]
        members[f"{folder}/{batch}.bin"] = np.hstack([labels, images] if ten else [labels // 5, labels, images]).tobytes()
    return members


def svhn(folder: Path, train: int = 20, test: int = 10) -> None:
    for name, n in (("train", train), ("test", test)):
        labels = (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]  # 1..10, where 10 is the digit 0
        savemat(folder / f"{name}_32x32.mat", {"X": noise(n, 32, 32, 3).transpose(1, 2, 3, 0), "y": labels})


def stl10(train: int = 10, test: int = 20, unlabelled: int = 7) -> dict[str, bytes]:
    def column_order(images: np.ndarray) -> bytes:
        return images.transpose(0, 1, 3, 2).tobytes()

    labels = lambda n: (np.arange(n) % 10 + 1).astype(np.uint8).tobytes()  # noqa: E731
    members = {
        "class_names.txt": "\n".join(CATALOG["stl10"].classes).encode(),
        "fold_indices.txt": b"0 1 2",
        "train_X.bin": column_order(noise(train, 3, 96, 96)),
        "train_y.bin": labels(train),
        "test_X.bin": column_order(noise(test, 3, 96, 96, seed=1)),
        "test_y.bin": labels(test),
        "unlabeled_X.bin": column_order(noise(unlabelled, 3, 96, 96, seed=2)),
    }
    return {f"stl10_binary/{name}": raw for name, raw in members.items()}


TINY_IDS = ("n02124075", "n01443537", "n04067472")  # not sorted, as in the real wnids.txt


def tiny_imagenet() -> dict[str, bytes]:
    members = {
        "wnids.txt": "\n".join(TINY_IDS).encode() + b"\n",
        "words.txt": b"n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn04067472\treel\nn09999999\tother\n",
    }
    for k, wnid in enumerate(TINY_IDS):
        for i in range(4):
            members[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(10 * k + i)
        members[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t62\t62\n".encode()
    rows = [f"val_{i}.JPEG\t{TINY_IDS[i % 3]}\t0\t32\t44\t62" for i in range(6)]
    members["val/val_annotations.txt"] = ("\n".join(rows) + "\n").encode()
    members |= {f"val/images/val_{i}.JPEG": jpeg(100 + i) for i in range(6)}
    members |= {f"test/images/test_{i}.JPEG": jpeg(200 + i) for i in range(5)}
    return {f"tiny-imagenet-200/{name}": raw for name, raw in members.items()}


def imagenet32(npz: bool = True) -> dict[str, bytes]:
    """Ten training batches of 4 and a validation batch of 4; labels from 1."""
    members = {}
    for i, name in enumerate([*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]):
        data, labels = noise(4, 3072, seed=i), [1, 2, 999, 1000]
        if npz:
            file = io.BytesIO()
            np.savez(file, data=data, labels=np.array(labels), mean=np.zeros(3072))
            members[f"{name}.npz"] = file.getvalue()
        else:
            members[name] = pickle.dumps({"data": data, "labels": labels, "mean": np.zeros(3072)})
    return members


def imagenet() -> dict[str, bytes]:
    members = {"LOC_synset_mapping.txt": b"n01440764 tench, Tinca tinca\nn02012849 crane\n"}
    for k, wnid in enumerate(("n02012849", "n01440764")):
        members |= {f"train/{wnid}/{wnid}_{i}.JPEG": jpeg(10 * k + i, (90, 70)) for i in range(3)}
        members |= {f"val/{wnid}/ILSVRC2012_val_{k}{i}.JPEG": jpeg(50 + 10 * k + i, (70, 90)) for i in range(2)}
    return members


def celeba() -> tuple[dict[str, bytes], bytes]:
    """The images, and list_eval_partition.txt: of ten, six are for training, one for validation, three for testing."""
    images = {f"img_align_celeba/{i:06d}.jpg": jpeg(i, (178, 218)) for i in range(1, 11)}
    lines = [f"{i:06d}.jpg {0 if i < 7 else 1 if i == 7 else 2}" for i in range(1, 11)]
    return images, ("\n".join(lines) + "\n").encode()


def celeba_hq(n: int = 20) -> dict[str, bytes]:
    members = {f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg": jpeg(i, (128, 128)) for i in range(n)}
    masks = {f"CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/{i:05d}_hair.png": b"a mask" for i in range(n)}
    return members | masks | {"CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt": b"idx orig_idx orig_file\n"}
