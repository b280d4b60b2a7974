"""SDE-DPM-Solver++: multistep of orders 1 to 3, and the single-step samplers of k-diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Levels
from scoresde.solvers.ancestral import check_eta, with_noise
from scoresde.solvers.exponential_sde import kernel_moments, levels_within, linear_part, noise_share
from scoresde.solvers.tabulated import TabulatedSolver, linear, unused
from scoresde.solvers.transfer import check_choice


@dataclass(frozen=True, kw_only=True)
class SDEDPMSolverPP(TabulatedSolver):
    """SDE-DPM-Solver++, multistep; one network call per step.

        x_s = σ_s/σ_t e^(−η²h) x_t + α_s (M₀ x̂0 + w₁ D₁ + w₂ D₂) + σ_s √(1 − e^(−2η²h)) z,        h = λ_s − λ_t
        M_n = ∫₀¹ H e^(−H(1−u)) uⁿ du,   H = (1 + η²) h,   M₀ = 1 − e^(−H)

    D₁ and D₂ are the first and second Taylor coefficients of x̂0 in u = (λ − λ_t)/h by finite differences of the last
    `order` values; the first steps are of lower order, and so is a step to σ_s = 0, which is x̂0.

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
        check_eta(self, self.eta)
        check_choice(self, "order", self.order, (1, 2, 3))

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        return self.eta == 0

    @property
    def memory(self) -> int:
        return self.order - 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        h = levels.lam.diff(dim=0)
        finite = torch.isfinite(h)
        step = torch.where(finite, h, 1)
        m0, m1, m2 = kernel_moments((1 + self.eta**2) * step, 2)
        w1 = m1 if self.exact or self.order == 3 else 0.5 * m0
        w2 = m2 if self.exact else 0.5 * m2

        newest, before, oldest = m0.clone(), torch.zeros_like(m0), torch.zeros_like(m0)
        if self.order > 1:
            pull = torch.zeros_like(m0)  # weight of the difference over the last step, (x̂0 − x̂0') h/h'
            pull[1:] = w1[1:]
            if self.order > 2:
                r0, r1 = step[1:-1] / step[2:], step[:-2] / step[2:]
                bend = (w1[2:] * r0 + w2[2:]) / (r0 + r1)  # of the difference of both differences
                pull[2:] += bend
                before[2:] -= bend / r1
                oldest[2:] += bend / r1
            slope = pull[1:] * step[1:] / step[:-1]
            newest[1:] += slope
            before[1:] -= slope

        keep = levels.sigma[1:] / levels.sigma[:-1] * torch.exp(-(self.eta**2) * step)
        std = levels.sigma[1:] * noise_share(self.eta, step)
        weights = [torch.where(finite, weight, float(k == 0)) for k, weight in enumerate((newest, before, oldest))]
        return keep, std, *(levels.alpha[1:] * weight for weight in weights[: self.order])

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        keep, std, *weights = row
        history = (denoiser(x, t), *(state or ()))
        mean = linear((keep, x), *zip(weights, history, strict=False))
        return with_noise(mean, std, self.eta, noise, t, s), history[: self.memory]


@dataclass(frozen=True, kw_only=True)
class DPMSolverPPSDE(TabulatedSolver):
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
        check_eta(self, self.eta)
        if not 0 < self.r <= 1:
            raise ValueError(f"DPMSolverPPSDE needs 0 < r <= 1, got r={self.r}.")

    @property
    def stages(self) -> int:
        return 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        start, middle, end = levels_within(levels, (self.r, 1.0))
        rate = 1 + self.eta**2
        (inner,) = kernel_moments(rate * (middle.lam - start.lam), 0)
        (outer,) = kernel_moments(rate * (end.lam - start.lam), 0)
        keep_m, std_m = linear_part(start, middle, self.eta)
        keep_s, _ = linear_part(start, end, self.eta)
        carry, std_s = linear_part(middle, end, self.eta)
        share = 1 / (2 * self.r)
        columns = (keep_m, middle.alpha * inner, std_m, keep_s, share * end.alpha * outer, carry, std_s)
        finite = torch.isfinite(levels.lam[1:])
        first = torch.where(finite, (1 - share) * end.alpha * outer, levels.alpha[1:])
        return first, *(torch.where(finite, column, 0) for column in columns), middle.t

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        first, keep_m, gain_m, std_m, keep_s, second, carry, std_s, middle = row
        x0_hat = denoiser(x, t)
        x_s = linear((keep_s, x), (first, x0_hat))
        if unused(second):
            return x_s, None
        path = with_noise(torch.zeros_like(x), std_m, self.eta, noise, t, middle)
        x0_inner = denoiser(linear((keep_m, x), (gain_m, x0_hat)) + path, middle)
        x_s = linear((1.0, x_s), (second, x0_inner), (carry, path))
        return with_noise(x_s, std_s, self.eta, noise, middle, s), None
