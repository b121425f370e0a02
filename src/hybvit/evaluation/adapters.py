"""External models behind the interface that ``hybvit evaluate`` needs: a classifier, a denoiser, or both.

The general form is a file of your own: ``FILE.py:NAME`` names a function that returns an :class:`Adapted`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import best_device
from ..errors import ConfigError, DataError
from ..method.diffusion import Diffusion
from ..model import image_noise, run_to_pixels

PROBES = 4  # images by whose answers the functions of an external model are known


class Evaluable(Protocol):
    """The interface of a model that can be evaluated; x is float [B, C, H, W] in [-1, 1].

    :class:`~hybvit.HybridModel` implements it; :class:`Adapted` wraps anything else.
    """

    device: torch.device
    diffusion: Diffusion

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def has_classes(self) -> bool: ...

    @property
    def has_denoiser(self) -> bool: ...

    @property
    def has_samples(self) -> bool: ...

    @property
    def own_sampler(self) -> str | None: ...

    @property
    def draws_by_label(self) -> bool: ...

    def logits(self, x: Tensor) -> Tensor:
        """[B, K], differentiable."""

    def features(self, x: Tensor) -> Tensor:
        """[B, D], for nearest neighbors."""

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The predicted noise eps of x_t [B, C, H, W] at times t int64 [B] in 1..T."""

    def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The predicted clean image of x_t [B, C, H, W] that :meth:`denoise` implies."""

    def drawn_labels(self, indices: Sequence[int], seed: int) -> Tensor | None:
        """The classes that :meth:`draw` gives the images with these indices, int64 [len(indices)]; None without
        ``draws_by_label``."""

    def draw(self, indices: Sequence[int], sampler: str, steps: int, seed: int, guidance: float = 0.0) -> Tensor:
        """Generate the images with these indices of a seed in one batch: uint8 [len(indices), C, H, W] on the CPU.

        ``guidance`` requires a model with ``draws_by_label``.
        """

    def parameters(self) -> list[Tensor]: ...

    def state(self) -> list[Tensor]:
        """Every tensor that the outputs depend on; empty if unknown."""


def numbered(n: int) -> tuple[str, ...]:
    """The names of classes that have none: 0, 1, 2 and so on."""
    return tuple(map(str, range(n)))


class Adapted:
    """An external model: a classifier, a denoiser or both, given as functions.

    Args:
        image_shape: (C, H, W) of the input images; H = W.
        logits: x float [B, C, H, W] in [-1, 1] -> [B, K]; any normalization happens inside.
        denoise: (x_t, t int64 [B] in 1..T) -> the predicted noise, of the shape of x_t.
        diffusion: the process that ``denoise`` was trained for; cosine with 1000 steps by default.
        features: x -> [B, D], for nearest neighbors; the logits by default.
        classes: class names in the order of the logits; numbers by default.
        modules: the networks inside, so that their parameters are counted and moved to the device.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        logits: Callable[[Tensor], Tensor] | None = None,
        denoise: Callable[[Tensor, Tensor], Tensor] | None = None,
        diffusion: Diffusion | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        classes: Sequence[str] = (),
        modules: Sequence[torch.nn.Module] = (),
        device: torch.device | str | None = None,
    ) -> None:
        if logits is None and denoise is None:
            raise ValueError("logits and denoise are both None: there is nothing to evaluate")
        if len(image_shape) != 3 or image_shape[1] != image_shape[2]:
            raise ValueError(f"image_shape is {image_shape}: it must be (C, H, W) with H = W")
        self.image_shape, self.modules = image_shape, [module.eval() for module in modules]
        self.device = torch.device(device) if device else best_device()
        for module in self.modules:
            module.to(self.device).requires_grad_(False)
        self._logits, self._denoise, self._features = logits, denoise, features
        self.diffusion = diffusion or Diffusion.cosine(1000)
        self.classes = tuple(classes) or numbered(self._number_of_classes())

    def _number_of_classes(self) -> int:
        if self._logits is None:
            return 0
        with torch.no_grad():
            return self.logits(torch.zeros(2, *self.image_shape)).shape[1]

    @property
    def has_classes(self) -> bool:
        return self._logits is not None

    @property
    def has_denoiser(self) -> bool:
        return self._denoise is not None

    @property
    def has_samples(self) -> bool:
        return self._denoise is not None

    def logits(self, x: Tensor) -> Tensor:
        if self._logits is None:
            raise ConfigError("this model has no classes")
        logits = self._logits(x.to(self.device))
        if logits.ndim != 2 or len(logits) != len(x):
            raise ConfigError(f"logits({list(x.shape)}) returned shape {list(logits.shape)}: it must be [{len(x)}, classes]")
        return logits

    def features(self, x: Tensor) -> Tensor:
        return self._features(x.to(self.device)) if self._features is not None else self.logits(x)

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self._denoise is None:
            raise ConfigError("this model has no denoiser")
        eps = self._denoise(x_t.to(self.device), t.to(self.device))
        if eps.shape != x_t.shape:
            raise ConfigError(f"denoise({list(x_t.shape)}) returned shape {list(eps.shape)}: it must be the input's")
        return eps

    def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        x_t, t = x_t.to(self.device), t.to(self.device)
        return self.diffusion.predict_x0(x_t, t, self.denoise(x_t, t))

    @property
    def own_sampler(self) -> str | None:
        return None

    @property
    def draws_by_label(self) -> bool:
        return False

    def drawn_labels(self, indices: Sequence[int], seed: int) -> None:
        return None

    def draw(self, indices: Sequence[int], sampler: str, steps: int, seed: int, guidance: float = 0.0) -> Tensor:
        if guidance:
            raise ConfigError(f"guidance {guidance}: this model's denoiser takes no labels")
        noise = image_noise(indices, seed, self.image_shape, self.device)
        return run_to_pixels(self.predict_x0, self.diffusion, noise, sampler, steps)

    def parameters(self) -> list[Tensor]:
        return [parameter for module in self.modules for parameter in module.parameters()]

    def state(self) -> list[Tensor]:
        """The tensors of the modules, and what the functions around them make of a few images; empty without modules."""
        if not self.modules:
            return []
        return [tensor for module in self.modules for tensor in module.state_dict().values()] + self.answers()

    def answers(self) -> list[Tensor]:
        """What the functions make of a few images."""
        x = torch.rand((PROBES, *self.image_shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
        t = torch.linspace(1, self.diffusion.T, PROBES).long()
        with torch.no_grad():
            answers = [] if self._logits is None else [self.logits(x)]
            answers += [] if self._features is None else [self.features(x)]
            answers += [] if self._denoise is None else [self.denoise(x, t)]
        return answers


def is_adapter(spec: str) -> bool:
    """Whether ``spec`` names an external model rather than one of hybvit."""
    return spec.startswith(("timm:", "torchvision:")) or spec.partition(":")[0].endswith(".py")


def adapt(spec: str, image_shape: tuple[int, int, int], num_classes: int) -> Adapted:
    """Open an external model: ``timm:NAME``, ``torchvision:NAME`` or ``FILE.py:NAME``.

    The first two accept @WEIGHTS, a file to load instead of the published weights.

    Raises:
        ConfigError: no such model, or the function does not return an :class:`Adapted`.
        DataError: the file or the weights cannot be read or fetched.
    """
    kind, _, name = spec.partition(":")
    if kind.endswith(".py"):
        return _from_file(Path(kind), name)
    name, _, weights = name.partition("@")
    network, size, mean, std = (_timm if kind == "timm" else _torchvision)(name, weights, num_classes)
    channels = len(mean)

    def prepared(x: Tensor) -> Tensor:
        """[-1, 1] at the data's size -> the network's input size, channels and normalization."""
        x = (x + 1) / 2
        x = x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
        return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]

    features = None
    if hasattr(network, "forward_features"):
        features = lambda x: network.forward_head(network.forward_features(prepared(x)), pre_logits=True)  # noqa: E731
    return Adapted(image_shape, lambda x: network(prepared(x)), features=features, modules=[network])


Network = tuple[Any, int, tuple[float, ...], tuple[float, ...]]  # the module, its input size, mean and standard deviation


def _timm(name: str, weights: str, num_classes: int) -> Network:
    import timm

    from ..integrations import timm_models  # noqa: F401  timm knows hybvit's models from here on

    if not timm.is_model(name):
        raise ConfigError(f"timm:{name or 'NAME'}: timm has no such model")
    try:
        options: dict[str, Any] = {"checkpoint_path": weights, "num_classes": num_classes} if weights else {"pretrained": True}
        network = timm.create_model(name, **options)
    except Exception as error:  # the hub, the disk or the file: timm passes on whatever they raise
        raise DataError(f"timm:{name}: its weights cannot be loaded ({' '.join(str(error).split())[:150]})") from None
    data = timm.data.resolve_model_data_config(network)
    return network, data["input_size"][-1], data["mean"], data["std"]


def _torchvision(name: str, weights: str, num_classes: int) -> Network:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ConfigError(f"torchvision:{name}: torchvision has no such classifier")
    published = models.get_model_weights(name).DEFAULT
    try:
        if weights:
            network = models.get_model(name, num_classes=num_classes)
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        else:
            network = models.get_model(name, weights=published)
    except Exception as error:  # as above
        raise DataError(f"torchvision:{name}: its weights cannot be loaded ({' '.join(str(error).split())[:150]})") from None
    steps = published.transforms()
    return network, steps.crop_size[0], tuple(steps.mean), tuple(steps.std)


def _from_file(path: Path, name: str) -> Adapted:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    folder = str(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(f"{path.stem} in {folder}", path)  # the name of no other module
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        # as Python does with a script: what lies beside it can be imported, and a dataclass finds its module
        sys.path.insert(0, folder)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from None
        if not callable(getattr(module, name, None)):
            raise ConfigError(f"{path}: defines no function {name!r} (write {path}:NAME)")
        found = getattr(module, name)()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        raise ConfigError(f"{path}: {name}() failed: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(folder)
    if not isinstance(found, Adapted):
        raise ConfigError(f"{path}: {name}() returns {type(found).__name__}, not a hybvit.Adapted")
    return found
