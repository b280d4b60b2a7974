"""Heun's method of EDM, deterministic or with stochastic churn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_unused
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, long_step_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.base import StepSolver, add_noise, linear
from scoresde.solvers.exponential import predicted, transfer
from scoresde.solvers.long_steps import share, too_long


@dataclass(frozen=True, kw_only=True)
class Heun(StepSolver):
    """The sampler of EDM: noise up, then Heun's method in σ/α; second order, two network calls per step.

        x̂/α̂    = x_t/α_t + s_noise √((σ̂/α̂)² − (σ_t/α_t)²) z,     σ̂/α̂ = (1 + γ) σ_t/α_t       (Karras et al., Alg. 2)
        d(x/α) = ε̂ d(σ/α)
        x_s/α_s = x̂/α̂ + (σ_s/α_s − σ̂/α̂) ½ (ε̂(x̂, t̂) + ε̂(x'_s, s))

    where x'_s is the Euler step and γ = min(s_churn/N, √2 − 1) while s_min <= σ_t/α_t <= s_max, else 0; N counts the
    steps with the last one to noise 0. The noise is never raised above that of t = 1. A step to σ_s = 0 or
    from no signal is the Euler step, as is one of a run that is too long for the second order, see
    `scoresde.solvers.long_steps`.

    Args:
        s_churn: Noise added over the run; 0 is deterministic. The paper used 30 to 80 on CIFAR-10, 40 on ImageNet.
        s_min, s_max: Range of σ/α in which noise is added (0.01 or 0.05 to 1 on CIFAR-10, 0.05 to 50 on ImageNet).
        s_noise: Standard deviation of that noise, a little above 1 to make up for a denoiser that removes too much
            (1.007 on CIFAR-10, 1.003 on ImageNet).

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    steps: int = 18
    grid: Grid = long_step_grid
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= s_churn < inf", "0 <= s_min <= s_max", "0 < s_noise < inf")
        if self.s_churn == 0:
            check_unused(self, "s_churn=0", s_min=0, s_max=math.inf, s_noise=1)

    @property
    def calls(self) -> int:
        return 2

    @property
    def deterministic(self) -> bool:
        return self.s_churn == 0

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        t, s, w = interval.t, interval.s, interval.weights(self)
        if self.s_churn:
            x, t = add_noise(w.lift * x, w.std, noise, replace(interval, s=t, to_data=False)), w.raised
        ratio, shift = transfer(t, s, "eps")  # α_s/α_t, α_s (σ_s/α_s − σ̂/α̂)
        eps = predicted(denoiser, x, t, "eps")
        x_s = linear((ratio, x), (shift, eps))
        if isinstance(w.half, float) and not w.half:
            return x_s, None
        bend = w.half * shift * (predicted(denoiser, x_s, s, "eps") - eps)
        return x_s + (bend if isinstance(w.half, float) else torch.where(w.half > 0, bend, 0)), None

    def weights(self, levels: Levels) -> Weights:
        """The weight of the second ε̂, ½ or 0; with churn, the level t̂ of every step and what leads there."""
        t, s = levels[:-1], levels[1:]
        churn = self._churn(t) if self.s_churn else {}
        t = churn.get("raised", t)
        ratio, shift = transfer(t, s, "eps")
        first = ratio + shift * share(t, "eps")
        bend = 0.5 * shift * (first * share(s, "eps") - share(t, "eps"))
        first_order = torch.isinf(s.lam - t.lam) | too_long(t, s, first, first + bend)
        return {**churn, "half": torch.where(first_order, 0, torch.full_like(first, 0.5))}

    def _churn(self, t: Levels) -> dict[str, Any]:
        """The level t̂ of every step, the factor of x on the way to it, and the std of the noise."""
        gamma = min(self.s_churn / (self.steps + self.denoise), math.sqrt(2) - 1)
        churned = (t.ratio >= self.s_min) & (t.ratio <= self.s_max) & (t.alpha > 0)
        raised = t.sde.time(2 * (t.lam - math.log1p(gamma))).clamp_max(1)
        raised = torch.maximum(raised, t.t)  # where rounding alone would lower it
        up = Levels.of(t.sde, torch.where(churned, raised, t.t))
        std = self.s_noise * up.alpha * (up.ratio.square() - t.ratio.square()).clamp_min(0).sqrt()
        return {"raised": up, "lift": torch.where(churned, up.alpha / t.alpha, 1), "std": torch.where(churned, std, 0)}
