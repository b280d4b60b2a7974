"""Gauss-Legendre rules, and α and σ of a linear SDE that is given by its coefficients f and g."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor


@cache
def gauss_legendre(points: int) -> tuple[Tensor, Tensor]:
    """Nodes and masses of the Gauss-Legendre rule on [0, 1], float64 (points,): exact up to degree 2 points − 1.

    32 points are exact to rounding for e^(−u) over a length of 40.
    """
    nodes, masses = np.polynomial.legendre.leggauss(points)
    with torch.inference_mode(False):  # they outlive the mode they are first asked for in
        return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * masses)


class LinearSDEQuadrature:
    """Tables of log α and σ²/α² at fixed knots, and exact-order quadrature from the nearest knot below t.

        log α_t   = ∫₀ᵗ f
        σ_t²/α_t² = σ_0² + ∫₀ᵗ g² / α²

    Knots are 0 and 256 points spaced geometrically from 1e-8 to 1, so σ keeps its relative accuracy as t → 0. Nothing
    is interpolated: between knots the integral is computed at the asked time, so results are smooth and differentiable.

    Args:
        f, g: Elementwise functions of a float64 tensor.
        sigma_start: σ_0.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor], sigma_start: float) -> None:
        self.f, self.g = f, g
        with torch.no_grad():
            tail = torch.logspace(-8, 0, 256, dtype=torch.float64)
            self.knots = torch.cat([tail.new_zeros(1), tail])
            low, high = self.knots[:-1], self.knots[1:]
            log_alpha = integrate(f, low, high).cumsum(0)
            self.log_alpha = torch.cat([log_alpha.new_zeros(1), log_alpha])
            growth = self._growth(low, high, self.log_alpha[:-1]).cumsum(0)
            self.ratio = sigma_start**2 + torch.cat([growth.new_zeros(1), growth])

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t.double(), *self._below(t)[:2]).exp().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        wide = t.double()
        knot, log_alpha, ratio = self._below(t)
        ratio = ratio + self._growth(knot, wide, log_alpha)
        return (self._log_alpha(wide, knot, log_alpha).exp() * ratio.sqrt()).to(t.dtype)

    def _below(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots = self.knots.to(t.device)
        k = (torch.searchsorted(knots, t.detach().double().contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        return knots[k], self.log_alpha.to(t.device)[k], self.ratio.to(t.device)[k]

    def _log_alpha(self, t: Tensor, knot: Tensor, log_alpha: Tensor) -> Tensor:
        return log_alpha + integrate(self.f, knot, t)

    def _growth(self, low: Tensor, high: Tensor, log_alpha: Tensor) -> Tensor:
        def integrand(u: Tensor) -> Tensor:
            knot = low.expand(u.shape)
            return self.g(u).square() * torch.exp(-2 * self._log_alpha(u, knot, log_alpha.expand(u.shape)))

        return integrate(integrand, low, high)


def integrate(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """∫ function from `low` to `high`, elementwise, by eight-point Gauss-Legendre quadrature."""
    nodes, masses = (values.to(low).reshape(-1, *[1] * low.ndim) for values in gauss_legendre(8))
    values = torch.as_tensor(function(low + (high - low) * nodes), dtype=low.dtype)
    return (high - low) * (masses * values).sum(0)
