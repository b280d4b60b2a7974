"""A coarse version of benchmarks/default_grids.py: defaults suit every process, and keep the promises of the docs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from scoresde import (
    DDIM,
    SDE,
    VPSDE,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    ExponentialAdams,
    GaussianMixtureDenoiser,
    StepSolver,
    StraightSDE,
    UniPC,
    flow_error,
    karras_grid,
    logsnr_grid,
    uniform_grid,
)
from scoresde.analytic import exact_flow
from scoresde.sde import few_step_grid, quadratic_grid, vp_grid
from scoresde.solvers import IPNDM, DPMSolverMultistep, RungeKutta

SOLVERS: dict[type[StepSolver], int] = {
    DDIM: 1, DPMSolverPP2M: 1, DPMSolverPP3M: 1, DPMSolverMultistep: 1, UniPC: 1, IPNDM: 1, ExponentialAdams: 1,
    DPMSolverPP2S: 2, RungeKutta: 2,
}  # fmt: skip
GRIDS = (uniform_grid, quadratic_grid, vp_grid, few_step_grid, logsnr_grid, karras_grid)
FIRST_ORDER = (DDIM,)


@pytest.mark.parametrize("sde", [VPSDE(), StraightSDE()], ids=lambda sde: type(sde).__name__)
def test_default_grids(sde: SDE) -> None:
    generator = torch.Generator().manual_seed(0)
    problem = GaussianMixtureDenoiser.random(sde, 2, 8, generator=generator)
    x = sde.prior_sample((64, 2), generator=generator, dtype=torch.float64)
    reference = exact_flow(problem, x, rtol=1e-7)

    def median(solver: StepSolver) -> float:
        found = flow_error(solver, problem, x, reference=reference)
        assert found.nfe <= calls
        return found.median

    for calls in (10, 20):
        own: dict[Callable[..., StepSolver], float] = {}
        midpoint = median(RungeKutta(steps=(calls - 1) // 2, grid=uniform_grid))
        for solver, each in SOLVERS.items():
            steps = (calls - 1) // each
            own[solver] = median(solver(steps=steps))
            best = min(median(solver(steps=steps, grid=grid)) for grid in GRIDS)
            assert own[solver] < 1.5 * best, f"{solver.__name__} at {calls} calls: {own[solver]} against {best}"
            if solver not in FIRST_ORDER and each == 1:
                assert own[solver] < midpoint, f"{solver.__name__} at {calls} calls: {own[solver]} against {midpoint}"
        assert own[ExponentialAdams] < 1.5 * min(own.values())
        assert own[ExponentialAdams] < (midpoint if calls == 10 else 0.5 * midpoint)
