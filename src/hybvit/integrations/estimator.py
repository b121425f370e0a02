"""HybViT as a scikit-learn estimator: a classifier whose network also gives the density of the data and draws from it."""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..config import Config, override
from ..data.image_set import Dataset, ImageSet, to_x
from ..devices import best_device, resolve_precision
from ..errors import DivergedError, Interrupted
from ..method.seeds import generator
from ..metrics.likelihood import discretized_gaussian_log_likelihood, sampled_bound
from ..model import HybridModel
from ..presets import preset
from ..training.loop import train_in
from ..training.progress import silent
from ..training.run_folder import RunFolder

SIZES = {  # width, layers, layers before the label read-out, heads
    "tiny": (64, 2, 1, 4),
    "small": (128, 6, 4, 4),
    "base": (384, 9, 6, 12),
}
LEVELS = (32, 223)  # of 0..255, the least and the largest value in training: a sixth of the range is left on either side
PATCHES = {4: 2, 32: 4, 64: 8}  # largest side -> side of a patch
LARGEST_PATCH = 16
ROWS = 64  # of a batch that is classified, always: what is given for a sample does not depend on the others
BOUND_DRAWS = 64  # times of the bound
SAMPLER_STEPS = 20
OFF, DARK = (
    4,
    8,
)  # images that go so many times beyond the range in training, or are so many times as dark, are of another scale
BLACK = -1.0  # the value of a pixel at level 0


class Layout(NamedTuple):
    """How a sample is an image, and back.

    Attributes:
        shape: of a sample: (features,), (height, width) or (height, width, channels).
        side: of the square image that the network takes, in pixels.
        low, step: level k of 0..255 stands for low + step * k; a number for each feature, or one for all.
        most: the largest number in training.
        dtype: of samples that are drawn.
    """

    shape: tuple[int, ...]
    side: int
    low: NDArray[np.float64]
    step: NDArray[np.float64]
    most: float
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, X: NDArray[Any], shape: tuple[int, ...]) -> Layout:
        """The layout for training samples X [N, features]: uint8 are pixels as they are, all else is scaled.

        Raises:
            ValueError: the samples are images with the channels first.
        """
        if len(shape) == 3 and shape[0] in (1, 3) and shape[2] > 4:
            raise ValueError(f"X has images of shape {shape}, channels first: give X.transpose(0, 2, 3, 1)")
        longest = max(shape[:2]) if len(shape) > 1 else math.ceil(math.sqrt(shape[0]))
        patch = patch_for(longest)
        side = math.ceil(longest / patch) * patch
        if X.dtype == np.uint8:
            return cls(shape, side, np.zeros(1), np.ones(1), float(X.max()), X.dtype)
        X = X.astype(np.float64) if len(shape) == 1 else X.astype(np.float64).reshape(-1, 1)
        least, most = LEVELS
        with np.errstate(over="ignore"):
            spread = X.max(axis=0) - X.min(axis=0)
        if not np.isfinite(spread).all():
            raise ValueError("X has a feature whose range is beyond float64: scale it down")
        step = np.where(spread > 0, spread, 1.0) / (most - least)
        return cls(shape, side, X.min(axis=0) - least * step, step, float(X.max()), np.dtype(np.float64))

    @property
    def picture(self) -> tuple[int, int, int]:
        """Height, width and channels of the part of the image that holds a sample."""
        if len(self.shape) == 1:
            return self.side, self.side, 1
        height, width, *channels = self.shape
        return height, width, channels[0] if channels else 1

    def to_pixels(self, X: NDArray[Any]) -> Tensor:
        """Samples [N, features] -> uint8 [N, C, side, side]. What is beyond the levels is clipped, what is left over is 0."""
        return self._spread(np.clip(np.rint((X - self.low) / self.step), 0, 255).astype(np.uint8))

    def check_scale(self, X: NDArray[Any]) -> None:
        """Refuse samples [N, features] that cannot be on the scale of the training samples, and warn of those that are hardly.

        Raises:
            ValueError: X has other numbers than the pixels that were fitted; or images, or pixels, of a far larger scale.
        """
        cure = f"the model was fitted on numbers up to {self.most:g}: scale X as in training"
        if self.dtype == np.uint8 and X.dtype != np.uint8 and not bool(((X >= 0) & (X <= 255) & (np.rint(X) == X)).all()):
            raise ValueError(
                f"X is {X.dtype} from {X.min():g} to {X.max():g}, but the model was fitted on uint8 pixels: give whole numbers "
                "in 0..255, such as (255 * X).astype('uint8') of images in 0..1"
            )
        highest = LEVELS[0] + OFF * (LEVELS[1] - LEVELS[0])
        of_pixels = X.dtype == np.uint8 or len(self.shape) > 1  # a feature of a row may well be an outlier
        if self.dtype != np.uint8 and of_pixels and X.max() > (self.low + highest * self.step).max():
            raise ValueError(f"X is {X.dtype} up to {X.max():g}, but {cure}")
        no_negative = (self.low + LEVELS[0] * self.step).min() >= 0
        if len(self.shape) > 1 and no_negative and float(X.max()) * DARK < self.most:
            warnings.warn(f"X has nothing above {X.max():g}, but {cure}", stacklevel=5)

    @property
    def mask(self) -> Tensor:
        """Which pixels hold a sample, bool [1, C, side, side]; the others are black in all images."""
        return self._spread(np.ones((1, math.prod(self.shape)), dtype=np.uint8)) > 0

    def _spread(self, levels: NDArray[np.uint8]) -> Tensor:
        height, width, channels = self.picture
        filled = np.pad(levels, ((0, 0), (0, height * width * channels - levels.shape[1])))
        image = torch.from_numpy(filled.reshape(-1, height, width, channels)).permute(0, 3, 1, 2)
        return torch.nn.functional.pad(image, (0, self.side - width, 0, self.side - height))

    def to_samples(self, pixels: Tensor) -> NDArray[Any]:
        """uint8 [N, C, side, side] -> samples [N, *shape]."""
        height, width, _ = self.picture
        rows = pixels[:, :, :height, :width].permute(0, 2, 3, 1).flatten(1).numpy()[:, : math.prod(self.shape)]
        return (self.low + self.step * rows).astype(self.dtype).reshape(-1, *self.shape)

    @property
    def log_volume(self) -> float:
        """The log of the volume in which samples have the same levels; 0 for pixels."""
        per_feature = np.broadcast_to(self.step, (math.prod(self.shape),))
        return float(np.log(per_feature).sum())


def patch_for(side: int) -> int:
    """The side of a patch for images of this side, in pixels."""
    return next((patch for largest, patch in PATCHES.items() if side <= largest), LARGEST_PATCH)


class HybViTClassifier(ClassifierMixin, BaseEstimator):
    """A Vision Transformer that classifies samples, knows how likely they are, and draws new ones.

    A sample is an image, [height, width] or [height, width, channels], or a row of features. uint8 are pixels, taken as they
    are. Other numbers are scaled to 256 levels, images by one range, each feature of a row by its own. A row is laid out as a
    small square image, which has no more meaning than its order of features. docs/sklearn.md says what follows from that.

    Args:
        size: of the network: tiny, small or base (the paper's).
        max_iter: optimizer steps.
        batch_size: samples of a step, or all if they are fewer.
        learning_rate: the peak; it rises over the first tenth of the steps (at most 100) and falls to 0 by a cosine.
        random_state: of weights, order and noise; with an int, two fits are the same.
        verbose: whether to show progress.

    Attributes:
        classes_: the labels, [K].
        class_prior_: the share of each class in training, [K].
        n_features_in_: features of a row, or pixel values of an image.
        feature_names_in_: their names, if X was a data frame with names.
        n_iter_: optimizer steps done.
        model_: the :class:`hybvit.HybridModel`, for all that this class does not offer.
        layout_: how samples are images of that model.
    """

    def __init__(
        self,
        *,
        size: str = "tiny",
        max_iter: int = 1000,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.size = size
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on samples X, [N, features], [N, height, width] or [N, height, width, channels], with labels y [N].

        Raises:
            ValueError: an argument or a parameter does not fit.
            DivergedError: the loss is not finite.
        """
        before = dict(vars(self))
        try:
            self._fit(X, y)
        except BaseException:  # a fit that fails leaves what was fitted before
            self.__dict__ = before
            raise
        return self

    def _fit(self, X: ArrayLike, y: ArrayLike) -> None:
        rows, shape = as_rows(X)
        rows, y = validate_data(self, rows, y)
        check_classification_targets(y)
        self.classes_, labels, counts = np.unique(y, return_inverse=True, return_counts=True)
        self.class_prior_ = counts / len(labels)
        self.layout_ = Layout.of(rows, shape or rows.shape[1:])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        images = ImageSet(self.layout_.to_pixels(rows), torch.from_numpy(labels))
        self.model_ = self._train(images, seed)
        self.n_iter_ = self.max_iter

    def _train(self, images: ImageSet, seed: int) -> HybridModel:
        cfg, device = self._config(images.in_memory, seed), best_device()
        data = Dataset(images, images.first(0), cfg.data.classes)
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), RunFolder(Path(folder), cfg) as run:

            def say(line: str) -> None:
                print(line.removeprefix(f"{folder}: "), flush=True)

            try:
                return train_in(run, data, None, device, say if self.verbose else silent)
            except DivergedError:
                raise DivergedError(f"learning_rate is {self.learning_rate}: the loss is not finite, try a lower one") from None
            except Interrupted:  # what was saved goes with the folder
                raise KeyboardInterrupt from None

    def _config(self, pixels: Tensor, seed: int) -> Config:
        """The recipe of the digits, which are as small, for these images."""
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}: it must be one of {', '.join(SIZES)}")
        for name in ("max_iter", "batch_size"):
            if not isinstance(value := getattr(self, name), Integral) or value < 1:
                raise ValueError(f"{name} is {value!r}: it must be a whole number of at least 1")
        if not isinstance(self.learning_rate, Real) or not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate!r}: it must be a number above 0")
        dim, depth, tap, heads = SIZES[self.size]
        n, channels, side, _ = pixels.shape
        shape = {"image_size": side, "patch_size": patch_for(side), "channels": channels, "num_classes": len(self.classes_)}
        network: dict[str, Any] = {"dim": dim, "depth": depth, "class_depth": tap, "heads": heads, "readout_width": 16}
        is_image = len(self.layout_.shape) > 1  # in a row of features, neither a shift nor what is beside has a meaning
        network |= {"pixel_readout": "conv" if is_image else "linear", "label_conditioning": True}
        return override(
            preset("digits"),
            model={**shape, **network},
            # density without labels, samples with them: half of the steps for each
            objective={"label_dropout": 0.5, "alpha": 5.0 if is_image else 1.0},
            data={
                "name": "folder", "classes": tuple(map(str, self.classes_)), "held_out": 0.0,
                "augment": "weak" if is_image else "none", "crop_padding": side // 8,
            },
            optim={"lr": float(self.learning_rate), "warmup_steps": min(100, int(self.max_iter) // 10)},
            train={
                "steps": int(self.max_iter), "batch_size": min(int(self.batch_size), n), "seed": seed,
                "precision": resolve_precision("fp32" if self.size == "tiny" else "auto", best_device()),
                "checkpoint_every": int(self.max_iter), "preview_every": 0,
            },
        )  # fmt: skip

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The probability of each class for samples X as in :meth:`fit`: float64 [N, K], in the order of ``classes_``."""
        pixels = self._pixels(X)
        padded = torch.cat((pixels, pixels.new_zeros(-len(pixels) % ROWS, *pixels.shape[1:])))
        with torch.no_grad():
            logits = torch.cat([self.model_.logits(to_x(part)).cpu() for part in padded.split(ROWS)])
        return logits[: len(pixels)].double().softmax(dim=1).numpy()

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The logarithm of :meth:`predict_proba`."""
        return np.log(self.predict_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class of each sample, [N]."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """The log density of each sample, [N], in nats; higher = more like the training samples.

        It is the variational bound, below log p(x), estimated at 64 times with noise that is the same for all samples. For
        pixels it is the log probability of all of them, otherwise the log density in the units of X.
        """
        pixels, mask, diffusion = self._pixels(X), self.layout_.mask.to(self.model_.device), self.model_.diffusion

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            """The pixels around a sample are known: their noise is then only noise that the bound is averaged over."""
            return torch.where(mask, self.model_.predict_x0(x_t, t), BLACK)

        with torch.no_grad():
            bits = [
                sampled_bound(denoise, diffusion, to_x(one.to(mask.device)), generator(0, "bound"), BOUND_DRAWS)[0]
                for one in pixels.split(1)
            ]
        black, sigma = torch.full((1,), BLACK), diffusion.posterior_variance[2].item() ** 0.5
        decoded = int((~mask).sum()) * discretized_gaussian_log_likelihood(black, black, sigma).item()  # of the known pixels
        nats = torch.cat(bits).numpy() * math.prod(pixels.shape[1:]) * math.log(2)
        return -nats - decoded - self.layout_.log_volume

    def sample(
        self,
        n_samples: int = 1,
        y: ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> NDArray[Any]:
        """Draw new samples: [n_samples, ...], of the shape and, for pixels, the type of those of :meth:`fit`.

        Args:
            y: the class of each sample, or one for all; None draws them as they were distributed in training.
            random_state: an int gives the same samples again.
        """
        check_is_fitted(self)
        random = check_random_state(random_state)
        if y is None:
            labels = random.choice(len(self.classes_), size=n_samples, p=self.class_prior_)
        else:
            given = np.asarray(y)
            if given.shape not in ((), (n_samples,)):
                raise ValueError(f"y has the shape {given.shape}: give one class, or {n_samples}")
            wanted = np.broadcast_to(given, (n_samples,))
            if unknown := set(wanted.tolist()) - set(self.classes_.tolist()):
                raise ValueError(f"y has {unknown.pop()!r}, which is none of the classes")
            labels = np.searchsorted(self.classes_, wanted)
        seed = int(random.randint(2**31 - 1))
        pixels = self.model_.sample(n_samples, steps=SAMPLER_STEPS, labels=torch.from_numpy(labels), seed=seed)
        return self.layout_.to_samples(pixels)

    def _pixels(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        rows, shape = as_rows(X)
        if shape and shape != self.layout_.shape:
            raise ValueError(f"X has images of shape {shape}, but {type(self).__name__} was fitted on {self.layout_.shape}")
        rows = validate_data(self, rows, reset=False)
        self.layout_.check_scale(rows)
        return self.layout_.to_pixels(rows)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: the model on the CPU, where every machine can load it."""
        state = super().__getstate__()
        if "model_" in state:
            state = {**state, "model_": HybridModel(copy.deepcopy(self.model_.net), self.model_.cfg, "cpu")}
        return state


def as_rows(X: ArrayLike) -> tuple[Any, tuple[int, ...] | None]:
    """Images as rows [N, features], and their shape; all else, which has yet to be checked, as it is, and None."""
    dimensions = np.ndim(X) if isinstance(X, (list, tuple)) else getattr(X, "ndim", 2)
    if dimensions not in (3, 4):
        return X, None
    images = np.asarray(X)
    return images.reshape(len(images), math.prod(images.shape[1:])), images.shape[1:]
