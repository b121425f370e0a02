"""The input and the output of a suite."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.image_set import Dataset, ImageSet, to_x
from ..devices import resolve_precision
from ..distributed import all_gather, share_batches, share_calls
from ..metrics.classification import wilson_interval
from ..metrics.doubt import Calibration
from ..model import HybridModel
from ..model.weights import fingerprint_of
from ..storage import atomic_write, make_folder
from .adapters import Evaluable
from .options import Options
from .unseen import digests_of, held_out_of_training

SHARD = 128  # generated images per file, which one process draws
TRAINING_FEATURES = 10_000  # the most training images that the nearest-neighbor score searches


class Metric(NamedTuple):
    """A value, the number of items it was measured on, and its 95 % interval where one is known."""

    value: float | int
    n: int
    low: float | None = None
    high: float | None = None


def proportion(hits: Tensor) -> Metric:
    """The fraction of True in bool [N], with its Wilson interval."""
    value = hits.double().mean().item()
    return Metric(value, len(hits), *wilson_interval(value, len(hits)))


class Picture(NamedTuple):
    """A raster image or the text of an SVG, with its caption."""

    content: Image.Image | str
    caption: str


@dataclass
class Result:
    """``metrics`` by full name (suite/what); ``tables`` for JSON; ``pictures`` by file name; ``notes``, one line each."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Judged(NamedTuple):
    """A calibration, and the test images that it is judged on.

    Attributes:
        calibration: the model's own, or one by the images held out of training; None where there are neither.
        images: int64 [N], which of the test images: all that it was not made with.
        note: where that leaves some out, or there is no calibration, why.
    """

    calibration: Calibration | None
    images: Tensor
    note: str


NOT_FITTED = (
    "No calibration: the model has none (`hybvit calibrate`), and no images were held out of training (train with "
    "--data.held_out 0.1). Fitted on images that the network was trained on, it would make the probabilities worse."
)


@dataclass
class Context:
    """A model, its evaluation data, and the intermediate results that several suites share, computed once."""

    model: Evaluable
    data: Dataset
    data_name: str
    options: Options
    folder: Path
    objective: str = "adapted"
    identity: str = ""  # of an external model: the source it was built from

    @cached_property
    def test(self) -> ImageSet:
        return self.data.test if self.options.limit is None else self.data.test.subsample(self.options.limit)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything the model's outputs depend on, so that another model's results are never reused.

        A model whose dependencies are unknown (functions without modules and without a source file) gets a new random
        fingerprint each time.
        """
        return all_gather(fingerprint_of(self.model, self.identity))[0]

    def map_batches(self, images: ImageSet, work: Callable[[Tensor], Tensor], what: str, size: int | None = None) -> Tensor:
        """Apply ``work`` (x float [B, C, H, W] -> [B, ...]) to all images, split over the processes."""
        size = size or self.options.batch_size
        (result,) = share_batches(len(images), size, lambda index: work(to_x(images.take(index)[0])), what)
        return result

    def logits_of(self, images: ImageSet) -> Tensor:
        """float [N, K] on the CPU."""
        with torch.no_grad():
            return self.map_batches(images, self.model.logits, "logits")

    def features_of(self, images: ImageSet) -> Tensor:
        """float [N, D] on the CPU."""
        with torch.no_grad():
            return self.map_batches(images, self.model.features, "features")

    @cached_property
    def logits(self) -> Tensor:
        return self.logits_of(self.test)

    @cached_property
    def labels(self) -> Tensor:
        assert self.test.labels is not None
        return self.test.labels

    @property
    def own_calibration(self) -> Calibration | None:
        """What is stored with the model."""
        return self.model.calibration if isinstance(self.model, HybridModel) else None

    @cached_property
    def judged(self) -> Judged:
        """A calibration, and the test images to judge it on."""
        every, own = torch.arange(len(self.test)), self.own_calibration
        part = held_out_of_training(self.model, self.data)
        if own is None and part is None:
            return Judged(None, every, NOT_FITTED)
        if own is None:
            assert part is not None
            assert part.labels is not None
            own = Calibration.fit(self.logits_of(part), part.labels, digests_of(part), "images held out of training")
        used = own.used(digests_of(self.test))
        if bool(used.all()):
            return Judged(None, every, "The calibration cannot be judged here: it was made with all of these test images.")
        note = f"{int(used.sum()):,} of {len(used):,} test images were left out: the calibration was made with them."
        return Judged(own, every[~used], note if bool(used.any()) else "")

    @property
    def reference(self) -> str:
        """What to call ``data.train``, with which features and samples are compared."""
        return "images of the evaluated set" if self.data.all_test else "training images"

    @cached_property
    def train_subset(self) -> ImageSet:
        """At most TRAINING_FEATURES training images, evenly spaced."""
        return self.data.train.subsample(TRAINING_FEATURES)

    @property
    def precision(self) -> list[str]:
        """The precision to draw samples in, where the user chose another one than the machine's own."""
        chosen = self.model.sampling_precision if isinstance(self.model, HybridModel) else None
        return [] if chosen in (None, resolve_precision("auto", self.model.device)) else [str(chosen)]

    @property
    def samples_folder(self) -> Path:
        """One folder per (model, sampler, steps, seed, guidance, precision), so that its samples can be reused."""
        o = self.options
        facts = [self.fingerprint, o.sampler, o.steps, o.seed, o.guidance, *self.precision]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        return self.folder / "samples" / f"{o.sampler}-{o.steps}-seed{o.seed}-{key}"

    @cached_property
    def samples(self) -> Tensor:
        """Generated images uint8 [n, C, H, W], stored in shards so that an interrupted run can resume."""
        folder, o = self.samples_folder, self.options
        make_folder(folder)

        def shard(index: Tensor) -> Tensor:
            path = folder / f"{int(index[0]):08d}-{int(index[-1]) + 1:08d}.safetensors"
            shape = (len(index), *self.model.image_shape)
            pixels = read_shard(path, shape) if path.is_file() else None
            if pixels is None:
                pixels = self.model.draw(index.tolist(), o.sampler, o.steps, o.seed, o.guidance)
                write_shard(path, pixels)
            return pixels

        shards = torch.arange(o.samples).split(SHARD)  # the same for any number of samples, so that more need only the rest
        return torch.cat(share_calls([partial(shard, index) for index in shards], "samples"))

    @property
    def drawn_labels(self) -> Tensor | None:
        """The classes that :attr:`samples` were drawn for, int64 [n]; None if they were drawn without."""
        return self.model.drawn_labels(range(self.options.samples), self.options.seed)

    def generator(self, purpose: int) -> torch.Generator:
        """A CPU generator for one purpose; ``purpose`` is a number of its own for each."""
        return torch.Generator().manual_seed(((self.options.seed << 20) + purpose) % 2**63)


def write_shard(path: Path, pixels: Tensor) -> None:
    """Store generated images with their digest.

    Raises:
        DataError: the file cannot be written.
    """
    content = save({"pixels": pixels.contiguous()}, metadata={"sha256": digest_of(pixels)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_shard(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Stored images, uint8 of this shape; None with a warning where they are damaged, so that they are drawn again."""
    try:
        with safe_open(path, "pt") as file:
            pixels, kept = file.get_tensor("pixels"), (file.metadata() or {}).get("sha256")
        if pixels.dtype == torch.uint8 and tuple(pixels.shape) == shape and digest_of(pixels) == kept:
            return pixels
    except (OSError, RuntimeError, SafetensorError):
        pass
    warnings.warn(f"{path}: damaged; these images are drawn again", stacklevel=2)
    return None


def digest_of(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


class Suite(NamedTuple):
    """A group of metrics.

    Attributes:
        heading, description: the heading in reports, and the plain sentence below it.
        requires: what the suite needs of classes, labels, denoiser and samples; it is left out if the model or data lack one.
        cured: whether what a stored result was measured without, as its tables say, is there now.
        by_default: whether it runs when no suites are named. What takes many minutes on a CPU is asked for.
    """

    heading: str
    description: str
    requires: frozenset[str]
    run: Callable[[Context], Result]
    cured: Callable[[Context, Mapping[str, Any]], bool] = lambda ctx, tables: False
    by_default: bool = True


def missing_requirement(ctx: Context, requires: Sequence[str] | frozenset[str]) -> str | None:
    """Why a suite cannot be run, as a sentence; None if it can."""
    if "classes" in requires and not ctx.model.has_classes:
        return "the model has no classes"
    if "denoiser" in requires and not ctx.model.has_denoiser:
        return "the model has no denoiser"
    if "samples" in requires and not ctx.model.has_samples:
        return "the model cannot generate images"
    if "labels" in requires and ctx.data.test.labels is None:
        return "the test images have no labels"
    return None
