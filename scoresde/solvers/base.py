"""Solver, Step, and the one sampling loop of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import SDE
from scoresde.solvers.grids import Grid, uniform_grid
from scoresde.solvers.noise import NoiseSource, gaussian_noise


@dataclass(frozen=True)
class Step:
    """One state of a trajectory: index 0 is the start; t is () in float64."""

    index: int
    t: Tensor
    x: Tensor


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Turns x_1 ~ prior into x_0 with the help of a denoiser.

    Args:
        t_end: Time at which to stop; None is the SDE's own t_min.
        denoise: Whether to end with x̂0(x, t_end), which removes the noise left at t_end.
    """

    t_end: float | None = None
    denoise: bool = True

    def __post_init__(self) -> None:
        if self.t_end is not None and not 0 <= self.t_end < 1:
            raise ValueError(f"{type(self).__name__} needs 0 <= t_end < 1 (0 is data), got t_end={self.t_end}.")

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        """Integrate from x at t = 1 (B, *) to data (B, *). Runs without gradients."""

    def end(self, sde: SDE) -> float:
        """The time at which this solver stops on this SDE."""
        return sde.t_min if self.t_end is None else self.t_end


@dataclass(frozen=True, kw_only=True)
class StepSolver(Solver):
    """A solver on a grid of times: a pure `step`, and a loop that is written only here.

    Args:
        steps: Number of steps.
        grid: Places the steps + 1 times.
    """

    steps: int = 100
    grid: Grid = uniform_grid

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(
                f"{type(self).__name__} needs steps to be a whole number of at least 1, got {self.steps!r}."
            )

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        """Advance x from t to s < t, both () or (B,). `state` is None at the first step, then what this returned."""

    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        for last in self.trajectory(denoiser, x, noise=noise):
            x = last.x
        return x

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Iterator[Step]:
        """Yield x at every time of the grid; with `denoise`, one more Step that holds x̂0 at t_end.

        Args:
            denoiser: Supplies x̂0, ε̂ and the score.
            x: Start at the first time of the grid, shape (B, *).
            noise: Source of standard normal noise; None draws from torch's global generator.
        """
        if not x.dtype.is_floating_point or x.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"{type(self).__name__} needs a float32 or float64 state, got {x.dtype}: "
                f"half precision loses the small steps near the data. Use autocast for the network instead."
            )
        noise = gaussian_noise(x) if noise is None else noise
        times = checked_grid(self.grid(denoiser.sde, self.steps, self.end(denoiser.sde))).to(x.device).unbind()
        state = None
        yield Step(0, times[0], x)
        for index, (t, s) in enumerate(pairwise(times), start=1):
            x, state = self.step(denoiser, x, t, s, noise, state)
            yield Step(index, s, x)
        if self.denoise:
            yield Step(len(times), times[-1], self._finish(denoiser, x, times[-1]))

    def _finish(self, denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
        sigma_left = float(denoiser.sde.sigma(t))
        return denoiser(x, t) if sigma_left > 0 else x


def checked_grid(times: Tensor) -> Tensor:
    """The grid itself, if it is a strictly decreasing 1-d tensor in [0, 1]."""
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or not 0 <= times[-1] < times[0] <= 1:
        shown = [round(value, 6) for value in times.flatten()[:6].tolist()]
        raise ValueError(
            f"A grid must be a strictly decreasing 1-d tensor of times between 1 and 0, got {shown}"
            f"{'...' if times.numel() > 6 else ''} with {times.numel()} entries."
        )
    return times
