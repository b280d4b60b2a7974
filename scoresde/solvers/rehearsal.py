"""Whether a solver resolves what a measurement leaves of x0, tried on a Gaussian before the run."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import SDE
from scoresde.sde.levels import Level

if TYPE_CHECKING:
    from scoresde.solvers.base import StepSolver

OFF = 0.12  # of a standard deviation, with some room for that of the trial
FEW = 20  # network calls: below, a run is coarse by choice
SHARP = 0.05  # of data of unit size: sharper observations count as this
NUMBERS, MOST_ENTRIES = 2048, 16  # of a trial, and of one of its events


class Gaussian(Denoiser):
    """Pairs of entries of standard deviations `narrow` and 1, from a Gaussian."""

    def __init__(self, sde: SDE, narrow: float, pairs: int) -> None:
        super().__init__()
        self.sde, self.std = sde, torch.tensor([narrow, 1.0], dtype=torch.float64).repeat(pairs)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        variance = self.std.square()
        return level.alpha * variance / (level.alpha**2 * variance + level.sigma**2) * x

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        level, variance = Level.at(self.sde, t, x), self.std.square()
        return (level.sigma**2 * variance / (level.alpha**2 * variance + level.sigma**2)).expand_as(x)


def rehearse(solver: StepSolver, sde: SDE, narrow: float, pairs: int) -> float:
    """The standard deviation that a solver gives entries of standard deviation `narrow`, each beside one of 1."""
    denoiser, generator = Gaussian(sde, narrow, pairs), torch.Generator().manual_seed(0)

    def draw(*times: Tensor) -> Tensor:
        return torch.randn(NUMBERS // (2 * pairs), 2 * pairs, generator=generator, dtype=torch.float64)

    one = torch.ones((), dtype=torch.float64)
    z = draw()
    x = (sde.alpha(one) * denoiser.std).hypot(sde.sigma(one)) * z / z.square().mean(0).sqrt()
    with torch.inference_mode(False), torch.no_grad():
        return float(solver(denoiser, x, noise=draw)[:, ::2].square().mean().sqrt())


def advise(solver: StepSolver, denoiser: Denoiser, x: Tensor) -> None:
    """Warn if a solver does not resolve what the measurement of a guided denoiser leaves of x0."""
    if denoiser.unguided is denoiser or solver.steps * solver.calls < FEW:
        return
    narrow = denoiser.narrowest(x)
    if narrow is None or not 0 < narrow < 0.5:
        return
    narrow = max(float(f"{narrow:.1e}"), SHARP)
    try:
        ratio = _ratio(solver, denoiser.sde, narrow, max(min(x[0].numel(), MOST_ENTRIES) // 2, 1))
    except (TypeError, ValueError, RuntimeError, FloatingPointError):
        return  # it asks for more than a Gaussian knows
    if abs(ratio - 1) > OFF:
        warnings.warn(
            f"{type(solver).__name__} with {solver.steps} steps gives a standard deviation of {narrow:.2g}, which the "
            f"measurement leaves of x0, as {ratio * narrow:.2g}: take DPMSolverPP2M (solver=dpmpp_2m), or DDPM with "
            f"1000 steps (solver=ddpm), which resolve it.",
            UserWarning,
            stacklevel=3,
        )


@lru_cache(maxsize=256)
def _ratio(solver: StepSolver, sde: SDE, narrow: float, pairs: int) -> float:
    return rehearse(solver, sde, narrow, pairs) / narrow
