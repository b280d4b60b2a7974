"""DPM-Solver and DPM-Solver++, single-step: one to three network calls per step and no memory."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde import SDE
from scoresde.sde.grids import Grid, logsnr_grid
from scoresde.sde.levels import Levels
from scoresde.solvers.base import checked_grid
from scoresde.solvers.tabulated import TabulatedSolver, linear, unused
from scoresde.solvers.transfer import Transfer, check_choice, ends, predict

FRACTIONS: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@dataclass(frozen=True, kw_only=True)
class SingleStep(TabulatedSolver):
    """What the single-step DPM-Solvers share: stages at fixed fractions of a step in λ."""

    deterministic: ClassVar[bool] = True

    steps: int = 10
    grid: Grid = logsnr_grid
    prediction: str = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "prediction", self.prediction, ("eps", "data"))

    @abstractmethod
    def orders(self, count: int) -> list[int]:
        """The order of each of `count` steps; those to noise 0 are of order 1 whatever it says."""

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        h = levels.lam[1:] - levels.lam[:-1]
        orders = torch.tensor(self.orders(len(h)), device=h.device).reshape(-1, *[1] * (h.ndim - 1))
        orders = torch.where(torch.isfinite(h), orders, 1)
        columns = self._columns(levels, 1)
        for order in range(2, self.stages + 2):
            higher = self._columns(levels, order)
            columns = [torch.where(orders == order, new, old) for new, old in zip(higher, columns, strict=True)]
        return tuple(columns)

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        times = row[len(row) - self.stages :]
        latest = first = predict(denoiser, x, t, self.prediction)
        for index, time in enumerate(times):
            keep, now, inner = row[3 * index : 3 * index + 3]
            if not unused(keep):
                latest = predict(denoiser, linear((keep, x), (now, first), (inner, latest)), time, self.prediction)
        keep, now, inner = row[3 * self.stages : 3 * self.stages + 3]
        return linear((keep, x), (now, first), (inner, latest)), None

    def _columns(self, levels: Levels, order: int) -> list[Tensor]:
        """Of x, the first and the latest prediction, for every stage and the step itself; then the stages' times.

        A stage that this order does without has zeros, and the time at which the step starts.
        """
        before, after = ends(levels)
        whole = Transfer.between(before, after, self.prediction)
        h = torch.where(whole.finite, after.lam - before.lam, 0)
        zero = torch.zeros_like(h)
        fractions = FRACTIONS[order]
        groups, times = [], []
        for index, fraction in enumerate(fractions):
            middle = Levels.of(levels.sde, levels.sde.time(2 * (before.lam + fraction * h)))
            part = Transfer.between(before, middle, self.prediction)
            bend = part.gain * part.shares(1)[0] * (fraction / fractions[0]) if index else zero
            groups += [part.keep, part.gain - bend, bend]
            times.append(middle.t)
        missing = self.stages - len(fractions)
        if order == 2:
            bend = whole.gain / (2 * fractions[0])
        else:
            bend = whole.gain * whole.shares(1)[0] / fractions[-1] if order == 3 else zero
        last = [whole.keep, whole.gain - bend, bend]
        return [*groups, *[zero] * (3 * missing), *last, *times, *[before.t] * missing]


@dataclass(frozen=True, kw_only=True)
class DPMSolver(SingleStep):
    """Single-step DPM-Solver; `order` network calls per step.

    With q = ε̂ and, from t to any u, x_u = a x_t + b q + ... as in `scoresde.solvers.transfer`, φ at z = h or its part:

        1   x_s = a x_t + b q_t                                                      (DDIM)
        2   x_s = a x_t + b q_1                                                      (Lu et al. 2022, Algorithm 1)
        3   u_1 = a x_t + b q_t,    u_2 = a x_t + b (q_t + 2 φ_2/φ_1 (q_1 − q_t))
            x_s = a x_t + b (q_t + 3/2 φ_2/φ_1 (q_2 − q_t))                          (Algorithm 2)

    where q_1 and q_2 are asked for at the first-order step to λ_t + h/2 (order 2), or at u_1 and u_2, at λ_t + h/3 and
    λ_t + 2h/3 (order 3). A step to σ_s = 0 is of first order.

    Args:
        order: 1, 2 or 3.
        prediction: "eps" is DPM-Solver, "data" DPM-Solver++.

    References:
        Lu et al., "DPM-Solver", 2022, arXiv:2206.00927.
    """

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, (1, 2, 3))

    @property
    def stages(self) -> int:
        return self.order - 1

    def orders(self, count: int) -> list[int]:
        return [self.order] * count


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2S(DPMSolver):
    """Second-order single-step DPM-Solver++: `DPMSolver(order=2)` with x̂0 for q.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, Algorithm 1.
    """

    order: ClassVar[int] = 2  # type: ignore[misc]
    prediction: ClassVar[str] = "data"  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP3S(DPMSolver):
    """Third-order single-step DPM-Solver++, as in its authors' code: `DPMSolver(order=3)` with x̂0 for q.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    order: ClassVar[int] = 3  # type: ignore[misc]
    prediction: ClassVar[str] = "data"  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class DPMSolverFast(SingleStep):
    """DPM-Solver-fast: steps of third order, and lower ones at the end, for a given number of network calls.

        K = 3m       m − 1 steps of order 3, one of order 2, one of order 1          (Lu et al. 2022, §3.4)
        K = 3m + 1   m steps of order 3, one of order 1
        K = 3m + 2   m steps of order 3, one of order 2

    Args:
        steps: K, the network calls up to t_end; `denoise` adds one. The grid has about K/3 steps.
        prediction: "eps" is the paper's, "data" uses the DPM-Solver++ steps.

    References:
        Lu et al., "DPM-Solver", 2022, arXiv:2206.00927.
    """

    steps: int = 20

    @property
    def stages(self) -> int:
        return 2

    def orders(self, count: int) -> list[int]:
        whole, rest = divmod(self.steps, 3)
        mix = [*[3] * whole, rest] if rest else [*[3] * (whole - 1), 2, 1]
        return [*mix, 1][:count] if count >= len(mix) else [3] * count  # fewer are steps taken by hand

    def _times(self, sde: SDE, backward: bool) -> Tensor:
        times = checked_grid(self.grid(sde, self.steps // 3 + 1, self.end(sde))).cpu()
        return times.flip(0) if backward else times
