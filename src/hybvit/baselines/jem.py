"""JEM: a classifier trained as an energy-based model too (Grathwohl et al. 2020), with parts of JEM++ (Yang & Ji 2021).

p(x, y) is proportional to exp(f(x)[y]) for the logits f; so p(x) is to exp(-E(x)) with E(x) = -logsumexp_y f(x)[y], and p(y|x)
is the softmax as ever. "JEM's code" is github.com/wgrathwohl/JEM, "JEM++'s code" github.com/sndnyang/JEMPP. Of JEM++ these are
here: the informative start and the proximal step. Not here: PYLD's inner steps through the first layer alone, clipping images
to [-1, 1] after a step, and batch statistics while sampling (here the running ones, as in JEM's code).

Shapes: B images, C channels, K classes, D = C*H*W, M images in the replay buffer; x is float [B, C, H, W] in [-1, 1].
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import JEMConfig
from ..data.image_set import to_pixels
from ..errors import DivergedError
from ..method import seeds
from ..method.objective import Batch, Losses, Objective
from ..metrics.likelihood import log_density

RANK = 64  # directions kept of a class's covariance
JITTER = 1e-4  # added to its diagonal, as in JEM++'s code


class Backbone(Protocol):
    """What JEM asks of its network."""

    def classify(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> logits [B, K]."""

    def features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, F]."""


class JEM(nn.Module):
    """A classifier, a density and, by Langevin dynamics, a generator.

    The replay buffer and the initial distribution are part of the state: checkpoints, EMA copies and resumed runs have them.
    The covariance of a class (K * D^2 floats in JEM++'s code: 377 MB for CIFAR-10) is kept as its 64 principal directions and
    one variance for all others, the Gaussian of greatest likelihood in that form (Tipping & Bishop 1999): 64 * K * D floats,
    8 MB. The total variance of a class is kept, that of a single pixel nearly.

    Args:
        backbone: an nn.Module with ``classify`` and ``features``.
        image_shape: (C, H, W).
        num_classes: K.
        cfg: the settings of chains and objective.
    """

    replay_images: Tensor
    class_shares: Tensor
    class_means: Tensor
    class_roots: Tensor
    class_stds: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: tuple[int, int, int],
        num_classes: int,
        cfg: JEMConfig,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_shape, self.num_classes = image_shape, num_classes
        self.cfg = cfg
        self.register_buffer("replay_images", torch.rand(cfg.replay, *image_shape) * 2 - 1)
        if cfg.informative:
            d = math.prod(image_shape)
            self.register_buffer("class_shares", torch.zeros(num_classes))
            self.register_buffer("class_means", torch.zeros(num_classes, d))
            self.register_buffer("class_roots", torch.zeros(num_classes, min(RANK, d), d))
            self.register_buffer("class_stds", torch.zeros(num_classes))

    def classify(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> logits [B, K]; p(y|x) = softmax."""
        return cast(Backbone, self.backbone).classify(x)

    def features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> the backbone's features."""
        return cast(Backbone, self.backbone).features(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x)

    def energy(self, x: Tensor) -> Tensor:
        """E(x) = -logsumexp_y f(x)[y], [B]: low where p(x) is high (Grathwohl et al. 2020, Sec. 3)."""
        return -log_density(self.classify(x))

    def sgld(self, x: Tensor, steps: int, generator: torch.Generator | None) -> Tensor:
        """``steps`` of stochastic gradient Langevin dynamics from x (Welling & Teh 2011); ``generator`` is on the CPU.

        In eval mode, so batch statistics stay; no gradient reaches the weights.
        """
        return self._langevin(x, steps, lambda: seeds.normal_like(x, generator))

    def _langevin(self, x: Tensor, steps: int, noise: Callable[[], Tensor]) -> Tensor:
        """x <- x - step_size * clip(dE/dx) + noise * N(0, I), the image itself unclipped, as in JEM's code.

        Step and noise are set apart, as published; only noise^2 = 2 * step_size, in the limit of small steps, samples p(x).
        """
        x = x.detach()
        with evaluating(self), torch.enable_grad():
            for _ in range(steps):
                x = x.requires_grad_()  # the view is for hooks on modules (FlopCounterMode), which take no leaf here
                (gradient,) = torch.autograd.grad(self.energy(x.view_as(x)).sum(), x)
                if self.cfg.proximal:
                    gradient = gradient.clamp(-self.cfg.proximal, self.cfg.proximal)
                x = (x - self.cfg.step_size * gradient + self.cfg.noise * noise().to(x)).detach()
        return x

    def loss(self, batch: Batch, objective: Objective, generator: torch.Generator | None) -> Losses:
        """-log p(y|x) + weight * (E(real) - E(samples)): Alg. 1 of Grathwohl et al. 2020.

        It follows from log p(x, y) = log p(y|x) + log p(x) and d/dw log p(x) = E_{x' ~ p}[dE(x')/dw] - dE(x)/dw.
        Samples come from chains of the replay buffer, which go on where they were left.

        Args:
            batch: ``images`` with ``labels``, int64 [B] or shares [B, K]; ``clean`` are the real images of p(x).
            objective: its label smoothing.
            generator: on the CPU; it decides every draw.

        Raises:
            ValueError: a mini-batch is missing, or it has more images than the replay buffer.
            DivergedError: the energies are not finite, or further apart than ``limit``.
        """
        clean, images, labels = batch.clean, batch.images, batch.labels
        if clean is None or images is None or labels is None:
            raise ValueError("the batch is incomplete: JEM needs `clean` images, and `images` with `labels`")
        chains = self._chains(len(clean), generator)
        samples = self.sgld(self._continued(chains, generator).to(clean), self.cfg.steps, generator)
        real = self.energy(clean + self.cfg.input_noise * seeds.normal_like(clean, generator)).mean()
        drawn = self.energy(samples).mean()
        gap = real - drawn
        # An energy that is not finite makes the gap inf or nan.
        if not math.isfinite(gap.item()) or abs(gap.item()) > self.cfg.limit:
            raise DivergedError(
                f"JEM diverged: mean energy {real.item():.4g} of real images, {drawn.item():.4g} of samples, "
                f"gap {gap.item():.4g} beyond jem.limit {self.cfg.limit:g}; go back to a checkpoint with a lower optim.lr, "
                "more jem.input_noise or more jem.steps"
            )
        self.replay_images[chains] = samples.to(self.replay_images)
        ce = F.cross_entropy(self.classify(images), labels, label_smoothing=objective.label_smoothing)
        return Losses(ce + self.cfg.weight * gap, ce, energy_gap=gap)

    def _chains(self, n: int, generator: torch.Generator | None) -> Tensor:
        """int64 [n], all different: JEM draws with replacement, where it is left open which of two ends a chain keeps."""
        if n > len(self.replay_images):
            raise ValueError(f"jem.replay is {len(self.replay_images)}: a batch of {n} images needs as many chains")
        return torch.randperm(len(self.replay_images), generator=generator)[:n].to(self.replay_images.device)

    def _continued(self, chains: Tensor, generator: torch.Generator | None) -> Tensor:
        """Where the chains stand, [n, C, H, W]; a share ``restart`` of them at a new start."""
        x = self.replay_images[chains]
        anew = torch.rand(len(chains), generator=generator) < self.cfg.restart
        x[anew.to(x.device)] = self.initial(int(anew.sum()), generator)
        return x

    def initial(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Starts of chains [n, C, H, W]: U(-1, 1), or the Gaussian of a class that is drawn by its share, clipped to [-1, 1].

        Raises:
            ValueError: the initial distribution is informative, but :meth:`informed_by` was never called.
        """
        device = self.replay_images.device
        if not self.cfg.informative:
            return (torch.rand(n, *self.image_shape, generator=generator) * 2 - 1).to(device)
        if not self.class_shares.any():
            raise ValueError("JEM's informative start knows no images yet: call `informed_by` first")
        if n == 0:
            return torch.empty(0, *self.image_shape, device=device)
        classes = torch.multinomial(self.class_shares.cpu(), n, replacement=True, generator=generator).to(device)
        along = torch.randn(n, self.class_roots.shape[1], generator=generator).to(device)
        x = torch.randn(n, self.class_means.shape[1], generator=generator).to(device) * self.class_stds[classes, None]
        for k in classes.unique().tolist():
            x[classes == k] += self.class_means[k] + along[classes == k] @ self.class_roots[k]
        return x.clamp(-1, 1).reshape(n, *self.image_shape)

    @torch.no_grad()
    def informed_by(self, images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit a Gaussian to each class and start the whole replay buffer from them: JEM++'s informative initialisation.

        Some thousand images are enough; a class without any is never drawn.

        Args:
            images: [N, C, H, W] in [-1, 1].
            labels: int64 [N].
            generator: on the CPU, for the replay buffer; None: torch's own.

        Raises:
            ValueError: the initial distribution is not informative, or there are no images of this shape.
        """
        if not self.cfg.informative:
            raise ValueError("this JEM starts its chains from uniform noise: set jem.informative")
        if len(images) == 0 or images.shape[1:] != self.image_shape or labels.shape != images.shape[:1]:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"images are {list(images.shape)}, labels {list(labels.shape)}: they must be [N, {wanted}] and [N], N > 0"
            )
        self.class_shares.copy_(torch.bincount(labels.cpu(), minlength=self.num_classes) / len(labels))
        for k in labels.unique().tolist():
            mean, root, std = gaussian(images[labels == k].flatten(1), self.class_roots.shape[1])
            self.class_means[k] = mean
            self.class_roots[k] = 0
            self.class_roots[k, : len(root)] = root
            self.class_stds[k] = std
        self.replay_images.copy_(self.initial(len(self.replay_images), generator))

    def draw(self, indices: Sequence[int], steps: int, seed: int) -> Tensor:
        """The model's images of these numbers, uint8 [n, C, H, W] on the CPU: chains of the replay buffer, ``steps`` further.

        Image i depends on ``seed`` and i, whatever else is drawn with it. From M on the chains repeat, with other noise.
        """
        m = len(self.replay_images)
        order = torch.randperm(m, generator=seeds.generator(seed, "samples", -1))  # images are numbered from 0
        generators = [seeds.generator(seed, "samples", i) for i in indices]
        x = self.replay_images[order[torch.tensor([i % m for i in indices])].to(self.replay_images.device)]
        x = self._langevin(x, steps, lambda: torch.stack([torch.randn(self.image_shape, generator=g) for g in generators]))
        return to_pixels(x).cpu()


def gaussian(rows: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The Gaussian N(mean, root^T root + std^2 I) of greatest likelihood with r rows in its root (Tipping & Bishop 1999).

    Args:
        rows: [n, D].
        rank: r is the least of rank, n - 1 and D.

    Returns:
        mean [D], root [r, D], and std, with :data:`JITTER` added to the variance.
    """
    n, d = rows.shape
    mean = rows.mean(dim=0)
    r = min(rank, n - 1, d)
    _, singular, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    variances = singular.square() / n  # as in JEM++'s code, not n - 1
    rest = variances[r:].sum().item() / (d - r) if r < d else 0.0
    root = (variances[:r] - rest).clamp(min=0).sqrt()[:, None] * directions[:r]
    return mean, root, math.sqrt(rest + JITTER)


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode that it was in."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
