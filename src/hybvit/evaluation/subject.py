"""The subject of an evaluation: a model and its evaluation data, opened from names or taken as objects."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..catalog import CATALOG
from ..checkpoint import MANIFEST
from ..config import Config, DataConfig
from ..data.datasets import open_dataset
from ..data.fingerprint import numbers
from ..data.image_set import Dataset, reorder_classes
from ..data.locate import absolute, detect_format, image_folders, locate
from ..data.own_images import READERS
from ..errors import ConfigError, quantity
from ..loading import load
from ..model import HybridModel
from .adapters import Adapted, Evaluable, adapt, is_adapter, numbered


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Args:
        name: name of the model, for the record.
        cfg: the configuration of a hybvit model; None for an external model.
        data_name: name of the data set, as in ``data.name``.
        source: for an external model, the file it is built from with a digest of its content.
        run: the run folder that the model was read from, if any.
        folders: where the user's own images are, if they are in folders.
    """

    name: str
    model: Evaluable
    data: Dataset
    cfg: Config | None
    data_name: str
    source: str = ""
    run: Path | None = None
    folders: Sequence[str] = ()

    @property
    def objective(self) -> str:
        return "adapted" if self.cfg is None else self.cfg.objective.kind


def subject_of(model: Evaluable | str | os.PathLike[str], data: Dataset | str | os.PathLike[str] | None) -> Subject:
    """Open the model and the data that :func:`hybvit.evaluate` was given.

    Raises:
        ConfigError: model and data do not fit, or an external model is given without data.
        DataError, CheckpointError: one of them cannot be read.
    """
    given = data if isinstance(data, Dataset) else None
    place = None if data is None or isinstance(data, Dataset) else os.fspath(data)
    named = place is not None and place in CATALOG and not Path(place).exists()
    dataset, root = (place, None) if named else (None, place)
    if isinstance(model, (str, os.PathLike)):
        return with_open_data(os.fspath(model), given) if given else open_subject(os.fspath(model), dataset, root)
    if given:
        return from_objects(model, given)
    return with_own_data(model, dataset, root) if isinstance(model, HybridModel) else external_on(model, dataset, root)


def open_subject(spec: str, dataset: str | None, root: str | None, test_root: str | None = None) -> Subject:
    """Open a model by its path or name.

    Args:
        dataset: name of the data set; None uses the model's own.
        root: location of the data; None uses the location of a named data set. Your own images must be named again.
        test_root: location of the test images, if it is not inside ``root``.
    """
    if is_adapter(spec):
        if test_root is not None:
            raise ConfigError(f"--data.test_root {test_root}: for an external model all are test images: give them with --data")
        model, cfg, data = open_external(spec, dataset, root)
        places = image_folders(cfg.data)
        return Subject(name_of(spec), model, data, None, cfg.data.name, digest_of_source(spec, model), folders=places)
    return replace(with_own_data(load(spec), dataset, root, test_root), name=Path(spec).name, run=run_folder_of(spec))


def name_of(spec: str) -> str:
    """What to call an external model: ``timm:NAME`` with its weights' file, whose folder does not matter."""
    model, at, weights = spec.partition("@")
    return f"{Path(model).name}{at}{Path(weights).name}"


def with_open_data(spec: str, data: Dataset) -> Subject:
    """Open a model by its path or name; the data are already open."""
    if is_adapter(spec):
        external = adapt(spec, shape_of(data), len(data.classes))
        return replace(from_objects(external, data), name=name_of(spec), source=digest_of_source(spec, external))
    return replace(from_objects(load(spec), data), name=Path(spec).name, run=run_folder_of(spec))


def from_objects(model: Evaluable, data: Dataset) -> Subject:
    if shape_of(data) != tuple(model.image_shape):
        images, wanted = ("x".join(map(str, shape)) for shape in (shape_of(data), model.image_shape))
        raise ConfigError(f"the data's images are {images}, but the model takes {wanted} (channels x height x width)")
    if isinstance(model, HybridModel):
        data = reorder_classes(data, model.cfg.data.classes)
        check_classes(model.cfg, data)
        return Subject("HybridModel", model, data, model.cfg, model.cfg.data.name)
    return Subject(type(model).__name__, model, in_order_of(model, data), None, "images")


def with_own_data(model: HybridModel, dataset: str | None, root: str | None, test_root: str | None = None) -> Subject:
    """A hybvit model on its own training data set, or on another with as many classes."""
    group = own = model.cfg.data
    if dataset is not None and dataset not in CATALOG:
        raise ConfigError(f"--dataset {dataset!r}: it must be one of {', '.join(CATALOG)}")
    if dataset is not None and dataset != group.name:
        group = replace(group, name=dataset, root=None, test_root=None, resize=True)
    if root:
        group = replace(locate(group, root), test_root=None if test_root is None else absolute(test_root))
    elif test_root is not None:
        raise ConfigError(f"--data.test_root {test_root}: give --data too, the images that the model was trained on")
    if group.name != own.name:
        group = replace(group, split="none", bits=None)
    known = model.trained_on if knows_each_image(model, group.name) else None
    data = open_dataset(group, model.image_shape, model.cfg.model.num_classes, labeled=False, trained_on=known)
    check_classes(model.cfg, data, group.root or group.name)
    if own.fingerprint not in ("", data.fingerprint):
        warn_of_other_images(own.fingerprint, data, group.root or group.name, shown=knows_each_image(model, group.name))
    return Subject("HybridModel", model, data, replace(model.cfg, data=group), group.name, folders=image_folders(group))


def knows_each_image(model: HybridModel, data_name: str) -> bool:
    """Whether it is known of each image of such data if the model was trained on it; those are then never test images."""
    tables = (data_name == "huggingface", model.cfg.data.name == "huggingface")  # known by contents, files by names and sizes
    return model.trained_on is not None and data_name in READERS and tables[0] is tables[1]


def warn_of_other_images(kept: str, data: Dataset, where: str, *, shown: bool) -> None:
    """Say that a model was trained on other images than these, with the fingerprint ``kept``.

    Args:
        shown: as :func:`knows_each_image` says.
    """
    now = f"now {numbers(data.fingerprint)}" if data.fingerprint else f"now {len(data.test):,} test images"
    which = "all are test images" if data.all_test else now
    if shown and data.all_test:
        line = f"not the images that the model was trained on, by names and sizes ({numbers(kept)}): {which}"
    elif shown:
        line = f"not the images of the training as they were ({numbers(kept)}): {which}, which it was not trained on"
    else:
        line = f"it is not known if the model was trained on some of these images ({numbers(kept)} then): {which}"
    print(f"warning: {where}: {line}", file=sys.stderr)


def external_on(model: Evaluable, dataset: str | None, root: str | None) -> Subject:
    """An external model object, on data resized to its input size."""
    if dataset is None and root is None:
        raise ConfigError("data is None: an external model needs data, such as a name from `hybvit datasets`")
    name = dataset or detect_format(str(root))
    data = open_dataset(
        DataConfig(name=name, root=root, resize=True, split="none"), model.image_shape, max(1, len(model.classes))
    )
    data = in_order_of(model, data)
    places = () if root is None else image_folders(DataConfig(name=name, root=root))
    return Subject(type(model).__name__, model, data, None, name, folders=places)


def shape_of(data: Dataset) -> tuple[int, int, int]:
    _, channels, height, width = data.test.pixels.shape
    return channels, height, width


def in_order_of(model: Evaluable, data: Dataset, where: str = "") -> Dataset:
    """The data with their classes in the order of an external model, unless that numbers its classes only.

    Raises:
        ConfigError: they have other classes.
    """
    if not (model.has_classes and data.classes):
        return data
    if len(model.classes) != len(data.classes):
        raise ConfigError(f"{where}the data have {quantity(len(data.classes), 'class')}, the model has {len(model.classes)}")
    if tuple(model.classes) == numbered(len(model.classes)):
        return data
    data = reorder_classes(data, model.classes)
    if data.classes != tuple(model.classes):
        raise ConfigError(
            f"{where}the data's classes ({', '.join(data.classes)}) are not the model's ({', '.join(model.classes)}): give "
            "Adapted the names of the data as classes, or none if they are in the order of the data's"
        )
    return data


def run_folder_of(spec: str) -> Path | None:
    path = Path(spec)
    return path if (path / "config.yaml").is_file() and not (path / MANIFEST).is_file() else None


def digest_of_source(spec: str, model: Evaluable) -> str:
    """The file that an external model is built from, with the SHA-256 of it and of what the model makes of a few images, since
    it may read weights from another file; empty if there is none."""
    if (source := source_of(spec)) is None:
        return ""
    digest = hashlib.sha256(source.read_bytes())
    for tensor in model.answers() if isinstance(model, Adapted) else ():
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return f"{spec} {digest.hexdigest()}"


def check_classes(cfg: Config, data: Dataset, place: str = "") -> None:
    where = place and f"{place}: "
    if cfg.objective.kind == "genvit" or not data.classes:
        return
    if len(data.classes) != cfg.model.num_classes:
        raise ConfigError(f"{where}the data have {quantity(len(data.classes), 'class')}, the model has {cfg.model.num_classes}")
    if cfg.data.classes and data.classes != cfg.data.classes:
        raise ConfigError(
            f"{where}the data's classes ({', '.join(data.classes)}) are not the model's ({', '.join(cfg.data.classes)})"
        )


def open_external(spec: str, dataset: str | None, root: str | None) -> tuple[Evaluable, Config, Dataset]:
    """Open an external model by its name, with its evaluation data."""
    if dataset is None and root is None:
        raise ConfigError(f"{spec}: an external model needs data: give --dataset NAME (`hybvit datasets`) or --data DIR")
    name = dataset or detect_format(str(root))
    if name not in (*CATALOG,) and root is None:
        raise ConfigError(f"--dataset {name!r}: it must be one of {', '.join(CATALOG)}")
    info = CATALOG.get(name)
    size, channels = (info.size or 224, info.channels) if info else (224, 3)
    if spec.partition(":")[0].endswith(".py"):
        model: Adapted = adapt(spec, (channels, size, size), 0)
        channels, size, _ = model.image_shape
    cfg = Config(data=DataConfig(name=name, root=root, resize=True, split="none"))
    data = open_dataset(
        cfg.data, (channels, size, size), num_classes=10
    )  # num_classes is for shards that do not list their classes
    if not spec.partition(":")[0].endswith(".py"):
        model = adapt(spec, (channels, size, size), len(data.classes))
    data = in_order_of(model, data, f"{spec}: ")
    if model.has_classes and data.classes:
        model.classes = data.classes
    return model, cfg, data


def source_of(spec: str) -> Path | None:
    """The file that an external model is built from, if any."""
    path = Path(spec.partition(":")[0])
    return path if is_adapter(spec) and path.suffix == ".py" else None
