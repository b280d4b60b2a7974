"""ER-SDE: multistep solvers of reverse SDEs with any noise scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_unused
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.sde.quadrature import gauss_legendre
from scoresde.solvers.base import StepSolver, add_noise, linear
from scoresde.solvers.exponential import NOTHING, History, difference_weights

NoiseScale = Callable[[Tensor], Tensor]
FARTHEST = 1e30  # σ/α that stands for no signal, where it is infinite


def er_sde_scale(ratio: Tensor) -> Tensor:
    """φ(ρ) = ρ (e^(ρ^0.3) + 10): the noise scale recommended for ER-SDE, nearly the ODE (ER-SDE 5 of the paper)."""
    return ratio * (torch.exp(ratio**0.3) + 10)


def power_scale(ratio: Tensor, *, exponent: float = 2.0) -> Tensor:
    """φ(ρ) = ρ^exponent: 1 is the ODE, 2 the reverse SDE, 1 + η² the family between them."""
    check_numbers("power_scale", "1 <= exponent < inf", exponent=exponent)
    return ratio**exponent


@dataclass(frozen=True, kw_only=True)
class ERSDE(StepSolver):
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
        if self.order < 3:
            check_unused(self, f"order={self.order}", exact=False)
        if not callable(self.scale):
            raise ValueError(f"ERSDE needs scale to be a function of σ/α, got {self.scale!r}.")

    def weights(self, levels: Levels) -> Weights:
        """r, α_s/α_t r, √(ρ_s² − ρ_t² r²), c₁, c₂ and ρ_t."""
        at, to = levels.ratio[:-1].clamp_max(FARTHEST), levels.ratio[1:]
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
        keep = levels.alpha[1:] * at * shrink / levels.sigma[:-1]  # α_s/α_t r
        return {
            "r": shrink, "keep": keep, "std": variance.clamp_min(0).sqrt(), "c1": first, "c2": second,
            "ratio": levels.ratio[:-1],
        }  # fmt: skip

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: History | None
    ) -> tuple[Tensor, History]:
        t, s, w = interval.t, interval.s, interval.weights(self)
        x0, ratio = denoiser.x0(x, t), w.ratio
        values, ratios = state or NOTHING  # x̂0', x̂0'' and ρ', ρ''
        slope = bend = near = far = 0.0
        if ratios:
            slope, near = w.c1, 1 / (ratio - ratios[0])
        if len(ratios) > 1:
            far = 1 / (ratios[0] - ratios[1])
            bend = (w.c2 + w.c1 * (ratio - ratios[0]) if self.exact else w.c2) / (ratio - ratios[1])
        weights = difference_weights(1 - w.r, slope, bend, near, far)
        values = (x0, *values)
        mean = linear((w.keep, x), *((s.alpha * c, v) for c, v in zip(weights, values, strict=False)))
        kept = self.order - 1
        return add_noise(mean, s.alpha * w.std, noise, interval), (values[:kept], (ratio, *ratios)[:kept])

    def _taylor(self, at: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """c₁ and c₂ by Gauss-Legendre in log ρ, which is exact to rounding for any smooth φ."""
        nodes, masses = (values.to(at.device).reshape(-1, *[1] * at.ndim) for values in gauss_legendre(32))
        span = (at / to).log()
        ratio = to * torch.exp(nodes * span)
        density = masses * span * ratio * (self.scale(to) / self.scale(ratio))
        first = to - at + density.sum(0)
        return first, (to - at).square() + 2 * (density * (ratio - at)).sum(0)
