"""Multistep DPM-Solver and DPM-Solver++ of orders 2 and 3: one network call per step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, karras_grid
from scoresde.sde.levels import Interval
from scoresde.solvers.base import StepSolver, linear


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(StepSolver):
    """Second-order multistep DPM-Solver++; deterministic, one network call per step.

        D   = x̂0(x_t) + h / (2 h') (x̂0(x_t) − x̂0')               h = λ_s − λ_t,  λ = ½ logsnr
        x_s = σ_s/σ_t x_t − α_s (e^(−h) − 1) D                     (Lu et al. 2022, Algorithm 2)

    where primes are the previous step's values; the first step has D = x̂0 (first order), and so has a step to σ_s = 0.
    Good at 10-30 steps.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    steps: int = 20
    grid: Grid = karras_grid

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        t, s = interval.t, interval.s
        x0 = denoiser.x0(x, t)
        x0_before, h_before = state or (x0, math.inf)
        gain, slope = s.alpha * interval.decay, 0.5 * interval.over(h_before)
        x_s = linear((s.sigma / t.sigma, x), (gain * (1 + slope), x0), (-gain * slope, x0_before))
        return x_s, (x0, interval.h)
