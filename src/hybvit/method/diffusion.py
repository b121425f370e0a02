"""The forward process and its algebra (Sec. 2.1; Ho et al. 2020; Nichol & Dhariwal 2021; Lipman et al. 2023).

The schedule is one tensor, abar_0..abar_T with abar_0 = 1; everything else is derived from it in float64.
Shapes: x0, x_t, noise are [B, C, H, W] (any trailing shape); t is int64 [B] in 1..T; T is the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor

from .objective_config import Target


class Diffusion:
    """q(x_t|x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Eq. 10) for t = 1..T.

    Args:
        alpha_bar: float64 [T + 1], strictly decreasing from exactly 1, and above 0.

    Raises:
        ValueError: ``alpha_bar`` does not satisfy this.
    """

    def __init__(self, alpha_bar: Tensor) -> None:
        alpha_bar = alpha_bar.double().cpu()
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or alpha_bar[0] != 1:
            raise ValueError("alpha_bar must be a vector of T + 1 values, the first of them exactly 1")
        if not bool((alpha_bar.diff() < 0).all()) or alpha_bar[-1] <= 0:
            raise ValueError("alpha_bar must decrease strictly and stay above 0")
        self.alpha_bar = alpha_bar
        self._on_device: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def from_betas(cls, beta: Tensor) -> Diffusion:
        """abar_t = prod_{s <= t} (1 - beta_s) for beta_1..beta_T."""
        return cls(torch.cat((torch.ones(1, dtype=torch.float64), (1 - beta.double()).cumprod(0))))

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008) -> Diffusion:
        """f(u) = cos^2((u + s)/(1 + s) * pi/2), abar = f/f(0), beta clipped to 0.999 (Nichol & Dhariwal 2021, Eq. 17)."""
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * (math.pi / 2)) ** 2
        return cls.from_betas((1 - f[1:] / f[:-1]).clamp(max=0.999))

    @classmethod
    def linear(cls, T: int = 1000) -> Diffusion:
        """beta from 1e-4 to 2e-2 (Ho et al. 2020), scaled by 1000/T and clipped to 0.999."""
        return cls.from_betas((torch.linspace(1e-4, 2e-2, T, dtype=torch.float64) * (1000 / T)).clamp(max=0.999))

    @classmethod
    def flow(cls, T: int = 1000) -> Diffusion:
        """Rectified flow x_u = (1 - u) x_0 + u eps at u = t/(T + 1) (Liu et al. 2023), scaled to unit variance.

        x_u / sqrt((1 - u)^2 + u^2) is Eq. 10 with abar = (1 - u)^2 / ((1 - u)^2 + u^2); u stays below 1, abar above 0.
        """
        u = torch.arange(T + 1, dtype=torch.float64) / (T + 1)
        return cls((1 - u) ** 2 / ((1 - u) ** 2 + u**2))

    @property
    def T(self) -> int:
        return len(self.alpha_bar) - 1

    @cached_property
    def beta(self) -> Tensor:
        """beta_t = 1 - abar_t/abar_{t-1}, float64 [T + 1]; beta_0 = 0."""
        return torch.cat((torch.zeros(1, dtype=torch.float64), 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]))

    @cached_property
    def sqrt_alpha_bar(self) -> Tensor:
        return self.alpha_bar.sqrt()

    @cached_property
    def sqrt_one_minus_alpha_bar(self) -> Tensor:
        return (1 - self.alpha_bar).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio abar_t/(1 - abar_t), float64 [T + 1]; infinite at t = 0."""
        return self.alpha_bar / (1 - self.alpha_bar)

    @cached_property
    def posterior_x0(self) -> Tensor:
        """Coefficient of x_0 in mu~_t (Eq. 12): sqrt(abar_{t-1}) beta_t/(1 - abar_t), float64 [T + 1]; 1 at t = 0."""
        inner = self.alpha_bar[:-1].sqrt() * self.beta[1:] / (1 - self.alpha_bar[1:])
        return torch.cat((torch.ones(1, dtype=torch.float64), inner))

    @cached_property
    def posterior_x_t(self) -> Tensor:
        """Coefficient of x_t in mu~_t (Eq. 12): sqrt(alpha_t)(1 - abar_{t-1})/(1 - abar_t), float64 [T + 1]; 0 at t = 0."""
        inner = (1 - self.beta[1:]).sqrt() * (1 - self.alpha_bar[:-1]) / (1 - self.alpha_bar[1:])
        return torch.cat((torch.zeros(1, dtype=torch.float64), inner))

    @cached_property
    def posterior_variance(self) -> Tensor:
        """beta~_t = (1 - abar_{t-1})/(1 - abar_t) beta_t (Eq. 13), float64 [T + 1]; 0 at t = 0 and t = 1."""
        inner = (1 - self.alpha_bar[:-1]) / (1 - self.alpha_bar[1:]) * self.beta[1:]
        return torch.cat((torch.zeros(1, dtype=torch.float64), inner))

    def at(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """The coefficients ``name`` at the times t [B], shaped [B, 1, ...] to broadcast over x, in float32 or wider."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        key = (name, x.device, dtype)
        if key not in self._on_device:
            self._on_device[key] = getattr(self, name).to(dtype).to(x.device)  # rounded on the CPU: MPS has no float64
        return self._on_device[key][t].reshape(-1, *[1] * (x.ndim - 1))

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Eq. 10: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps; t = 0 returns x_0."""
        return self.at("sqrt_alpha_bar", t, x0) * x0 + self.at("sqrt_one_minus_alpha_bar", t, x0) * noise

    def predict_x0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Eq. 10 solved for x_0. Near t = T this divides by a small sqrt(abar_t), so samplers clip the result to [-1, 1]."""
        return (x_t - self.at("sqrt_one_minus_alpha_bar", t, x_t) * eps) / self.at("sqrt_alpha_bar", t, x_t)

    def predict_eps(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Eq. 10 solved for eps; t >= 1."""
        return (x_t - self.at("sqrt_alpha_bar", t, x_t) * x0) / self.at("sqrt_one_minus_alpha_bar", t, x_t)

    def velocity(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022)."""
        return self.at("sqrt_alpha_bar", t, x0) * noise - self.at("sqrt_one_minus_alpha_bar", t, x0) * x0

    def target(self, kind: Target, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The training target of the pixel read-out: eps (Eq. 15), x0, v, or eps - x0 (flow; Lipman et al. 2023)."""
        if kind not in get_args(Target):
            raise ValueError(f"target is {kind!r}: it must be one of {', '.join(get_args(Target))}")
        if kind == "flow":
            return noise - x0
        if kind == "eps":
            return noise
        return x0 if kind == "x0" else self.velocity(x0, t, noise)

    def to_x0(self, kind: Target, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction of this kind to x_0, the D(x_t, t) of Karras et al. 2022, which samplers and the bound use.

        The conversion is well conditioned for x0, v and flow; only eps needs the division of :meth:`predict_x0`.
        """
        if kind == "x0":
            return prediction
        if kind == "eps":
            return self.predict_x0(x_t, t, prediction)
        signal, noise = self.at("sqrt_alpha_bar", t, x_t), self.at("sqrt_one_minus_alpha_bar", t, x_t)
        if kind == "flow":  # Eq. 10 with eps = x_0 + prediction
            return (x_t - noise * prediction) / (signal + noise)
        return signal * x_t - noise * prediction

    def to_eps(self, kind: Target, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Convert a prediction of this kind to eps, which the public interface returns for every training target."""
        if kind == "eps":
            return prediction
        if kind == "x0":
            return self.predict_eps(x_t, t, prediction)
        signal, noise = self.at("sqrt_alpha_bar", t, x_t), self.at("sqrt_one_minus_alpha_bar", t, x_t)
        if kind == "flow":  # Eq. 10 with x_0 = eps - prediction
            return (x_t + signal * prediction) / (signal + noise)
        return signal * prediction + noise * x_t

    def eps_per_unit(self, kind: Target) -> Tensor:
        """|d eps / d prediction| in :meth:`to_eps`, float64 [T + 1], for t >= 1: the error of eps per unit of error."""
        signal, noise = self.sqrt_alpha_bar, self.sqrt_one_minus_alpha_bar
        return {"eps": torch.ones_like(signal), "x0": signal / noise, "v": signal, "flow": signal / (signal + noise)}[kind]

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """q(x_{t-1}|x_t, x_0) = N(mu~_t, beta~_t I) (Eqs. 11-13) -> mean [B, C, H, W], variance [B, 1, 1, 1]."""
        mean = self.at("posterior_x0", t, x_t) * x0 + self.at("posterior_x_t", t, x_t) * x_t
        return mean, self.at("posterior_variance", t, x_t)


SCHEDULES: dict[str, Callable[[int], Diffusion]] = {
    "cosine": Diffusion.cosine,
    "linear": Diffusion.linear,
    "flow": Diffusion.flow,
}
