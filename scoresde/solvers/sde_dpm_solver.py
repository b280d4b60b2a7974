"""SDE-DPM-Solver++: multistep of orders 1 to 3, and the single-step samplers of k-diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_unused
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Interval, Levels, Weights, expm1
from scoresde.solvers.base import StepSolver, add_noise, linear
from scoresde.solvers.exponential import (
    NOTHING,
    History,
    difference_weights,
    inner_levels,
    kernel_moments,
    linear_part,
    spans,
    transfer,
)


@dataclass(frozen=True, kw_only=True)
class SDEDPMSolverPP(StepSolver):
    """SDE-DPM-Solver++, multistep; one network call per step.

        x_s = σ_s/σ_t e^(−η²h) x_t + α_s (M₀ x̂0 + w₁ D₁ + w₂ D₂) + σ_s √(1 − e^(−2η²h)) z,        h = λ_s − λ_t
        M_n = ∫₀¹ H e^(−H(1−u)) uⁿ du,   H = (1 + η²) h,   M₀ = 1 − e^(−H)

    D₁ and D₂ are the first and second Taylor coefficients of x̂0 in u = (λ − λ_t)/h by finite differences of the last
    `order` values, where primes are earlier steps:

        D  = (x̂0 − x̂0') h/h',             D' = (x̂0' − x̂0'') h/h''
        D₁ = D + (D − D') h'/(h' + h''),   D₂ = (D − D') h/(h' + h'')

    The first steps are of lower order, and so is a step to σ_s = 0, which is x̂0.

        order 2    w₁ = M₀/2, the midpoint rule of the paper                    exact: M₁ (k-diffusion's "heun")
        order 3    w₁ = M₁, w₂ = M₂/2, as published                             exact: M₂

    The published order 3 halves the second difference and converges with order 2; in 5-15 steps that is often better.
    These are orders for η = 0. For η > 0 the strong order is 1, and the weak order 1 for order 1 and 2 for the others.
    Order 1 with η = 1 is `DDPM`; order 2 on `logsnr_grid` is diffusers' CosineDPMSolver.

    Args:
        order: 1, 2 or 3.
        eta: η: 1 is the reverse SDE, 0 the probability-flow ODE (DPM-Solver++). k-diffusion's eta is η².
        exact: Whether the interpolating polynomial is integrated exactly.

    References:
        Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022,
        arXiv:2211.01095.
    """

    steps: int = 20
    grid: Grid = logsnr_grid
    order: int = 2
    eta: float = 1.0
    exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= eta <= 1")
        check_choice(self, "order", self.order, (1, 2, 3))
        if self.order == 1:
            check_unused(self, "order=1", exact=False)

    @property
    def deterministic(self) -> bool:
        return self.eta == 0

    def weights(self, levels: Levels) -> Weights:
        h = levels.lam.diff(dim=0)
        m0, m1, m2 = kernel_moments((1 + self.eta**2) * torch.where(torch.isfinite(h), h, 1), 2)
        w1 = m1 if self.exact or self.order == 3 else 0.5 * m0
        return {"w1": w1, "w2": m2 if self.exact else 0.5 * m2}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: History | None
    ) -> tuple[Tensor, History]:
        t, s, h, w = interval.t, interval.s, interval.h, interval.weights(self)
        values, lengths = state or NOTHING  # x̂0', x̂0'' and h', h''
        bend = near = far = 0.0
        if lengths:
            near = interval.over(lengths[0])
        if len(lengths) > 1:
            both = lengths[0] + lengths[1]
            far, bend = interval.over(lengths[1]), w.w1 * lengths[0] / both + w.w2 * interval.over(both)
        _, gain = transfer(t, s, "data", -expm1(-(1 + self.eta**2) * h))
        weights = difference_weights(gain, s.alpha * w.w1, s.alpha * bend, near, far)
        keep, std = linear_part(t, s, h, self.eta)
        values = (denoiser.x0(x, t), *values)
        mean = linear((keep, x), *zip(weights, values, strict=False))
        kept = self.order - 1
        return add_noise(mean, std, noise, interval), (values[:kept], (h, *lengths)[:kept])


@dataclass(frozen=True, kw_only=True)
class DPMSolverPPSDE(StepSolver):
    """The single-step SDE-DPM-Solver++ of k-diffusion, `dpmpp_sde`: two network calls per step.

        x_m = A_m x_t + α_m (1 − e^(−r(1+η²)h)) x̂0 + ζ_m                       at λ_m = λ_t + r h
        D   = (1 − 1/(2r)) x̂0 + 1/(2r) x̂0(x_m)
        x_s = A_s x_t + α_s (1 − e^(−(1+η²)h)) D + ζ_s,           A_i = σ_i/σ_t e^(−η²(λ_i − λ_t))

    ζ_m and ζ_s are the noise of the linear SDE at both levels, from one path: weak order 2. A step to σ_s = 0 is x̂0.

    Args:
        r: Position of the inner level in λ, 0 < r ≤ 1.
        eta: η: 1 is the reverse SDE, 0 is DPM-Solver++(2S). k-diffusion's eta scales the noise of both half steps.

    References:
        Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022,
        arXiv:2211.01095.
    """

    steps: int = 10
    grid: Grid = logsnr_grid
    r: float = 0.5
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= eta <= 1", "0 < r <= 1")

    @property
    def calls(self) -> int:
        return 2

    def weights(self, levels: Levels) -> Weights:
        middle = inner_levels(levels, self.r)
        return {"middle": middle, "h": spans(levels[:-1], middle)}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        w = interval.weights(self)
        t, m, s = interval.t, w.middle, interval.s
        x0 = denoiser.x0(x, t)
        if interval.to_data:
            return s.alpha * x0, None
        first, second = Interval.inside(t, m, w.h), Interval.inside(m, s, interval.h - w.h)
        keep, std = linear_part(t, m, w.h, self.eta)
        carry, std_s = linear_part(m, s, second.h, self.eta)
        rate, share = 1 + self.eta**2, 1 / (2 * self.r)

        path = add_noise(torch.zeros_like(x), std, noise, first)  # ζ_m
        x_m = linear((keep, x), (-m.alpha * expm1(-rate * w.h), x0), (1.0, path))
        gain = -s.alpha * expm1(-rate * interval.h)
        terms = ((1 - share) * gain, x0), (share * gain, denoiser.x0(x_m, m)), (carry, path)
        return add_noise(linear((keep * carry, x), *terms), std_s, noise, second), None
