"""Adams methods: exact weights in four predictions, corrected (DEIS, LMS, ...), and iPNDM with equal-step weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_unused, check_whole
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, balanced_grid
from scoresde.sde.levels import Interval, Level, Levels, Weights
from scoresde.solvers.base import StepSolver, linear
from scoresde.solvers.exponential import CLOCKS, PREDICTIONS, adams_weights, predicted, transfer

ADAMS_BASHFORTH = {  # of equal steps, by order
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class Past(NamedTuple):
    """What an Adams method remembers.

    Attributes:
        levels, values: Where the network was called before, the latest first, and the predictions there.
        base: Where the last step started, with its noise if there is noise: what its corrector adds to.
        weights: Of the last step.
    """

    levels: tuple[Level, ...] = ()
    values: tuple[Tensor, ...] = ()
    base: Tensor | None = None
    weights: Any = None


@dataclass(frozen=True, kw_only=True)
class ExponentialAdams(StepSolver):
    """Exponential Adams-Bashforth with exact coefficients, optionally corrected by Adams-Moulton; one call per step.

        predict    x'_s = a x_t + Σ_{j<p} b_j q_j             q_0 at t, q_1 one level before, ...
        correct    x_t  = a x_r + Σ_{j<p+1} b*_j q_j          over the step r → t before, with q_0 at the predicted x'_t

    The weights integrate the polynomial through the values of q exactly (see `scoresde.solvers.exponential`). The
    corrector reuses the call at the predicted state, so it is free, and raises the order from p to p + 1. The first
    steps are of lower order. The step to noise 0 uses the polynomial too, but for data, which is taken as constant
    there; v and flow have the better clock for it, in which small noise is a short way.

    Args:
        order: p, from 1 to 4; None is 3, and 2 below 13 steps.
        prediction: What is integrated: eps, data, v or flow.
        corrector: Whether to correct; None does from 7 steps on.
        clock: Variable of the polynomial: own (λ for eps and data), logsnr, ratio (σ/α), time.
        sigma_data: Standard deviation of the data, which v and flow are scaled by.

    References:
        Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023, arXiv:2204.13902.
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
        Zhao et al., "UniPC", 2023, arXiv:2302.04867.
    """

    steps: int = 20
    grid: Grid = balanced_grid
    order: int | None = None
    prediction: str = "flow"
    corrector: bool | None = None
    clock: str = "own"
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "1 <= order <= 4 or null")
        check_choice(self, "prediction", self.prediction, PREDICTIONS)
        check_choice(self, "clock", self.clock, CLOCKS)
        if self.clock == "time":
            check_choice("ExponentialAdams with clock=time", "prediction", self.prediction, ("eps", "data"))
        check_numbers(self, "0 < sigma_data <= 1e9")
        if self.prediction in ("eps", "data"):
            check_unused(self, f"prediction={self.prediction}", sigma_data=1)

    @property
    def deterministic(self) -> bool:
        return True

    @property
    def degree(self) -> int:
        """The order in force."""
        return self.order or (3 if self.steps >= 13 else 2)

    @property
    def corrects(self) -> bool:
        """Whether the corrector is in force."""
        return self.steps >= 7 if self.corrector is None else self.corrector

    def weights(self, levels: Levels) -> Weights:
        if self.prediction in ("v", "flow"):
            levels = levels.scaled(self.sigma_data)
        offsets = (range(self.degree), range(-1, self.degree))[: 1 + self.corrects]
        found = adams_weights(levels, self.prediction, *offsets, clock=self.clock)
        return dict(zip(("keep", "predict", "correct"), found, strict=False))

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Past | None
    ) -> tuple[Tensor, Past]:
        t, past = interval.t, state or Past()
        w = interval.weights(self, past.levels)
        q = (predicted(denoiser, x, t, self.prediction, self.sigma_data), *past.values)
        if self.corrects and past.base is not None:
            x = linear((past.weights.keep, past.base), *zip(past.weights.correct, q, strict=False))
        x_s = linear((w.keep, x), *zip(w.predict, q, strict=False))
        return x_s, Past((t, *past.levels)[: self.degree - 1], q[: self.degree], x, w)


@dataclass(frozen=True, kw_only=True)
class IPNDM(StepSolver):
    """Improved pseudo linear multistep method: DDIM with ε̂ extrapolated as by Adams and Bashforth.

        x_s = α_s/α_t x_t + (σ_s − α_s σ_t/α_t) ε',      ε' = (55 ε̂ − 59 ε̂' + 37 ε̂'' − 9 ε̂''')/24

    The weights are those of equal steps: of full order on a grid that is uniform in σ/α, of second order on others. The
    first steps, and a step to σ_s = 0, are of lower order.

    Args:
        order: From 1 to 4.

    References:
        Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, arXiv:2202.09778.
        Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023, arXiv:2204.13902.
    """

    steps: int = 20
    grid: Grid = balanced_grid
    order: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, (1, 2, 3, 4))

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        history = (q := predicted(denoiser, x, interval.t, "eps"), *(state or ()))[: self.order]
        keep, gain = transfer(interval.t, interval.s, "eps", interval.decay)
        now, *past = ADAMS_BASHFORTH[len(history)]
        noisy = gain * (interval.s.sigma > 0)  # to noise 0 ε̂ itself is taken
        weights = (gain + noisy * (now - 1), *(noisy * weight for weight in past))
        x_s = linear((keep, x), *zip(weights, history, strict=True))
        silent = interval.t.alpha == 0
        if silent is not False:  # q was x̂0, and ε̂ is x/σ
            eps = x / interval.t.sigma
            history = (eps if silent is True else torch.where(silent, eps, q), *history[1:])
        return x_s, history
