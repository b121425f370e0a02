"""The common corruptions are those of the published generator, and what the suite says of them is what they do to a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybvit import cli
from hybvit.cli.show_data import overview_rows, severity_rows
from hybvit.data.corruptions import (
    COMMON,
    CORRUPTIONS,
    EXTRA,
    FAMILIES,
    SEVERITIES,
    applicable,
    constants,
    corrupt,
    corrupted_image,
    frost_photos,
    scale_of,
)
from hybvit.data.distortions import distance_to, enlarged, plasma
from hybvit.data.image_set import Dataset, to_x
from hybvit.errors import ConfigError, DataError
from hybvit.evaluation.adapters import Adapted
from hybvit.evaluation.context import Context, Options
from hybvit.evaluation.corruptions import Answer, detection, measures, share_metric
from hybvit.evaluation.suites import run_suites
from hybvit.metrics.calibration import expected_calibration_error, reliability_table
from hybvit.presets import preset

from .conftest import DATA, opened

REFERENCES = Path(__file__).resolve().parent.parent / "benchmarks" / "references_corruptions.py"
CUT_BESIDE = {  # where the last bit of a float decides to which integer a value is cut: by so many gray levels at most
    "defocus_blur": 1, "glass_blur": 2, "gaussian_blur": 1, "elastic_transform": 1, "frost": 1,
}  # fmt: skip
ONE_COLOR = [name for name in CORRUPTIONS if "noise" not in name and name not in ("frost", "spatter", "saturate")]

WITHOUT_CHANCE = (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate",
)  # fmt: skip


def references():
    spec = importlib.util.spec_from_file_location(REFERENCES.stem, REFERENCES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published():
    with np.load(DATA / "corruptions.npz") as file:
        return dict(file)


def random_pixels(n: int, channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(n, channels, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(small, size, mode="bilinear") * 255).to(torch.uint8)


@pytest.mark.parametrize("size", [32, 64, pytest.param(224, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_are_those_of_the_published_generator(name, size, published):
    made = references()
    photos = tuple(made.drawn_photo(number) for number in range(1, 6))
    places, row = published[f"places_{size}"], made.NAMES.index(name)
    for kind in range(sum(key.startswith(f"pixels_{size}_") for key in published)):
        image = made.drawn_image(size, kind)
        for severity in SEVERITIES:
            arguments = (*constants(name, severity, size), *([photos] if name == "frost" else []))
            found = corrupted_image(image, name, arguments, np.random.default_rng((size, kind, severity)))
            expected = published[f"pixels_{size}_{kind}"][row, severity - 1]
            change = np.abs(found.astype(float) - image).mean()
            beside = CUT_BESIDE.get(name, 0)
            assert np.abs(found.reshape(-1, 3)[places].astype(int) - expected).max() <= beside
            # Of one severity of defocus at 224 pixels, 23 % of the values are cut on the other side of an integer.
            assert change == pytest.approx(published[f"changes_{size}_{kind}"][row, severity - 1], abs=0.25 * beside or 1e-4)


def test_there_are_fifteen_and_four():
    assert (len(COMMON), len(EXTRA)) == (15, 4)
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(CORRUPTIONS)
    assert [scale_of(size) for size in (8, 28, 32, 64, 224)] == [
        "CIFAR-10-C", "CIFAR-10-C", "CIFAR-10-C", "Tiny-ImageNet-C", "ImageNet-C",
    ]  # fmt: skip


@pytest.mark.parametrize("name", applicable(3, with_frost=False))
def test_an_image_is_corrupted_alike_in_any_batch(name):
    pixels = random_pixels(5, 3, 16)
    whole = corrupt(pixels, name, 3, seed=7)
    parts = [corrupt(pixels[rows], name, 3, seed=7, index=torch.tensor(rows)) for rows in ([4, 1], [0], [3, 2])]
    assert torch.equal(torch.cat(parts)[[2, 1, 4, 3, 0]], whole)
    assert torch.equal(corrupt(pixels, name, 3, seed=8), whole) == (name in WITHOUT_CHANCE)


def test_random_numbers_differ_between_images_and_corruptions():
    pixels = torch.full((3, 1, 16, 16), 128, dtype=torch.uint8)
    one, other = (corrupt(pixels, "gaussian_noise", severity).float() - 128 for severity in (1, 2))
    assert not torch.equal(one[0], one[1])
    for a, b in ((one[0], one[1]), (one[0], other[0])):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.25


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 50])
def test_any_small_size_and_both_numbers_of_channels(channels, size):
    pixels = random_pixels(2, channels, size)
    for name in applicable(channels, with_frost=False):
        for severity in (1, 5):
            found = corrupt(pixels, name, severity)
            assert found.shape == pixels.shape
            assert found.dtype == torch.uint8
        assert not torch.equal(found, pixels), name
        assert found.float().mean() > 5, name  # a NaN would be black
    assert torch.equal(corrupt(pixels[:, :1], "saturate", 5), pixels[:, :1])


@pytest.mark.parametrize("name", ONE_COLOR)
def test_gray_is_the_color_of_three_equal_channels(name):
    gray = random_pixels(1, 1, 28)[0].permute(1, 2, 0).numpy()
    for severity in (2, 5):
        one, three = (
            corrupted_image(image, name, constants(name, severity, 28), np.random.default_rng(3))
            for image in (gray, gray.repeat(3, axis=2))
        )
        assert np.abs(one.astype(int) - three).max() <= (2 if name in CUT_BESIDE else 1)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "contrast", "fog", "brightness", "zoom_blur"]
)
def test_a_higher_severity_changes_more(name):
    pixels = random_pixels(4, 3, 32)
    changes = [(corrupt(pixels, name, severity).float() - pixels.float()).abs().mean() for severity in SEVERITIES]
    assert all(more > less for less, more in zip(changes, changes[1:], strict=False))


def test_parts_of_the_formulas_by_hand():
    marked = np.zeros((3, 30), dtype=bool)
    marked[0, 0] = True
    found = distance_to(marked)
    np.testing.assert_allclose(found[[0, 1, 1, 2, 0], [3, 1, 2, 1, 29]], [3, 1.4, 2.1969, 2.1969, 20], atol=1e-4)
    ramp = np.arange(9.0)[:, None, None] + np.zeros((9, 9, 1))
    np.testing.assert_allclose(enlarged(ramp, 1.0), ramp)
    assert np.ptp(enlarged(ramp, 2.0)) < 6
    heights = plasma(16, 2.0, np.random.default_rng(0))
    assert (heights.min(), heights.max()) == (0, 1)


def test_what_cannot_be_corrupted_is_refused(tmp_path):
    pixels = random_pixels(1, 3, 32)
    wrong = [
        ((pixels, "rain", 1), "'rain' is unknown"),
        ((pixels, "fog", 0), "severity 0"),
        ((pixels.float(), "fog", 1), "float32"),
        ((pixels[:, :2], "fog", 1), r"\[1, 2, 32, 32\]"),
        ((pixels[..., :7, :7], "fog", 1), "H = W >= 8"),
        ((pixels, "frost", 1), "frost needs photographs"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ConfigError, match=message):
            corrupt(*arguments)
    with pytest.raises(ConfigError, match="more than 160 a side"):
        corrupt(pixels, "frost", 1, photos=(np.zeros((160, 900, 3), dtype=np.uint8),))
    with pytest.raises(DataError, match="no photographs of frost"):
        frost_photos(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"a\.png"):
        frost_photos(tmp_path)


def write_photos(folder: Path) -> Path:
    for number in (1, 2):
        Image.fromarray(references().drawn_photo(number)).save(folder / f"frost{number}.png")
    return folder


def test_frost_is_made_of_the_photographs_of_a_folder(tmp_path):
    photos = frost_photos(write_photos(tmp_path))
    assert [photo.shape for photo in photos] == [(487, 571, 3), (494, 582, 3)]
    black = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    found = corrupt(black, "frost", 5, photos=photos)
    assert 0 < found.float().mean() < 0.45 * 255
    assert len({image.numpy().tobytes() for image in found}) == 20


class Judged:
    """Digits, told apart by the nearest mean of a class, with a denoiser that predicts no noise but the blur of the image."""

    def __init__(self) -> None:
        self.data: Dataset = opened(preset("digits"))
        x, labels = to_x(self.data.train.in_memory).flatten(1), self.data.train.labels
        means = torch.stack([x[labels == k].mean(dim=0) for k in range(10)])
        net = torch.nn.Linear(64, 10)
        net.weight.data, net.bias.data = means / 8, -means.square().sum(dim=1) / 16
        self.model = Adapted(
            (1, 8, 8),
            logits=lambda x: net(x.flatten(1)),
            denoise=lambda x, t: torch.nn.functional.avg_pool2d(x, 3, 1, 1),
            modules=[net],
            device="cpu",
        )

    def record(self, folder: Path, **options) -> dict:
        chosen = {"limit": 60, "corruption_images": 30} | options
        return run_suites(
            Context(self.model, self.data, "digits", Options(**chosen), folder), ("corruptions",), lambda line: None
        )


@pytest.fixture(scope="module")
def judged() -> Judged:
    return Judged()


@pytest.mark.slow
def test_the_suite_measures_what_the_model_says_of_corrupted_images(judged, tmp_path):
    names = ("fog", "contrast", "speckle_noise")
    found = judged.record(tmp_path, corruptions=names, seed=4)
    test = judged.data.test.subsample(60)
    place = torch.linspace(0, 59, 30).round().long()
    pixels, labels = test.take(place)
    errors = {}
    for name in names:
        answers = [judged.model.logits(to_x(corrupt(pixels, name, k, 4, index=place))).argmax(1) for k in SEVERITIES]
        errors[name] = [(answer != labels).double().mean().item() for answer in answers]
        assert found["tables"]["error"][name] == pytest.approx(errors[name])
        assert found["metrics"][f"corruptions/error_{name}"]["value"] == pytest.approx(np.mean(errors[name]))
    metrics = {name.removeprefix("corruptions/"): entry for name, entry in found["metrics"].items()}
    assert metrics["mean_error"]["value"] == pytest.approx(np.mean([errors["fog"], errors["contrast"]]))  # of the common ones
    clean = (judged.model.logits(to_x(pixels)).argmax(1) != labels).double().mean().item()
    assert metrics["error_severity_0"]["value"] == pytest.approx(clean)
    assert metrics["error_severity_5"]["value"] == pytest.approx((errors["fog"][4] + errors["contrast"][4]) / 2)
    assert metrics["accepted_severity_0"]["value"] >= 0.9
    assert metrics["accepted_severity_5"]["value"] < metrics["accepted_severity_0"]["value"]
    assert found["tables"]["images"] == {"all": 30, "logpx": 30, "denoising": 30}
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in metrics.values())
    assert all(entry["n"] == 30 or "accepted_error" in name for name, entry in metrics.items())
    assert {path.name for path in (tmp_path / "evaluation" / "corruptions").iterdir()} == {
        "accuracy.svg", "detection.svg", "doubt.svg", "errors.svg", "examples.png", "result.json",
    }  # fmt: skip


@pytest.mark.slow
def test_a_corruption_alone_and_in_other_batches_gives_the_same(judged, tmp_path):
    both = judged.record(tmp_path / "a", corruptions=("snow", "impulse_noise"))
    alone = judged.record(tmp_path / "b", corruptions=("impulse_noise",), batch_size=7)
    key = "corruptions/error_impulse_noise"
    assert both["metrics"][key] == alone["metrics"][key]
    assert both["tables"]["auroc_denoising"]["impulse_noise"] == pytest.approx(
        alone["tables"]["auroc_denoising"]["impulse_noise"]
    )
    extra = judged.record(tmp_path / "c", corruptions=("speckle_noise",))["metrics"]  # no common one: the mean is of these
    assert extra["corruptions/mean_error"] == extra["corruptions/error_speckle_noise"]
    notes = judged.record(tmp_path / "c", corruptions=("speckle_noise",))["notes"]["corruptions"]
    assert notes == ["mean_error and what is given by severity are over speckle_noise: no common corruption was asked for."]


@pytest.mark.slow
def test_what_is_left_out_is_said(judged, tmp_path):
    notes = judged.record(tmp_path / "a", corruptions=("saturate",))["notes"]["corruptions"]
    assert notes == ["saturate was left out: it does not change gray images."]
    photos = tmp_path / "photos"
    photos.mkdir()
    found = judged.record(tmp_path / "b", corruptions=("frost",), frost=str(write_photos(photos)))
    assert "corruptions/error_frost" in found["metrics"]
    assert found["notes"]["corruptions"] == []


def test_without_an_accepted_answer_there_is_no_error_of_them():
    logits, labels = torch.zeros(6, 2, 3), torch.zeros(6, dtype=torch.int64)
    assert "accepted_error" not in measures(logits, labels, 0.9, 0)
    logits[:2, 0, 1] = 9.0  # sure, and wrong
    found = measures(logits, labels, 0.9, 0)["accepted_error"]
    assert (found.value, found.n) == (1.0, 2)


def test_measures_by_hand():
    sure, unsure = [4.0, 0.0], [0.2, 0.0]
    logits = torch.tensor(
        [[sure, unsure], [sure, sure], [unsure, sure], [sure, sure]], dtype=torch.float64
    )  # 4 images, 2 times
    labels = torch.tensor([0, 1, 0, 0])
    found = measures(logits, labels, threshold=0.6, seed=0)
    assert found["error"].value == pytest.approx(2 / 8)
    assert found["accepted"].value == pytest.approx(6 / 8)
    assert found["accepted_error"].value == pytest.approx(2 / 6)
    confidence = logits.softmax(dim=2).amax(dim=2)
    assert found["confidence"].value == pytest.approx(confidence.mean().item())
    assert found["nll"].value == pytest.approx(-logits.log_softmax(dim=2)[range(4), :, labels].mean().item())
    table = reliability_table(logits.flatten(0, 1), labels.repeat_interleave(2), 15)
    assert found["ece_15"].value == pytest.approx(expected_calibration_error(table))
    assert {metric.n for metric in found.values()} == {4}
    right = measures(logits[[0, 3]], labels[[0, 3]], threshold=0.6, seed=0)["error"]
    assert (right.value, right.low) == (0, 0)
    assert right.high == pytest.approx(0.66, abs=0.01)  # Wilson's for 0 of 2, since nothing varies


def test_figures_that_do_not_vary_have_no_interval_unless_they_are_shares():
    logits, labels = torch.tensor([[[4.0, 0.0]] * 2] * 6, dtype=torch.float64), torch.ones(6, dtype=torch.long)
    found = measures(logits, labels, threshold=0.6, seed=0)  # equal images, all wrong, with an NLL above 1
    assert found["nll"].value > 1
    for name in ("nll", "ece_15", "confidence"):
        assert (found[name].low, found[name].high) == (None, None)
    assert found["error"].high == found["accepted"].high == 1


@pytest.mark.parametrize("wrong", [(1, 0, 0, 0), (1, 1, 1, 0)])
def test_the_interval_of_a_share_is_within_0_and_1(wrong):
    found = share_metric(torch.tensor(wrong, dtype=torch.float64)[:, None])
    assert 0 <= found.low < found.value < found.high <= 1


def test_the_interval_of_the_mean_confidence_is_within_0_and_1():
    logits = torch.tensor([[[9.0, 0.0]], [[9.0, 0.0]], [[0.5, 0.0]]], dtype=torch.float64)
    found = measures(logits, torch.zeros(3, dtype=torch.long), threshold=0.6, seed=0)["confidence"]
    assert found.value == pytest.approx(torch.sigmoid(torch.tensor([9.0, 9.0, 0.5])).mean().item())
    assert found.low < found.value < found.high == 1


def test_clean_images_score_above_corrupted_ones():
    logits, clean = torch.zeros(12, 2), torch.linspace(0, 1, 12)
    below, half = (Answer(logits, {"logpx": scores}) for scores in (clean - 2, torch.cat((clean[:6] - 2, clean[6:] + 2))))
    assert detection(Answer(logits, {"logpx": clean}), [below, below], 0)["auroc_logpx"].value == 1
    found = detection(Answer(logits, {"logpx": clean}), [below, half], 0)["auroc_logpx"]
    assert found.value == pytest.approx(0.75)
    assert found.low < 0.75 < found.high
    assert found.n == 12


def test_options_are_checked_before_anything_runs():
    for wrong, message in (
        ({"corruptions": ("fogg",)}, "fogg"),
        ({"corruptions": "fog"}, "tuple of names"),
        ({"corruptions": ("frost",)}, "--frost DIR"),
        ({"frost": "no-such-folder"}, "does not exist"),
        ({"corruption_images": 1}, "at least 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            Options(**wrong)


def test_show_data_shows_each_corruption_or_one_on_several_images(judged, tmp_path, capsys):
    test = judged.data.test.subsample(4)
    rows = overview_rows(test, seed=0)
    assert [row.title for row in rows] == list(applicable(1, with_frost=False))
    assert all(row.labels[0] == "clean" and len(row.pixels) == 6 for row in rows)
    assert torch.equal(rows[5].pixels[0], test.in_memory[1])
    clean, *corrupted = severity_rows(test, "fog", seed=0)
    assert torch.equal(clean.pixels, test.in_memory)
    assert torch.equal(corrupted[4].pixels, corrupt(test.in_memory, "fog", 5))
    assert cli.main(["show-data", "digits", "--corruption", "fogg", "--out", str(tmp_path)]) == 2
    assert "'fogg' is unknown" in capsys.readouterr().err
