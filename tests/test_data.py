from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybvit.config import Config, DataConfig, override, preset
from hybvit.data import datasets
from hybvit.data.batches import Order, TrainingBatches, weak
from hybvit.data.images import as_pixels, fit, grid, read_image, to_pixels, to_x
from hybvit.errors import ConfigError, DataError
from hybvit.vit import ViTConfig

CPU = torch.device("cpu")


def folder_config(root: Path, channels: int = 3) -> Config:
    model = ViTConfig(image_size=8, patch_size=2, channels=channels, dim=16, depth=1, heads=2)
    return Config(model=model, data=DataConfig(name="folder", root=str(root)))


def save(path: Path, colour: tuple[int, int, int] = (200, 30, 90), mode: str = "RGB", size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


# images


def test_pixels_and_x_invert_each_other():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_x(pixels)
    assert x.min() == -1
    assert x.max() == 1
    assert torch.equal(to_pixels(x), pixels)
    assert to_pixels(torch.tensor([-7.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16", "I", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_pil_mode_becomes_pixels(mode, channels):
    grey = Image.new("L", (20, 13), 128)
    if mode == "I;16":
        image = Image.fromarray(np.full((13, 20), 128 * 257, dtype=np.uint16))
    elif mode == "I":
        image = Image.fromarray(np.full((13, 20), 128 * 257, dtype=np.int32))
    else:
        image = grey.convert(mode)
    pixels = as_pixels(image, channels, 8)
    assert pixels.shape == (channels, 8, 8)
    assert pixels.dtype == torch.uint8
    if mode != "1":
        assert abs(pixels.float().mean() - 128) < 3


def test_images_without_an_agreed_range_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(tmp_path / "wide.tiff")
    for name in ("float.tiff", "wide.tiff"):
        with pytest.raises(DataError, match=rf"{name}: .*convert it to 8 or 16 bits"):
            read_image(tmp_path / name, 1, 8)


def test_transparency_becomes_white_and_crops_are_central():
    assert as_pixels(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 3, 4).min() == 255
    stripes = Image.new("L", (24, 8), 0)
    stripes.paste(255, (8, 0, 16, 8))
    assert as_pixels(stripes, 1, 8).min() == 255


def test_orientation_is_applied(tmp_path):
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))  # bright upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    pixels = read_image(tmp_path / "turned.jpg", 1, 8)
    assert pixels[0, :4].float().mean() < 20
    assert pixels[0, 4:].float().mean() > 235


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    save(tmp_path / "cut.png", size=(300, 300))
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("text.png", "cut.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name, 3, 8)
    with pytest.raises(DataError, match="folder"):
        read_image(tmp_path, 3, 8)


def test_grid_places_images_in_raster_order():
    pixels = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 2, 2) * 10
    sheet = np.asarray(grid(pixels, columns=3, scale=2, gap=1))
    assert sheet.shape == (11, 16)
    assert sheet[1, 1] == 0
    assert sheet[4, 4] == 0
    assert sheet[2, 7] == 10
    assert sheet[7, 6] == 40
    assert sheet[0, 0] == 255


def test_fit_pads_with_black_in_the_middle():
    padded = fit(torch.full((1, 1, 28, 28), 9, dtype=torch.uint8), 32)
    assert padded.shape == (1, 1, 32, 32)
    assert padded[0, 0, 2:30, 2:30].min() == 9
    assert padded.sum() == 9 * 28 * 28


# data sets


def test_digits_are_scikit_learns_with_every_fifth_of_a_class_held_out():
    from sklearn.datasets import load_digits

    data, raw = datasets.open_dataset(preset("digits")), load_digits()
    assert data.train.pixels.shape == (1433, 1, 8, 8)
    assert data.test.pixels.shape == (364, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert data.train.pixels.max() == 255
    for k in range(10):
        of_class = np.flatnonzero(raw.target == k)
        held_out = data.test.pixels[data.test.labels == k]
        assert torch.equal(held_out, torch.from_numpy(np.round(raw.images[of_class[::5]] * 255 / 16)).to(torch.uint8)[:, None])


def write_idx(path: Path, array: np.ndarray, compress: bool = True) -> None:
    raw = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if compress else raw)


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files(tmp_path, compress):
    array = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / ("a.gz" if compress else "a")
    write_idx(path, array, compress)
    assert np.array_equal(datasets.read_idx(path), array)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=str(path)):
        datasets.read_idx(path)


def test_idx_of_another_type_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"\0\0\0\0")
    with pytest.raises(DataError, match="not an IDX file of unsigned bytes"):
        datasets.read_idx(tmp_path / "a")


def test_fashion_mnist_in_torchvisions_layout(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    for prefix, n in (("train", 60_000), ("t10k", 10_000)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", np.zeros((n, 28, 28)), compress=False)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(n) % 10, compress=False)
    cfg = datasets.located(preset("fashion_mnist_pocket"), str(tmp_path))
    assert cfg.data.name == "fashion_mnist"
    data = datasets.open_dataset(cfg)
    assert data.train.pixels.shape == (60_000, 1, 32, 32)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        datasets.open_dataset(cfg)


@pytest.mark.skipif(not datasets.DEBIAN_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist():
    data = datasets.open_dataset(preset("fashion_mnist_pocket"))
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.classes[data.train.labels[0]] == "Ankle boot"  # the published first training image
    assert 70 < data.train.pixels[:, :, 2:30, 2:30].float().mean() < 75  # published mean 0.2860 * 255 = 72.9


def test_a_folder_of_classes(tmp_path):
    for i in range(6):
        save(tmp_path / "cat" / f"{i}.png", (10 * i, 0, 0))
        save(tmp_path / "dog" / f"{i}.jpg", mode="L")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    data = datasets.open_dataset(folder_config(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.train.pixels.shape == (8, 3, 8, 8)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.test.pixels[:2, 0, 0, 0].tolist() == [0, 50]  # the first and the sixth cat
    assert datasets.open_dataset(folder_config(tmp_path, 1)).train.pixels.shape == (8, 1, 8, 8)


def test_a_folder_with_its_own_split(tmp_path):
    for split, n in (("train", 3), ("val", 2)):
        for i in range(n):
            save(tmp_path / split / "a" / f"{i}.png")
            save(tmp_path / split / "b" / f"{i}.png")
    data = datasets.open_dataset(folder_config(tmp_path))
    assert (len(data.train.labels), len(data.test.labels)) == (6, 4)
    save(tmp_path / "val" / "c" / "0.png")
    with pytest.raises(DataError, match="'c'"):
        datasets.open_dataset(folder_config(tmp_path))


@pytest.mark.parametrize("images", [0, 1])
def test_a_class_without_a_training_image_is_named(tmp_path, images):
    for i in range(6):
        save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "dog").mkdir()
    for i in range(images):
        save(tmp_path / "dog" / f"{i}.png")
    with pytest.raises(DataError, match="class 'dog' has no training image"):
        datasets.open_dataset(folder_config(tmp_path))


def test_documents_beside_the_images_are_left_alone(tmp_path):
    for i in range(6):
        save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "cat" / "paper.pdf").write_text("%PDF")
    (tmp_path / "cat" / "film.mpg").write_text("film")
    assert len(datasets.open_dataset(folder_config(tmp_path)).train.labels) == 4


def test_folders_that_cannot_serve_are_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        datasets.open_dataset(folder_config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no class sub-folders"):
        datasets.open_dataset(folder_config(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no image files"):
        datasets.open_dataset(folder_config(tmp_path))
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"broken\.png"):
        datasets.open_dataset(folder_config(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.root is not set"):
        datasets.open_dataset(override(folder_config(tmp_path), data={"root": None}))


def test_a_model_that_does_not_fit_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"model\.channels is 3"):
        datasets.open_dataset(override(preset("digits"), model={"channels": 3}))
    with pytest.raises(ConfigError, match=r"model\.image_size is 4"):
        datasets.open_dataset(override(preset("digits"), model={"image_size": 4}))


def test_data_option_means_a_folder_of_images_where_there_are_some(tmp_path):
    save(tmp_path / "a" / "0.png")
    assert datasets.located(preset("fashion_mnist_pocket"), str(tmp_path)).data.name == "folder"
    assert datasets.located(preset("digits"), "anywhere").data.name == "folder"


# batches


def test_an_epoch_is_a_permutation_and_order_does_not_depend_on_how_it_is_read():
    order = Order(10, 0, "order of clean images")
    first = order.take(0, 10)
    assert sorted(first.tolist()) == list(range(10))
    assert not torch.equal(first, order.take(10, 10))
    pieces = torch.cat([Order(10, 0, "order of clean images").take(s, 7) for s in range(0, 70, 7)])
    assert torch.equal(pieces, Order(10, 0, "order of clean images").take(0, 70))
    assert not torch.equal(first, Order(10, 1, "order of clean images").take(0, 10))
    assert not torch.equal(first, Order(10, 0, "order of labelled images").take(0, 10))


def test_repeats_show_each_image_three_times_in_an_epoch():
    taken = Order(5, 0, "order of labelled images", repeats=3).take(0, 15)
    assert taken.bincount().tolist() == [3] * 5


@pytest.mark.parametrize(("kind", "present"), [("vit", (0, 1, 1)), ("genvit", (1, 0, 0)), ("hybvit", (1, 1, 1))])
def test_the_objective_decides_the_mini_batches(kind, present):
    cfg = override(preset("digits"), objective={"kind": kind})
    batch = TrainingBatches(datasets.open_dataset(cfg).train, cfg, CPU)(3)
    assert tuple(int(part is not None) for part in batch) == present


def test_a_batch_is_a_function_of_seed_and_step():
    cfg = override(preset("digits"), data={"augment": "weak"})
    train = datasets.open_dataset(cfg).train
    forward, direct = TrainingBatches(train, cfg, CPU), TrainingBatches(train, cfg, CPU)
    for step in range(30):
        late = forward(step)
    for a, b in zip(late, direct(29), strict=True):
        assert torch.equal(a, b)
    other = TrainingBatches(train, override(cfg, train={"seed": 1}), CPU)(29)
    assert not torch.equal(late.images, other.images)


def test_clean_images_are_never_augmented():
    cfg = override(preset("digits"), data={"augment": "weak"})
    train = datasets.open_dataset(cfg).train
    known = {image.numpy().tobytes() for image in train.pixels}
    batch = TrainingBatches(train, cfg, CPU)(0)
    assert all(image.numpy().tobytes() in known for image in to_pixels(batch.clean))
    assert not all(image.numpy().tobytes() in known for image in to_pixels(batch.images))


def test_weak_augmentation_is_a_crop_and_a_flip():
    pixels = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(400, 1, 8, 8).contiguous()
    padded = torch.nn.functional.pad(pixels[0, 0], (1, 1, 1, 1))
    crops = {(i, j): padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)}
    for flip in (False, True):
        out = weak(pixels, torch.Generator().manual_seed(0), 1, flip)
        seen = {}
        for image in out[:, 0]:
            key = next((k, m) for k, crop in crops.items() for m in (0, 1) if torch.equal(image, crop.flip(1) if m else crop))
            seen[key] = seen.get(key, 0) + 1
        assert len(seen) == (18 if flip else 9)
        mirrored = sum(count for (_, m), count in seen.items() if m)
        assert mirrored == 0 if not flip else 150 < mirrored < 250
