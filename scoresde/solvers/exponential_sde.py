"""Exponential solvers of the reverse SDE: SEEDS (single-step) and ER-SDE (multistep)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Levels
from scoresde.sde.quadrature import gauss_legendre
from scoresde.solvers.ancestral import check_eta, with_noise
from scoresde.solvers.tabulated import TabulatedSolver, linear, unused
from scoresde.solvers.transfer import check_choice, phi, predict

NoiseScale = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SEEDS(TabulatedSolver):
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
        check_eta(self, self.eta)
        check_choice(self, "order", self.order, (1, 2, 3))
        check_choice(self, "prediction", self.prediction, ("data", "eps"))

    @property
    def stages(self) -> int:
        return self.order - 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        fractions = {1: (1.0,), 2: (1 / 2, 1.0), 3: (1 / 3, 2 / 3, 1.0)}[self.order]
        start, *visited = levels_within(levels, fractions)
        columns = []
        for i, (before, level) in enumerate(pairwise((start, *visited))):
            keep, _ = linear_part(start, level, self.eta, self.prediction)
            m0, m1 = self._integrals(start, level)
            slope = m1 * fractions[i] / fractions[i - 1] if i else torch.zeros_like(m1)
            columns += [keep, m0 - slope, slope, *linear_part(before, level, self.eta, self.prediction)]
        if self.prediction == "data":
            landing = (torch.zeros_like(start.alpha), levels.alpha[1:])
        else:
            keep = levels.alpha[1:] / start.alpha
            landing = (keep, -keep * start.sigma)
        finite = torch.isfinite(levels.lam[1:])
        columns = [torch.where(finite, column, 0) for column in columns]
        columns[-5:-3] = [torch.where(finite, a, b) for a, b in zip(columns[-5:-3], landing, strict=True)]
        return *columns, *(level.t for level in visited[:-1])

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        times = (t, *row[5 * self.order :], s)
        first = latest = predict(denoiser, x, t, self.prediction)
        path, x_i = torch.zeros_like(x), x
        for i in range(self.order):
            keep, base, slope, carry, std = row[5 * i : 5 * i + 5]
            if not unused(slope):
                latest = predict(denoiser, x_i, times[i], self.prediction)
            x_i = linear((keep, x), (base, first), (slope, latest))
            if self.eta and not unused(std):
                path = with_noise(carry * path, std, self.eta, noise, times[i], times[i + 1])
                x_i = x_i + path
        return x_i, None

    def _integrals(self, start: Levels, end: Levels) -> tuple[Tensor, Tensor]:
        """Weights of the value at t and of the slope in (λ − λ_t)/(λ_end − λ_t)."""
        rate, h = 1 + self.eta**2, end.lam - start.lam
        scale, decay = (end.alpha, rate * h) if self.prediction == "data" else (rate * end.sigma, -h)
        m0, m1 = kernel_moments(decay, 1)
        return scale * m0, scale * m1


def er_sde_scale(ratio: Tensor) -> Tensor:
    """φ(ρ) = ρ (e^(ρ^0.3) + 10): the noise scale recommended for ER-SDE, nearly the ODE (ER-SDE 5 of the paper)."""
    return ratio * (torch.exp(ratio**0.3) + 10)


def power_scale(ratio: Tensor, *, exponent: float = 2.0) -> Tensor:
    """φ(ρ) = ρ^exponent: 1 is the ODE, 2 the reverse SDE, 1 + η² the family between them."""
    return ratio**exponent


@dataclass(frozen=True, kw_only=True)
class ERSDE(TabulatedSolver):
    """Extended reverse-time SDE solvers: any noise scale φ, multistep Taylor terms in ρ = σ/α; one call per step.

        x_s = α_s/α_t r x_t + α_s ((1 − r) x̂0 + c₁ D₁ + c₂ D₂/2) + α_s √(ρ_s² − ρ_t² r²) z,      r = φ(ρ_s)/φ(ρ_t)
        c₁  = ρ_s − ρ_t + φ(ρ_s) ∫ dρ/φ(ρ)                        over ρ_s ... ρ_t
        c₂  = (ρ_s − ρ_t)² + 2 φ(ρ_s) ∫ (ρ − ρ_t) dρ/φ(ρ)
        D₁  = (x̂0 − x̂0')/(ρ_t − ρ')
        D₂  = 2 (D₁ − D₁')/(ρ_t − ρ'')                            (Cui et al. 2023, Algorithms 1-3)

    where primes are earlier steps; the first steps are of lower order. D₁ is the slope half a step back, so that order
    3 as published converges with order 2 (φ = ρ); `exact` moves it to ρ_t by D₁ + (ρ_t − ρ') D₂/2, which gives order 3.
    The integrals are exact here (the authors sum 100 rectangles). The step to σ_s = 0 extrapolates x̂0 to ρ = 0 if
    `extrapolate`, else it is x̂0.

    Args:
        order: 1, 2 or 3.
        scale: φ, increasing at least as fast as ρ; called with tensors of σ/α > 0.
        exact: Whether order 3 uses the parabola through three values.
        extrapolate: Whether the last step to no noise keeps its order.

    References:
        Cui et al., "Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models", 2023,
        arXiv:2309.06169.
    """

    steps: int = 20
    grid: Grid = logsnr_grid
    order: int = 3
    scale: NoiseScale = er_sde_scale
    exact: bool = False
    extrapolate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, (1, 2, 3))

    @property
    def memory(self) -> int:
        return self.order - 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        ratio = levels.ratio
        at, to = ratio[:-1], ratio[1:]
        landing = to == 0
        inside = torch.where(landing, at, to)
        shrink = torch.where(landing, 0, self.scale(inside) / self.scale(at))
        variance = to.square() - (at * shrink).square()
        if bool((variance < -1e-9 * at.square()).any()):
            raise ValueError(
                "ERSDE needs a noise scale φ(ρ) that grows at least as fast as ρ, else the noise to add has a negative "
                "variance. Use er_sde_scale, or power_scale with an exponent of at least 1."
            )
        first, second = self._taylor(at, inside)
        first = torch.where(landing, -at if self.extrapolate else 0, first)
        second = torch.where(landing, at.square() if self.extrapolate else 0, second)

        newest, before, oldest = 1 - shrink, torch.zeros_like(at), torch.zeros_like(at)
        if self.order > 1:
            slope = 1 / (at[1:] - at[:-1])  # D₁ = slope (x̂0 − x̂0')
            newest[1:] += first[1:] * slope
            before[1:] -= first[1:] * slope
        if self.order > 2:
            bend = second[2:] + first[2:] * (at[2:] - at[1:-1]) if self.exact else second[2:]
            bend = bend / (at[2:] - at[:-2])  # of the difference of two slopes
            newest[2:] += bend * slope[1:]
            before[2:] -= bend * (slope[1:] + slope[:-1])
            oldest[2:] += bend * slope[:-1]
        weights = (newest, before, oldest)[: self.order]
        std = levels.alpha[1:] * variance.clamp_min(0).sqrt()
        return levels.alpha[1:] / levels.alpha[:-1] * shrink, std, *(levels.alpha[1:] * weight for weight in weights)

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        keep, std, *weights = row
        history = (denoiser(x, t), *(state or ()))
        mean = linear((keep, x), *zip(weights, history, strict=False))
        return with_noise(mean, std, 1.0, noise, t, s), history[: self.memory]

    def _taylor(self, at: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """c₁ and c₂ by Gauss-Legendre in log ρ, which is exact to rounding for any smooth φ."""
        nodes, masses = (values.to(at.device).reshape(-1, *[1] * at.ndim) for values in gauss_legendre(32))
        span = (at / to).log()
        ratio = to * torch.exp(nodes * span)
        density = masses * span * ratio * (self.scale(to) / self.scale(ratio))
        first = to - at + density.sum(0)
        return first, (to - at).square() + 2 * (density * (ratio - at)).sum(0)


def levels_within(levels: Levels, fractions: tuple[float, ...]) -> tuple[Levels, ...]:
    """Levels at which the steps of a run start, then those at fractions of the steps in λ; 1 is the end.

    A step to σ_s = 0 is given no length, so that everything is finite: its coefficients are not these.
    """
    sde, t = levels.sde, levels.t[:-1]
    finite = torch.isfinite(levels.lam[1:])
    h = torch.where(finite, levels.lam.diff(dim=0), 0)
    times = [sde.time(2 * (levels.lam[:-1] + c * h)) if c < 1 else levels.t[1:] for c in fractions]
    return tuple(Levels.of(sde, time) for time in (t, *(torch.where(finite, time, t) for time in times)))


def linear_part(start: Levels, end: Levels, eta: float, prediction: str = "data") -> tuple[Tensor, Tensor]:
    """Factor of the state, and standard deviation of the noise, of the linear SDE from one level to the next."""
    h = end.lam - start.lam
    if prediction == "data":
        return end.sigma / start.sigma * torch.exp(-(eta**2) * h), end.sigma * noise_share(eta, h)
    return end.alpha / start.alpha, eta * end.sigma * torch.expm1(2 * h).clamp_min(0).sqrt()


def noise_share(eta: float, h: Tensor) -> Tensor:
    """√(1 − e^(−2η²h)): the share of σ_s that a step of length h in λ draws afresh."""
    return (-torch.expm1(-2 * eta**2 * h)).clamp_min(0).sqrt()


def kernel_moments(decay: Tensor, degree: int) -> tuple[Tensor, ...]:
    """M_n = ∫₀¹ H e^(−H(1−u)) uⁿ du = H n! φ_{n+1}(−H), n = 0 ... degree, for a finite H = decay of either sign."""
    return tuple(decay * math.factorial(n) * value for n, value in enumerate(phi(-decay, degree + 1)))
