"""Single-step solvers that ask the denoiser at noise levels of their own."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import expand
from scoresde.solvers.base import Plan, TabulatedSolver
from scoresde.solvers.levels import Levels
from scoresde.solvers.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class StagedSolver(TabulatedSolver):
    """A tabulated solver whose rows end in the times of its own calls, as tensors () or (B,)."""

    @property
    @abstractmethod
    def stages(self) -> int:
        """How many of the last columns of the table are times."""

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        columns = self.table(Levels.of(denoiser.sde, torch.stack([t, s]).double()))
        count = len(columns) - self.stages
        numbers = tuple(expand(column[-1], x) for column in columns[:count])
        times = tuple(column[-1] for column in columns[count:])
        return self.update(denoiser, x, t, s, (*numbers, *times), noise, state)

    @torch.no_grad()
    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        times = self._times(denoiser.sde, backward)
        landing = self._lands(denoiser.sde, times, backward)
        levels = Levels.of(denoiser.sde, times)
        columns = self.table(levels.landed() if landing else levels)
        count = len(columns) - self.stages
        numbers = zip(*(column.tolist() for column in columns[:count]), strict=True)
        every = torch.cat([times, *columns[count:]])
        visited = (every if device is None else every.to(device)).unbind()
        tabulated = denoiser.tabulate(visited)
        on_device, inner = visited[: len(times)], visited[len(times) :]
        size = len(columns[0])
        rows = [(*row, *inner[index::size]) for index, row in enumerate(numbers)]
        ends = (*on_device[1:], on_device[-1])

        def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
            return self.update(tabulated, x, on_device[index], ends[index], rows[index], noise, state)

        return Plan(tabulated, on_device, stride, landing, start=None if backward else self._start())


def unused(weight: Any) -> bool:
    """Whether a weight says, without a look at a tensor's values, that its call can be left out."""
    return isinstance(weight, float) and weight == 0
