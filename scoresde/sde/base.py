"""What every forward process has in common."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.sde.quadrature import LinearSDEQuadrature


class Kernel(NamedTuple):
    """Gaussian transition kernel q(x_s | x_t) = N(scale · x_t, std² I)."""

    scale: Tensor
    std: Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape times so that they broadcast against states.

    Args:
        t: Times, shape () or (B,).
        x: States, shape (B, *).
    Returns:
        t unchanged, or with shape (B, 1, ..., 1) and the dtype of x.
    Raises:
        ValueError: If t is neither a scalar nor one time per sample.
    """
    if t.ndim == 0:
        return t
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t must be a scalar or one time per sample: expected shape () or ({x.shape[0] if x.ndim else 0},) "
            f"for x of shape {tuple(x.shape)}, got {tuple(t.shape)}. "
            f"Pass t.flatten() if each sample has its own time."
        )
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


LEAST_SIGNAL = 1e-12  # of α/σ: what is not above it is no signal


class SDE(ABC):
    """A linear forward process, defined by either of two pairs of formulas.

        dx = f(t) x dt + g(t) dw,        x_t | x_0 ~ N(α_t x_0, σ_t² I)
        f = (log α)'                      (σ²)' = 2 f σ² + g²

    A subclass writes `alpha` and `sigma` (f and g follow by differentiation), or `f` and `g` (α and σ follow by
    quadrature, in float64, from α_0 = 1 and σ_0 = `sigma_start`). α may end at 0, where logsnr is −∞: write α and σ of
    such a process, as f and g are infinite there. All methods are elementwise: any shape of t, and
    the dtype and device of t. `scoresde.testing.check_sde` tells whether a subclass is consistent.

    Attributes:
        t_min: Numerical end of the data side: solvers stop and likelihoods start here.
        sigma_start: σ_0 of a process given by f and g.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    t_min: float = 1e-5
    sigma_start: float = 0.0

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        has = {name: getattr(cls, name) is not getattr(SDE, name) for name in ("alpha", "sigma", "f", "g")}
        if not (has["alpha"] and has["sigma"]) and not (has["f"] and has["g"]):
            has["logsnr"] = cls.logsnr is not SDE.logsnr
            written = ", ".join(name for name, given in has.items() if given) or "none of them"
            example = ", for example alpha = sigmoid(logsnr)^0.5 and sigma = sigmoid(-logsnr)^0.5" * has["logsnr"]
            raise TypeError(
                f"{cls.__name__} needs two formulas, alpha and sigma or f and g, got {written}. "
                f"Write one whole pair as methods of t{example}."
            )

    def alpha(self, t: Tensor) -> Tensor:
        """α_t, the coefficient of x_0 in x_t."""
        return self._quadrature.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """σ_t, the standard deviation of x_t given x_0."""
        return self._quadrature.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        """f(t) = d/dt log α_t."""
        return _value_and_rate(lambda u: self.alpha(u).log(), t)[1]

    def g(self, t: Tensor) -> Tensor:
        """g(t) = √(d(σ_t²)/dt − 2 f σ_t²)."""
        variance, rate = _value_and_rate(lambda u: self.sigma(u).square(), t)
        return (rate - 2 * self.f(t) * variance).clamp_min(0).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(dα/dt, dσ/dt): dx_t/dt = α̇ x_0 + σ̇ ε, finite where the signal ends and f and g are not."""
        if type(self).alpha is SDE.alpha:
            alpha, sigma, f = self.alpha(t), self.sigma(t), self.f(t)
            return f * alpha, f * sigma + self.g(t).square() / (2 * sigma)
        return _value_and_rate(self.alpha, t)[1], _value_and_rate(self.sigma, t)[1]

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t) x, shape (B, *)."""
        return expand(self.f(t), x) * x

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), the shape of t."""
        return self.g(t)

    def logsnr(self, t: Tensor) -> Tensor:
        """log(α_t² / σ_t²), strictly decreasing in t; −∞ where there is no signal."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time(self, logsnr: Tensor) -> Tensor:
        """Inverse of `logsnr`: by bisection in float64, so values outside the process give 0 or 1."""
        target = logsnr.detach().double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(100):
            mid = 0.5 * (low + high)
            noisier = self.logsnr(mid) < target
            low, high = torch.where(noisier, low, mid), torch.where(noisier, mid, high)
        return (0.5 * (low + high)).to(logsnr.dtype)

    def transition(self, t: Tensor, s: Tensor) -> Kernel:
        """Kernel of x_s given x_t, for s ≥ t.

        scale = α_s / α_t
        std²  = σ_s² − scale² σ_t² = −σ_s² expm1(logsnr_s − logsnr_t)
        """
        shrink, scale = -torch.expm1(self.logsnr(s) - self.logsnr(t)), self.alpha(s) / self.alpha(t)
        silent = self.alpha(t) == 0  # then s is t: what has no signal goes nowhere
        shrink, scale = torch.where(silent, 0, shrink), torch.where(silent, 1, scale)
        return Kernel(scale, self.sigma(s) * shrink.clamp_min(0).sqrt())

    def perturb(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = α_t x_0 + σ_t ε, shape (B, *)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    @cached_property
    def ends_silent(self) -> bool:
        """Whether no signal is left at t = 1: α_1 = 0, or the rounding error that a formula such as cos ½πt leaves."""
        end = torch.ones((), dtype=torch.float64)
        return bool(self.alpha(end) <= LEAST_SIGNAL * self.sigma(end))

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std² I) for x_1; σ_1 unless a process says otherwise."""
        return float(self.sigma(torch.ones((), dtype=torch.float64)))

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw x_1 from the prior, shape `shape`."""
        return self.prior_std * torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log density of the prior in nats, x (B, *) -> (B,)."""
        z = x.flatten(1) / self.prior_std
        return -0.5 * z.square().sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    @cached_property
    def _quadrature(self) -> LinearSDEQuadrature:
        return LinearSDEQuadrature(self.f, self.g, self.sigma_start)


def _value_and_rate(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """function(t) and its derivative, for an elementwise function."""
    value, pull_back = torch.func.vjp(function, t)[:2]
    return value, pull_back(torch.ones_like(value))[0]
