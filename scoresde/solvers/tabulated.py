"""Step solvers whose coefficients are one table per run."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde import expand
from scoresde.sde.levels import Levels
from scoresde.solvers.base import Plan, StepSolver


@dataclass(frozen=True, kw_only=True)
class TabulatedSolver(StepSolver):
    """A step solver whose coefficients depend on the noise levels alone, so that a run computes them all at once.

    A subclass writes `table` and `update`. `step` follows from them, for times per sample and for use by hand.
    """

    lands: ClassVar[bool] = True  # whether its own step goes to noise 0; else x̂0 ends the run

    @property
    def memory(self) -> int:
        """How many earlier levels a row of the table depends on."""
        return 0

    @property
    def stages(self) -> int:
        """How many of the last columns are times of calls inside a step; they reach `update` as tensors, () or (B,)."""
        return 0

    @abstractmethod
    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        """Columns of coefficients, entry i for the step from level i to level i + 1; shapes (len(levels) − 1, ...)."""

    @abstractmethod
    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        """Advance x from t to s with one row of the table: numbers, or tensors that broadcast against x."""

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        earlier, inner = ((), None) if state is None else state
        levels = Levels.of(denoiser.sde, torch.stack([*earlier, t, s]).double())
        columns = self.table(levels)
        count = len(columns) - self.stages
        row = (*(expand(column[-1], x) for column in columns[:count]), *(column[-1] for column in columns[count:]))
        x, inner = self.update(denoiser, x, t, s, row, noise, inner)
        return x, ((*earlier, t)[-self.memory :] if self.memory else (), inner)

    @torch.no_grad()
    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        times = self._times(denoiser.sde, backward)
        landing = self._lands(denoiser.sde, times, backward)
        levels = Levels.of(denoiser.sde, times)
        columns = self.table(levels.landed() if landing and self.lands else levels)
        count = len(columns) - self.stages
        visited = torch.cat([times, *columns[count:]])
        visited = visited if device is None else visited.to(device)
        tabulated = denoiser.tabulate(every := visited.unbind())
        on_device, inner = every[: len(times)], every[len(times) :]
        numbers = list(zip(*(column.tolist() for column in columns[:count]), strict=True))
        rows = [(*row, *inner[index :: len(numbers)]) for index, row in enumerate(numbers)]
        ends = (*on_device[1:], on_device[-1])

        def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
            if index == len(rows):
                return tabulated(x, on_device[-1]), state
            return self.update(tabulated, x, on_device[index], ends[index], rows[index], noise, state)

        return Plan(tabulated, on_device, stride, landing, start=None if backward else self._start())


def linear(*terms: tuple[Any, Tensor]) -> Tensor:
    """Σ c x over pairs (c, x), c a number or a tensor that broadcasts against x."""
    (c, x), *rest = terms
    out = c * x
    for c, x in rest:
        if not isinstance(c, float):
            out = out + c * x
        elif c:
            out = out.add_(x, alpha=c)
    return out


def unused(weight: Any) -> bool:
    """Whether a weight says, without a look at a tensor's values, that its call can be left out."""
    return isinstance(weight, float) and weight == 0
