"""Exact weights of exponential Adams methods on any grid.

The probability flow is linear in the state and in one of four predictions q, and becomes a plain integral of q:

    eps    d(x/α) = ε̂ d(σ/α)
    data   d(x/σ) = x̂0 d(α/σ)
    v      d(x/ν) = v̂ dφ,               ν² = α² + σ²,  tan φ = σ/α,  v̂ = (α ε̂ − σ x̂0)/ν
    flow   d(x/(α+σ)) = (ε̂ − x̂0) dr,    r = σ/(α + σ)

An Adams step replaces q by the polynomial through its values at some levels and integrates it without further error:

    x_s = a x_t + Σ_j b_j q_j,           b_j = ∫ kernel ℓ_j

The polynomial is in λ = log(α/σ) for eps and data, in φ for v, in r for flow, or in another `clock`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scoresde.sde.levels import Levels
from scoresde.sde.quadrature import gauss_legendre

PREDICTIONS = ("eps", "data", "v", "flow")
CLOCKS = ("own", "logsnr", "ratio", "time")
_POINTS = 32


def adams_weights(
    levels: Levels, prediction: str, offsets: tuple[int, ...], clock: str = "own"
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Weights of every step of a run, from the values at the levels i − offset for the step from i to i + 1.

    Levels before the first have weight 0, and the polynomial is then of lower degree: this is the start-up.

    Args:
        levels: n + 1 levels; the last may be noise 0, where data's polynomial is constant.
        prediction: eps, data, v or flow.
        offsets: 0 is the level where the step starts, 1 the one before, −1 the one where it ends.
        clock: Variable of the polynomial: own, logsnr, ratio (σ/α) or time.
    Returns:
        a, shape (n, ...), and one b_j per offset, each (n, ...).
    """
    keep, lam, mass = _quadrature(levels, prediction, clock)
    where = _clock(levels, lam, prediction, clock)
    at = _clock(levels, levels.lam, prediction, clock)
    count = len(levels) - 1
    nodes, known = [], []
    for offset in offsets:
        index = torch.arange(count) - offset
        nodes.append(at[index.clamp_min(0)])
        known.append((index >= 0).reshape(-1, *[1] * (keep.ndim - 1)))
    weights = []
    for j, (node, own) in enumerate(zip(nodes, known, strict=True)):
        basis = torch.ones_like(where)
        for m, (other, there) in enumerate(zip(nodes, known, strict=True)):
            if m != j:
                slope = torch.where(own & there, node - other, 1)
                basis = basis * torch.where(own & there, (where - other) / slope, 1)
        weights.append(torch.where(own, (mass * basis).sum(0), 0))
    if prediction == "data":  # at noise 0 the data's polynomial in λ has no limit: take its value where the step starts
        landing = ~torch.isfinite(levels.lam[1:])
        scale = levels.alpha[1:]
        weights = [
            torch.where(landing, scale if offset == 0 else 0, b) for offset, b in zip(offsets, weights, strict=True)
        ]
    return keep, tuple(weights)


def prediction_coefficients(levels: Levels, prediction: str) -> tuple[Tensor, Tensor]:
    """(c_x, c_0) with q = c_x x + c_0 x̂0 at every level."""
    alpha, sigma = levels.alpha, levels.sigma
    if prediction == "data":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction == "eps":
        return 1 / sigma, -alpha / sigma
    if prediction == "flow":
        return 1 / sigma, -(alpha + sigma) / sigma
    norm = torch.hypot(alpha, sigma)
    return alpha / (sigma * norm), -norm / sigma


def _quadrature(levels: Levels, prediction: str, clock: str) -> tuple[Tensor, Tensor, Tensor]:
    """a of every step (n, ...), and λ (points, n, ...) and kernel mass (points, n, ...) of a Gauss rule on it."""
    alpha_t, alpha_s, sigma_t, sigma_s = levels.alpha[:-1], levels.alpha[1:], levels.sigma[:-1], levels.sigma[1:]
    nodes, masses = (_like(values, levels.lam) for values in gauss_legendre(_POINTS))
    if prediction in ("v", "flow"):
        u = _own(levels.lam, prediction)
        span = u[1:] - u[:-1]
        norm = torch.hypot(levels.alpha, levels.sigma) if prediction == "v" else levels.alpha + levels.sigma
        inside = u[:-1] + nodes * span
        ratio = torch.tan(inside) if prediction == "v" else inside / (1 - inside)
        return norm[1:] / norm[:-1], -ratio.log(), norm[1:] * masses * span
    h = levels.lam[1:] - levels.lam[:-1]
    finite = torch.isfinite(h)
    h = torch.where(finite, h, 1)
    if prediction == "data":
        lam = levels.lam[:-1] + nodes * h
        return sigma_s / sigma_t, lam, alpha_s * masses * h * torch.exp(-h * (1 - nodes))
    far, far_mass = (_like(values, levels.lam) for values in _to_infinity(clock in ("own", "logsnr")))
    u = torch.where(finite, nodes * h, far)
    mass = torch.where(finite, masses * h * torch.exp(-h * nodes), far_mass)
    return alpha_s / alpha_t, levels.lam[:-1] + u, -alpha_s * (sigma_t / alpha_t) * mass


def _own(lam: Tensor, prediction: str) -> Tensor:
    ratio = torch.exp(-lam)
    return torch.atan(ratio) if prediction == "v" else ratio / (1 + ratio)


def _clock(levels: Levels, lam: Tensor, prediction: str, clock: str) -> Tensor:
    if clock == "time":
        return levels.t if lam is levels.lam else levels.sde.time(2 * lam)
    if clock == "ratio":
        return torch.exp(-lam)
    return _own(lam, prediction) if clock == "own" and prediction in ("v", "flow") else lam


def _like(values: Tensor, shape: Tensor) -> Tensor:
    return values.to(shape.device).reshape(-1, *[1] * shape.ndim)


@lru_cache(maxsize=2)
def _to_infinity(polynomial: bool) -> tuple[Tensor, Tensor]:
    """Rule for ∫₀^∞ e^(−u) g(u) du: Gauss-Laguerre if g is a polynomial, else Gauss-Legendre in e^(−u)."""
    if polynomial:
        nodes, masses = np.polynomial.laguerre.laggauss(8)
        pad = np.zeros(_POINTS - 8)
        return torch.from_numpy(np.concatenate([nodes, pad])), torch.from_numpy(np.concatenate([masses, pad]))
    nodes_, masses_ = gauss_legendre(_POINTS)
    return -nodes_.log(), masses_
