"""Exponential integrators: what a step integrates exactly, the polynomials that it integrates, and their weights.

The probability flow is linear in the state and in one of four predictions q, and becomes a plain integral of q:

    eps    d(x/α) = ε̂ d(σ/α)
    data   d(x/σ) = x̂0 d(α/σ)
    v      d(x/ν) = v̂ dφ,               ν² = α² + σ²,  tan φ = σ/α,  v̂ = (α ε̂ − σ x̂0)/ν
    flow   d(x/(α+σ)) = (ε̂ − x̂0) dr,    r = σ/(α + σ)

A Taylor step (DPM-Solver) with derivatives q⁽ᵏ⁾ in λ = log(α/σ) at t, and h = λ_s − λ_t, is

    x_s = a x_t + b (q + Σ_{k≥1} hᵏ q⁽ᵏ⁾ φ_{k+1}(z)/φ_1(z))

    data   a = σ_s/σ_t,   b = α_s (1 − e^(−h)),    z = −h           (DPM-Solver++)
    eps    a = α_s/α_t,   b = −σ_s (e^h − 1),      z = h            (DPM-Solver)

and an Adams step replaces q by the polynomial through its values at some levels:

    x_s = a x_t + Σ_j b_j q_j,           b_j = ∫ kernel ℓ_j

The polynomial is in λ = log(α/σ) for eps and data, in φ for v, in r for flow, or in another `clock`.

A step to noise 0, or from no signal, has h = ∞: a and b have a limit, the further terms have none. From no signal,
where ε̂ = x/σ says nothing about the data, q is x̂0 for either prediction, and the step is the limit of both:

    x_s = σ_s/σ_t x_t + α_s x̂0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde.levels import Level, Levels, expm1
from scoresde.sde.quadrature import gauss_legendre
from scoresde.solvers.base import linear

History = tuple[tuple[Tensor, ...], tuple[Any, ...]]  # earlier values and where they are, the latest first

PREDICTIONS = ("eps", "data", "v", "flow")
CLOCKS = ("own", "logsnr", "ratio", "time")
NOTHING: History = ((), ())
_POINTS = 32
_TERMS = 18  # of the Taylor series of φ for |z| < 1, to rounding


def adams_weights(
    levels: Levels,
    prediction: str,
    *offsets: Sequence[int],
    clock: str = "own",
    rate: Tensor | float = 1.0,
    extrapolate: bool = False,
) -> list[Any]:
    """a of every step of a run, (n, ...), and for each polynomial one b_j per offset, (n, ...).

    Args:
        levels: n + 1 levels; the last may be noise 0.
        prediction: eps, data, v or flow.
        offsets: A polynomial goes through the values at the levels i − offset for the step from i to i + 1: 0 is where
            the step starts, −1 where it ends. Levels before the first have weight 0, and the polynomial is then of
            lower degree: this is the start-up.
        clock: Variable of the polynomials: own, logsnr, ratio (σ/α) or time.
        rate: k, for data alone: a = σ_s/σ_t e^(−(k−1)h), kernel α_s k e^(−k(λ_s − λ)) dλ; 1 is the probability flow.
        extrapolate: Whether the polynomials of data go on to σ/α = 0, for clock "ratio". Else they are constant in a
            step to noise 0, where λ has no limit.
    """
    keep, lam, mass = _quadrature(levels, prediction, clock, rate)
    place, at = (_clock(levels, values, prediction, clock) for values in (lam, levels.lam))
    if prediction in ("eps", "data"):  # no signal is infinitely far away, and has no ε̂
        at = torch.where(levels.alpha == 0, -torch.inf, at)
    constant = ~torch.isfinite(at[:-1])
    if prediction in ("eps", "data"):
        constant = constant | (levels.alpha[1:] == 0)
    if prediction == "data":
        landing = torch.isinf(levels.lam[1:])
        if extrapolate:
            place = torch.where(landing, 0, place)
        else:
            constant = constant | landing
    return [keep, *(_integrals(mass, place, at, constant, polynomial) for polynomial in offsets)]


def _integrals(mass: Tensor, place: Tensor, at: Tensor, constant: Tensor, offsets: Sequence[int]) -> tuple[Tensor, ...]:
    """∫ kernel ℓ_j of every step, (n, ...), for each offset; `place` and `mass` (points, n, ...), `at` (n + 1, ...)."""
    shifts = torch.tensor(offsets, device=at.device)[:, None]
    rows = torch.arange(len(constant), device=at.device) - shifts
    exists, shifts = (values.reshape(*values.shape, *[1] * (at.ndim - 1)) for values in (rows >= 0, shifts))
    nodes = at[rows.clamp_min(0)]
    known = torch.where(constant, shifts == 0, exists & torch.isfinite(nodes))
    nodes = torch.where(known, nodes, 0)
    kernel = mass[None]
    for m, node in enumerate(nodes):  # times (c − c_m)/(c_j − c_m)
        used = known & known[m] & (shifts != offsets[m])
        gap = torch.where(used, nodes - node, 1)
        kernel = kernel * torch.where(used.unsqueeze(1), (place - node) / gap.unsqueeze(1), 1)
    return torch.where(known, kernel.sum(1), 0).unbind()


def predicted(denoiser: Denoiser, x: Tensor, level: Level, prediction: str, sigma_data: float = 1.0) -> Tensor:
    """q at a level; v and flow as of x and x̂0 divided by the standard deviation of the data, times it.

    Where there is no signal, x̂0 stands for ε̂, as in `transfer`.
    """
    if prediction == "eps":
        alpha, sigma = level.alpha, level.sigma
        if isinstance(alpha, Tensor) and denoiser.sde.ends_silent:  # of some samples, maybe
            v = denoiser.v_at(x, level)
            return torch.where(alpha == 0, alpha * x - sigma * v, alpha * v + sigma * x) / (alpha**2 + sigma**2)
        if isinstance(alpha, Tensor) or alpha:
            return denoiser.eps_at(x, level)
    x0 = denoiser.x0(x, level)
    if prediction in ("data", "eps"):
        return x0
    c_x, c_0 = prediction_coefficients(level.alpha, level.sigma / sigma_data, prediction)
    return linear((c_x, x), (c_0, x0))


def prediction_coefficients(alpha: Any, sigma: Any, prediction: str) -> tuple[Any, Any]:
    """(c_x, c_0) with q = c_x x + c_0 x̂0 for v or flow; of numbers or tensors."""
    if prediction == "flow":
        return 1 / sigma, -(alpha + sigma) / sigma
    norm = (alpha**2 + sigma**2) ** 0.5
    return alpha / (sigma * norm), -norm / sigma


def linear_part(start: Any, end: Any, h: Any, eta: float, prediction: str = "data") -> tuple[Any, Any]:
    """Factor of the state, and standard deviation of the noise, of the linear SDE over a step of length h in λ.

        data   σ_s/σ_t e^(−η²h),    σ_s √(1 − e^(−2η²h))
        eps    α_s/α_t,             η σ_s √(e^(2h) − 1)

    Args:
        start, end: `Level` or `Levels`.
    """
    keep, _ = transfer(start, end, prediction)
    if not eta:
        return keep, 0.0
    silent = prediction == "data" or start.alpha == 0
    fading = keep * (1 + expm1(-(eta**2) * h)), end.sigma * abs(expm1(-2 * eta**2 * h)) ** 0.5
    if silent is True:
        return fading
    kept = keep, eta * end.sigma * abs(expm1(2 * h)) ** 0.5
    return kept if silent is False else choose(silent, fading, kept)


def transfer(t: Level | Levels, s: Level | Levels, prediction: str, decay: Any = math.inf) -> tuple[Any, Any]:
    """a and b of a step from t to s, with decay = 1 − e^(−h) where it is known; from no signal, those for x̂0.

    Into no signal, h = −∞, they are the limits a = σ_s/σ_t, b = −a α_t (data) and a = 0, b = σ_s (eps).
    """
    silent = prediction == "data" or t.alpha == 0
    if silent is not False:
        of_data = (a := s.sigma / t.sigma), _times(s.alpha, decay, s.alpha - a * t.alpha)
        if silent is True:
            return of_data
    a = s.alpha / (t.alpha if silent is False else torch.where(silent, 1, t.alpha))
    of_eps = a, _times(-a * t.sigma, decay, s.sigma - a * t.sigma)
    return of_eps if silent is False else choose(silent, of_data, of_eps)


def _times(rate: Any, decay: Any, limit: Any) -> Any:
    """rate decay, and the limit where decay is not known or not finite."""
    if isinstance(decay, float):
        return limit if math.isinf(decay) else rate * decay
    known = torch.isfinite(decay)
    return torch.where(known, rate * torch.where(known, decay, 0), limit)


def choose(here: Tensor, values: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values for these samples, and the others for the rest; what is one number for all stays one."""
    pairs = zip(values, others, strict=True)
    return tuple(
        v if isinstance(v, float) and isinstance(other, float) else torch.where(here, v, other) for v, other in pairs
    )


def unbounded(h: Any) -> bool:
    """Whether a step is infinite in λ: to noise 0, from no signal or to it."""
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


def kernel_moments(decay: Tensor, degree: int) -> tuple[Tensor, ...]:
    """M_n = ∫₀¹ H e^(−H(1−u)) uⁿ du = H n! φ_{n+1}(−H), n = 0 ... degree, for a finite H = decay of either sign."""
    return tuple(decay * math.factorial(n) * value for n, value in enumerate(phi(-decay, degree + 1)))


def spans(start: Levels, end: Levels) -> Tensor:
    """λ_end − λ_start, 0 between levels without signal."""
    return torch.where(end.lam == start.lam, 0, end.lam - start.lam)


def inner_levels(levels: Levels, fraction: float) -> Levels:
    """Levels at a fraction of every step in λ, 1 its end; a step of infinite length has them where it starts."""
    start, h = levels[:-1], levels.lam.diff(dim=0)
    finite = torch.isfinite(h)
    lam = start.lam + fraction * torch.where(finite, h, 0)
    time = levels.sde.time(2 * lam) if fraction < 1 else levels.t[1:]
    return Levels.of(levels.sde, torch.where(finite, time, start.t))


def difference_weights(value: Any, slope: Any, bend: Any, near: Any, far: Any) -> tuple[Any, Any, Any]:
    """Of q, q', q'' in  value q + slope D + bend (D − D'),  where D = near (q − q') and D' = far (q' − q'')."""
    first, second = (slope + bend) * near, bend * far
    return value + first, -first - second, second


def _series(z: Any, count: int) -> tuple[Any, ...]:
    value = 0 * z
    for k in reversed(range(count, count + _TERMS)):
        value = value * z + 1 / math.factorial(k)
    values = [value]
    for k in reversed(range(1, count)):
        values.append(values[-1] * z + 1 / math.factorial(k))
    return tuple(reversed(values))


def _closed(z: Any, count: int) -> tuple[Any, ...]:
    values = [expm1(z) / z]
    for k in range(1, count):
        values.append((values[-1] - 1 / math.factorial(k)) / z)
    return tuple(values)


def _quadrature(levels: Levels, prediction: str, clock: str, rate: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """a of every step (n, ...), and λ (points, n, ...) and kernel mass (points, n, ...) of a Gauss rule on it."""
    t, s = levels[:-1], levels[1:]
    nodes, masses = (_like(values, levels.lam) for values in gauss_legendre(_POINTS))
    if prediction in ("v", "flow"):
        u = _own(levels.lam, prediction)
        span = u.diff(dim=0)
        norm = torch.hypot(levels.alpha, levels.sigma) if prediction == "v" else levels.alpha + levels.sigma
        inside = u[:-1] + nodes * span
        ratio = torch.tan(inside) if prediction == "v" else inside / (1 - inside)
        return norm[1:] / norm[:-1], -ratio.log(), norm[1:] * masses * span
    h = s.lam - t.lam
    finite, silent = torch.isfinite(h), (t.alpha == 0) | (s.alpha == 0)
    h = torch.where(finite, h, 1)
    if prediction == "data":
        decay = rate * h
        keep, kernel = s.sigma / t.sigma * torch.exp(h - decay), masses * decay * torch.exp(-decay * (1 - nodes))
        lam, mass = t.lam + nodes * h, s.alpha * torch.where(finite, kernel, masses)
    else:
        far, far_mass = (_like(values, levels.lam) for values in _to_infinity(clock in ("own", "logsnr")))
        u = torch.where(finite, nodes * h, far)
        keep, lam = s.alpha / t.alpha, t.lam + u
        mass = -s.alpha * t.ratio * torch.where(finite, masses * h * torch.exp(-h * nodes), far_mass)
    a, b = transfer(t, s, prediction)
    a = torch.where(torch.zeros_like(h) + rate == 1, a, 0)  # there noise takes the place of the state
    return torch.where(silent, a, keep), lam, torch.where(silent, b * masses, mass)


def _own(lam: Tensor, prediction: str) -> Tensor:
    return torch.atan(torch.exp(-lam)) if prediction == "v" else torch.sigmoid(-lam)


def _clock(levels: Levels, lam: Tensor, prediction: str, clock: str) -> Tensor:
    if clock == "time":
        return levels.t if lam is levels.lam else levels.sde.time(2 * lam)
    if clock == "ratio":
        return torch.exp(-lam)
    return _own(lam, prediction) if clock == "own" and prediction in ("v", "flow") else lam


def _like(values: Tensor, shape: Tensor) -> Tensor:
    return values.to(shape.device).reshape(-1, *[1] * shape.ndim)


@cache
def _to_infinity(polynomial: bool) -> tuple[Tensor, Tensor]:
    """Rule for ∫₀^∞ e^(−u) g(u) du: Gauss-Laguerre if g is a polynomial, else Gauss-Legendre in e^(−u)."""
    with torch.inference_mode(False):
        if not polynomial:
            nodes, masses = gauss_legendre(_POINTS)
            return -nodes.log(), masses
        nodes, masses = map(torch.from_numpy, np.polynomial.laguerre.laggauss(8))
        return torch.cat([nodes, nodes.new_zeros(_POINTS - 8)]), torch.cat([masses, masses.new_zeros(_POINTS - 8)])
