"""Runge-Kutta methods along the straight path: the plain solvers of flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, balanced_grid
from scoresde.sde.levels import Interval, Level, Levels, Weights
from scoresde.solvers.base import StepSolver, linear

# the places of the calls after the first, each reached with the slope before it, and the weights of all slopes
METHODS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "midpoint": ((0.5,), (0.0, 1.0)),
    "heun": ((1.0,), (0.5, 0.5)),
    "rk4": ((0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
TO_DATA = {"heun": "euler", "rk4": "midpoint"}  # without a call at the end of the step


@dataclass(frozen=True, kw_only=True)
class RungeKutta(StepSolver):
    """Runge-Kutta methods for the probability flow along the straight path; 1, 2, 2 or 4 network calls per step.

        dy/dr = u = ε̂ − x̂0,      y = x/(α + σ),  r = σ/(α + σ)     (Lipman et al. 2023; on the straight path x and t)

        euler      y_s = y + h u,                   h = r_s − r_t,      u at t
        midpoint   y_s = y + h u_2,                 u_2 at y + ½ h u, r_t + ½ h
        heun       y_s = y + ½ h (u + u_2),         u_2 at y + h u, r_s
        rk4        y_s = y + h (u + 2 u_2 + 2 u_3 + u_4)/6

    Of order 1, 2, 2 and 4, from α_1 = 0 on too; on every process Euler's method is `DDIM(eta=0)`. Nothing is asked at
    noise 0: a step to σ_s = 0 is Euler's for heun, and the midpoint rule for rk4, whose order with t_end = 0 is 3.

    Args:
        method: euler, midpoint, heun or rk4.

    References:
        Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv:2210.02747.
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
    """

    steps: int = 20
    grid: Grid = balanced_grid
    method: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "method", self.method, tuple(METHODS))

    @property
    def deterministic(self) -> bool:
        return True

    @property
    def calls(self) -> int:
        return len(METHODS[self.method][1])

    def weights(self, levels: Levels) -> Weights:
        """The level in the middle of each step, and (factor of x, factor of h u) on the way there and to the end."""
        norm = levels.alpha + levels.sigma
        r = levels.sigma / norm
        h, half = r.diff(dim=0), 0.5 * (r[1:] + r[:-1])
        middle = Levels.of(levels.sde, levels.sde.time(2 * torch.log((1 - half) / half)))
        norm_half = middle.alpha + middle.sigma
        to_half, to_end = (norm_half / norm[:-1], norm_half * h), (norm[1:] / norm[:-1], norm[1:] * h)
        return {"middle": middle, "to_middle": to_half, "to_end": to_end}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        t, s = interval.t, interval.s
        if interval.denoising:
            return denoiser.x0(x, t), None
        w = interval.weights(self)
        to_data = TO_DATA.get(self.method, self.method)
        places, weights = METHODS[to_data if interval.to_data else self.method]
        slopes = [flow_velocity(denoiser, x, t)]
        for place in places:
            level, (keep, gain) = (w.middle, w.to_middle) if place < 1 else (s, w.to_end)
            slopes.append(flow_velocity(denoiser, linear((keep, x), (place * gain, slopes[-1])), level))
        x_s = _moved(x, w.to_end, weights, slopes)
        if isinstance(s.sigma, Tensor) and 1 in places:  # noise 0 for some samples, maybe
            x_s = torch.where(s.sigma > 0, x_s, _moved(x, w.to_end, METHODS[to_data][1], slopes))
        return x_s, None


def flow_velocity(denoiser: Denoiser, x: Tensor, level: Level) -> Tensor:
    """u = ε̂ − x̂0 at a level, shape (B, *), from v̂, which is regular at both ends."""
    of_x, of_v = level.read("flow", None, _of_x_and_v)
    return linear((of_x, x), (of_v, denoiser.v_at(x, level)))


def _of_x_and_v(levels: Levels) -> tuple[Tensor, Tensor]:
    alpha, sigma = levels.alpha, levels.sigma
    square = alpha.square() + sigma.square()
    return (sigma - alpha) / square, (alpha + sigma) / square


def _moved(x: Tensor, to_end: tuple[Any, Any], weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    keep, gain = to_end
    used = ((gain * weight, slope) for weight, slope in zip(weights, slopes, strict=False) if weight)
    return linear((keep, x), *used)
