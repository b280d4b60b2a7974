"""Gaussian guesses of x0, and draws from a guess times p(y | x0)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser.inference_mode import differentiates
from scoresde.inverse.coordinates import Coordinates
from scoresde.sde import expand

POWER_ITERATIONS = 8
Draw = Callable[[], Tensor]  # standard normals (B, *shape), fresh every time
LogLikelihood = Callable[[Tensor], Tensor]  # x0 (B, *shape) -> log p(y | x0), (B,)


class Guess(ABC):
    """x0 ~ N(mean, F Fᵀ), mean (B, *shape)."""

    mean: Tensor

    @abstractmethod
    def event(self, u: Tensor) -> Tensor:
        """mean + F u for u (B, *shape)."""

    @abstractmethod
    def given(self, y: Coordinates, draw: Draw) -> Tensor:
        """A draw of x0 given y, (B, *shape)."""


@dataclass(frozen=True, eq=False)
class Round(Guess):
    """N(mean, r² I)."""

    mean: Tensor
    r: Any

    def event(self, u: Tensor) -> Tensor:
        return self.mean + self.r * u

    def given(self, y: Coordinates, draw: Draw) -> Tensor:
        """N(ĉ + w (ȳ − ĉ), (1 − w) r²) along each known coordinate, w = r²/(r² + std²)."""
        c, variance = y.along(self.mean), self.r**2 + 0 * y.std
        w = torch.where(y.known, variance / (variance + y.std.square()), 0)
        return y.event(c + w * (y.value - c) + ((1 - w) * variance).sqrt() * y.along(draw()))


@dataclass(frozen=True, eq=False)
class Correlated(Guess):
    """N(mean, C), C (B, d, d) of the flattened event."""

    mean: Tensor
    covariance: Tensor

    def event(self, u: Tensor) -> Tensor:
        factor = torch.linalg.cholesky_ex(self.covariance.double())[0].to(u)
        return self.mean + (factor @ u.flatten(1)[..., None]).reshape(u.shape)

    def given(self, y: Coordinates, draw: Draw) -> Tensor:
        """x0 = x' + C K (K C K + R)⁻¹ (y − x' − n),  x' ~ N(mean, C),  n ~ N(0, R),  K 1 where known  (Matheron)"""
        prior = self.event(draw())
        gap = torch.where(y.known, y.value - y.along(prior) - y.std * y.along(draw()), 0).flatten(1).double()
        known, std = (part.expand(prior.shape).flatten(1) for part in (y.known, torch.where(y.known, y.std, 1)))
        cov = y.rows_along(y.rows_along(self.covariance.double()).mT)  # Vᵀ C V
        cov = torch.where(known[:, :, None], cov, 0)  # K C
        inner = torch.where(known[:, None], cov, 0) + torch.diag_embed(std.double().square())
        factor = torch.linalg.cholesky_ex(inner)[0]
        shift = cov.mT @ torch.cholesky_solve(gap[..., None], factor)
        return prior + y.event(shift.reshape(prior.shape).to(prior))


@differentiates
def langevin(guess: Guess, log_likelihood: LogLikelihood, draw: Draw, *, steps: int, rate: float) -> Tensor:
    """A draw of about N(x0; mean, F Fᵀ) p(y | x0), (B, *shape), by Langevin steps in u, x0 = mean + F u.

    u ← u + e (∇ log p(y | x0) − u) + √(2e) z,        e = rate/(1 + L)
    """

    def gradient(u: Tensor, *, graph: bool = False) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            return u, torch.autograd.grad(log_likelihood(guess.event(u)).sum(), u, create_graph=graph)[0]

    u, slope = gradient(torch.zeros_like(guess.mean), graph=True)
    e = expand(rate / (1 + _curvature(u, slope, draw())), u)
    u = draw()
    for _ in range(steps):
        u = u + e * (gradient(u)[1] - u) + (2 * e).sqrt() * draw()
    return guess.event(u)


def _curvature(u: Tensor, slope: Tensor, v: Tensor) -> Tensor:
    """Largest |eigenvalue| of ∂slope/∂u, (B,), from random v; 0 where the slope is constant."""
    size = torch.zeros_like(u.flatten(1)[:, 0])
    if not slope.requires_grad:
        return size
    for _ in range(POWER_ITERATIONS):
        v = v / expand(v.flatten(1).norm(dim=1).clamp_min(1e-30), v)
        (image,) = torch.autograd.grad(slope, u, v, retain_graph=True, materialize_grads=True)
        v, size = image, image.flatten(1).norm(dim=1)
    return size
