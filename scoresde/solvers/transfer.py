"""Exponential integrators: the exact solution of the probability flow where x̂0 or ε̂ is a polynomial in λ = ½ logsnr.

With q = x̂0 ("data", DPM-Solver++) or q = ε̂ ("eps", DPM-Solver), derivatives q⁽ᵏ⁾ in λ at t, and h = λ_s − λ_t,

    x_s = a x_t + b (q + Σ_{k≥1} hᵏ q⁽ᵏ⁾ φ_{k+1}(z)/φ_1(z))

    data   a = σ_s/σ_t,   b = α_s (1 − e^(−h)),    z = −h
    eps    a = α_s/α_t,   b = −σ_s (e^h − 1),      z = h

A step to noise 0, or from no signal, has h = ∞: a and b have a limit, the further terms have none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde.levels import Level, Levels

_TERMS = 18  # of the Taylor series of φ for |z| < 1, to rounding


def predict(denoiser: Denoiser, x: Tensor, level: Level, prediction: str) -> Tensor:
    """ε̂ or x̂0."""
    return denoiser.eps_at(x, level) if prediction == "eps" else denoiser.x0(x, level)


def transfer(t: Level | Levels, s: Level | Levels, decay: Any, prediction: str) -> tuple[Any, Any]:
    """a and b of a step from t to s, with decay = 1 − e^(−h)."""
    if prediction == "data":
        return s.sigma / t.sigma, s.alpha * decay
    a = signal_ratio(t, s)
    return a, -a * t.sigma * decay


def signal_ratio(t: Level | Levels, s: Level | Levels) -> Any:
    """α_s/α_t.

    Raises:
        ValueError: If there is no signal at t, where ε̂ = x/σ says nothing about the data.
    """
    silent = t.alpha == 0
    if silent is True or (isinstance(t, Levels) and bool(silent.any())):
        raise ValueError(
            "A step in ε̂ needs some signal at its start, got α = 0 there: take a solver in x̂0, such as DDIM or "
            "DPMSolverPP2M (prediction='data' where there is the choice), or a grid that starts below that time."
        )
    return s.alpha / t.alpha


def unbounded(h: Any) -> bool:
    """Whether a step is infinite in λ: to noise 0, or from no signal."""
    return math.isinf(h) if isinstance(h, float) else bool(torch.isinf(h).all())


def shares(z: Any, count: int) -> tuple[Any, ...]:
    """φ_2/φ_1, ..., φ_{count+1}/φ_1; those at 1 in place of infinity."""
    z = (z if math.isfinite(z) else 1.0) if isinstance(z, float) else torch.where(torch.isfinite(z), z, 1)
    first, *rest = phi(z, count + 1)
    return tuple(value / first for value in rest)


def phi(z: Any, count: int) -> tuple[Any, ...]:
    """φ_1, ..., φ_count of exponential integrators: φ_0 = eᶻ, φ_{k+1} = (φ_k − 1/k!)/z, without cancellation at 0."""
    if isinstance(z, float):
        return _series(z, count) if abs(z) < 1 else _closed(z, count)
    near = z.abs() < 1
    pairs = zip(_series(torch.where(near, z, 0), count), _closed(torch.where(near, 1, z), count), strict=True)
    return tuple(torch.where(near, small, large) for small, large in pairs)


def _series(z: Any, count: int) -> tuple[Any, ...]:
    value = 0 * z
    for k in reversed(range(count, count + _TERMS)):
        value = value * z + 1 / math.factorial(k)
    values = [value]
    for k in reversed(range(1, count)):
        values.append(values[-1] * z + 1 / math.factorial(k))
    return tuple(reversed(values))


def _closed(z: Any, count: int) -> tuple[Any, ...]:
    values = [(math.expm1(z) if isinstance(z, float) else torch.expm1(z)) / z]
    for k in range(1, count):
        values.append((values[-1] - 1 / math.factorial(k)) / z)
    return tuple(values)


def earlier(values: Tensor, back: int, missing: float) -> Tensor:
    """Entry i − back in place of entry i, and `missing` before the first."""
    pad = torch.full_like(values[:back], missing)
    return torch.cat([pad, values[: max(len(values) - back, 0)]])
