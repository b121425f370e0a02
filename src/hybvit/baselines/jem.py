"""JEM: a classifier also trained as an energy-based model (Grathwohl et al. 2020), with parts of JEM++ (Yang & Ji 2021).

p(x, y) is proportional to exp(f(x)[y]) for the logits f. So p(x) is proportional to exp(-E(x)), E(x) = -logsumexp_y f(x)[y],
and p(y|x) is the usual softmax. "JEM's code" is github.com/wgrathwohl/JEM, "JEM++'s code" is github.com/sndnyang/JEMPP.
Implemented from JEM++: the informative initialization and the proximal step. Not implemented: PYLD's inner steps through the
first layer only, clipping images to [-1, 1] after each step, and batch statistics while sampling (running statistics are used,
as in JEM's code).

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
from ..method.objective import Batch, Losses
from ..method.objective_config import Objective
from ..metrics.likelihood import log_density

RANK = 64  # principal directions kept of the covariance of a class
JITTER = 1e-4  # added to its diagonal, as in JEM++'s code


class Backbone(Protocol):
    """The interface of JEM's backbone."""

    def classify(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> logits [B, K]."""

    def features(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, F]."""


class JEM(nn.Module):
    """A classifier, a density model and, by Langevin dynamics, a generator.

    The replay buffer and the initial distribution are buffers of the module, so checkpoints, EMA copies and resumed runs
    include them. JEM++'s code stores the full covariance of each class: K * D^2 floats, 377 MB for CIFAR-10. Here a class has
    64 principal directions and one variance for all others, the maximum-likelihood Gaussian of that form (Tipping & Bishop
    1999): 64 * K * D floats, 8 MB. It preserves the total variance of a class, and nearly that of each pixel.

    Args:
        backbone: an nn.Module with ``classify`` and ``features``.
        image_shape: (C, H, W).
        num_classes: K.
        cfg: settings of the chains and of the loss.
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
        """Run ``steps`` of stochastic gradient Langevin dynamics from x (Welling & Teh 2011); ``generator`` is on the CPU.

        It runs in eval mode, so batch-norm statistics do not change, and no gradient reaches the weights.
        """
        return self._langevin(x, steps, lambda: seeds.normal_like(x, generator))

    def _langevin(self, x: Tensor, steps: int, noise: Callable[[], Tensor]) -> Tensor:
        """x <- x - step_size * clip(dE/dx) + noise * N(0, I); the image itself is not clipped, as in JEM's code.

        Step size and noise are independent settings, as published. Only noise^2 = 2 * step_size samples p(x), in the limit of
        small steps.
        """
        x = x.detach()
        with eval_mode(self), torch.enable_grad():
            for _ in range(steps):
                x = x.requires_grad_()  # below: a view, because module hooks (FlopCounterMode) accept no leaf
                (gradient,) = torch.autograd.grad(self.energy(x.view_as(x)).sum(), x)
                if self.cfg.proximal:
                    gradient = gradient.clamp(-self.cfg.proximal, self.cfg.proximal)
                x = (x - self.cfg.step_size * gradient + self.cfg.noise * noise().to(x)).detach()
        return x

    def loss(self, batch: Batch, objective: Objective, generator: torch.Generator | None) -> Losses:
        """-log p(y|x) + weight * (E(real) - E(samples)): Alg. 1 of Grathwohl et al. 2020.

        It follows from log p(x, y) = log p(y|x) + log p(x) and d/dw log p(x) = E_{x' ~ p}[dE(x')/dw] - dE(x)/dw.
        The samples continue persistent chains from the replay buffer.

        Args:
            batch: ``images`` with ``labels``, int64 [B] or soft labels [B, K]; ``x0`` are the real images of p(x).
            objective: only its label smoothing is used.
            generator: a CPU generator for all randomness.

        Raises:
            ValueError: a mini-batch is missing, or has more images than the replay buffer.
            DivergedError: the energies are not finite, or differ by more than ``limit``.
        """
        x0, images, labels = batch.x0, batch.images, batch.labels
        if x0 is None or images is None or labels is None:
            raise ValueError("the batch is incomplete: JEM needs `x0` images, and `images` with `labels`")
        chains = self._pick_chains(len(x0), generator)
        samples = self.sgld(self._chain_starts(chains, generator).to(x0), self.cfg.steps, generator)
        real = self.energy(x0 + self.cfg.input_noise * seeds.normal_like(x0, generator)).mean()
        sampled = self.energy(samples).mean()
        gap = real - sampled
        # If an energy is not finite, the gap is inf or nan.
        if not math.isfinite(gap.item()) or abs(gap.item()) > self.cfg.limit:
            raise DivergedError(
                f"JEM diverged: mean energy {real.item():.4g} of real images, {sampled.item():.4g} of samples, "
                f"gap {gap.item():.4g} beyond jem.limit {self.cfg.limit:g}; resume an earlier checkpoint with a lower "
                "optim.lr, a higher jem.input_noise or more jem.steps"
            )
        self.replay_images[chains] = samples.to(self.replay_images)
        ce = F.cross_entropy(self.classify(images), labels, label_smoothing=objective.label_smoothing)
        return Losses(ce + self.cfg.weight * gap, ce, energy_gap=gap)

    def _pick_chains(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n distinct chain indices, int64 [n]. JEM's code samples with replacement; a chain picked twice would then keep an
        arbitrary one of its two results."""
        if n > len(self.replay_images):
            raise ValueError(f"jem.replay is {len(self.replay_images)}: a batch of {n} images needs at least {n} chains")
        return torch.randperm(len(self.replay_images), generator=generator)[:n].to(self.replay_images.device)

    def _chain_starts(self, chains: Tensor, generator: torch.Generator | None) -> Tensor:
        """The current images of the chains, [n, C, H, W]; each chain is restarted with probability ``restart``."""
        x = self.replay_images[chains]
        restarted = torch.rand(len(chains), generator=generator) < self.cfg.restart
        x[restarted.to(x.device)] = self.initial(int(restarted.sum()), generator)
        return x

    def initial(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n new chain starts [n, C, H, W]: U(-1, 1), or from the Gaussian of a random class, clipped to [-1, 1].

        Classes are sampled by their frequency in the data.

        Raises:
            ValueError: the initial distribution is informative, but :meth:`fit_initial` was never called.
        """
        device = self.replay_images.device
        if not self.cfg.informative:
            return (torch.rand(n, *self.image_shape, generator=generator) * 2 - 1).to(device)
        if not self.class_shares.any():
            raise ValueError("jem.informative is true, but the initial distribution is not fitted: call `fit_initial` first")
        if n == 0:
            return torch.empty(0, *self.image_shape, device=device)
        classes = torch.multinomial(self.class_shares.cpu(), n, replacement=True, generator=generator).to(device)
        along = torch.randn(n, self.class_roots.shape[1], generator=generator).to(device)
        x = torch.randn(n, self.class_means.shape[1], generator=generator).to(device) * self.class_stds[classes, None]
        for k in classes.unique().tolist():
            x[classes == k] += self.class_means[k] + along[classes == k] @ self.class_roots[k]
        return x.clamp(-1, 1).reshape(n, *self.image_shape)

    @torch.no_grad()
    def fit_initial(self, images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit a Gaussian to each class and refill the replay buffer from them: JEM++'s informative initialization.

        A few thousand images are enough. A class without images is never sampled.

        Args:
            images: [N, C, H, W] in [-1, 1].
            labels: int64 [N].
            generator: a CPU generator for the replay buffer; None is torch's default generator.

        Raises:
            ValueError: the initial distribution is not informative, or the shapes of images and labels do not fit.
        """
        if not self.cfg.informative:
            raise ValueError("jem.informative is false, so chains start from uniform noise: set it to true")
        if len(images) == 0 or images.shape[1:] != self.image_shape or labels.shape != images.shape[:1]:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"images are {list(images.shape)}, labels {list(labels.shape)}: they must be [N, {expected}] and [N], N > 0"
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
        """Samples number ``indices``, uint8 [n, C, H, W] on the CPU: replay-buffer chains continued for ``steps`` steps.

        Image i depends on ``seed`` and i only, not on the other indices. Indices from M on reuse the chains with other noise.
        """
        m = len(self.replay_images)
        order = torch.randperm(m, generator=seeds.generator(seed, "samples", -1))  # -1 is free: images count from 0
        generators = [seeds.generator(seed, "samples", i) for i in indices]
        x = self.replay_images[order[torch.tensor([i % m for i in indices])].to(self.replay_images.device)]
        x = self._langevin(x, steps, lambda: torch.stack([torch.randn(self.image_shape, generator=g) for g in generators]))
        if not bool(x.isfinite().all()):
            raise DivergedError("the generated images are not finite: this model diverged in training")
        return to_pixels(x).cpu()


def gaussian(rows: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The maximum-likelihood Gaussian N(mean, root^T root + std^2 I) with r rows in its root (Tipping & Bishop 1999).

    Args:
        rows: [n, D].
        rank: r is the minimum of rank, n - 1 and D.

    Returns:
        mean [D], root [r, D], and std, with :data:`JITTER` added to the variance.
    """
    n, d = rows.shape
    mean = rows.mean(dim=0)
    r = min(rank, n - 1, d)
    _, singular, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    variances = singular.square() / n  # not n - 1, as in JEM++'s code
    rest = variances[r:].sum().item() / (d - r) if r < d else 0.0
    root = (variances[:r] - rest).clamp(min=0).sqrt()[:, None] * directions[:r]
    return mean, root, math.sqrt(rest + JITTER)


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """A context in eval mode; on exit the mode of every module is restored."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
