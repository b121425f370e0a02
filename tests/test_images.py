from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hybvit.data.image_set import evenly_spaced, to_pixels, to_x
from hybvit.data.images import as_pixels, fit, grid, read_image, with_channels
from hybvit.errors import DataError


def test_pixels_and_x_invert_each_other():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_x(pixels)
    assert x.min() == -1
    assert x.max() == 1
    assert torch.equal(to_pixels(x), pixels)
    assert to_pixels(torch.tensor([-7.0, 9.0])).tolist() == [0, 255]
    for wrong, kind in ((x, "torch.float32"), (pixels.numpy(), "ndarray")):
        with pytest.raises(ValueError, match=f"pixels are {kind}: to_x takes a tensor of uint8"):
            to_x(wrong)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16", "I", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_pil_mode_becomes_pixels(mode, channels):
    gray = Image.new("L", (20, 13), 128)
    if mode == "I;16":
        image = Image.fromarray(np.full((13, 20), 128 * 257, dtype=np.uint16))
    elif mode == "I":
        image = Image.fromarray(np.full((13, 20), 128 * 257, dtype=np.int32))
    else:
        image = gray.convert(mode)
    pixels = as_pixels(image, channels, 8)
    assert pixels.shape == (channels, 8, 8)
    assert pixels.dtype == torch.uint8
    if mode != "1":
        assert abs(pixels.float().mean() - 128) < 3


def test_images_without_a_standard_range_are_refused(tmp_path):
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


def plainly(image: Image.Image, channels: int, size: int) -> torch.Tensor:
    """What as_pixels does to 8-bit images, without leaving out the steps that change nothing."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1)


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 9])
@pytest.mark.parametrize("size", [(8, 8), (9, 8), (20, 13)])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("L", "tif")],
)
def test_the_short_ways_give_the_same_pixels(tmp_path, mode, suffix, size, orientation):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image = Image.fromarray(noise, "RGBA")
    image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
    image.save(path := tmp_path / f"a.{suffix}", exif=exif, **({"transparency": 3} if mode == "P" else {}))
    for channels in (1, 3):
        with Image.open(path) as file:
            expected = plainly(file, channels, 8)
        assert torch.equal(read_image(path, channels, 8), expected)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (300, 300), (200, 30, 90)).save(tmp_path / "cut.png")
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


def test_fit_does_not_crop_and_resizes_on_request():
    with pytest.raises(ValueError, match="28 x 28"):
        fit(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), 16)
    ramp = torch.arange(0, 256, 16, dtype=torch.uint8).expand(2, 3, 16, 16)
    halved = fit(ramp, 8, resize=True)
    assert halved.shape == (2, 3, 8, 8)
    assert (halved[0, 0, 0].int() - ramp[0, 0, 0].float().reshape(8, 2).mean(1).int()).abs().max() <= 4


def test_grayscale_and_color_convert_to_each_other():
    gray = torch.full((2, 1, 4, 4), 77, dtype=torch.uint8)
    assert torch.equal(with_channels(gray, 3), gray.expand(-1, 3, -1, -1))
    red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    red[:, 0] = 200
    assert with_channels(red, 1).unique().tolist() in ([59], [60])  # 0.299 * 200
    assert with_channels(gray, 1) is gray


def test_evenly_spaced_images_include_both_ends_and_are_the_nearest_to_their_places():
    assert evenly_spaced(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly_spaced(11, 4).tolist() == [0, 3, 7, 10]  # 0, 3 1/3, 6 2/3, 10
    assert evenly_spaced(3, 8).tolist() == [0, 1, 2]
    assert evenly_spaced(60_000, 1000)[[0, 1, 999]].tolist() == [0, 60, 59_999]
