"""SA-Solver: stochastic Adams methods with a predictor and a corrector."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_pair, check_whole
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.adams import Past
from scoresde.solvers.base import StepSolver, add_noise, linear
from scoresde.solvers.exponential import adams_weights


@dataclass(frozen=True, kw_only=True)
class SASolver(StepSolver):
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
        interval = check_pair(self, "interval", self.interval, "0 <= low < high")
        object.__setattr__(self, "interval", interval)  # a list in YAML
        check_whole(self, "1 <= predictor_order <= 4", "0 <= corrector_order <= 4")
        if not callable(self.tau):
            check_numbers(self, "0 <= tau <= 100")
        check_choice(self, "clock", self.clock, ("logsnr", "ratio"))

    @property
    def deterministic(self) -> bool:
        return not callable(self.tau) and self.tau == 0

    def weights(self, levels: Levels) -> Weights:
        rate, h = 1 + self._tau(levels).square(), levels.lam.diff(dim=0)
        fresh = torch.where(torch.isfinite(h), -torch.expm1(-2 * (rate - 1) * h), rate > 1)
        std = levels.sigma[1:] * fresh.clamp_min(0).sqrt()
        offsets = (range(self.predictor_order), range(-1, self.corrector_order - 1))[: 1 + (self.corrector_order > 0)]
        found = adams_weights(levels, "data", *offsets, clock=self.clock, rate=rate, extrapolate=self.clock == "ratio")
        return {"std": std, **dict(zip(("keep", "predict", "correct"), found, strict=False))}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Past | None
    ) -> tuple[Tensor, Past]:
        t, past = interval.t, state or Past()
        w = interval.weights(self, past.levels)
        x0 = (denoiser.x0(x, t), *past.values)
        if self.corrector_order and past.base is not None:
            x = linear((1.0, past.base), *zip(past.weights.correct, x0, strict=False))
        base = add_noise(w.keep * x, 0.0 if self.deterministic else w.std, noise, interval)
        x_s = linear((1.0, base), *zip(w.predict, x0, strict=False))
        count = max(self.predictor_order, self.corrector_order) - 1
        return x_s, Past((t, *past.levels)[:count], x0[:count], base, w)

    def _tau(self, levels: Levels) -> Tensor:
        """τ of every step, which the level at its end decides."""
        ratio = levels.ratio[1:]
        tau = self.tau(ratio) if callable(self.tau) else torch.full_like(ratio, self.tau)
        return torch.where((ratio >= self.interval[0]) & (ratio <= self.interval[1]), tau, 0)
