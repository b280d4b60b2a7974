"""Multistep DPM-Solver and DPM-Solver++ of orders 2 and 3: one network call per step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, balanced_grid, long_step_grid
from scoresde.sde.levels import Interval
from scoresde.solvers.base import StepSolver, linear
from scoresde.solvers.exponential import difference_weights, predicted, shares, transfer, unbounded

History = tuple[tuple[Tensor, Any], ...]  # q at the start of earlier steps, and their h; the latest first


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(StepSolver):
    """Second-order multistep DPM-Solver++; deterministic, one network call per step.

        D   = x̂0(x_t) + h / (2 h') (x̂0(x_t) − x̂0')               h = λ_s − λ_t,  λ = ½ logsnr
        x_s = σ_s/σ_t x_t − α_s (e^(−h) − 1) D                     (Lu et al. 2022, Algorithm 2)

    where primes are the previous step's values; the first step has D = x̂0 (first order), and so has a step to σ_s = 0.
    Good at 10-30 steps.

    Args:
        exact: Whether to integrate the line through x̂0' and x̂0 exactly, with 1/(1 − e^(−h)) − 1/h in place of ½
            (solver_type "heun" of diffusers).
        lower_order_final: Whether the last step of a run has D = x̂0, as is common below 15 steps.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    steps: int = 20
    grid: Grid = balanced_grid
    exact: bool = False
    lower_order_final: bool = False

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        t, s = interval.t, interval.s
        x0 = denoiser.x0(x, t)
        x0_before, h_before = state or (x0, math.inf)
        half = 1 / interval.decay - 1 / interval.h if self.exact else 0.5
        keep, gain = transfer(t, s, "data", interval.decay)
        slope = half * interval.over(h_before)
        x_s = linear((keep, x), (gain * (1 + slope), x0), (-gain * slope, x0_before))
        return x_s, None if self.lower_order_final and interval.left == 2 else (x0, interval.h)


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP3M(StepSolver):
    """Third-order multistep DPM-Solver++; deterministic, one network call per step.

    `DPMSolverMultistep(order=3)` with x̂0 for q. As published it converges with order 2, with `exact` with order 3.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    steps: int = 20
    grid: Grid = long_step_grid
    exact: bool = False
    lower_order_final: bool = False

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: History | None
    ) -> tuple[Tensor, History]:
        order = min(3, interval.left or 3) if self.lower_order_final else 3
        return multistep(x, denoiser.x0(x, interval.t), interval, state or (), "data", order, self.exact)


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistep(StepSolver):
    """Multistep DPM-Solver; deterministic, one network call per step.

        d_1 = (q − q')/r'                           r' = h'/h, r'' = h''/h, the steps before against this one
        2   x_s = a x_t + b (q + ½ d_1)
        3   d_2 = (d_1 − (q' − q'')/r'')/(r' + r'')
            x_s = a x_t + b (q + φ_2/φ_1 (d_1 + r' d_2) + φ_3/φ_1 d_2)

    where q is x̂0 or ε̂, primes are the values of earlier steps, and a, b, φ are those of `scoresde.solvers.exponential`.
    The published third-order step is this one and converges with order 2: the curvature of q is 2 d_2, not d_2. The
    first steps, and a step to σ_s = 0, are of lower order; where a run starts at little noise, the very first limits
    the whole to order 2. Good at 10-30 steps.

    Args:
        order: 2 or 3.
        prediction: What is q: "data" (DPM-Solver++) or "eps" (DPM-Solver).
        exact: Whether to integrate the line or parabola through the values of q exactly: φ_2/φ_1 for ½ (diffusers'
            solver_type "heun") and 2 φ_3/φ_1 for φ_3/φ_1, which is of order 3; below 20 steps the published weights
            are often the better ones.
        lower_order_final: Whether the last steps of a run fall to order 2 and 1, as is common below 15 steps.

    References:
        Lu et al., "DPM-Solver", 2022, arXiv:2206.00927.
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, Algorithm 2.
    """

    steps: int = 20
    grid: Grid = balanced_grid
    order: int = 2
    prediction: str = "data"
    exact: bool = False
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, (2, 3))
        check_choice(self, "prediction", self.prediction, ("data", "eps"))

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: History | None
    ) -> tuple[Tensor, History]:
        q = predicted(denoiser, x, interval.t, self.prediction)
        order = min(self.order, interval.left or self.order) if self.lower_order_final else self.order
        return multistep(x, q, interval, state or (), self.prediction, order, self.exact)


def multistep(
    x: Tensor, q: Tensor, interval: Interval, earlier: History, prediction: str, order: int, exact: bool
) -> tuple[Tensor, History]:
    """The step of `DPMSolverMultistep`, of the given order or as high as there are earlier values for."""
    h = interval.h
    a, b = transfer(interval.t, interval.s, prediction, interval.decay)
    if unbounded(h):  # to noise 0; or from no signal, on whose q no later step looks back
        return linear((a, x), (b, q)), ()
    history = ((q, h), *earlier[:1])
    if order == 1 or not earlier:
        return linear((a, x), (b, q)), history
    slope, curve = shares(h if prediction == "eps" else -h, 2)  # φ_2/φ_1, φ_3/φ_1
    (q_1, h_1), *older = earlier
    d_1 = interval.over(h_1)  # weight of q − q' in d_1: 1/r'
    if order == 2 or not older:
        weight = (slope if exact else 0.5) * d_1
        return linear((a, x), (b * (1 + weight), q), (-b * weight, q_1)), history
    q_2, h_2 = older[0]
    # r'/(r' + r'') and 1/(r' + r'') are the parts of d_1 − (q' − q'')/r'' in r' d_2 and in d_2
    bend = slope * h_1 / (h_1 + h_2) + (2 if exact else 1) * curve * interval.over(h_1 + h_2)
    now, near, far = difference_weights(1.0, slope, bend, d_1, interval.over(h_2))
    return linear((a, x), (b * now, q), (b * near, q_1), (b * far, q_2)), history
