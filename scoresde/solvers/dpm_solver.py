"""DPM-Solver and DPM-Solver++, single-step: one to three network calls per step and no memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde import SDE
from scoresde.sde.grids import Grid, Start, long_step_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.base import StepSolver, linear
from scoresde.solvers.exponential import predicted, shares, transfer
from scoresde.solvers.long_steps import share, too_long


@dataclass(frozen=True, kw_only=True)
class DPMSolver(StepSolver):
    """Single-step DPM-Solver; `order` network calls per step.

    With q = ε̂ and, from t to any u, x_u = a x_t + b q + ... as in `scoresde.solvers.exponential`, φ at z of that part:

        1   x_s = a x_t + b q_t                                                      (DDIM)
        2   x_s = a x_t + b q_1                                                      (Lu et al. 2022, Algorithm 1)
        3   u_1 = a x_t + b q_t,    u_2 = a x_t + b (q_t + 2 φ_2/φ_1 (q_1 − q_t))
            x_s = a x_t + b (q_t + 3/2 φ_2/φ_1 (q_2 − q_t))                          (Algorithm 2)

    where q_1 and q_2 are asked for at the first-order step to λ_t + h/2 (order 2), or at u_1 and u_2, at λ_t + h/3 and
    λ_t + 2h/3 (order 3). A step to σ_s = 0 is of first order, as is one of a run that is too long for its order, see
    `scoresde.solvers.long_steps`.

    Args:
        order: 1, 2 or 3.
        prediction: "eps" is DPM-Solver, "data" DPM-Solver++.

    References:
        Lu et al., "DPM-Solver", 2022, arXiv:2206.00927.
    """

    steps: int = 10
    grid: Grid = long_step_grid
    prediction: str = "eps"
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "prediction", self.prediction, ("eps", "data"))
        check_choice(self, "order", self.order, (1, 2, 3))

    @property
    def calls(self) -> int:
        return self.order

    @property
    def deterministic(self) -> bool:
        return True

    def weights(self, levels: Levels) -> Weights:
        return stage_weights(levels, [self.order] * (len(levels) - 1), self.prediction)

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        return single_step(self, denoiser, x, interval, self.order, self.prediction), None


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2S(StepSolver):
    """Second-order single-step DPM-Solver++: `DPMSolver(order=2)` with x̂0 for q.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, Algorithm 1.
    """

    steps: int = 10
    grid: Grid = long_step_grid

    @property
    def calls(self) -> int:
        return 2

    @property
    def deterministic(self) -> bool:
        return True

    def weights(self, levels: Levels) -> Weights:
        return stage_weights(levels, [2] * (len(levels) - 1), "data")

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        return single_step(self, denoiser, x, interval, 2, "data"), None


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP3S(StepSolver):
    """Third-order single-step DPM-Solver++, as in its authors' code: `DPMSolver(order=3)` with x̂0 for q.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    steps: int = 10
    grid: Grid = long_step_grid

    @property
    def calls(self) -> int:
        return 3

    @property
    def deterministic(self) -> bool:
        return True

    def weights(self, levels: Levels) -> Weights:
        return stage_weights(levels, [3] * (len(levels) - 1), "data")

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        return single_step(self, denoiser, x, interval, 3, "data"), None


@dataclass(frozen=True, kw_only=True)
class DPMSolverFast(StepSolver):
    """DPM-Solver-fast: steps of third order, and lower ones at the end, for a given number of network calls.

        K = 3m       m − 1 steps of order 3, one of order 2, one of order 1          (Lu et al. 2022, §3.4)
        K = 3m + 1   m steps of order 3, one of order 1
        K = 3m + 2   m steps of order 3, one of order 2

    By hand all steps are of order 3. None is taken with a lower order for its length: a run makes K calls.

    Args:
        steps: K, the network calls up to t_end; `denoise` adds one. The grid has about K/3 steps.
        prediction: "eps" is the paper's, "data" uses the DPM-Solver++ steps.

    References:
        Lu et al., "DPM-Solver", 2022, arXiv:2206.00927.
    """

    steps: int = 20
    grid: Grid = long_step_grid
    prediction: str = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "prediction", self.prediction, ("eps", "data"))

    @property
    def calls(self) -> int:
        return 3

    @property
    def deterministic(self) -> bool:
        return True

    def weights(self, levels: Levels) -> Weights:
        count = len(levels) - 1
        return stage_weights(levels, self._orders(count) if levels.whole else [3] * count, self.prediction, fixed=True)

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        left, index = interval.left, interval.t.index
        order = 3 if left is None else self._orders(index + left)[index]
        return single_step(self, denoiser, x, interval, order, self.prediction), None

    def _orders(self, count: int) -> list[int]:
        """Of the steps of a run, which may have one more, to noise 0. A grid of another length has all of order 3."""
        whole, rest = divmod(self.steps, 3)
        mix = [*[3] * whole, rest] if rest else [*[3] * (whole - 1), 2, 1]
        return [*mix, 1][:count] if count - len(mix) in (0, 1) else [3] * count

    def _times(self, sde: SDE, steps: int | None = None, *, backward: bool = False) -> tuple[Tensor, Start | None]:
        return super()._times(sde, steps or self.steps // 3 + 1, backward=backward)


def single_step(
    solver: StepSolver, denoiser: Denoiser, x: Tensor, interval: Interval, order: int, prediction: str
) -> Tensor:
    """The step of `DPMSolver`, with the `stage_weights` of the solver."""
    w = interval.weights(solver)
    a, b, c = w.across
    order = 1 if isinstance(c, float) and not c else order
    latest = q = predicted(denoiser, x, interval.t, prediction)
    if order > 1:
        latest = predicted(denoiser, linear(*zip(w.to_first, (x, q), strict=True)), w.first, prediction)
    if order > 2:
        latest = predicted(denoiser, linear(*zip(w.to_second, (x, q, latest), strict=True)), w.second, prediction)
    if order < 3 and isinstance(b, float):  # then c = b, or the latest q is the first
        return linear((a, x), (b, latest))
    return linear((a, x), (b - c, q), (c, latest))


def stage_weights(levels: Levels, orders: Sequence[int], prediction: str, *, fixed: bool = False) -> Weights:
    """Of every step by its order: the levels of its calls inside, and what the states there and at s are made of.

    to_first has weights of x and q_t, to_second of x, q_t and q_1; across is a, b, c of a x + b q_t + c (q − q_t) with
    the latest q. Steps without a finite length in λ are of order 1, where c is 0; so are those that are too long for
    their order, unless orders are `fixed`.
    """
    t, s = levels[:-1], levels[1:]
    h = s.lam - t.lam
    finite = torch.isfinite(h)
    order = torch.tensor(orders, device=h.device).reshape(-1, *[1] * (h.ndim - 1))

    def inside(part: Tensor) -> tuple[Levels, Tensor]:
        part = torch.where(finite, part, 0)
        return Levels.of(levels.sde, torch.where(finite, levels.sde.time(2 * (t.lam + part)), t.t)), part

    a, b = transfer(t, s, prediction, -torch.expm1(-h))
    sign = 1 if prediction == "eps" else -1  # z = ±h
    c = b * torch.where(order == 3, 1.5 * shares(sign * h, 1)[0], (order == 2).to(b))
    unit = share(t, prediction)
    latest, first_order = unit, a + b * unit  # of standard normal data
    named: dict[str, Levels | tuple[Tensor, ...]] = {}
    if max(orders) > 1:
        first, part = inside(torch.where(order == 2, h / 2, h / 3))
        named |= {"first": first, "to_first": (weights := transfer(t, first, prediction, -torch.expm1(-part)))}
        latest = share(first, prediction) * (weights[0] + weights[1] * unit)
    if max(orders) > 2:
        second, part = inside(2 / 3 * h)
        a_2, b_2 = transfer(t, second, prediction, -torch.expm1(-part))
        c_2 = 2 * b_2 * shares(sign * part, 1)[0]
        named |= {"second": second, "to_second": (a_2, b_2 - c_2, c_2)}
        third = share(second, prediction) * (a_2 + (b_2 - c_2) * unit + c_2 * latest)
        latest = torch.where(order == 3, third, latest)
    kept = finite if fixed else finite & ~too_long(t, s, first_order, first_order + c * (latest - unit))
    return {**named, "across": (a, b, torch.where(kept, c, 0))}
