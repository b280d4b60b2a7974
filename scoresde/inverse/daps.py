"""Decoupled annealing posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_unused, check_whole
from scoresde.denoiser import Denoiser, KnowsCovariance, KnowsFullCovariance
from scoresde.inverse.coordinates import Coordinates, check_states, is_linear_gaussian
from scoresde.inverse.guesses import Correlated, Guess, Round, langevin
from scoresde.inverse.measurement import GaussianNoise, Measurement
from scoresde.inverse.operators import LinearOperator
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, balanced_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.base import Plan, StepSolver


@dataclass(frozen=True, kw_only=True)
class DAPS(StepSolver):
    """Decoupled annealing: at every level a clean event given y, and fresh noise for the next level.

        x̂0  = end of the probability flow from x_t, in ode_steps steps of `DDIM`; one step is E[x0 | x_t]
        x0  ~ N(x0; x̂0, C) p(y | x0)                                          (Zhang et al. 2024, Algorithm 1)
        x_s = α_s x0 + σ_s z                                                    (Proposition 1)

    C stands for Cov[x0 | x_t]: "noise" is σ²/α², the paper's r_t = σ_t; "unit" is σ²/(α² + σ²), that of unit normal
    data; "known" is that of a denoiser that knows it, with E[x0 | x_t] for x̂0: for Gaussian data the posterior, at
    every level. x0 is drawn exactly for a linear operator and Gaussian noise, and else by Langevin steps

        x0 = x̂0 + F u,   F Fᵀ = C,    u ← u + e (∇ log p(y | x0) − u) + √(2e) z,    e = rate/(1 + L),

    from u ~ N(0, I), with ∇ by u and L the curvature of log p(y | x0) in u at 0, by power iteration. The law of u is
    off by a share of rate/2. No gradient passes through the network: a step costs ode_steps calls, or one for "known".

    Args:
        measurement: What is known of each sample: any operator and noise; an exact y needs a linear operator.
        ode_steps: Calls for x̂0. The paper's 5 or 10 suit its short Langevin runs, which stay near x̂0; where x0 is drawn
            exactly, the end of the flow has the width of a sample already, C adds to it, and one call does better.
        covariance: "noise", "unit" or "known".
        langevin_steps: Where x0 is not drawn exactly.
        langevin_rate: rate, below 1.

    References:
        Zhang et al., "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing", 2024,
        arXiv:2407.01521.
    """

    measurement: Measurement
    steps: int = 100
    grid: Grid = balanced_grid
    ode_steps: int = 1
    covariance: str = "unit"
    langevin_steps: int = 50
    langevin_rate: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_measurement(self, self.measurement)
        check_choice(self, "covariance", self.covariance, ("noise", "unit", "known"))
        check_whole(self, "1 <= ode_steps <= 1000", "1 <= langevin_steps <= 100000")
        check_numbers(self, "0 < langevin_rate < 1")
        if self.covariance == "known":
            check_unused(self, "covariance=known", ode_steps=DAPS.ode_steps)

    @property
    def calls(self) -> int:
        return 1 if self.covariance == "known" else self.ode_steps

    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        if self.covariance == "noise" and denoiser.sde.ends_silent:
            raise ValueError(
                f"DAPS with covariance=noise needs signal at t = 1, and {type(denoiser.sde).__name__} has none: use "
                f"covariance=unit."
            )
        return super().plan(denoiser, device=device, backward=backward)

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Coordinates | None
    ) -> tuple[Tensor, Coordinates | None]:
        t, s, y = interval.t, interval.s, state
        if y is None:
            check_states(self, self.measurement, x)
            y = Coordinates.of(self, self.measurement, x) if is_linear_gaussian(self.measurement) else None
        guess, draw = self._guess(denoiser, x, interval), partial(noise, t.host_time, t.host_time)
        if y is None:
            likelihood = self.measurement.log_likelihood
            x0 = langevin(guess, likelihood, draw, steps=self.langevin_steps, rate=self.langevin_rate)
        else:
            x0 = guess.given(y, draw)
        at_data = isinstance(s.sigma, float) and s.sigma == 0
        return s.alpha * x0 if at_data else s.alpha * x0 + s.sigma * noise(t.host_time, s.host_time), y

    def _guess(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> Guess:
        """N(x̂0, C)."""
        t = interval.t
        if self.covariance == "known":
            if isinstance(denoiser, KnowsFullCovariance):
                return Correlated(denoiser(x, t.time), denoiser.covariance(x, t.time))
            if not isinstance(denoiser, KnowsCovariance):
                raise TypeError(
                    "DAPS with covariance=known needs a denoiser that knows Cov[x0 | x_t]: an exact one, or one of "
                    "scoresde.covariance. Use covariance=unit with others."
                )
            mean, variance = denoiser.mean_and_covariance(x, t.time)
            return Correlated(mean, variance.expand(x.shape).flatten(1).diag_embed())
        r = t.sigma / ((t.alpha**2 + t.sigma**2) ** 0.5 if self.covariance == "unit" else t.alpha)
        return Round(self._flow_end(denoiser, x, interval), r)

    def _flow_end(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> Tensor:
        t, x0 = interval.t, denoiser.x0(x, interval.t)
        for s in interval.weights(self).flow if self.ode_steps > 1 else ():
            ratio = s.sigma / t.sigma
            x, t = ratio * x + (s.alpha - ratio * t.alpha) * x0, s
            x0 = denoiser.x0(x, t)
        return x0

    def weights(self, levels: Levels) -> Weights:
        """flow: levels of the calls after the first, in equal steps of `balanced_grid`'s clock down to no noise."""
        t, sde = levels[:-1], levels.sde
        place = (1 + 3 / t.ratio) ** -0.25
        parts = [place * (1 - k / self.ode_steps) for k in range(1, self.ode_steps)]
        times = [sde.time(2 * ((part**-4 - 1) / 3).log()) for part in parts]
        return {"flow": [Levels.of(sde, torch.minimum(t.t, time.clamp_min(self.end(sde)))) for time in times]}


def _check_measurement(owner: object, measurement: object) -> None:
    if not isinstance(measurement, Measurement):
        raise ValueError(f"DAPS needs measurement to be a Measurement, got {measurement!r}.")
    noise, operator = measurement.noise, measurement.operator
    exact = isinstance(noise, GaussianNoise) and noise.std is not None and not bool((noise.std > 0).all())
    if exact and not isinstance(operator, LinearOperator):
        raise ValueError(
            f"DAPS needs noise above 0 for an operator that is not linear, got std 0 with a {type(operator).__name__}."
        )
