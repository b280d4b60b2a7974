"""Runs of one to three steps: of second-order and multistep solvers, on the exact flow of Gaussian data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from closed_forms import SDES, name

from scoresde import SDE, GaussianDenoiser, Heun, Interval, StepSolver, StraightSDE, karras_grid, linear_betas
from scoresde.sde import DiscreteVPSDE, rescale_zero_terminal_snr, uniform_grid
from scoresde.sde.levels import Levels
from scoresde.solvers import (
    DPMSolver,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPP3S,
    ExponentialAdams,
    RungeKutta,
    UniPC,
)
from scoresde.solvers.long_steps import too_long

SILENT = DiscreteVPSDE(rescale_zero_terminal_snr(linear_betas()))
SOLVERS = [
    Heun(), Heun(s_churn=10), UniPC(), UniPC(prediction="eps"), UniPC(prediction="eps", order=1, variant="bh1"),
    DPMSolver(), DPMSolver(order=3), DPMSolver(prediction="data"), DPMSolverPP2S(), DPMSolverPP3S(),
    DPMSolverPP2M(), DPMSolverPP3M(), DPMSolverMultistep(order=3, prediction="eps"), ExponentialAdams(), RungeKutta(),
]  # fmt: skip


@pytest.mark.parametrize("sde", [*SDES, StraightSDE(), SILENT], ids=name)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_few_steps_stay_within_the_data(sde: SDE, solver: StepSolver) -> None:
    """N(2, ½²) with 1 to 3 steps, to x̂0 or to t_min alone: the worst of these came back as 2 ± 10,000."""
    denoiser = GaussianDenoiser(sde, 2.0, 0.5)
    x = sde.prior_sample((200, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (1, 2, 3):
        for run in (replace(solver, steps=steps), replace(solver, steps=steps, t_end=1e-3, denoise=False)):
            y = run(denoiser, x)
            assert abs(float(y.mean()) - 2) < 0.5 and float(y.std()) < 1.5, run


@pytest.mark.parametrize("solver", [Heun(), DPMSolver(), DPMSolver(order=3), UniPC(prediction="eps")], ids=name)
def test_a_step_to_little_noise_is_the_first_order_one(solver: StepSolver) -> None:
    """From σ/α = 80 to 0.002, where the second-order terms are hundreds of times the data: DDIM's step alone."""
    sde = SDES[3]
    denoiser, x = GaussianDenoiser(sde, 1.5, 0.7), 80 * torch.randn(8, 2, dtype=torch.float64)
    y = replace(solver, steps=1, t_end=0.0, denoise=False, grid=uniform_grid)(denoiser, x)
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (1.0, 0.0))
    torch.testing.assert_close(y, x + (sde.sigma(s) - sde.sigma(t)) * denoiser.eps(x, t), rtol=1e-9, atol=1e-9)

    # by hand it is the formula: the second ε̂ has its weight
    by_hand, _ = solver.step(denoiser, x, Interval.between(sde, t, s), lambda t, s: x, None)
    assert type(solver) is UniPC or float((by_hand - y).abs().max()) > 1


def test_the_published_grids_have_no_step_that_is_too_long() -> None:
    """18 steps of Karras et al. on EDM, and 10 in log-SNR on VP, are all of second order, as published."""
    for sde, grid, steps in ((SDES[3], karras_grid, 18), (SDES[0], karras_grid, 10)):
        plan = Heun(steps=steps, grid=grid, t_end=1e-3, denoise=False).plan(GaussianDenoiser(sde, 0.0, 1.0))
        assert all(interval.weights(Heun()).half == 0.5 for interval in plan.intervals)


def test_too_long_compares_with_the_exact_flow_of_standard_normal_data() -> None:
    """From σ = 9 to 1 for σ_data = 1: right is √2/√82, and three times that errs by twice the truth, Euler by less."""
    sde = SDES[3]
    levels = replace(Levels.of(sde, sde.time(-2 * torch.tensor([9.0, 1.0], dtype=torch.float64).log())), whole=True)
    t, s = levels[:1], levels[1:]
    right, euler = (2 / 82) ** 0.5, 1 - 8 * 9 / 82
    for factor, first, expected in ((3.01, euler, True), (2.99, euler, False), (3.01, right * 3.5, False)):
        value = torch.tensor([factor * right], dtype=torch.float64)
        assert bool(too_long(t, s, torch.tensor([first], dtype=torch.float64), value)) is expected
