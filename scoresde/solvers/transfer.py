"""The exact solution of the probability flow over a step on which a prediction is a polynomial in λ."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde.levels import Levels

_TERMS = 18  # of the Taylor series of φ for |z| < 1, to rounding


@dataclass(frozen=True)
class Transfer:
    """From level t to level s, for q = ε̂ or q = x̂0 with derivatives q⁽ᵏ⁾ in λ at t.

        x_s = a x_t + b (q + Σ_{k≥1} hᵏ q⁽ᵏ⁾ φ_{k+1}(z)/φ_1(z)),        h = λ_s − λ_t

        data   a = σ_s/σ_t,   b = α_s (1 − e^(−h)),    z = −h           (DPM-Solver++)
        eps    a = α_s/α_t,   b = −σ_s (e^h − 1),      z = h            (DPM-Solver)

    A step to noise 0, or from no signal, has h = ∞: a and b have a limit, the further terms have none.

    Args:
        keep, gain: a and b.
        z: z; 1 in place of infinity.
        finite: Whether h is finite.
    """

    keep: Tensor
    gain: Tensor
    z: Tensor
    finite: Tensor

    @classmethod
    def between(cls, t: Levels, s: Levels, prediction: str) -> Transfer:
        h = s.lam - t.lam
        finite = torch.isfinite(h)
        shrink = -torch.expm1(-h)
        if prediction == "data":
            return cls(s.sigma / t.sigma, s.alpha * shrink, torch.where(finite, -h, 1), finite)
        keep = s.alpha / t.alpha
        return cls(keep, -keep * t.sigma * shrink, torch.where(finite, h, 1), finite)

    def shares(self, count: int) -> tuple[Tensor, ...]:
        """φ_2/φ_1, ..., φ_{count+1}/φ_1."""
        first, *rest = phi(self.z, count + 1)
        return tuple(value / first for value in rest)


def phi(z: Tensor, count: int) -> tuple[Tensor, ...]:
    """φ_1, ..., φ_count of exponential integrators: φ_0 = eᶻ, φ_{k+1} = (φ_k − 1/k!)/z, without cancellation at 0."""
    near = z.abs() < 1
    small, large = torch.where(near, z, 0), torch.where(near, 1, z)
    last = torch.zeros_like(z)
    for j in reversed(range(_TERMS)):
        last = last * small + 1 / math.factorial(count + j)
    series = [last]
    for k in reversed(range(1, count)):
        series.append(series[-1] * small + 1 / math.factorial(k))
    closed = [torch.expm1(large) / large]
    for k in range(1, count):
        closed.append((closed[-1] - 1 / math.factorial(k)) / large)
    return tuple(torch.where(near, a, b) for a, b in zip(reversed(series), closed, strict=True))


def predict(denoiser: Denoiser, x: Tensor, t: Tensor, prediction: str) -> Tensor:
    """ε̂ or x̂0."""
    return denoiser.eps(x, t) if prediction == "eps" else denoiser(x, t)


def ends(levels: Levels) -> tuple[Levels, Levels]:
    """The levels at which the steps of a run start, and those at which they end."""

    def part(rows: slice) -> Levels:
        return replace(
            levels, t=levels.t[rows], alpha=levels.alpha[rows], sigma=levels.sigma[rows], lam=levels.lam[rows]
        )

    return part(slice(None, -1)), part(slice(1, None))


def earlier(values: Tensor, back: int, missing: float) -> Tensor:
    """Entry i − back in place of entry i, and `missing` before the first."""
    pad = torch.full_like(values[:back], missing)
    return torch.cat([pad, values[: max(len(values) - back, 0)]])


def orders_of_a_run(step: Transfer, order: int, final_from: int | None) -> Tensor:
    """The order of every step: as many as there are levels to look back on, 1 where h is infinite.

    A level without signal (α = 0, at the start only) does not count: λ is infinite there.

    Args:
        step: The steps, n of them.
        order: The order in between.
        final_from: The least n that is a whole run, whose last steps are of lower order; None lowers nothing.
    """
    count = len(step.z)
    index = torch.arange(count, device=step.z.device).reshape(-1, *[1] * (step.z.ndim - 1))
    orders = (index + step.finite[:1]).clamp(1, order)
    if final_from is not None and count >= final_from:
        orders = torch.minimum(orders, count - index)
    return torch.where(step.finite, orders, 1)


def check_choice(owner: object, name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices or isinstance(value, bool):
        listed = f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
        raise ValueError(f"{type(owner).__name__} needs {name} {listed}, got {value!r}.")
