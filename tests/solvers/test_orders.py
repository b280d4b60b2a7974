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
    Interval,
    ProbabilityFlowODE,
    ReverseDiffusion,
    StepSolver,
    karras_grid,
    logsnr_grid,
    uniform_grid,
)
from scoresde.solvers.adams import IPNDM
from scoresde.solvers.dpm_solver import DPMSolver, DPMSolverFast, DPMSolverPP2S, DPMSolverPP3S
from scoresde.solvers.dpm_solver_pp import DPMSolverMultistep, DPMSolverPP3M
from scoresde.solvers.unipc import UniPC
from scoresde.testing import convergence_order

END = 1e-2


def start(sde: SDE, rows: int = 64) -> Tensor:
    mean, std = moments(sde, 1.0)
    return mean + std * torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def label(solver: StepSolver) -> str:
    """The class, and what differs from its defaults in the fields that make it another method."""
    kinds = ("order", "prediction", "exact", "variant", "corrector")
    pairs = ((getattr(solver, kind, None), getattr(type(solver), kind, None)) for kind in kinds)
    shown = (value for value, default in pairs if value != default)
    return "-".join([type(solver).__name__, *map(str, shown)])


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
        (DPMSolverPP2M(exact=True), logsnr_grid, 2, (80, 160)),
        (DPMSolverPP3M(), logsnr_grid, 2, (80, 160)),  # as published: the curvature is halved
        (DPMSolverPP3M(exact=True), karras_grid, 3, (80, 160)),
        (DPMSolverMultistep(prediction="eps"), logsnr_grid, 2, (80, 160)),
        (DPMSolverMultistep(order=3, prediction="eps"), logsnr_grid, 2, (80, 160)),
        (DPMSolver(order=1), logsnr_grid, 1, (80, 160)),
        (DPMSolver(order=2), logsnr_grid, 2, (80, 160)),
        (DPMSolver(order=3), logsnr_grid, 3, (80, 160)),
        (DPMSolverPP2S(), logsnr_grid, 2, (80, 160)),
        (DPMSolverPP3S(), logsnr_grid, 3, (80, 160)),
        (UniPC(order=1), logsnr_grid, 2, (80, 160)),
        (UniPC(order=1, variant="bh1", prediction="eps"), logsnr_grid, 2, (80, 160)),
        (UniPC(order=2, corrector=False), logsnr_grid, 2, (80, 160)),
        (UniPC(order=2), logsnr_grid, 3, (80, 160)),
        (UniPC(order=2, variant="bh1", prediction="eps"), logsnr_grid, 3, (80, 160)),
        (UniPC(order=3, corrector=False), karras_grid, 3, (80, 160)),
        (UniPC(order=3), karras_grid, 4, (80, 160)),
        (IPNDM(order=3), logsnr_grid, 2, (80, 160)),
    ],
    ids=lambda value: label(value) if isinstance(value, StepSolver) else getattr(value, "__name__", ""),
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
        ("euler", 1, (80, 160)),
        ("midpoint", 2, (160, 320)),
        ("heun2", 2, (160, 320)),
        ("heun3", 3, (80, 160)),
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
@pytest.mark.parametrize(
    "solver, order",
    [
        (DDIM(), 1),
        (Heun(), 2),
        (DPMSolver(order=2), 2),
        (DPMSolver(order=3), 3),
        (DPMSolverPP2S(), 2),
        (DPMSolverPP3S(), 3),
        (DPMSolverPP2M(), 2),
        (DPMSolverPP3M(), 2),
        (DPMSolverPP3M(exact=True), 3.2),
        (DPMSolverMultistep(order=3, prediction="eps", exact=True), 3),
        (UniPC(order=1), 2),
        (UniPC(order=2), 3),
        (UniPC(order=2, variant="bh1", prediction="eps"), 3),
        (IPNDM(), 2),
    ],
    ids=lambda value: label(value) if isinstance(value, StepSolver) else str(value),
)
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


@pytest.mark.parametrize("solver", [Heun(steps=1), DPMSolverPP2M(steps=1), DDIM(steps=1)], ids=name)
def test_a_step_to_no_noise_lands_on_the_denoised_state(solver: StepSolver) -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    t, s = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    interval = Interval.between(denoiser, t, s)
    y, _ = solver.step(denoiser, x, interval, lambda t, s: torch.zeros_like(x), None)
    torch.testing.assert_close(y, denoiser(x, t), rtol=1e-9, atol=1e-9)
    if isinstance(solver, DPMSolverPP2M):  # and with history: first order again, not infinity
        y, _ = solver.step(denoiser, x, interval, lambda t, s: x, (torch.ones_like(x), 0.1))
        torch.testing.assert_close(y, denoiser(x, t), rtol=1e-9, atol=1e-9)


DETERMINISTIC = [
    (Heun(), 2),
    (DPMSolver(order=2), 2),
    (DPMSolver(order=3), 3),
    (DPMSolverPP2S(), 2),
    (DPMSolverPP3S(), 3),
    (DPMSolverFast(), 2),
    (DPMSolverPP2M(), 2),
    (DPMSolverPP3M(exact=True), 2),  # the first step backwards, of first order, is a large part of the error
    (DPMSolverMultistep(prediction="eps"), 2),
    (UniPC(order=2), 3),
    (UniPC(order=3, prediction="eps"), 3),
    (IPNDM(order=2), 2),
]


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
@pytest.mark.parametrize(
    "solver, order", DETERMINISTIC, ids=lambda value: label(value) if isinstance(value, StepSolver) else ""
)
def test_decoding_undoes_encoding_to_the_order(sde: SDE, solver: StepSolver, order: float) -> None:
    denoiser, generator = mixture(sde), torch.Generator().manual_seed(0)
    z = torch.randn(32, 2, generator=generator, dtype=torch.float64)
    x = sde.perturb(denoiser.sample(32, generator=generator), torch.tensor(0.05, dtype=torch.float64), z)

    def around(count: int) -> Tensor:
        run = replace(solver, steps=count, grid=logsnr_grid, t_end=0.05, denoise=False)
        return run(denoiser, run.encode(denoiser, x))

    calls = 3 if isinstance(solver, DPMSolverFast) else 1
    assert convergence_order(around, x, steps=(60 * calls, 120 * calls)) > order - 0.2
    torch.testing.assert_close(around(120 * calls), x, rtol=0, atol=5e-3)


@pytest.mark.parametrize("solver", [solver for solver, _ in DETERMINISTIC], ids=label)
def test_steps_by_hand_are_the_run_and_each_sample_may_have_its_own_time(solver: StepSolver) -> None:
    sde, steps = VPSDE(), 6
    denoiser, x = mixture(sde), torch.randn(3, 2, dtype=torch.float64)
    run = replace(solver, steps=3 * steps + 1 if isinstance(solver, DPMSolverFast) else steps, t_end=0.1, denoise=False)
    times = [step.t for step in run.trajectory(denoiser, x)]
    if isinstance(solver, DPMSolverFast):  # by hand all its steps are of order 3
        run = DPMSolver(order=3, steps=len(times) - 1, t_end=0.1, denoise=False)

    y, state = x, None
    rows = [x[k : k + 1] for k in range(3)]
    earlier: list[object] = [None, None, None]
    together, shared = x, None
    for i in range(len(times) - 1):
        y, state = solver.step(denoiser, y, Interval.between(sde, times[i], times[i + 1]), unheard, state)
        own = (
            torch.stack([times[i] * scale for scale in (1, 0.9, 0.8)]),
            torch.stack([times[i + 1] * scale for scale in (1, 0.9, 0.8)]),
        )
        together, shared = solver.step(denoiser, together, Interval.between(sde, *own, together), unheard, shared)
        for k in range(3):
            interval = Interval.between(sde, own[0][k], own[1][k])
            rows[k], earlier[k] = solver.step(denoiser, rows[k], interval, unheard, earlier[k])
    torch.testing.assert_close(y, run(denoiser, x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(together, torch.cat(rows), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [solver for solver, _ in DETERMINISTIC], ids=label)
def test_single_precision_and_events_of_any_shape(solver: StepSolver) -> None:
    sde, x = VESDE(), 50 * torch.randn(4, 1, 2, 3)
    y = replace(solver, steps=30)(GaussianDenoiser(sde, MEAN, STD), x)
    exact = replace(solver, steps=30)(GaussianDenoiser(sde, MEAN, STD), x.double())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=1e-3)


def unheard(t: Tensor, s: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver drew noise")
