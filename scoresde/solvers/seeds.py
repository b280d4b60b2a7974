"""SEEDS: single-step exponential solvers of the reverse SDE."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.base import StepSolver, add_noise, linear
from scoresde.solvers.exponential import inner_levels, kernel_moments, linear_part, predicted, spans, transfer

_PLACES = {1: (0, 1), 2: (0, 1 / 2, 1), 3: (0, 1 / 3, 2 / 3, 1)}  # c_i


@dataclass(frozen=True, kw_only=True)
class SEEDS(StepSolver):
    """Stochastic explicit exponential derivative-free solvers: Runge-Kutta stages along one noise path.

        dy = −(1 + η²) (y − x̂0) dλ + η √2 e^(−λ) dw,              y = x/α, λ = ½ logsnr
        x_i = A_i x_t + α_i Σ_j a_ij x̂0(x_j) + ζ_i                stages at λ_i = λ_t + c_i h, the last is s
        ζ_i = A_ij ζ_j + σ_i √(1 − e^(−2η²(λ_i − λ_j))) z_i       the exact noise of the linear part

    with A_i = σ_i/σ_t e^(−η²(λ_i − λ_t)), and a_ij integrals of polynomials against (1 + η²) e^(−(1+η²)(λ_i − λ)):
    a line through stages 1 and 2 (order 2, c = ½), then through 1 and 3 (order 3, c = ⅓, ⅔). Order 1 is
    `SDEDPMSolverPP(order=1)`. In "eps" the linear part is α_i/α_t x, and ε̂ is weighted with e^(−λ). For η = 0 the order
    is `order`; else the strong order is 1, the weak order 1 for order 1 and 2 for the others. A step to σ_s = 0 is x̂0.

    All noises belong to one path, so the stages see what the step will add. (The authors' code weights the z_i in a
    different order at the last stage, which keeps variances but not the correlation between stages.)

    Args:
        order: 1, 2 or 3; also the number of network calls per step.
        prediction: "data" or "eps".
        eta: η: 1 is the reverse SDE, 0 the probability-flow ODE.

    References:
        Gonzalez et al., "SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion Models", 2023,
        arXiv:2305.14267.
    """

    steps: int = 20
    grid: Grid = logsnr_grid
    order: int = 2
    prediction: str = "data"
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= eta <= 1")
        check_choice(self, "order", self.order, (1, 2, 3))
        check_choice(self, "prediction", self.prediction, ("data", "eps"))

    def weights(self, levels: Levels) -> Weights:
        """Levels inside the step; per stage A_i, weights of the first and the latest prediction, and of the path."""
        places = _PLACES[self.order]
        stages = [levels[:-1], *(inner_levels(levels, c) for c in places[1:-1]), levels[1:]]
        start, before, end = (Levels.joined(part) for part in ([stages[0]] * self.order, stages[:-1], stages[1:]))
        keep, _ = linear_part(start, end, spans(start, end), self.eta, self.prediction)
        carry, std = linear_part(before, end, spans(before, end), self.eta, self.prediction)
        keep, carry, value, slope = (part.chunk(self.order) for part in (keep, carry, *self._integrals(start, end)))
        latest = [
            b * (c / c_before if c_before else 0) for b, (c_before, c) in zip(slope, pairwise(places), strict=True)
        ]
        first = [a - b for a, b in zip(value, latest, strict=True)]
        std = torch.where(end.lam == torch.inf, 0.0, std).chunk(self.order)
        inner = {"inner": stages[1:-1]} if self.order > 1 else {}
        return {"keep": keep, "first": first, "latest": latest, "carry": carry, "std": std, **inner}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        t, s, w = interval.t, interval.s, interval.weights(self)
        if interval.to_data:
            return s.alpha * denoiser.x0(x, t), None
        first = latest = predicted(denoiser, x, t, self.prediction)
        path, x_i, level = torch.zeros_like(x), x, t
        stages = (*w.inner, s) if self.order > 1 else (s,)
        for i, stage in enumerate(stages):
            if i:
                latest = predicted(denoiser, x_i, level, self.prediction)
            x_i = linear((w.keep[i], x), (w.first[i], first), (w.latest[i], latest))
            if self.eta:
                path = add_noise(w.carry[i] * path, w.std[i], noise, Interval.inside(level, stage, None))
                x_i = x_i + path
            level = stage
        return x_i, None

    def _integrals(self, start: Levels, end: Levels) -> tuple[Tensor, Tensor]:
        """Weights of the value at t and of the slope in (λ − λ_t)/(λ_end − λ_t); of a constant x̂0 where h = ∞."""
        rate, h = 1 + self.eta**2, spans(start, end)
        finite = torch.isfinite(h)
        scale, decay = (end.alpha, rate * h) if self.prediction == "data" else (rate * end.sigma, -h)
        m0, m1 = kernel_moments(torch.where(finite, decay, 1), 1)
        _, limit = transfer(start, end, self.prediction, torch.ones_like(h))
        return torch.where(finite, scale * m0, limit), torch.where(finite, scale * m1, 0)
