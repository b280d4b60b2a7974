"""What SEEDS, ER-SDE, SA-Solver and SDE-DPM-Solver++ share: special cases, weak and strong orders, steps by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from closed_forms import SDES, mixture, name, replay, std_of_chains
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VPSDE,
    Denoiser,
    GaussianMixtureDenoiser,
    Interval,
    NoiseSource,
    StepSolver,
    logsnr_grid,
)
from scoresde.solvers.dpm_solver import DPMSolver
from scoresde.solvers.er_sde import ERSDE, power_scale
from scoresde.solvers.sa_solver import SASolver
from scoresde.solvers.sde_dpm_solver import DPMSolverPPSDE, SDEDPMSolverPP
from scoresde.solvers.seeds import SEEDS
from scoresde.testing import convergence_order

UNEVEN = torch.tensor([1.0, 0.85, 0.4, 0.33, 0.1, 0.02], dtype=torch.float64)
LAST = len(UNEVEN) - 1
REVERSE_SDE = partial(power_scale, exponent=2.0)
ODE = partial(power_scale, exponent=1.0)


def on_uneven_grid(solver: StepSolver, denoise: bool = True) -> StepSolver:
    return replace(solver, steps=LAST, grid=lambda sde, steps, t_end: UNEVEN, t_end=float(UNEVEN[-1]), denoise=denoise)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_special_cases_are_other_solvers(sde: SDE) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(3 * LAST, 8, 2, dtype=torch.float64)

    def same(a: StepSolver, b: StepSolver, denoise: bool = True) -> None:
        first, second = (on_uneven_grid(solver, denoise)(denoiser, x, noise=replay(noises)) for solver in (a, b))
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)

    same(SEEDS(order=1), DDPM())
    same(SEEDS(order=3, eta=0), DPMSolver(order=3, prediction="data"))
    same(SEEDS(order=3, eta=0, prediction="eps"), DPMSolver(order=3, prediction="eps"))
    same(ERSDE(order=1, scale=REVERSE_SDE), DDPM())
    same(ERSDE(order=1, scale=ODE), DDIM())
    same(ERSDE(order=1, scale=partial(power_scale, exponent=1.25)), SDEDPMSolverPP(order=1, eta=0.5))
    for order in (2, 3):  # the polynomial in ρ, to ρ = 0
        adams = SASolver(predictor_order=order, corrector_order=0, tau=1, clock="ratio")
        same(ERSDE(order=order, scale=REVERSE_SDE, exact=order == 3, extrapolate=True), adams)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver, order",
    [
        (SEEDS(order=2), 2),
        (SEEDS(order=2, eta=0.5), 2),
        (SEEDS(order=3), 1.9),
        (SEEDS(order=3, eta=0), 3),
        (ERSDE(order=1), 1),
        (ERSDE(order=3), 2),
        (ERSDE(order=3, exact=True, scale=REVERSE_SDE), 2),
    ],
    ids=name,
)
def test_variance_of_the_exponential_solvers_converges_at_the_weak_order(
    sde: SDE, solver: StepSolver, order: float
) -> None:
    solve, std = std_of_chains(sde, solver)

    assert convergence_order(solve, std, steps=(100, 200)) > order - 0.2
    assert abs(float(solve(100) / std) - 1) < (0.12 if order == 1 else 0.02)


FINE, END = 3 * 2**8, 0.1


def one_path(sde: SDE, x: Tensor, prediction: str, generator: torch.Generator) -> NoiseSource:
    """Noise of the linear SDE over any steps of a fine grid, summed exactly from the same fine noises."""
    times = logsnr_grid(sde, FINE, END)
    lam = 0.5 * sde.logsnr(times)
    z = torch.randn(FINE, *x.shape, generator=generator, dtype=x.dtype)
    # x/α gains e^(−λ) √(1 − e^(−2h)) z and decays by e^(−2h) (data), or gains e^(−λ) √(e^(2h) − 1) z (eps); η = 1
    h = lam.diff()
    share = torch.exp(2 * h) - 1 if prediction == "eps" else 1 - torch.exp(-2 * h)
    gains = torch.exp(-lam[1:]) * share.sqrt()
    growth = torch.ones_like(lam) if prediction == "eps" else torch.exp(2 * lam)  # removes the decay
    sums = torch.cat([torch.zeros_like(z[:1]), ((growth[1:] * gains)[:, None, None] * z).cumsum(0)])

    def draw(t: Tensor, s: Tensor) -> Tensor:
        a, b = (int(((0.5 * sde.logsnr(u) - lam[0]) / (lam[-1] - lam[0]) * FINE).round()) for u in (t, s))
        gap = lam[b] - lam[a]
        whole = torch.exp(2 * gap) - 1 if prediction == "eps" else 1 - torch.exp(-2 * gap)
        return (sums[b] - sums[a]) / growth[b] / (torch.exp(-lam[b]) * whole.sqrt())

    return draw


def overlapping(sde: SDE) -> Denoiser:
    means = torch.tensor([[-0.8, 0.3], [0.7, -0.4], [0.1, 0.9]])
    return GaussianMixtureDenoiser(sde, torch.tensor([0.5, 0.3, 0.2]), means, torch.full((3, 2), 0.3))


@pytest.mark.parametrize(
    "solver, prediction, error",
    [
        (SDEDPMSolverPP(order=1), "data", 0.1),
        (SDEDPMSolverPP(order=2), "data", 0.08),
        (SDEDPMSolverPP(order=3, exact=True), "data", 0.08),
        (DPMSolverPPSDE(), "data", 0.08),
        (SASolver(), "data", 0.08),
        (ERSDE(order=3, scale=REVERSE_SDE), "data", 0.08),
        (SEEDS(order=2), "data", 0.08),
        (SEEDS(order=3), "data", 0.08),
        (SEEDS(order=2, prediction="eps"), "eps", 0.08),
    ],
    ids=name,
)
def test_strong_order_is_one_under_a_fixed_path(solver: StepSolver, prediction: str, error: float) -> None:
    """On overlapping modes, in root mean square over paths; a noise of the wrong part of a step leaves order ½ or 0."""
    sde = VPSDE()
    denoiser = overlapping(sde)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    noise = one_path(sde, x, prediction, generator)

    def solve(steps: int) -> Tensor:
        return replace(solver, steps=steps, grid=logsnr_grid, t_end=END, denoise=False)(denoiser, x, noise=noise)

    fine = SEEDS(order=2, prediction=prediction, steps=FINE // 2, t_end=END, denoise=False)(denoiser, x, noise=noise)
    assert convergence_order(solve, fine, steps=(16, 32, 64)) > 0.75
    assert float((solve(32) - fine).square().mean().sqrt()) < error


@pytest.mark.parametrize(
    "solver", [SEEDS(order=2), SEEDS(order=3, prediction="eps"), ERSDE(), ERSDE(extrapolate=True)], ids=name
)
def test_exponential_steps_by_hand_per_sample_times_and_the_step_to_no_noise(solver: StepSolver) -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(4, 2, dtype=torch.float64)
    noises = torch.randn(3 * LAST, 4, 2, dtype=torch.float64)
    whole = on_uneven_grid(solver, denoise=False)(denoiser, x, noise=replay(noises))
    noise, twin, state, joint, y, together = replay(noises), replay(noises), None, None, x, x
    for t, s in pairwise(UNEVEN):
        y, state = solver.step(denoiser, y, Interval.between(denoiser, t, s), noise, state)
        each = Interval.between(denoiser, t.expand(4), s.expand(4), x)
        together, joint = solver.step(denoiser, together, each, twin, joint)
    torch.testing.assert_close(y, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together, whole, rtol=1e-9, atol=1e-9)

    landed = on_uneven_grid(solver)(denoiser, x, noise=replay(noises))
    if solver == ERSDE(extrapolate=True):
        assert float((landed - denoiser(y, UNEVEN[-1])).abs().max()) < 0.2
    else:
        torch.testing.assert_close(landed, denoiser(y, UNEVEN[-1]), rtol=1e-9, atol=1e-9)
    last = Interval.between(denoiser, UNEVEN[-1], torch.zeros((), dtype=torch.float64))
    by_hand, _ = solver.step(denoiser, y, last, lambda t, s: torch.ones_like(x), state)
    torch.testing.assert_close(by_hand, landed, rtol=1e-9, atol=1e-9)
