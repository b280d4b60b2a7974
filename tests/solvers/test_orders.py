"""Observed orders of the deterministic solvers, against the exact flow of Gaussian data and a fine one of a mixture."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from closed_forms import MEAN, SDES, STD, exact_flow, mixture, moments, name
from torch import Tensor

from scoresde import (
    DDIM,
    SDE,
    VESDE,
    VPSDE,
    DPMSolverPP2M,
    EulerMaruyama,
    GaussianDenoiser,
    Grid,
    Heun,
    ProbabilityFlowODE,
    ReverseDiffusion,
    StepSolver,
    karras_grid,
    logsnr_grid,
    uniform_grid,
)
from scoresde.testing import convergence_order

END = 1e-2


def start(sde: SDE, rows: int = 64) -> Tensor:
    mean, std = moments(sde, 1.0)
    return mean + std * torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver, grid, order, steps",
    [
        (EulerMaruyama(eta=0.0), uniform_grid, 1, (400, 800)),
        (ReverseDiffusion(eta=0.0), logsnr_grid, 1, (400, 800)),
        (DDIM(), karras_grid, 1, (80, 160)),
        (Heun(), karras_grid, 2, (80, 160)),
        (DPMSolverPP2M(), karras_grid, 2, (80, 160)),
        (DPMSolverPP2M(), logsnr_grid, 2, (80, 160)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, StepSolver) else getattr(value, "__name__", ""),
)
def test_step_solvers(sde: SDE, solver: StepSolver, grid: Grid, order: int, steps: tuple[int, int]) -> None:
    denoiser, x = GaussianDenoiser(sde, MEAN, STD), start(sde)
    exact = exact_flow(sde, x, 1.0, END)

    def solve(count: int) -> Tensor:
        return replace(solver, steps=count, grid=grid, t_end=END, denoise=False)(denoiser, x)

    assert convergence_order(solve, exact, steps=steps) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "method, order, steps",
    [
        ("euler", 1, (160, 320)),
        ("midpoint", 2, (320, 640)),
        ("heun2", 2, (320, 640)),
        ("heun3", 3, (160, 320)),
        ("rk4", 4, (80, 160)),
    ],
)
def test_probability_flow_with_fixed_steps(sde: SDE, method: str, order: int, steps: tuple[int, int]) -> None:
    denoiser, x = GaussianDenoiser(sde, MEAN, STD), start(sde)
    exact = exact_flow(sde, x, 1.0, END)

    def solve(count: int) -> Tensor:
        return ProbabilityFlowODE(method=method, steps=count, t_end=END, denoise=False)(denoiser, x)

    assert convergence_order(solve, exact, steps=steps) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
@pytest.mark.parametrize("solver, order", [(DDIM(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)], ids=str)
def test_orders_hold_on_a_mixture(sde: SDE, solver: StepSolver, order: int) -> None:
    denoiser = mixture(sde)
    x = float(sde.prior_std) * torch.randn(32, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine = ProbabilityFlowODE(method="dopri8", rtol=1e-11, atol=1e-11, t_end=END, denoise=False)(denoiser, x)

    def solve(count: int) -> Tensor:
        return replace(solver, steps=count, grid=karras_grid, t_end=END, denoise=False)(denoiser, x)

    assert convergence_order(solve, fine, steps=(160, 320)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_dpm_solver_equals_a_literal_second_transcription_on_an_uneven_grid(sde: SDE) -> None:
    """Algorithm 2 of the paper in its data-prediction form: every step is the integral of a line through two values."""
    times = torch.tensor([1.0, 0.8, 0.35, 0.3, 0.02], dtype=torch.float64)
    denoiser, x = mixture(sde), float(sde.prior_std) * torch.randn(8, 2, dtype=torch.float64)
    solver = DPMSolverPP2M(steps=4, grid=lambda sde, steps, t_end: times, denoise=False)
    y = solver(denoiser, x)

    lam = torch.log(sde.alpha(times) / sde.sigma(times))
    previous: Tensor | None = None
    for i in range(4):
        h = lam[i + 1] - lam[i]
        now = denoiser(x, times[i])
        if previous is None:
            blend = now
        else:
            r = (lam[i] - lam[i - 1]) / h
            blend = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * previous
        scale = sde.sigma(times[i + 1]) / sde.sigma(times[i])
        x = scale * x + sde.alpha(times[i + 1]) * (1 - torch.exp(-h)) * blend
        previous = now
    torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


def test_heun_is_algorithm_1_of_karras_without_churn() -> None:
    """Their notation: D the denoiser, d = (x − D)/σ, and the last step to σ = 0 by Euler."""
    sde = VESDE()  # at σ(0) = sigma_min there is noise left, so the Euler branch is tested on VP below
    times = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=torch.float64)
    denoiser, x = mixture(sde), 50 * torch.randn(8, 2, dtype=torch.float64)
    y = Heun(steps=3, grid=lambda sde, steps, t_end: times, denoise=False)(denoiser, x)

    for t, s in pairwise(times):
        a, b = sde.sigma(t), sde.sigma(s)
        d = (x - denoiser(x, t)) / a
        euler = x + (b - a) * d
        x = x + (b - a) * 0.5 * (d + (euler - denoiser(euler, s)) / b)
    torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [Heun(steps=1), DPMSolverPP2M(steps=1), DDIM(steps=1)], ids=str)
def test_a_step_to_no_noise_lands_on_the_denoised_state(solver: StepSolver) -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    t, s = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    y, _ = solver.step(denoiser, x, t, s, lambda t, s: torch.zeros_like(x), None)
    torch.testing.assert_close(y, denoiser(x, t), rtol=1e-9, atol=1e-9)
    if isinstance(solver, DPMSolverPP2M):  # and with history: first order again, not infinity
        y, _ = solver.step(denoiser, x, t, s, lambda t, s: x, ((t + 0.1,), torch.ones_like(x)))
        torch.testing.assert_close(y, denoiser(x, t), rtol=1e-9, atol=1e-9)
