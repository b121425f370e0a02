"""The scikit-learn estimator: its own checks, its tools, and what a density and a sampler must be."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from hybvit import HybViTClassifier, to_x
from hybvit.errors import DivergedError
from hybvit.integrations import estimator
from hybvit.integrations.estimator import Layout


@pytest.mark.slow
@parametrize_with_checks([HybViTClassifier(max_iter=12, learning_rate=0.01, random_state=0)])
def test_scikit_learn_finds_nothing_to_object_to(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 8, 8] of the digits 0 to 2, and their names."""
    images, y = load_digits(n_class=3, return_X_y=True)
    return (images * 15.9).astype(np.uint8).reshape(-1, 8, 8), np.array(["zero", "one", "two"])[y]


@pytest.fixture(scope="module")
def fitted(digits) -> HybViTClassifier:
    images, names = digits
    return HybViTClassifier(max_iter=50, batch_size=64, learning_rate=0.01, random_state=0).fit(images[:400], names[:400])


def test_images_are_taken_as_they_are(digits, fitted):
    images, names = digits
    assert fitted.score(images[400:], names[400:]) > 0.8
    assert list(fitted.classes_) == ["one", "two", "zero"]  # as scikit-learn orders them
    assert fitted.n_features_in_ == 64
    pixels = torch.from_numpy(images[:3])[:, None]
    assert torch.equal(fitted.layout_.to_pixels(images[:3].reshape(3, -1)), pixels)
    direct = fitted.model_.predict(pixels).probabilities
    np.testing.assert_allclose(fitted.predict_proba(images[:3]), direct, atol=1e-6)
    with pytest.raises(ValueError, match=r"images of shape \(4, 16\)"):
        fitted.predict(images.reshape(-1, 4, 16))


@pytest.mark.slow
def test_the_score_of_a_sample_is_the_bound_on_its_log_probability(digits, fitted):
    images, _ = digits
    x = to_x(torch.from_numpy(images[:4])[:, None])
    full = -fitted.model_.bits_per_dim(x).numpy() * 64 * np.log(2)
    np.testing.assert_allclose(fitted.score_samples(images[:4]), full, rtol=0.15)
    noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    assert fitted.score_samples(noise).max() < fitted.score_samples(images[:20]).min()


@pytest.fixture(scope="module")
def of_a_feature() -> tuple[np.ndarray, HybViTClassifier]:
    """A standard normal [300, 1] and what is fitted to it; its sign is the class."""
    x = np.random.default_rng(0).normal(size=(300, 1))
    return x, HybViTClassifier(max_iter=60, batch_size=64, learning_rate=0.01, random_state=0).fit(x, x[:, 0] > 0)


@pytest.mark.slow
def test_the_density_of_a_feature_integrates_to_at_most_one(of_a_feature):
    """It is a lower bound of a density: the integral cannot exceed 1, but for sampling error, and is close to it."""
    _, model = of_a_feature
    levels = model.layout_.low + model.layout_.step * np.arange(256)[:, None]
    density = np.exp(model.score_samples(levels))
    assert 0.6 < density.sum() * model.layout_.step[0] < 1.1
    normal = np.exp(-(levels[:, 0] ** 2) / 2) / np.sqrt(2 * np.pi)
    assert np.abs(density - normal).sum() * model.layout_.step[0] < 0.7


def test_a_density_is_in_the_units_of_the_features(of_a_feature):
    """Samples in other units are the same pixels, so that only the volume of a level differs."""
    x, model = of_a_feature
    layout = Layout.of(1000 * x, (1,))
    assert torch.equal(layout.to_pixels(1000 * x), model.layout_.to_pixels(x))
    assert layout.log_volume - model.layout_.log_volume == pytest.approx(np.log(1000))
    at_first, model.layout_ = model.score_samples(x[:5]), layout
    np.testing.assert_allclose(model.score_samples(1000 * x[:5]), at_first - np.log(1000), rtol=1e-6)
    model.layout_ = Layout.of(x, (1,))


def test_samples_are_distributed_as_the_training_samples_and_of_the_class_that_is_asked_for(of_a_feature):
    x, model = of_a_feature
    drawn = model.sample(400, random_state=0)
    assert drawn.shape == (400, 1)
    assert abs(drawn.mean() - x.mean()) < 0.25
    assert 0.7 < drawn.std() / x.std() < 1.4
    few = HybViTClassifier(max_iter=1, random_state=0).fit(x[:60], np.arange(60) < 15)
    np.testing.assert_array_equal(few.class_prior_, [0.75, 0.25])
    wanted = np.repeat([True, False], 100)
    assert ((model.sample(200, y=wanted, random_state=0)[:, 0] > 0) == wanted).mean() > 0.65


def test_samples_have_the_shape_the_type_and_the_classes_of_what_was_fitted(digits, fitted):
    drawn = fitted.sample(12, random_state=1)
    assert drawn.shape == (12, 8, 8)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, fitted.sample(12, random_state=1))
    with pytest.raises(ValueError, match=r"y has the shape \(1,\): give one class, or 2"):
        fitted.sample(2, y=["three"])
    with pytest.raises(ValueError, match="'three', which is none of the classes"):
        fitted.sample(2, y="three")


@pytest.mark.parametrize("shape", [(5,), (9, 6), (7, 10, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_a_sample_is_an_image_and_back(shape, dtype):
    random = np.random.default_rng(0)
    X = random.integers(0, 256, (20, *shape)).astype(dtype) * (1 if dtype is np.uint8 else random.uniform(0, 9))
    rows = X.reshape(20, -1)
    layout = Layout.of(rows, shape)
    pixels = layout.to_pixels(rows)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[2] == pixels.shape[3] == layout.side
    back = layout.to_samples(pixels)
    assert back.dtype == dtype
    assert np.abs(back - X).max() <= (0 if dtype is np.uint8 else layout.step.max() / 2 * (1 + 1e-9))
    assert layout.log_volume == pytest.approx(np.log(np.broadcast_to(layout.step, rows.shape[1:])).sum())
    wild = layout.to_pixels(np.full((1, rows.shape[1]), 1e9 if dtype is not np.uint8 else 255))
    assert wild.max() == 255


@pytest.mark.slow
def test_it_goes_through_the_tools_of_scikit_learn():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), HybViTClassifier(max_iter=20, learning_rate=0.01, random_state=0))
    assert cross_val_score(pipeline, X, y, cv=2).mean() > 0.8
    search = GridSearchCV(pipeline, {"hybvitclassifier__learning_rate": [1e-5, 1e-2]}, cv=2).fit(X, y)
    assert search.best_params_ == {"hybvitclassifier__learning_rate": 1e-2}
    np.testing.assert_allclose(search.predict_proba(X).sum(axis=1), 1)


@pytest.mark.slow
def test_it_is_the_same_again_in_a_copy_and_in_a_thread(digits, fitted):
    images, names = digits
    wanted, state = fitted.predict_proba(images[400:]), torch.get_rng_state()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(images[400:]), wanted)
    again = clone(fitted)
    thread = threading.Thread(target=again.fit, args=(images[:400], names[:400]))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(again.predict_proba(images[400:]), wanted)
    assert torch.equal(torch.get_rng_state(), state)
    alone = np.concatenate([fitted.predict_proba(image[None]) for image in images[400:410]])
    np.testing.assert_allclose(alone, wanted[:10], atol=1e-7)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"size": "huge"}, "size is 'huge'"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"batch_size": 2.5}, "2.5"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"learning_rate": None}, "learning_rate is None"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(given, reason):
    with pytest.raises(ValueError, match=reason):
        HybViTClassifier(**given).fit(np.eye(4), [0, 1, 0, 1])


def test_a_range_beyond_float64_is_refused():
    with pytest.raises(ValueError, match="a feature whose range is beyond float64"):
        HybViTClassifier().fit([[1.7e308, 0], [-1.7e308, 1]], [0, 1])


def test_a_fit_that_fails_leaves_what_was_fitted_before():
    X = np.eye(4)
    model = HybViTClassifier(max_iter=2, random_state=0).fit(X, ["cat", "dog", "cat", "dog"])
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match="size is 'huge'"):
        model.set_params(size="huge").fit(np.eye(6), ["x", "y", "z"] * 2)
    assert model.get_params()["size"] == "huge"
    assert model.classes_.tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(model.predict_proba(X), before)


def test_it_says_what_went_wrong_in_its_own_terms(monkeypatch, capfd):
    X, y = np.eye(4), [0, 1, 0, 1]
    with pytest.raises(DivergedError, match="learning_rate is 1e\\+30"):
        HybViTClassifier(learning_rate=1e30, max_iter=30).fit(X, y)
    assert capfd.readouterr() == ("", "")
    HybViTClassifier(max_iter=2, verbose=True).fit(X, y)
    assert capfd.readouterr().out.startswith("hybvit on 0 and 1, ")
    monkeypatch.setattr(estimator, "train_in", lambda *_: (_ for _ in ()).throw(estimator.Interrupted("SIGINT")))
    with pytest.raises(KeyboardInterrupt):
        HybViTClassifier(max_iter=2).fit(X, y)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score_samples"])
def test_pixels_on_another_scale_are_refused(digits, fitted, method):
    images = digits[0][400:403]
    call = getattr(fitted, method)
    for wrong in (images / 255, images / 127.5 - 1, images.astype(np.float32) + 0.5, images.astype(int) - 300):
        with pytest.raises(ValueError, match=r"^X is \w+ from .*fitted on uint8 pixels: give whole numbers in 0\.\.255"):
            call(wrong)
    np.testing.assert_array_equal(call(images.astype(np.float64)), call(images))
    np.testing.assert_array_equal(call(images.astype(int)), call(images))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [lambda images: images // 16, lambda images: (images > 0).astype(int)])
def test_images_that_are_hardly_on_the_scale_of_training_are_warned_of(digits, fitted, wrong):
    images = digits[0][400:403]
    fitted.predict(images // 4)
    with pytest.raises(UserWarning, match=r"^X has nothing above 1?\d, but .* numbers up to 25\d: scale X as in training"):
        fitted.predict(wrong(images))
    centered = Layout.of((images / 127.5 - 1).reshape(3, -1), images.shape[1:])
    centered.check_scale(np.zeros((1, images[0].size)))


def test_images_with_the_channels_first_are_refused():
    with pytest.raises(ValueError, match=r"channels first: give X\.transpose\(0, 2, 3, 1\)"):
        HybViTClassifier().fit(np.zeros((4, 3, 16, 16), np.uint8), [0, 1, 0, 1])


@pytest.mark.parametrize("shape", [(16,), (4, 4)])
def test_numbers_that_became_pixels_are_refused(shape):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, *shape)).astype(np.uint8)
    layout = Layout.of((images / 255).reshape(20, 16), shape)
    layout.check_scale((images / 255 * 1.5).reshape(20, 16))  # clipped
    with pytest.raises(ValueError, match=r"^X is uint8 up to 25\d, but .* numbers up to 1: scale X as in training"):
        layout.check_scale(images.reshape(20, 16))
    if len(shape) > 1:
        with pytest.raises(ValueError, match=r"^X is float64 up to 1\d.*, but .* numbers up to 1: scale X as in training"):
            layout.check_scale((images / 16).reshape(20, 16))
    Layout.of(images.reshape(20, 16).astype(float), shape).check_scale(images.reshape(20, 16))
