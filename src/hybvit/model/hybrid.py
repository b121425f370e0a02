"""HybridModel: a trained network with all that it takes to classify, generate and score images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .. import checkpoint
from ..config import Config
from ..data.fingerprint import pixel_digests
from ..data.image_set import to_pixels, to_x
from ..data.images import Originals
from ..devices import autocast, best_device, in_threads, keep_freed_memory, resolve_precision
from ..errors import ConfigError, DivergedError, did_you_mean, quantity
from ..method.diffusion import Diffusion
from ..method.readings import DENOISED_AT, DENOISED_DRAWS, ROUNDS, DenoisedReading, DiffusionClassifier
from ..method.samplers import Denoiser, Spacing
from ..method.seeds import derive_seed, generator
from ..method.smoothing import NoiseLevel, NoisyClassifier, cast_votes, noisy_reading
from ..method.vit import check_images
from ..metrics.certified import Certificates, certify_votes, check_votes
from ..metrics.conformal import METHODS, Method
from ..metrics.doubt import Calibration
from ..metrics.likelihood import log_density, variational_bound
from ..networks import Network
from ..waiting import Progress, part_done
from . import edits, folders
from .answers import Images, Labels, Prediction, pixels_of
from .sampling import image_noise, run_to_pixels

ACCEPTED = 0.5  # p(y|x) from which a sample is not drawn anew
FAR = 10.0  # from 0, where x is no image in [-1, 1], nor random numbers in its place, but pixels as they are
OFF_LEVEL = 1e-3  # a pixel so far from all 256 levels is none of them
ATTEMPT = 2**32  # the next try of image i is image i + 2^32 of the seed

Reading = Literal["label", "diffusion", "denoised"]


class HybridModel:
    """A classifier, a generator and a density in one network, in eval mode.

    Args:
        net: the network of ``cfg``; it is moved to ``device`` and set to eval mode.
        cfg: its configuration.
        device: None takes CUDA, MPS or the CPU, the first that is available.

    Attributes:
        sampling_precision: fp32 or bf16, in which the network runs while it draws images; bf16 where the device is fast at it,
            unless it is set. The sampler itself stays in fp32.
        calibration: what :meth:`calibrate` found, or was stored with the model; None for a model that is not calibrated.
        trained_on: what is kept of the user's own images that it was trained on (``data/trained_on.py``), int64 [N]; None where
            that is not known.
    """

    def __init__(self, net: Network, cfg: Config, device: torch.device | str | None = None) -> None:
        self.cfg = cfg
        self.trained_on: Tensor | None = None
        self.device = torch.device(device) if device else best_device()
        self.net: Any = net.to(self.device).eval()  # the objective decides which methods a network has
        self.diffusion: Diffusion = cfg.diffusion.build()
        self.classes = cfg.data.classes or tuple(str(k) for k in range(cfg.model.num_classes))
        self.calibration: Calibration | None = None
        self.sampling_precision = resolve_precision("auto", self.device)

    def __repr__(self) -> str:
        shape, names = self.cfg.model, ", ".join(self.classes[:3]) + (", ..." if self.classes[3:] else "")
        does = {
            "classifies (calibrated)" if self.calibration else "classifies": self.has_classes,
            "denoises": self.has_denoiser,
            "draws by label" if self.takes_labels else "draws": self.has_samples,
            "labels noisy images": self.labels_noisy,
        }
        facts = [
            f"{shape.image_size} x {shape.image_size} {'gray' if shape.channels == 1 else 'color'}",
            f"{quantity(len(self.classes), 'class')} ({names})",
            f"{sum(weight.numel() for weight in self.parameters()):,} parameters on {self.device}",
        ]
        can = [what for what, whether in does.items() if whether]
        return f"<HybridModel of {self.cfg.data.name}: {', '.join(facts)}; {', '.join(can)}>"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.cfg.model.image_shape

    def logits(self, x: Tensor) -> Tensor:
        """The logits of clean images x, float [B, C, H, W] in [-1, 1] -> [B, K]. Differentiable."""
        return self.net.classify(self._clean(x))

    def _noisy(self, x: Tensor) -> Tensor:
        """x on the device.

        Raises:
            ValueError: it is no float [B, C, H, W] of the network's size, or has no image.
        """
        check_images(x, self.image_shape)
        if not len(x):
            raise ValueError("x has no image")
        return x.to(self.device, next(self.net.parameters(), x).dtype)

    def _clean(self, x: Tensor) -> Tensor:
        """x on the device. Images that are in [0, 1] instead of [-1, 1] are warned of.

        Raises:
            ValueError: it is no float [B, C, H, W] of the network's size, is not finite, or far outside of [-1, 1]: pixels as
                they are.
        """
        x = self._noisy(x)
        if x.requires_grad:  # in the steps of an attack a GPU would wait for the answer
            return x
        least, most = (extreme.item() for extreme in x.detach().aminmax())
        if not -FAR <= least <= most <= FAR:
            raise ValueError(f"x is from {least:g} to {most:g}: it must be in [-1, 1], as pixels / 127.5 - 1")
        if 0 <= least < most <= 1 and not torch.allclose(to_x(to_pixels(x)), x.float(), rtol=0, atol=OFF_LEVEL):
            said = "x has no value below 0, and none of the 256 levels of [-1, 1]: 2 * x - 1 scales [0, 1]"
            warnings.warn(said, stacklevel=3)
        return x

    def class_number(self, name: str) -> int:
        """The number of a class, in 0..K - 1, from its name (upper or lower case) or from its number as text.

        Raises:
            ValueError: there is no such class.
        """
        exact = list(self.classes)
        for names, wanted in (
            (exact, name),
            ([k.lower() for k in exact], name.lower()),
            ([*map(str, range(len(exact)))], name),
        ):
            if wanted in names:
                return names.index(wanted)
        near = did_you_mean(name, exact)
        raise ValueError(f"label {name!r} is none of the model's classes{near} ({', '.join(exact)}; or 0 to {len(exact) - 1})")

    @property
    def has_classes(self) -> bool:
        return self.cfg.objective.kind != "genvit"

    @property
    def has_denoiser(self) -> bool:
        return self.cfg.objective.kind in ("genvit", "hybvit")

    @property
    def has_samples(self) -> bool:
        return self.cfg.objective.kind != "vit"

    @property
    def own_sampler(self) -> str | None:
        """The only sampler of a model that has just one, which is then used whatever is asked for; else None."""
        return "sgld" if self.has_samples and not self.has_denoiser else None

    def parameters(self) -> list[Tensor]:
        return list(self.net.parameters())

    def state(self) -> list[Tensor]:
        return list(self.net.state_dict().values())

    def features(self, x: Tensor) -> Tensor:
        """The input of the label read-out, [B, D], for clean images x, float [B, C, H, W] in [-1, 1]. Differentiable."""
        return self.net.features(self._clean(x))

    def log_density(self, x: Tensor) -> Tensor:
        """The logsumexp of the logits, [B], which the paper takes as log p(x) (Tables 3 and 11); higher = more in-distribution.

        It is a score, not a calibrated density: cross-entropy is invariant to adding a function of x to all logits. Only JEM
        trains it as a density.
        """
        return log_density(self.logits(x))

    def predict(self, images: Images, abstain_above: float | None = None) -> Prediction:
        """Labels, probabilities and scores of images, on the CPU.

        Args:
            images: uint8 pixels [N, C, H, W] of the network's size; or one picture or several, of any size, which are converted
                and center-cropped: PIL images, paths of files, or uint8 arrays of numpy, [H, W] or [H, W, 1, 3 or 4].
            abstain_above: abstain (label -1) where that is needed to keep the share of wrong answers at or below this risk, in
                0..1, with a confidence of 95 %. It needs a calibrated model.

        Raises:
            ValueError: there is no image, the pixels have another shape or type, or ``abstain_above`` is out of range.
            ConfigError: the network was not trained to classify, is not calibrated, or its calibration images cannot vouch for
                so low a risk.
        """
        least = 0.0 if abstain_above is None else self._confidence_for(abstain_above)
        logits = self._logits_of(images)
        probabilities = logits.softmax(dim=1) if self.calibration is None else self.calibration.probabilities(logits)
        confidence, labels = probabilities.max(dim=1)
        return Prediction(labels.masked_fill(confidence < least, -1), probabilities.float(), log_density(logits))

    def _confidence_for(self, risk: float) -> float:
        if not 0 < risk < 1:
            raise ValueError(f"abstain_above is {risk}: it must be between 0 and 1")
        threshold = self._calibrated().threshold(risk)
        if not math.isfinite(threshold.score):
            raise ConfigError(
                f"abstain_above is {risk:g}: {len(self._calibrated()):,} calibration images cannot vouch for a risk below "
                f"{threshold.bound:.2g}, at any confidence of the classifier: take a higher one, or calibrate on more images"
            )
        return threshold.score

    def prediction_set(self, images: Images, coverage: float = 0.95, method: Method = "thr") -> Tensor:
        """The classes of each image that hold the true one with probability ``coverage``: bool [N, K], on the CPU.

        It is a promise about the mean over new images that are drawn like the calibration images, not about one image or one
        class (conformal prediction; docs/doubt.md). A set has the most probable class at least, and all classes where the
        calibration images are too few for the coverage.

        Args:
            images: as in :meth:`predict`.
            coverage: between 0 and 1.
            method: thr (the smallest sets), aps or raps.

        Raises:
            ValueError: an argument is out of range, or the pixels have another shape or type.
            ConfigError: the network was not trained to classify, or is not calibrated.
        """
        if method not in METHODS:
            raise ValueError(f"method is {method!r}: it must be one of {', '.join(METHODS)}")
        calibration = self._calibrated()
        calibration.quantile(coverage, method)  # refuses a coverage out of range before the network runs
        return calibration.sets(self._logits_of(images), coverage, method)

    def calibrate(self, pixels: Images, labels: Sequence[int] | Tensor, source: str = "") -> Calibration:
        """Calibrate by images that the network was not trained on: probabilities, abstention and sets -> the calibration.

        It replaces an earlier one, and :meth:`save_pretrained` stores it. `hybvit calibrate` checks that the images are none of
        the training images; here the caller answers for it.

        Args:
            pixels: as in :meth:`predict`.
            labels: int64 [n], or a list or array of whole numbers.
            source: which images they are, for the record.

        Raises:
            ValueError: there are no images, the pixels have another shape or type, or a label is out of range.
            ConfigError: the network was not trained to classify.
        """
        classes, pixels, labels = self.cfg.model.num_classes, self.as_pixels(pixels), torch.as_tensor(labels)
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        if not whole or labels.shape != (len(pixels),) or not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(f"labels: a whole number in 0..{classes - 1} is needed for each of the {len(pixels)} images")
        labels = labels.long().cpu()
        weights = checkpoint.digest_of_weights(self.net.state_dict())
        self.calibration = Calibration.fit(self._logits_of(pixels), labels, pixel_digests(pixels), source, weights)
        return self.calibration

    def _calibrated(self) -> Calibration:
        self._check_classes()
        if self.calibration is None:
            raise ConfigError("this model is not calibrated: run `hybvit calibrate`, or call calibrate()")
        return self.calibration

    def _check_classes(self) -> None:
        if not self.has_classes:
            raise ConfigError("this model was trained with objective genvit: it has no labels to give")

    @torch.no_grad()
    def _logits_of(self, images: Images) -> Tensor:
        """The logits [N, K] of images on the CPU, before any calibration; arguments and errors are those of :meth:`predict`."""
        self._check_classes()
        return self._in_parts(self.logits, self.as_pixels(images), 256)

    def _in_parts(self, logits_of: Callable[[Tensor], Tensor], pixels: Tensor, size: int) -> Tensor:
        """What a function of x gives as the logits of pixels, [N, K] on the CPU, in batches of this size."""
        parts = []
        for part in pixels.split(size):
            parts.append(logits_of(to_x(part.to(self.device))).cpu())
            part_done(len(part) / len(pixels))
        logits = torch.cat(parts or [torch.empty(0, self.cfg.model.num_classes)])
        if not bool(logits.isfinite().all()):
            raise DivergedError("the logits are not finite: this model diverged in training; use another checkpoint")
        return logits

    @property
    def labels_noisy(self) -> bool:
        """Whether the label read-out was trained on noisy images too (``objective.noisy_labels``)."""
        return self.cfg.objective.kind == "hybvit" and self.cfg.objective.noisy_labels > 0

    def noisy_classifier(self, noise: float) -> NoisyClassifier:
        """The label read-out for images with Gaussian noise of standard deviation ``noise`` on the [0, 1] scale of pixels.

        It takes x + 2 noise eps [B, C, H, W], neither clipped nor scaled, on the model's device -> [B, K]. Differentiable.

        Raises:
            ConfigError: the label read-out was not trained on noisy images.
            ValueError: the diffusion has no time with this noise.
        """
        if not self.labels_noisy:
            raise ConfigError(
                "objective.noisy_labels is 0: this model was not trained to label noisy images; train one with "
                "--objective.noisy_labels 1 (kind hybvit), from this one with --train.init"
            )
        return noisy_reading(self.net.classify, NoiseLevel.of(self.diffusion, noise))

    def certify(
        self,
        images: Images,
        *,
        noise: float = 0.25,
        votes: int = 1000,
        selection: int = 100,
        confidence: float = 0.999,
        seed: int = 0,
    ) -> Certificates:
        """Labels that provably no small change of an image alters, by randomized smoothing (Cohen et al. 2019).

        The certificate is one of the *smoothed* classifier, whose label is the majority of the votes that the network casts on
        noisy copies of the image. It does not speak of :meth:`predict`. docs/certified.md says how to choose the noise.

        Args:
            images: as :meth:`predict` takes them.
            noise: standard deviation of the noise on the [0, 1] scale of pixels. More noise certifies larger radii of fewer
                images; the radius is at most ``noise`` times 2.46 at 1,000 votes.
            votes: noisy copies of each image that certify; more of them make larger radii possible.
            selection: noisy copies of each image that select the class beforehand.
            confidence: probability that the certificate of an image holds.
            seed: image i gets its noise from (seed, i), whatever the other images are.

        Raises:
            ValueError: an argument is out of range, or the pixels have another shape or type.
            ConfigError: the label read-out was not trained on noisy images.
        """
        check_votes(votes, selection, confidence)
        classify, x = self.noisy_classifier(noise), to_x(self.as_pixels(images).to(self.device))
        polls = (selection, votes)
        first, second = cast_votes(classify, x, noise, polls, self.cfg.model.num_classes, seed, range(len(x)))
        if bool((second.sum(dim=1) < votes).any()):
            raise DivergedError("the logits are not finite: this model diverged in training; use another checkpoint")
        return certify_votes(first, second, votes, noise, confidence)

    def as_pixels(self, images: Images) -> Tensor:
        """Images as :meth:`predict` takes them -> uint8 [N, C, H, W] of the network's size.

        Raises:
            ValueError: there is no image, or it has another shape or type.
            DataError: a file is missing, or is not an image.
        """
        return pixels_of(images, self.image_shape, Originals(self.cfg.data.bits))

    def reading(self, by: Reading) -> DiffusionClassifier | DenoisedReading:
        """What :meth:`read` computes by the denoiser, as a differentiable function of x and noise.

        Raises:
            ValueError: there is no such reading.
            ConfigError: the network was not trained for it.
        """
        if by not in ("diffusion", "denoised"):
            raise ValueError(f"by is {by!r}: it must be {', '.join(get_args(Reading))}")
        if not (self.has_classes and self.has_denoiser):
            raise ConfigError(f"this model was trained with objective {self.cfg.objective.kind}: it cannot be read by {by}")
        if by == "denoised":
            return DenoisedReading(self.predict_x0, self.logits, self.diffusion, DENOISED_AT, DENOISED_DRAWS)
        if not self.takes_labels:
            raise ConfigError("by diffusion: this model's denoiser was not trained with labels (model.label_conditioning)")
        return DiffusionClassifier(
            self.predict_x0_labels, self.diffusion, self.cfg.model.num_classes, ROUNDS, math.prod(self.image_shape)
        )

    def predict_x0_labels(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The predicted x_0 of each image for each of M labels y int64 [B, M] -> [B, M, C, H, W]. Differentiable."""
        x_t, t = self._noisy(x_t), t.to(self.device)
        return self.diffusion.to_x0(
            self.cfg.objective.target, self.net.denoise_labels(x_t, t, y.to(self.device)), x_t[:, None], t
        )

    @torch.no_grad()
    def read(self, images: Images, by: Reading = "label", seed: int = 0) -> Prediction:
        """Labels, probabilities and scores of images by one of three readings, on the CPU (docs/readings.md).

        A calibration is of the label read-out: the probabilities of the other two readings are as the network gives them.

        Args:
            images: as in :meth:`predict`.
            by: ``label``, the label read-out, as :meth:`predict`; ``diffusion``, the class whose conditional denoising error is
                least, whose score is minus that error; ``denoised``, the label read-out after one denoising step.
            seed: of the noise, which is the same for all images. ``label`` draws none.

        Raises:
            ValueError: there is no such reading, or as in :meth:`predict`.
            ConfigError: the network was not trained to classify, has no denoiser, or for ``diffusion`` none that takes labels.
        """
        if by == "label":
            return self.predict(images)
        reading = self.reading(by)
        noise, pixels = reading.draw_noise(self.image_shape, generator(seed, "readings")), self.as_pixels(images)
        logits = self._in_parts(lambda x: reading(x, noise), pixels, 64)
        score = logits.amax(dim=1) if by == "diffusion" else log_density(logits)
        return Prediction(logits.argmax(dim=1), logits.softmax(dim=1), score)

    def denoise(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The predicted noise eps(x_t, t), [B, C, H, W], whatever target the network was trained for. Differentiable.

        Args:
            x_t: float [B, C, H, W], noisy images.
            t: int64 [B] in 1..T.
            y: labels int64 [B] for a network with ``label_conditioning``, where K means unconditional; None for all others.

        Raises:
            ConfigError: the network was not trained to denoise.
            ValueError: a time is not in 1..T, or y is given to a network that takes no labels.
        """
        if not bool(((t >= 1) & (t <= self.diffusion.T)).all()):
            raise ValueError(f"t is {t.tolist()}: every time must be in 1..{self.diffusion.T}")
        x_t, t = self._noisy(x_t), t.to(self.device)
        return self.diffusion.to_eps(self.cfg.objective.target, self._prediction(x_t, t, y), x_t, t)

    def predict_x0(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The predicted clean image x_0, [B, C, H, W], not clipped; samplers and the bound use it. Differentiable.

        Arguments and errors are those of :meth:`denoise`, but t is not checked: that would stop a GPU at every step.
        """
        x_t, t = self._noisy(x_t), t.to(self.device)
        return self.diffusion.to_x0(self.cfg.objective.target, self._prediction(x_t, t, y), x_t, t)

    def _prediction(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self._check_denoiser()
        return self.net.denoise(x_t, t) if y is None else self.net.denoise(x_t, t, y.to(self.device))

    def _check_denoiser(self) -> None:
        if not self.has_denoiser:
            raise ConfigError(
                f"this model was trained with objective {self.cfg.objective.kind}: it has no denoiser, so it cannot "
                + ("be guided or compute bits/dim" if self.has_samples else "sample or compute bits/dim")
            )

    @property
    def takes_labels(self) -> bool:
        """Whether the denoiser itself was trained with labels."""
        return self.has_denoiser and self.cfg.model.label_conditioning

    @property
    def draws_by_label(self) -> bool:
        """Whether :meth:`draw` gives the denoiser a random label for each image."""
        return self.takes_labels and bool(self.cfg.data.classes)

    def conditional(self, labels: Tensor, guidance: float) -> Denoiser:
        """The denoiser (-> x_0) conditional on ``labels`` int64 [B], with classifier-free guidance of weight w:
        (1 + w) D(x_t, t, y) - w D(x_t, t) (Ho & Salimans 2021)."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            if not guidance:
                return self.predict_x0(x_t, t, labels)
            both = self.net.denoise_cond_uncond(x_t, t, labels)
            cond, uncond = (self.diffusion.to_x0(self.cfg.objective.target, prediction, x_t, t) for prediction in both)
            return (1 + guidance) * cond - guidance * uncond

        return denoise

    def guided(self, labels: Tensor, guidance: float) -> Denoiser:
        """The denoiser (-> x_0) guided toward ``labels`` int64 [B] by the network's own classifier (Dhariwal & Nichol 2021).

        It is eps - guidance * sqrt(1 - abar_t) * grad_{x_t} log p(y | x_0(x_t)) (Alg. 2) in terms of x_0. The classifier gets
        the predicted x_0, since it was trained on clean images.
        """

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.enable_grad():
                x_t = x_t.detach().requires_grad_()
                x0 = self.predict_x0(x_t, t)
                log_p = self.logits(x0.clamp(-1, 1)).log_softmax(dim=1)[torch.arange(len(labels)), labels].sum()
                (gradient,) = torch.autograd.grad(log_p, x_t)
            signal, noise = (self.diffusion.at(name, t, x_t) for name in ("sqrt_alpha_bar", "sqrt_one_minus_alpha_bar"))
            return (x0 + guidance * noise**2 / signal * gradient).detach()

        return denoise

    def sample(  # noqa: PLR0913  what a user may choose, all by name
        self,
        n: int,
        sampler: str = "dpmpp_2m",
        steps: int = 20,
        labels: Labels | None = None,
        guidance: float = 0.0,
        seed: int = 0,
        spacing: Spacing | None = None,
        batch_size: int = 256,
        progress: bool = False,
        tries: int = 1,
    ) -> Tensor:
        """Generate n images: uint8 [n, C, H, W] on the CPU.

        Image i of a seed is the same at any n and batch size, up to rounding.

        Args:
            sampler: ddpm, ddim, dpmpp_2m or heun. An energy-based model (JEM) always uses its own.
            steps: sampler steps in 1..T; the paper uses ddpm with all T.
            labels: the class of each image, or one for all, by number or name. With ``label_conditioning`` they condition the
                denoiser, and None means random classes. Any other network needs ``guidance`` too. Its own classifier then
                guides it, which often fails unless it was trained on noisy images too (``noisy_labels``).
            guidance: guidance weight. With ``label_conditioning`` it is classifier-free guidance, which needs a second pass of
                the layers after the label read-out; else classifier guidance, which takes about three times as long. A
                negative weight guides away from the labels.
            seed: image i is drawn from (seed, i).
            spacing: how the steps are spaced over the T times; None takes the sampler's default.
            batch_size: images per batch, of which each thread of a CPU draws a part.
            progress: whether to show how far it is (:mod:`hybvit.waiting`).
            tries: draw an image anew, up to so many times in all, while the classifier gives its label a p(y|x) below one half;
                if all fail, the most probable one is kept. Without ``labels``, image i is then of class i mod K. See
                docs/editing.md for what it does to the samples.

        Raises:
            ValueError: an argument is out of range, or only one of ``labels`` and ``guidance`` is given to a network without
                ``label_conditioning``.
            ConfigError: the network was not trained to generate, or has no classifier to guide it.
        """
        if n < 1 or batch_size < 1:
            raise ValueError(f"n is {n} and batch_size {batch_size}: both must be at least 1")
        wanted = self._labels_of_samples(labels, n, guidance, tries)
        keep_freed_memory()
        parts, starts = [], range(0, n, batch_size)
        with Progress(len(starts) * tries, "sampling", shown=progress) as shown:
            for start in starts:
                indices = range(start, min(start + batch_size, n))
                labels_here = None if wanted is None else wanted[start : indices.stop]
                pixels = self.draw(indices, sampler, steps, seed, guidance, spacing, labels_here)
                shown.update()
                for attempt in range(1, tries):
                    assert labels_here is not None
                    pixels = self._redraw(pixels, indices, attempt, labels_here, (sampler, steps, seed, guidance, spacing))
                    shown.update()
                parts.append(pixels)
        return torch.cat(parts)

    def _labels_of_samples(self, labels: Labels | None, n: int, guidance: float, tries: int) -> Tensor | None:
        """The class of each of n samples, int64 [n]; None if :meth:`draw` chooses. Arguments and errors are those of
        :meth:`sample`."""
        if not math.isfinite(guidance):
            raise ValueError(f"guidance is {guidance}: it must be a finite number")
        only_one = (labels is None) != (guidance == 0)
        if only_one and not (self.draws_by_label if labels is None else self.takes_labels):
            raise ValueError(
                "labels and guidance belong together: this network's denoiser was not trained with labels, so its "
                "classifier guides it to a class, with a guidance of 2, say"
            )
        if tries < 1:
            raise ValueError(f"tries is {tries}: it must be at least 1")
        if tries > 1 and not self.has_classes:
            raise ConfigError(f"tries is {tries}: this model was trained with objective genvit: it has no classifier to ask")
        if labels is not None:
            return self.wanted_labels(labels, n)
        if tries > 1 and not self.draws_by_label:
            raise ValueError(f"tries is {tries}: name the labels to check for; this model draws images without any")
        return torch.arange(n, device=self.device) % len(self.cfg.data.classes) if tries > 1 else None

    def _redraw(self, pixels: Tensor, indices: Sequence[int], attempt: int, labels: Tensor, how: tuple[Any, ...]) -> Tensor:
        """Images of these indices, drawn once more where the classifier does not see their labels, the better ones kept."""

        def probability(images: Tensor, y: Tensor) -> Tensor:
            return self.predict(images).probabilities[torch.arange(len(images)), y.cpu()]

        before = probability(pixels, labels)
        rows = (before < ACCEPTED).nonzero().flatten()
        if not len(rows):
            return pixels
        sampler, steps, seed, guidance, spacing = how
        numbers = [indices[i] + attempt * ATTEMPT for i in rows.tolist()]
        drawn = self.draw(numbers, sampler, steps, seed, guidance, spacing, labels[rows])
        better = probability(drawn, labels[rows]) > before[rows]
        pixels[rows[better]] = drawn[better]
        return pixels

    def wanted_labels(self, labels: Labels, n: int) -> Tensor:
        """The class of each of n images, int64 [n]; arguments and errors are those of :meth:`sample`."""
        if isinstance(labels, str):
            labels = self.class_number(labels)
        elif isinstance(labels, Sequence):
            labels = [self.class_number(label) if isinstance(label, str) else label for label in labels]
        most = self.cfg.model.num_classes - 1
        try:
            wanted = torch.as_tensor(labels, device=self.device)
        except (RuntimeError, TypeError, ValueError):  # no numbers, lists of several lengths, or one beyond 64 bits
            raise ValueError(f"labels must be names of classes, or whole numbers in 0..{most}") from None
        if wanted.is_floating_point() or wanted.shape not in ((), (1,), (n,)):
            raise ValueError(
                f"labels are {wanted.dtype} {list(wanted.shape)}: give one whole number, or one for each of n = {n}"
            )
        if not (self.takes_labels or self.has_classes):
            raise ConfigError("this model was trained with objective genvit: it has no classifier to guide it to labels")
        wanted = wanted.long().expand(n)
        if not bool(((wanted >= 0) & (wanted <= most)).all()):
            raise ValueError(f"labels must be in 0..{most}")
        return wanted

    def draw(
        self,
        indices: Sequence[int],
        sampler: str,
        steps: int,
        seed: int,
        guidance: float = 0.0,
        spacing: Spacing | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Generate the images of a seed with these numbers, at once: uint8 [len(indices), C, H, W] on the CPU.

        Args:
            indices: the numbers of the images, each at least 0.
            labels: int64 [len(indices)]; None draws one for each at random if the network ``draws_by_label``, with equal
                probabilities of the classes.

        All other arguments are those of :meth:`sample`.

        Raises:
            ConfigError: guidance is given without labels to guide to, or the network was not trained to generate.
        """
        if self.own_sampler and labels is None and not guidance:
            return self.net.draw(indices, steps, seed)

        def part(rows: slice) -> Tensor:
            some = indices[rows]
            denoise = self.denoiser(some, seed, guidance, None if labels is None else labels[rows])
            noise = image_noise(some, seed, self.image_shape, self.device)
            with autocast(self.device, self.sampling_precision):  # around all steps, so that each weight is cast once
                return run_to_pixels(denoise, self.diffusion, noise, sampler, steps, spacing)

        return in_threads(part, len(indices), self.device)

    def drawn_labels(self, indices: Sequence[int], seed: int) -> Tensor | None:
        """The classes that :meth:`draw` gives images without labels, int64 [len(indices)]; None without ``draws_by_label``."""
        if not self.draws_by_label:
            return None
        classes = len(self.cfg.data.classes)
        return torch.tensor([derive_seed(seed, "labels of samples", i) % classes for i in indices])

    def denoiser(self, indices: Sequence[int], seed: int, guidance: float = 0.0, labels: Tensor | None = None) -> Denoiser:
        """The denoiser (-> x_0) that :meth:`draw` samples with; arguments and errors are those of it."""
        if guidance and labels is None and not self.draws_by_label:
            raise ConfigError(f"guidance {guidance}: this model's denoiser was not trained with labels to draw at random")
        if labels is None:
            labels = self.drawn_labels(indices, seed)
        if labels is None:
            return self.predict_x0
        return (self.conditional if self.takes_labels else self.guided)(labels.to(self.device), guidance)

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, seed: int = 0) -> Tensor:
        """The full variational bound on -log2 p(x), [B] in bits per dimension, by the unconditional denoiser.

        It costs T evaluations per image. The noise is that of an image by itself, so the other images do not change its bound.

        Args:
            x: float [B, C, H, W] on the 256 levels of [-1, 1].
            seed: of the noise, which is the same for each image.

        Raises:
            ConfigError: the network was not trained to denoise.
            ValueError: x has another shape, type or scale.
        """
        self._check_denoiser()
        each = self._clean(x).split(1)
        return torch.cat([variational_bound(self.predict_x0, self.diffusion, x0, generator(seed, "bound")) for x0 in each])

    inpaint = edits.inpaint
    vary = edits.vary
    interpolate = edits.interpolate
    counterfactual = edits.counterfactual

    save_pretrained = folders.save_pretrained
    push_to_hub = folders.push_to_hub
    from_pretrained = classmethod(folders.from_pretrained)
    take_calibration = folders.take_calibration
