"""SEEDS and ER-SDE against transcriptions of their papers; strong orders of the stochastic exponential solvers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, chain_moments, mixture, moments, name, replay, std_of_chains
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VPSDE,
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NoiseSource,
    StepSolver,
    logsnr_grid,
)
from scoresde.solvers.dpm_solver import DPMSolver
from scoresde.solvers.exponential_sde import ERSDE, SEEDS, er_sde_scale, kernel_moments, power_scale
from scoresde.solvers.sa_solver import SASolver
from scoresde.solvers.sde_dpm_solver import DPMSolverPPSDE, SDEDPMSolverPP
from scoresde.testing import convergence_order

UNEVEN = torch.tensor([1.0, 0.85, 0.4, 0.33, 0.1, 0.02], dtype=torch.float64)
LAST = len(UNEVEN) - 1
REVERSE_SDE = partial(power_scale, exponent=2.0)
ODE = partial(power_scale, exponent=1.0)


def on_uneven_grid(solver: StepSolver, denoise: bool = True) -> StepSolver:
    return replace(solver, steps=LAST, grid=lambda sde, steps, t_end: UNEVEN, t_end=float(UNEVEN[-1]), denoise=denoise)


class Linear:
    """The linear SDE for η = 1 between levels, and the φ-functions of SEEDS, in "data" or "eps"."""

    def __init__(self, sde: SDE, prediction: str) -> None:
        self.sde, self.eps = sde, prediction == "eps"

    def gap(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.log(self.sde.alpha(b) / self.sde.sigma(b)) - torch.log(self.sde.alpha(a) / self.sde.sigma(a))

    def move(self, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        factor = self.sde.alpha(b) / self.sde.alpha(a)
        return (factor if self.eps else (self.sde.sigma(b) / self.sde.sigma(a)) ** 2 / factor) * y

    def noise(self, a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        h = self.gap(a, b)
        return self.sde.sigma(b) * (torch.exp(2 * h) - 1 if self.eps else 1 - torch.exp(-2 * h)).sqrt() * z

    def gain(self, u: Tensor) -> Tensor:
        return -2 * self.sde.sigma(u) if self.eps else self.sde.alpha(u)

    def phi_1(self, h: Tensor) -> Tensor:
        return torch.exp(h) - 1 if self.eps else 1 - torch.exp(-2 * h)

    def phi_2(self, h: Tensor) -> Tensor:
        return (torch.exp(h) - 1) / h - 1 if self.eps else 1 - self.phi_1(h) / (2 * h)


def seeds(denoiser: Denoiser, x: Tensor, noises: Tensor, order: int, prediction: str) -> Tensor:
    """Stage by stage, every noise carried on by the linear SDE."""
    sde, part = denoiser.sde, Linear(denoiser.sde, prediction)
    model = denoiser.eps if prediction == "eps" else denoiser
    for z, s, t in zip(noises, UNEVEN[:-1], UNEVEN[1:], strict=True):
        h = part.gap(s, t)
        m_1, to_t = model(x, s), part.move(s, t, x)
        if order == 1:
            x = to_t + part.gain(t) * part.phi_1(h) * m_1 + part.noise(s, t, z[0])
            continue
        r = 1 / 2 if order == 2 else 1 / 3
        u = sde.time(sde.logsnr(s) + 2 * r * h)
        n_u = part.noise(s, u, z[0])
        m_2 = model(part.move(s, u, x) + part.gain(u) * part.phi_1(r * h) * m_1 + n_u, u)
        if order == 2:
            n_t = part.move(u, t, n_u) + part.noise(u, t, z[1])
            x = to_t + part.gain(t) * (part.phi_1(h) * m_1 + 2 * part.phi_2(h) * (m_2 - m_1)) + n_t
            continue
        v = sde.time(sde.logsnr(s) + 4 / 3 * h)
        n_v = part.move(u, v, n_u) + part.noise(u, v, z[1])
        rise = part.phi_1(2 / 3 * h) * m_1 + 2 * part.phi_2(2 / 3 * h) * (m_2 - m_1)
        m_3 = model(part.move(s, v, x) + part.gain(v) * rise + n_v, v)
        n_t = part.move(v, t, n_v) + part.noise(v, t, z[2])
        x = to_t + part.gain(t) * (part.phi_1(h) * m_1 + 1.5 * part.phi_2(h) * (m_3 - m_1)) + n_t
    return x


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("prediction", ["data", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_seeds_stage_by_stage_on_an_uneven_grid(sde: SDE, prediction: str, order: int) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, order, 8, 2, dtype=torch.float64)
    solver = on_uneven_grid(SEEDS(order=order, prediction=prediction), denoise=False)
    y = solver(denoiser, x, noise=replay(noises.flatten(0, 1)))
    torch.testing.assert_close(y, seeds(denoiser, x, noises, order, prediction), rtol=1e-7, atol=1e-7)


def er_sde(denoiser: Denoiser, x: Tensor, noises: Tensor, order: int, phi: Any) -> Tensor:
    """The authors' loop for x/α and ρ = σ/α, with their divided differences and a fine sum for their integrals."""
    sde = denoiser.sde
    rho = sde.sigma(UNEVEN) / sde.alpha(UNEVEN)
    x = x / sde.alpha(UNEVEN[0])
    old = old_d = None
    for i in range(LAST):
        x0 = denoiser(x * sde.alpha(UNEVEN[i]), UNEVEN[i])
        r = phi(rho[i + 1]) / phi(rho[i])
        step = r * x + (1 - r) * x0 + (rho[i + 1] ** 2 - rho[i] ** 2 * r**2).clamp_min(0).sqrt() * noises[i]
        fine = torch.logspace(rho[i + 1].log10().item(), rho[i].log10().item(), 40001, dtype=torch.float64)
        if order > 1 and old is not None:
            d = (x0 - old) / (rho[i] - rho[i - 1])
            s_int = torch.trapezoid(1 / phi(fine), fine)
            step = step + (rho[i + 1] - rho[i] + s_int * phi(rho[i + 1])) * d
            if order > 2 and old_d is not None:
                dd = 2 * (d - old_d) / (rho[i] - rho[i - 2])
                s_d_int = torch.trapezoid((fine - rho[i]) / phi(fine), fine)
                step = step + ((rho[i + 1] - rho[i]) ** 2 / 2 + s_d_int * phi(rho[i + 1])) * dd
            old_d = d
        x, old = step, x0
    return x * sde.alpha(UNEVEN[-1])


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("scale", [er_sde_scale, REVERSE_SDE], ids=["er_sde_5", "sde"])
def test_er_sde_is_the_authors_loop_on_an_uneven_grid(sde: SDE, order: int, scale: Any) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)
    y = on_uneven_grid(ERSDE(order=order, scale=scale), denoise=False)(denoiser, x, noise=replay(noises))
    torch.testing.assert_close(y, er_sde(denoiser, x, noises, order, scale), rtol=1e-5, atol=1e-5)


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
        same(ERSDE(order=order, scale=REVERSE_SDE, exact=True, extrapolate=True), adams)


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


@pytest.mark.parametrize("exact, order", [(False, 2), (True, 3)])
def test_published_er_sde_3_is_of_second_order_and_exact_of_third(exact: bool, order: int) -> None:
    sde = VPSDE()
    denoiser, (_, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 0.05)
    solver = ERSDE(order=3, exact=exact, scale=ODE, grid=logsnr_grid, t_end=0.05, denoise=False)

    def solve(steps: int) -> Tensor:
        return chain_moments(replace(solver, steps=steps), denoiser, *moments(sde, 1.0))[1]

    assert convergence_order(solve, std, steps=(160, 320)) == pytest.approx(order, abs=0.2)


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
        y, state = solver.step(denoiser, y, t, s, noise, state)
        together, joint = solver.step(denoiser, together, t.expand(4), s.expand(4), twin, joint)
    torch.testing.assert_close(y, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together, whole, rtol=1e-9, atol=1e-9)

    landed = on_uneven_grid(solver)(denoiser, x, noise=replay(noises))
    if solver == ERSDE(extrapolate=True):
        assert float((landed - denoiser(y, UNEVEN[-1])).abs().max()) < 0.2
    else:
        torch.testing.assert_close(landed, denoiser(y, UNEVEN[-1]), rtol=1e-9, atol=1e-9)
    zero = torch.zeros((), dtype=torch.float64)
    by_hand, _ = solver.step(denoiser, y, UNEVEN[-1], zero, lambda t, s: torch.ones_like(x), state)
    torch.testing.assert_close(by_hand, landed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", [-30.0, -1.0, -1e-3, 1e-9, 0.5, 1.99, 2.01, 40.0])
def test_kernel_moments_are_their_integrals(decay: float) -> None:
    u, masses = _legendre(200)
    for n, value in enumerate(kernel_moments(torch.tensor(decay, dtype=torch.float64), 4)):
        integral = (masses * decay * torch.exp(-decay * (1 - u)) * u**n).sum()
        torch.testing.assert_close(value, integral, rtol=1e-11, atol=0)


def _legendre(points: int) -> tuple[Tensor, Tensor]:
    import numpy as np

    nodes, masses = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * masses)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SEEDS(order=4), "SEEDS needs order 1, 2 or 3, got 4"),
        (lambda: SEEDS(prediction="v"), "SEEDS needs prediction data or eps, got 'v'"),
        (lambda: SEEDS(eta=-1.0), "SEEDS needs 0 <= eta <= 1, got eta=-1.0"),
        (lambda: ERSDE(order=0), "ERSDE needs order 1, 2 or 3, got 0"),
        (
            lambda: ERSDE(scale=torch.sqrt)(mixture(VPSDE()), torch.zeros(1, 2)),
            r"ERSDE needs a noise scale φ\(ρ\) that grows at least as fast as ρ.*power_scale",
        ),
    ],
)
def test_wrong_arguments_of_exponential_sde_solvers_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
