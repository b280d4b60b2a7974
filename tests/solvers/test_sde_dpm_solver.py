"""SDE-DPM-Solver++ against literal transcriptions of the papers' updates, exact moments and its reductions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, chain_moments, mixture, moments, name, replay, std_of_chains
from torch import Tensor

from scoresde import (
    DDPM,
    SDE,
    VPSDE,
    CosineSDE,
    Denoiser,
    DPMSolverPP2M,
    GaussianDenoiser,
    Interval,
    StepSolver,
    logsnr_grid,
)
from scoresde.solvers.sde_dpm_solver import DPMSolverPPSDE, SDEDPMSolverPP
from scoresde.testing import convergence_order

UNEVEN = torch.tensor([1.0, 0.85, 0.4, 0.33, 0.1, 0.02], dtype=torch.float64)
LAST = len(UNEVEN) - 1


def on_uneven_grid(solver: StepSolver, denoise: bool = True) -> StepSolver:
    return replace(solver, steps=LAST, grid=lambda sde, steps, t_end: UNEVEN, t_end=float(UNEVEN[-1]), denoise=denoise)


def k_diffusion(denoiser: Denoiser, x: Tensor, noises: Tensor, order: int, eta: float, exact: bool) -> Tensor:
    """dpmpp_2m_sde (midpoint, or heun if exact) and dpmpp_3m_sde in their own notation, on x/α and σ/α."""
    sde, eta = denoiser.sde, eta**2
    sigmas = sde.sigma(UNEVEN) / sde.alpha(UNEVEN)
    x = x / sde.alpha(UNEVEN[0])
    old_1 = old_2 = h_1 = h_2 = None
    for i in range(LAST):
        denoised = denoiser(x * sde.alpha(UNEVEN[i]), UNEVEN[i])
        t, s = -sigmas[i].log(), -sigmas[i + 1].log()
        h = s - t
        h_eta = h * (eta + 1)
        x = torch.exp(-h_eta) * x + (1 - torch.exp(-h_eta)) * denoised
        if order == 2 and old_1 is not None:
            r = h_1 / h
            if exact:
                x = x + ((1 - torch.exp(-h_eta)) / -h_eta + 1) * (1 / r) * (denoised - old_1)
            else:
                x = x + 0.5 * (1 - torch.exp(-h_eta)) * (1 / r) * (denoised - old_1)
        if order == 3 and old_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - old_1) / r0, (old_1 - old_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            phi_2 = (torch.exp(-h_eta) - 1) / h_eta + 1
            phi_3 = phi_2 / h_eta - 0.5
            x = x + phi_2 * d1 - (2 if exact else 1) * phi_3 * d2  # exact: the second derivative is 2 d2
        elif order == 3 and old_1 is not None:
            x = x + ((torch.exp(-h_eta) - 1) / h_eta + 1) * (denoised - old_1) * h / h_1
        x = x + sigmas[i + 1] * torch.sqrt(1 - torch.exp(-2 * h * eta)) * noises[i]
        old_1, old_2, h_1, h_2 = denoised, old_1, h, h_1
    return x * sde.alpha(UNEVEN[-1])


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("order, exact", [(1, False), (2, False), (2, True), (3, False), (3, True)])
def test_steps_are_those_of_k_diffusion_on_an_uneven_grid(sde: SDE, eta: float, order: int, exact: bool) -> None:
    denoiser = mixture(sde)
    x = sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)
    solver = on_uneven_grid(SDEDPMSolverPP(order=order, eta=eta, exact=exact), denoise=False)
    y = solver(denoiser, x, noise=replay(noises))
    torch.testing.assert_close(y, k_diffusion(denoiser, x, noises, order, eta, exact), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_second_order_is_the_papers_sde_dpm_solver_pp_2m(sde: SDE) -> None:
    """Lu et al. 2022, App. B.5: x_s = σ_s/σ_t e^(−h) x_t + α_s (1 − e^(−2h)) D + σ_s √(1 − e^(−2h)) z."""
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)
    y = on_uneven_grid(SDEDPMSolverPP(order=2), denoise=False)(denoiser, x, noise=replay(noises))

    lam = torch.log(sde.alpha(UNEVEN) / sde.sigma(UNEVEN))
    buffer: list[Tensor] = []
    for i in range(1, LAST + 1):
        h = lam[i] - lam[i - 1]
        buffer.append(denoiser(x, UNEVEN[i - 1]))
        d = buffer[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sde.sigma(UNEVEN[i]) / sde.sigma(UNEVEN[i - 1]) * torch.exp(-h) * x
        x = x + sde.alpha(UNEVEN[i]) * (1 - torch.exp(-2 * h)) * d
        x = x + sde.sigma(UNEVEN[i]) * torch.sqrt(1 - torch.exp(-2 * h)) * noises[i - 1]
    torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("r", [0.5, 0.3, 1.0])
def test_the_single_step_solver_is_dpmpp_sde_with_both_noises_from_one_path(sde: SDE, r: float) -> None:
    """k-diffusion's code for η = 1, where an ancestral step goes down to σ_s²/σ_t and adds √(σ_s² − σ_down²)."""
    denoiser = mixture(sde)
    start = sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 2, 8, 2, dtype=torch.float64)
    solver = on_uneven_grid(DPMSolverPPSDE(r=r), denoise=False)
    y = solver(denoiser, start, noise=replay(noises.flatten(0, 1) if r < 1 else noises[:, 0]))

    def ancestral(sigma_from: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor]:
        down = sigma_to**2 / sigma_from
        return down, torch.sqrt(sigma_to**2 - down**2)

    sigmas = sde.sigma(UNEVEN) / sde.alpha(UNEVEN)
    x = start / sde.alpha(UNEVEN[0])
    for i in range(LAST):
        a, b = sigmas[i], sigmas[i + 1]
        middle = a ** (1 - r) * b**r
        time = sde.time(-2 * middle.log()) if r < 1 else UNEVEN[i + 1]
        denoised = denoiser(x * sde.alpha(UNEVEN[i]), UNEVEN[i])
        down, up = ancestral(a, middle)
        path = up * noises[i, 0]
        x_2 = down / a * x + (1 - down / a) * denoised + path
        denoised_2 = denoiser(x_2 * sde.alpha(time), time)
        down, _ = ancestral(a, b)
        down_2, up_2 = ancestral(middle, b)
        d = (1 - 1 / (2 * r)) * denoised + 1 / (2 * r) * denoised_2
        rest = up_2 * noises[i, 1] if r < 1 else 0
        x = down / a * x + (1 - down / a) * d + down_2 / middle * path + rest
    torch.testing.assert_close(y, x * sde.alpha(UNEVEN[-1]), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_reductions(sde: SDE) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)

    def run(solver: StepSolver) -> Tensor:
        return on_uneven_grid(solver)(denoiser, x, noise=replay(noises))

    torch.testing.assert_close(run(SDEDPMSolverPP(order=1)), run(DDPM()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(SDEDPMSolverPP(order=2, eta=0)), run(DPMSolverPP2M()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver, order, bound",
    [
        (SDEDPMSolverPP(order=1), 1, 0.12),
        (SDEDPMSolverPP(order=2), 2, 1e-2),
        (SDEDPMSolverPP(order=2, exact=True, eta=0.5), 2, 1e-2),
        (SDEDPMSolverPP(order=3), 2, 1e-2),
        (SDEDPMSolverPP(order=3, exact=True, eta=0.5), 2, 4e-3),
        (DPMSolverPPSDE(), 2, 1e-2),
        (DPMSolverPPSDE(eta=0.5, r=0.7), 2, 1e-2),
    ],
    ids=name,
)
def test_variance_of_the_whole_chain_converges_at_the_weak_order(
    sde: SDE, solver: StepSolver, order: int, bound: float
) -> None:
    """Without Monte Carlo; a lost factor in the noise leaves a constant error, a dropped history order one."""
    solve, std = std_of_chains(sde, solver)

    assert convergence_order(solve, std, steps=(100, 200)) > order - 0.2
    assert abs(float(solve(100) / std) - 1) < bound


@pytest.mark.parametrize("sde", [VPSDE(), CosineSDE()], ids=name)
@pytest.mark.parametrize("exact, order", [(False, 2), (True, 3)])
def test_only_the_exact_third_order_solver_is_of_third_order(sde: SDE, exact: bool, order: int) -> None:
    denoiser, (_, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 0.05)
    solver = SDEDPMSolverPP(order=3, exact=exact, eta=0, grid=logsnr_grid, t_end=0.05, denoise=False)

    def solve(steps: int) -> Tensor:
        return chain_moments(replace(solver, steps=steps), denoiser, *moments(sde, 1.0))[1]

    assert convergence_order(solve, std, steps=(160, 320)) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
    "solver", [SDEDPMSolverPP(order=1), SDEDPMSolverPP(order=2), SDEDPMSolverPP(order=3), DPMSolverPPSDE()], ids=name
)
def test_steps_by_hand_per_sample_times_and_the_step_to_no_noise(solver: StepSolver) -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(4, 2, dtype=torch.float64)
    noises = torch.randn(2 * LAST, 4, 2, dtype=torch.float64)
    whole = on_uneven_grid(solver)(denoiser, x, noise=replay(noises))
    noise, state, y, together, joint = replay(noises), None, x, x, None
    twin = replay(noises)
    for t, s in pairwise(UNEVEN):
        y, state = solver.step(denoiser, y, Interval.between(denoiser, t, s), noise, state)
        each = Interval.between(denoiser, t.expand(4), s.expand(4), x)
        together, joint = solver.step(denoiser, together, each, twin, joint)
    torch.testing.assert_close(together, y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole, denoiser(y, UNEVEN[-1]), rtol=1e-9, atol=1e-9)

    last = Interval.between(denoiser, UNEVEN[-1], torch.zeros((), dtype=torch.float64))
    landed, _ = solver.step(denoiser, y, last, lambda t, s: torch.ones_like(x), state)
    torch.testing.assert_close(landed, whole, rtol=1e-9, atol=1e-9)


def test_only_eta_zero_is_deterministic() -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(4, 2, dtype=torch.float64)
    solver = SDEDPMSolverPP(eta=0, steps=200, t_end=0.01, denoise=False)
    latent = solver.encode(denoiser, solver(denoiser, x))
    torch.testing.assert_close(latent, x, rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="cannot encode"):
        SDEDPMSolverPP(eta=0.5).encode(denoiser, x)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SDEDPMSolverPP(order=4), "SDEDPMSolverPP needs order 1, 2 or 3, got 4"),
        (lambda: SDEDPMSolverPP(eta=1.5), "SDEDPMSolverPP needs 0 <= eta <= 1, got eta=1.5"),
        (lambda: DPMSolverPPSDE(r=0.0), "DPMSolverPPSDE needs 0 < r <= 1, got r=0.0"),
    ],
)
def test_wrong_arguments_of_sde_dpm_solvers_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
