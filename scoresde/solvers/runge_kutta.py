"""Runge-Kutta methods for the probability flow in t: the plain solvers of flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Interval, Levels, Weights
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
    """Runge-Kutta methods for the probability flow in t; 1, 2, 2 or 4 network calls per step.

        dx/dt = velocity(x, t) = α̇ x̂0 + σ̇ ε̂                       (Song et al. 2021, eq. 13)

        euler      x_s = x + (s − t) k_1,                           k_1 = velocity(x, t)
        midpoint   x_s = x + (s − t) k_2,                           k_2 = velocity(x + ½ (s − t) k_1, ½ (t + s))
        heun       x_s = x + (s − t) ½ (k_1 + k_2),                 k_2 = velocity(x + (s − t) k_1, s)
        rk4        x_s = x + (s − t) (k_1 + 2 k_2 + 2 k_3 + k_4)/6

    Of order 1, 2, 2 and 4 where the velocity is smooth in t, as on the straight path from α_1 = 0 on, where Euler is
    `DDIM(eta=0)`. On VP or VE the methods in log-SNR are the better ones. The network is not asked at noise 0: a step
    to σ_s = 0 is Euler's for heun, and the midpoint rule for rk4, which so is of order 3 with t_end = 0.

    Args:
        method: euler, midpoint, heun or rk4.

    References:
        Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv:2210.02747.
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
    """

    steps: int = 20
    method: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "method", self.method, tuple(METHODS))

    @property
    def deterministic(self) -> bool:
        return True

    def weights(self, levels: Levels) -> Weights:
        return {"middle": Levels.of(levels.sde, 0.5 * (levels.t[:-1] + levels.t[1:]))}

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        t, s = interval.t, interval.s
        if interval.denoising:
            return denoiser.x0(x, t), None
        dt = s.t - t.t
        to_data = TO_DATA.get(self.method, self.method)
        places, weights = METHODS[to_data if interval.to_data else self.method]
        slopes = [denoiser.velocity_at(x, t)]
        for place in places:
            level = interval.weights(self).middle if place < 1 else s
            slopes.append(denoiser.velocity_at(linear((1.0, x), (place * dt, slopes[-1])), level))
        x_s = _moved(x, dt, weights, slopes)
        if isinstance(s.sigma, Tensor) and 1 in places:  # noise 0 for some samples, maybe
            x_s = torch.where(s.sigma > 0, x_s, _moved(x, dt, METHODS[to_data][1], slopes))
        return x_s, None


def _moved(x: Tensor, dt: Any, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    used = ((dt * weight, slope) for weight, slope in zip(weights, slopes, strict=False) if weight)
    return linear((1.0, x), *used)
