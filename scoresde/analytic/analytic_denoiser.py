"""What laws of the data with an exact denoiser have in common."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser, as_time
from scoresde.sde import SDE, expand
from scoresde.sde.levels import Level

Law = TypeVar("Law", bound="AnalyticDenoiser")
LEAST_SIGNAL = 1e-12  # α/σ: the limit of no signal, to rounding
Rowwise = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # of y (b, d) and s, () or (b, 1)


class AnalyticDenoiser(Denoiser):
    """A law of the data for which everything that a model could be asked has a closed form.

        y = x / α,  s = σ / α                 y | x0 ~ N(x0, s² I), whatever the SDE
        q_s(y)                                density of y, so p_t(x) = α^(−d) q_s(x/α)
        x̂0    = E[x0 | y]
        pull  = (y − x̂0) / s² = −∇ log q_s(y)
        ε̂     = s · pull,   ∇ log p_t(x) = −pull / α
        Cov[x0 | x_t] = s² ∂x̂0/∂y = (σ²/α) ∂x̂0/∂x

    Where α is 0, 10⁻¹² σ stands for it. Computed in float64 and returned in x's dtype: float32 states lose digits only
    in the answer. A subclass writes the law in y and s alone; `_pull` has a formula of its own because the difference
    y − x̂0 cancels as s → 0.
    """

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self._mean(*self._data_coordinates(x, t)).to(x.dtype)

    def eps(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        y, s = self._data_coordinates(x, as_time(t, x))
        return (s * self._pull(y, s)).to(x.dtype)

    def v(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        if self.sde.ends_silent:
            return super().v(x, t, **cond)
        t = as_time(t, x)
        alpha, sigma = self._level(t)
        square = expand(alpha.square() + sigma.square(), x)
        return (square * self.eps(x, t, **cond) - expand(sigma, x) * x) / expand(alpha, x)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        if not self.sde.ends_silent:
            return super().v_at(x, level, **cond)
        y, s = self._data_coordinates(x, level.time)
        alpha = expand(self._level(level.time)[0], y)
        return (alpha * (y - (1 + s.square()) * self._mean(y, s)) / s).to(x.dtype)

    def score(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        t = as_time(t, x)
        y, s = self._data_coordinates(x, t)
        return (-self._pull(y, s) / expand(self._level(t)[0], y)).to(x.dtype)

    def covariance(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Cov[x0 | x_t = x] of the flattened event, x (B, *) -> (B, d, d)."""
        return self._covariance(*self._data_coordinates(x, t)).to(x.dtype)

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The diagonal of Cov[x0 | x_t = x], x (B, *) -> (B, *); the (d, d) matrix is not formed."""
        return self._mean_and_variance(*self._data_coordinates(x, t))[1].to(x.dtype)

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """x̂0 and the diagonal of Cov[x0 | x_t = x] from one pass, both (B, *)."""
        mean, variance = self._mean_and_variance(*self._data_coordinates(x, t))
        return mean.to(x.dtype), variance.to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """log p_t(x) in nats, x (B, *) -> (B,)."""
        y, s = self._data_coordinates(x, t)
        log_alpha = self._level(t)[0].log()
        return (self._log_density(y, s) - math.prod(x.shape[1:]) * log_alpha).to(x.dtype)

    def sample(self, n: int, *, shape: Sequence[int] | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws of x0, float64, (n, *).

        Args:
            n: Number of draws.
            shape: Event shape; None is `event_shape`.
            generator: Source of randomness, on the device of the law.
        """
        return self._draw(n, torch.Size(self.event_shape if shape is None else shape), generator)

    def on(self: Law, sde: SDE) -> Law:
        """The same law of the data under another process; tensors are shared."""
        other = copy.copy(self)
        other._buffers, other._modules = self._buffers.copy(), self._modules.copy()
        other._modules.pop("sde", None)  # a learned schedule is a module
        other.sde = sde
        return other

    def select(self, index: Tensor, batch: int) -> Denoiser:
        return self

    @property
    @abstractmethod
    def event_shape(self) -> torch.Size:
        """Shape of one draw."""

    @abstractmethod
    def rms(self) -> float:
        """√(E‖x0‖² / d), the scale of the data."""

    @abstractmethod
    def finest_scale(self) -> float:
        """The smallest length in the law: noise far below it leaves x0 known."""

    @abstractmethod
    def _mean(self, y: Tensor, s: Tensor) -> Tensor: ...

    @abstractmethod
    def _pull(self, y: Tensor, s: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_density(self, y: Tensor, s: Tensor) -> Tensor: ...

    @abstractmethod
    def _covariance(self, y: Tensor, s: Tensor) -> Tensor: ...

    @abstractmethod
    def _mean_and_variance(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _draw(self, n: int, shape: torch.Size, generator: torch.Generator | None) -> Tensor: ...

    def _data_coordinates(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """y (B, *) and s, () or (B, 1, ..., 1), in float64."""
        self._check_event(x.shape[1:])
        y, (alpha, sigma) = x.double(), self._level(t)
        return y / expand(alpha, y), expand(sigma / alpha, y)

    def _level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ in float64."""
        sigma = self.sde.sigma(wide := t.double())
        return torch.maximum(self.sde.alpha(wide), LEAST_SIGNAL * sigma), sigma

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # the law moves between devices and stays in float64: float() and half() leave it as it is
        return super()._apply(lambda value: value.to(fn(value).device), recurse)

    def _check_event(self, shape: torch.Size) -> None:
        if math.prod(shape) != math.prod(self.event_shape):
            raise ValueError(
                f"{type(self).__name__} needs events with {math.prod(self.event_shape)} entries, got events of shape "
                f"{tuple(shape)} with {math.prod(shape)}. Pass x of shape (B, *) with as many entries as the data."
            )


def flat(y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """y as (B, d) and s as () or (B, 1)."""
    rows = y.reshape(len(y), math.prod(y.shape[1:]))
    return rows, s if s.ndim == 0 else s.reshape(-1, 1)


def blockwise(function: Rowwise, y: Tensor, s: Tensor, rows: int) -> tuple[Tensor, ...]:
    """function(y, s) of flattened events (B, d), a block of rows at a time."""
    y, s = flat(y, s)
    parts = y.split(max(1, rows))
    levels = [s] * len(parts) if s.ndim == 0 else s.split(max(1, rows))
    return tuple(map(torch.cat, zip(*map(function, parts, levels), strict=True)))
