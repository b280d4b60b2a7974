"""SA-Solver: stochastic Adams methods with a predictor and a corrector."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Levels
from scoresde.sde.quadrature import gauss_legendre
from scoresde.solvers.ancestral import with_noise
from scoresde.solvers.tabulated import TabulatedSolver, linear
from scoresde.solvers.transfer import check_choice


@dataclass(frozen=True, kw_only=True)
class SASolver(TabulatedSolver):
    """SA-Solver in data prediction: variance-controlled reverse SDEs, Adams predictor and corrector; one call per step.

        dy  = −(1 + τ²) (y − x̂0) dλ + τ √2 e^(−λ) dw                        y = x/α, λ = ½ logsnr   (Xue et al., eq. 8)
        x_s = A x_t + Σ_j b_j x̂0_j + σ_s √(1 − e^(−2τ²h)) z,                A = σ_s/σ_t e^(−τ²h)     (eq. 14, 17)
        b_j = α_s ∫ (1 + τ²) e^(−(1+τ²)(λ_s − λ)) ℓ_j(λ) dλ                  over λ_t ... λ_s, exactly

    The predictor's Lagrange polynomials ℓ_j run through the last `predictor_order` values of x̂0. The network is called
    at the predicted state, and the corrector repeats the step, same noise, with that value among `corrector_order`
    (mode PEC). The first steps are of lower order. For τ > 0 the strong order is 1 and the weak order 2 (if either
    order is at least 2); for τ = 0 the order is the greater of predictor_order and corrector_order, but no more than
    predictor_order + 1.

    τ = 0 is exponential Adams (DPM-Solver++, UniPC), τ = 1 with orders 1 and 0 `DDPM`. In 5-20 steps clock="ratio" with
    interval=(0.05, 1) is much better than the published clock with τ = 1; it needs τ = 0 at the lowest levels, as the
    extrapolation to σ = 0 would amplify their noise.

    Args:
        predictor_order: 1 to 4.
        corrector_order: 0 (no corrector) to 4.
        tau: τ, or a function of the level σ/α of the step's end that returns it, elementwise.
        interval: Levels σ/α in which τ is on; outside τ = 0. A step belongs to the level at its end.
        clock: Variable of the polynomials: logsnr as published, where a step to σ_s = 0 is x̂0, or ratio, σ/α, where
            it extrapolates x̂0 to σ = 0.

    References:
        Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", 2023, arXiv:2309.05019.
    """

    steps: int = 20
    grid: Grid = logsnr_grid
    predictor_order: int = 3
    corrector_order: int = 4
    tau: float | Callable[[Tensor], Tensor] = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    clock: str = "logsnr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor_order not in (1, 2, 3, 4) or self.corrector_order not in (0, 1, 2, 3, 4):
            raise ValueError(
                f"SASolver needs predictor_order from 1 to 4 and corrector_order from 0 to 4, "
                f"got {self.predictor_order!r} and {self.corrector_order!r}."
            )
        if not callable(self.tau) and not self.tau >= 0:
            raise ValueError(f"SASolver needs tau >= 0, or a function of σ/α, got tau={self.tau}.")
        if not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"SASolver needs an interval of levels 0 <= low < high, got {self.interval}.")
        check_choice(self, "clock", self.clock, ("logsnr", "ratio"))

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        return not callable(self.tau) and self.tau == 0

    @property
    def memory(self) -> int:
        return max(self.predictor_order - 1, self.corrector_order - 1, 1)

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        rate = 1 + self._tau(levels).square()
        h = levels.lam.diff(dim=0)
        step = torch.where(torch.isfinite(h), h, 1)
        keep = levels.sigma[1:] / levels.sigma[:-1] * torch.exp(-(rate - 1) * step)
        std = levels.sigma[1:] * (-torch.expm1(-2 * (rate - 1) * step)).clamp_min(0).sqrt()
        predict = adams_weights(levels, rate, tuple(range(self.predictor_order)), self.clock)
        if not self.corrector_order:
            return keep, std, *predict
        correct = adams_weights(levels, rate, tuple(range(-1, self.corrector_order - 1)), self.clock)
        # the corrector of a step is applied at the beginning of the next one
        shifted = (torch.cat([torch.zeros_like(column[:1]), column[:-1]]) for column in correct)
        return keep, std, *predict, *shifted

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        keep, std, *weights = row
        predict, correct = weights[: self.predictor_order], weights[self.predictor_order :]
        history, base = ((), None) if state is None else state  # base: A x + noise of the step before
        history = (denoiser(x, t), *history)
        if correct and base is not None:
            x = linear((1.0, base), *zip(correct, history, strict=False))
        base = with_noise(keep * x, std, 1.0, noise, t, s)
        x_s = linear((1.0, base), *zip(predict, history, strict=False))
        return x_s, (history[: self.memory], base)

    def _tau(self, levels: Levels) -> Tensor:
        """τ of every step, which the level at its end decides."""
        ratio = levels.ratio[1:]
        tau = self.tau(ratio) if callable(self.tau) else torch.full_like(ratio, self.tau)
        return torch.where((ratio >= self.interval[0]) & (ratio <= self.interval[1]), tau, 0)


def adams_weights(levels: Levels, rate: Tensor, offsets: tuple[int, ...], clock: str) -> tuple[Tensor, ...]:
    """b_j of every step for the values at the levels i − offset, j-th column for the j-th offset; each (n, ...).

    Levels before the first have weight 0, and the polynomial is of lower degree.
    """
    count = len(levels) - 1
    h = levels.lam.diff(dim=0)
    landing = ~torch.isfinite(h)
    step = torch.where(landing, 1, h)
    nodes, masses = (values.to(h.device).reshape(-1, *[1] * h.ndim) for values in gauss_legendre(32))
    lam = levels.lam[:-1] + nodes * step
    mass = masses * rate * step * torch.exp(-rate * step * (1 - nodes))
    if clock == "logsnr":
        where, at = lam, torch.where(torch.isfinite(levels.lam), levels.lam, 0)
    else:  # at σ_s = 0 the kernel is a point mass at ratio 0
        where, at = torch.where(landing, 0, torch.exp(-lam)), levels.ratio
        mass = torch.where(landing, masses, mass)

    places, known = [], []
    for offset in offsets:
        index = torch.arange(count) - offset
        places.append(at[index.clamp_min(0)])
        known.append((index >= 0).reshape(-1, *[1] * (h.ndim - 1)).to(h.device))
    weights = []
    for j, offset in enumerate(offsets):
        basis = torch.ones_like(where)
        for m in range(len(offsets)):
            if m != j:
                gap = torch.where(known[m], places[j] - places[m], 1)
                basis = basis * torch.where(known[m], (where - places[m]) / gap, 1)
        weight = torch.where(known[j], (mass * basis).sum(0), 0)
        if clock == "logsnr":
            weight = torch.where(landing, 1.0 if offset == 0 else 0.0, weight)
        weights.append(levels.alpha[1:] * weight)
    return tuple(weights)
