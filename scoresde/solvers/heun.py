"""Heun's method of EDM, deterministic or with stochastic churn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, karras_grid
from scoresde.sde.levels import Levels
from scoresde.solvers.ancestral import with_noise
from scoresde.solvers.tabulated import TabulatedSolver, linear, unused
from scoresde.solvers.transfer import ends


@dataclass(frozen=True, kw_only=True)
class Heun(TabulatedSolver):
    """The sampler of EDM: noise up, then Heun's method in σ/α; second order, two network calls per step.

        x̂/α̂    = x_t/α_t + s_noise √((σ̂/α̂)² − (σ_t/α_t)²) z,     σ̂/α̂ = (1 + γ) σ_t/α_t       (Karras et al., Alg. 2)
        d(x/α) = ε̂ d(σ/α)
        x_s/α_s = x̂/α̂ + (σ_s/α_s − σ̂/α̂) ½ (ε̂(x̂, t̂) + ε̂(x'_s, s))

    where x'_s is the Euler step and γ = min(s_churn/N, √2 − 1) while s_min <= σ_t/α_t <= s_max, else 0; N counts the
    steps with the last one to noise 0. The noise is never raised above that of t = 1. A step to σ_s = 0 is Euler's.

    Args:
        s_churn: Noise added over the run; 0 is deterministic. The paper used 30 to 80 on CIFAR-10, 40 on ImageNet.
        s_min, s_max: Range of σ/α in which noise is added (0.01 or 0.05 to 1 on CIFAR-10, 0.05 to 50 on ImageNet).
        s_noise: Standard deviation of that noise, a little above 1 to make up for a denoiser that removes too much
            (1.007 on CIFAR-10, 1.003 on ImageNet).

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    steps: int = 18
    grid: Grid = karras_grid
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.s_churn < math.inf and 0 <= self.s_min <= self.s_max and 0 < self.s_noise < math.inf):
            raise ValueError(
                f"Heun needs s_churn >= 0, 0 <= s_min <= s_max and s_noise > 0, got s_churn={self.s_churn}, "
                f"s_min={self.s_min}, s_max={self.s_max}, s_noise={self.s_noise}."
            )

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        return self.s_churn == 0

    @property
    def stages(self) -> int:
        return 2

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        before, after = ends(levels)
        start = before if self.deterministic else self._raised(before)
        lift = start.alpha / before.alpha
        spread = start.alpha * (start.ratio.square() - before.ratio.square()).clamp_min(0).sqrt()
        scale = after.alpha / start.alpha
        shift = after.sigma - scale * start.sigma  # α_s (σ_s/α_s − σ̂/α̂)
        noisy = after.sigma > 0
        half = torch.where(noisy, 0.5 * shift, 0)
        return lift, self.s_noise * spread, scale, shift, half, start.t, torch.where(noisy, after.t, start.t)

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        lift, spread, scale, shift, half, t_hat, again = row
        if not self.deterministic:
            x = with_noise(lift * x, spread, 1.0, noise, t, t)
        eps = denoiser.eps(x, t_hat)
        x_s = linear((scale, x), (shift, eps))
        if not unused(half):
            x_s = x_s + half * (denoiser.eps(x_s, again) - eps)
        return x_s, None

    def _raised(self, levels: Levels) -> Levels:
        gamma = min(self.s_churn / (self.steps + self.denoise), math.sqrt(2) - 1)
        churned = (levels.ratio >= self.s_min) & (levels.ratio <= self.s_max)
        raised = levels.sde.time(2 * (levels.lam - math.log1p(gamma))).clamp_max(1)
        raised = torch.maximum(raised, levels.t)  # where rounding alone would lower it
        return Levels.of(levels.sde, torch.where(churned, raised, levels.t))
