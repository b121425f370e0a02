"""Labeled images that a model was not trained on: only such images can calibrate it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from ..catalog import CATALOG
from ..config import DataConfig
from ..data.datasets import find, open_dataset
from ..data.fingerprint import pixel_digests, share_training_images
from ..data.image_set import Dataset, ImageSet, select_per_class
from ..errors import ConfigError, quantity
from ..model import HybridModel
from .subject import Subject, knows_each_image

TOLERATED = 0.01  # share of training images among others, such as the duplicates of published sets
HOLD_OUT = "train with --data.held_out 0.1, or give other images with --data"


def digests_of(images: ImageSet) -> Tensor:
    """A digest of each image, int64 [N]."""
    return torch.cat([pixel_digests(pixels) for pixels, _ in images.batches()])


def is_training_data(own: DataConfig, data: Dataset) -> bool:
    """Whether the opened data are those that a model was trained on, divided as they were then.

    Args:
        own: the data settings of the model, which is opened with these, or with the same name and another location.
    """
    return not data.all_test and own.fingerprint in ("", data.fingerprint)


def held_out_of_training(model: object, data: Dataset) -> ImageSet | None:
    """The images that were held out when the model was trained; None if there are none, or not the same ones now."""
    part = data.held_out
    if part is None or part.labels is None or len(part) == 0:  # few images have no tenth
        return None
    if isinstance(model, HybridModel) and not data.all_test and not is_training_data(model.cfg.data, data):
        return None
    return part


def calibration_images(subject: Subject, half_of_test: bool = False) -> tuple[ImageSet, str]:
    """The images to calibrate the model of a subject on, and what to call them.

    Of the data that it was trained on they are those held out, or half of the test images; of other data all.

    Args:
        half_of_test: take the first, third, fifth ... test image of each class, and leave the others to judge by.

    Raises:
        ConfigError: there are no labels, or no images that it was not trained on.
    """
    model, data = subject.model, subject.data
    assert isinstance(model, HybridModel)
    assert subject.cfg is not None
    own, name = model.cfg.data, subject.cfg.data.root or subject.data_name
    name = Path(name).name or name  # what is stored with a model has no paths of its author
    same = subject.cfg.data.name == own.name and is_training_data(own, data)
    if same and not half_of_test:
        part = held_out_of_training(model, data)
        if part is None:
            raise ConfigError(
                f"{name}: the model was trained on these images, and none were held out: {HOLD_OUT}; or take "
                "--half-of-test, and let nothing else be judged by that half"
            )
        return part, f"images of {name} held out of training"
    shown = same or knows_each_image(model, subject.cfg.data.name)
    if not shown and share_training_images(own.fingerprint, data.fingerprint):
        raise ConfigError(f"{name}: the model was trained on some of these images: {HOLD_OUT}")
    images, words = data.test, f"{'test ' if not data.all_test else ''}images of {name}"
    if images.labels is None:
        raise ConfigError(f"{name}: its images have no labels: calibration needs them")
    if half_of_test:
        images, words = images.where(select_per_class(images, lambda members: members[::2])), f"half of the {words}"
    return images if same else without_training_images(own, model.image_shape, images, name), words


def without_training_images(own: DataConfig, shape: tuple[int, int, int], images: ImageSet, name: str) -> ImageSet:
    """Other images, without those that are training images pixel by pixel, as far as the training images are known here.

    Raises:
        ConfigError: more than one in a hundred is.
    """
    if own.name not in CATALOG or find(own.name, own.root) is None:
        return images
    known = open_dataset(own, shape).train
    if not isinstance(known.pixels, Tensor):
        return images
    trained = torch.isin(digests_of(images), pixel_digests(known.pixels))
    count = int(trained.sum())
    if count > TOLERATED * len(images):
        raise ConfigError(f"{name}: {count:,} of {len(images):,} images are training images of the model: {HOLD_OUT}")
    if count:
        print(f"warning: {name}: left out {quantity(count, 'training image')} of the model", file=sys.stderr)
    return images.where(~trained) if count else images
