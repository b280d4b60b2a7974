"""Fits of times and weights to a process that ends without signal."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from closed_forms import mixture, name
from torch import Tensor

from scoresde import VESDE, ExponentialAdams, Heun, StepSolver, StraightSDE, UniPC
from scoresde.covariance import SecondMoment
from scoresde.fitting import (
    ReferencePaths,
    calibrate,
    optimal_grid,
    optimise_grid,
    reference_paths,
)
from scoresde.solvers import IPNDM, RungeKutta


@cache
def paths() -> ReferencePaths:
    generator = torch.Generator().manual_seed(0)
    return reference_paths(mixture(StraightSDE()), (2,), 48, steps=40, generator=generator, dtype=torch.float64)


def error(solver: StepSolver) -> float:
    return float((solver(mixture(StraightSDE()), paths().start) - paths().end).square().mean().sqrt())


@pytest.mark.parametrize("gaussian_start", [True, False])
@pytest.mark.parametrize(
    "solver", [Heun(steps=4), UniPC(steps=5, prediction="eps"), IPNDM(steps=5), RungeKutta(steps=3)], ids=name
)  # fmt: skip
def test_a_fitted_grid_is_better_and_begins_at_t_1_or_after_the_gaussian_flow(
    solver: StepSolver, gaussian_start: bool
) -> None:
    grid = optimise_grid(
        mixture(StraightSDE()), solver, paths(), gaussian_start=gaussian_start, iterations=10, batch=16
    )
    fitted = replace(solver, grid=grid)
    limit = 0.9 if isinstance(solver, Heun | UniPC) else 1.0  # the others start from a grid that is hard to beat
    assert error(fitted) < limit * error(solver) + 1e-9
    assert grid.record["rms"] <= grid.record["rms_before"]
    times = grid.times(StraightSDE(), solver.steps, 1e-5)
    assert (times[0] == 1) != gaussian_start and bool((times.diff() < 0).all())
    assert (grid.start is None) != gaussian_start


def test_a_calibrated_solver_beats_the_weights_that_it_starts_from() -> None:
    fitted = calibrate(mixture(StraightSDE()), 5, paths(), iterations=30, batch=16)
    record = fitted.calibration.record
    assert record["rms"] < 0.5 * record["rms_before"]
    assert error(fitted) < error(ExponentialAdams(steps=4, prediction="v"))  # both of 5 calls


@pytest.mark.parametrize("variance", ["optimal", "small"])
def test_the_optimal_grid_takes_the_noisiest_level_of_the_table_for_t_1(variance: str) -> None:
    """The same levels as on a process that ends there."""
    logsnr = torch.linspace(10, -8, 40, dtype=torch.float64)
    share = torch.sigmoid(logsnr + 1)  # of x_t's variance that is data, N(0, e)
    table = SecondMoment(logsnr=logsnr, value=1 - share, std_error=0 * share, error=share, samples=1)
    straight, ending = StraightSDE(), VESDE(sigma_min=1e-3, sigma_max=math.exp(4))

    def levels(sde: StraightSDE | VESDE) -> Tensor:
        end = float(sde.time(logsnr[0]))
        return sde.logsnr(partial(optimal_grid, moments=table, variance=variance)(sde, 6, end))

    ours, theirs = levels(straight), levels(ending)
    assert ours[0] == -math.inf
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-6, atol=1e-6)
