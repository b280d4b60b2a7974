"""Denoisers of p(x0 | y): x̂0 moved by a measurement."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.denoiser.dependence import asks_for_gradient
from scoresde.denoiser.inference_mode import differentiates
from scoresde.guidance.gradients import smallest
from scoresde.inverse.linearised import Linearised
from scoresde.inverse.measurement import Measurement
from scoresde.sde.clock import last_signal, nearest_signal
from scoresde.sde.levels import Level


def norm(u: Tensor) -> Tensor:
    """Of each sample, (B, 1, ..., 1)."""
    return torch.linalg.vector_norm(u.flatten(1), dim=1).reshape(-1, *[1] * (u.ndim - 1))


class Estimate:
    """x̂0 at a level, and what is known there of Cov[x0 | x_t].

    Attributes:
        x, level: The state and its noise level.
        x0: x̂0, (B, *).
        cond: Conditions of the call.
    """

    def __init__(self, x: Tensor, x0: Tensor, level: Level, cond: dict[str, Any], through: bool) -> None:
        self.x, self.x0, self.level, self.cond, self.through = x, x0, level, cond, through

    def covariance(self, v: Tensor) -> Tensor:
        """Cov[x0 | x_t] v = σ²/α Jᵀ v, J = ∂x̂0/∂x: one backward pass."""
        pulled = torch.autograd.grad(self.x0, self.x, v, create_graph=self.through, retain_graph=True)[0]
        return self.level.sigma**2 / self.level.alpha * pulled


class PosteriorDenoiser(Denoiser):
    """A denoiser of p(x0 | y): the prior's x̂0, moved by what the measurement says; the score follows.

        x̂0' = x̂0 + shift                      score' = score + α/σ² shift

    Where a process ends without signal, all is asked at α/σ = 10⁻³, at the same x/σ, for levels with less.

    Args:
        denoiser: The prior.
        measurement: y, A and the noise: y of one event for all samples, or one per sample.
    """

    differentiable = True  # whether `shift` differentiates the denoiser

    def __init__(self, denoiser: Denoiser, measurement: Measurement) -> None:
        super().__init__()
        for name, value, kind in (("denoiser", denoiser, Denoiser), ("measurement", measurement, Measurement)):
            if not isinstance(value, kind):
                raise TypeError(f"{type(self).__name__} needs {name} to be a {kind.__name__}, got {value!r}.")
        self.sde, self.denoiser, self.measurement = denoiser.sde, denoiser, measurement
        self.last = last_signal(self.sde)

    @property
    def unguided(self) -> Denoiser:
        return self.denoiser.unguided

    @differentiates
    def narrowest(self, x: Tensor) -> float | None:
        """σ_y/‖Aᵀu‖ for the unit vector u that A hears best."""
        near = Linearised(self.measurement, torch.zeros_like(x), False)
        u = torch.ones_like(near.residual)
        for _ in range(3):  # of the power method
            u = near.times(near.adjoint(u))
            u = u / norm(u).clamp_min(torch.finfo(u.dtype).tiny)
        std = (u * near.noise(u)).flatten(1).sum(1).sqrt() / norm(near.adjoint(u)).flatten()
        return smallest(std)

    @abstractmethod
    def shift(self, estimate: Estimate, near: Linearised) -> Tensor:
        """Of x̂0, (B, *), from what is known of x0 and the measurement around it."""

    @abstractmethod
    def _with(self, denoiser: Denoiser, measurement: Measurement) -> Denoiser:
        """The same options with another prior and measurement."""

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        x, near = nearest_signal(self.sde, x, level, self.last)
        x0, shift = self._moved(x, near, cond, False)
        return x0 + shift

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        """From the prior's own v, which keeps its digits near the data."""
        moved, near = nearest_signal(self.sde, x, level, self.last)
        v, shift = self._moved(moved, near, cond, True)
        v = v - (near.alpha**2 + near.sigma**2) / near.sigma * shift
        if near is level:
            return v
        x0 = (near.alpha * moved - near.sigma * v) / (near.alpha**2 + near.sigma**2)
        far = (level.alpha * x - (level.alpha**2 + level.sigma**2) * x0) / level.sigma
        return far if not isinstance(level.alpha, Tensor) else torch.where(near.alpha == level.alpha, v, far)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        denoiser = self.denoiser.select(index, batch)
        return None if denoiser is None else self._with(denoiser, self.measurement.select(index, batch))

    @differentiates
    def _moved(self, x: Tensor, level: Level, cond: dict[str, Any], by_v: bool) -> tuple[Tensor, Tensor]:
        """The prior's x̂0, or its v, and the shift of x̂0."""
        if not self.differentiable:
            asked, x0 = self._ask(x, level, cond, by_v)
            through = torch.is_grad_enabled() and x0.requires_grad
            estimate = Estimate(x, x0, level, cond, through)
            return asked, self.shift(estimate, Linearised(self.measurement, x0, through))
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            asked, x0 = self._ask(leaf, level, cond, by_v)
        through = asks_for_gradient(x0, leaf, x)
        estimate = Estimate(leaf, x0, level, cond, through)
        shift = self.shift(estimate, Linearised(self.measurement, x0, through))
        return (asked, shift) if through else (asked.detach(), shift.detach())

    def _ask(self, x: Tensor, level: Level, cond: dict[str, Any], by_v: bool) -> tuple[Tensor, Tensor]:
        if not by_v:
            return (x0 := self.denoiser.x0(x, level, **cond)), x0
        v = self.denoiser.v_at(x, level, **cond)
        return v, (level.alpha * x - level.sigma * v) / (level.alpha**2 + level.sigma**2)
