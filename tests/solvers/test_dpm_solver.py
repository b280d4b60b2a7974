"""Single-step DPM-Solvers and EDM's sampler, against second transcriptions of the papers' algorithms."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, chain_moments, mixture, moments, name
from torch import Tensor

from scoresde import SDE, VESDE, VPSDE, Denoiser, GaussianDenoiser
from scoresde.sde.grids import Grid, karras_grid, logsnr_grid
from scoresde.sde.levels import Interval
from scoresde.solvers.base import StepSolver
from scoresde.solvers.dpm_solver import DPMSolver, DPMSolverFast, DPMSolverPP2S, DPMSolverPP3S
from scoresde.solvers.exponential import phi
from scoresde.solvers.heun import Heun
from scoresde.testing import convergence_order

UNEVEN = torch.tensor([1.0, 0.8, 0.35, 0.3, 0.02], dtype=torch.float64)


def unheard(t: Tensor, s: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver drew noise")


def placed(times: Tensor) -> Grid:
    return lambda sde, steps, t_end: times


class Counting(Denoiser):
    """Another denoiser, and the times at which it was asked."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.times = inner, inner.sde, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.times.append(float(t))
        return self.inner(x, t)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.times.append(float(t))
        return self.inner.eps(x, t)


def level(sde: SDE, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = sde.time(2 * lam)
    return t, sde.alpha(t), sde.sigma(t)


def dpm_solver(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, order: int) -> Tensor:
    """DPM-Solver-1, -2 (Algorithm 1) and -3 (Algorithm 2), in the paper's own terms."""
    sde = denoiser.sde
    lam, lam_s = (torch.log(sde.alpha(u) / sde.sigma(u)) for u in (t, s))
    h, alpha, eps = lam_s - lam, sde.alpha(t), denoiser.eps(x, t)
    if order == 1:
        return sde.alpha(s) / alpha * x - sde.sigma(s) * (h.exp() - 1) * eps
    if order == 2:
        t1, alpha1, sigma1 = level(sde, (lam + lam_s) / 2)
        u = alpha1 / alpha * x - sigma1 * ((h / 2).exp() - 1) * eps
        return sde.alpha(s) / alpha * x - sde.sigma(s) * (h.exp() - 1) * denoiser.eps(u, t1)
    r1, r2 = 1 / 3, 2 / 3
    t1, alpha1, sigma1 = level(sde, lam + r1 * h)
    t2, alpha2, sigma2 = level(sde, lam + r2 * h)
    u1 = alpha1 / alpha * x - sigma1 * ((r1 * h).exp() - 1) * eps
    d1 = denoiser.eps(u1, t1) - eps
    u2 = alpha2 / alpha * x - sigma2 * ((r2 * h).exp() - 1) * eps
    u2 = u2 - sigma2 * r2 / r1 * (((r2 * h).exp() - 1) / (r2 * h) - 1) * d1
    d2 = denoiser.eps(u2, t2) - eps
    first = sde.alpha(s) / alpha * x - sde.sigma(s) * (h.exp() - 1) * eps
    return first - sde.sigma(s) / r2 * ((h.exp() - 1) / h - 1) * d2


def dpm_solver_pp(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, order: int) -> Tensor:
    """DPM-Solver++(2S) (Algorithm 1, r = 1/2) and (3S) as its authors write it."""
    sde = denoiser.sde
    lam, lam_s = (torch.log(sde.alpha(u) / sde.sigma(u)) for u in (t, s))
    h, sigma, x0 = lam_s - lam, sde.sigma(t), denoiser(x, t)
    if order == 2:
        r = 1 / 2
        t1, alpha1, sigma1 = level(sde, lam + r * h)
        u = sigma1 / sigma * x - alpha1 * ((-r * h).exp() - 1) * x0
        blend = (1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * denoiser(u, t1)
        return sde.sigma(s) / sigma * x - sde.alpha(s) * ((-h).exp() - 1) * blend
    r1, r2 = 1 / 3, 2 / 3
    t1, alpha1, sigma1 = level(sde, lam + r1 * h)
    t2, alpha2, sigma2 = level(sde, lam + r2 * h)
    u1 = sigma1 / sigma * x - alpha1 * ((-r1 * h).exp() - 1) * x0
    d1 = denoiser(u1, t1) - x0
    phi_22 = ((-r2 * h).exp() - 1) / (r2 * h) + 1
    u2 = sigma2 / sigma * x - alpha2 * ((-r2 * h).exp() - 1) * x0 + r2 / r1 * alpha2 * phi_22 * d1
    d2 = denoiser(u2, t2) - x0
    phi_2 = ((-h).exp() - 1) / h + 1
    return sde.sigma(s) / sigma * x - sde.alpha(s) * ((-h).exp() - 1) * x0 + 1 / r2 * sde.alpha(s) * phi_2 * d2


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver, literal, order",
    [
        (DPMSolver(order=1), dpm_solver, 1),
        (DPMSolver(order=2), dpm_solver, 2),
        (DPMSolver(order=3), dpm_solver, 3),
        (DPMSolverPP2S(), dpm_solver_pp, 2),
        (DPMSolverPP3S(), dpm_solver_pp, 3),
    ],
    ids=["1", "2", "3", "2S", "3S"],
)
def test_the_papers_algorithms_on_an_uneven_grid(sde: SDE, solver: StepSolver, literal: Any, order: int) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    counting = Counting(denoiser)
    y = replace(solver, steps=4, grid=placed(UNEVEN), denoise=False)(counting, x)
    assert len(counting.times) == 4 * order
    for t, s in pairwise(UNEVEN):
        x = literal(denoiser, x, t, s, order)
    torch.testing.assert_close(y, x, rtol=2e-6, atol=2e-6)  # α = 5e-5 at t = 1 of the cosine process


def test_stages_lie_at_fractions_of_the_step_in_logsnr() -> None:
    for solver, fractions in ((DPMSolver(order=2), [0, 1 / 2]), (DPMSolver(order=3), [0, 1 / 3, 2 / 3])):
        counting = Counting(mixture(VPSDE()))
        replace(solver, steps=2, grid=logsnr_grid, t_end=0.1, denoise=False)(counting, torch.randn(1, 2))
        lam = VPSDE().logsnr(torch.tensor([*counting.times, 0.1], dtype=torch.float64))
        place = 2 * (lam - lam[0]) / (lam[-1] - lam[0])
        expected = [*fractions, *(1 + fraction for fraction in fractions), 2]
        assert place.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "data"])
@pytest.mark.parametrize(
    "calls, orders", [(1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (9, [3, 3, 2, 1]), (10, [3, 3, 3, 1])]
)
def test_the_fast_mix_spends_a_number_of_calls(prediction: str, calls: int, orders: list[int]) -> None:
    sde = VPSDE()
    counting, x = Counting(mixture(sde)), torch.randn(4, 2, dtype=torch.float64)
    solver = DPMSolverFast(steps=calls, prediction=prediction, grid=logsnr_grid, t_end=0.02, denoise=False)
    y = solver(counting, x)
    assert len(counting.times) == calls

    for (t, s), order in zip(pairwise(logsnr_grid(sde, len(orders), 0.02)), orders, strict=True):
        x, _ = DPMSolver(order=order, prediction=prediction).step(
            counting, x, Interval.between(sde, t, s), unheard, None
        )
    torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-9)

    counting.times.clear()
    replace(solver, denoise=True)(counting, x)
    assert len(counting.times) == calls + 1


@pytest.mark.parametrize(
    "solver",
    [DPMSolver(order=2), DPMSolver(order=3), DPMSolverPP2S(), DPMSolverPP3S(), DPMSolverFast()],
    ids=["2", "3", "2S", "3S", "Fast"],
)
def test_a_step_to_no_noise_takes_one_call(solver: StepSolver) -> None:
    counting, x = Counting(mixture(VPSDE())), torch.randn(8, 2, dtype=torch.float64)
    last = replace(solver, steps=1, grid=placed(torch.tensor([0.3, 0.0], dtype=torch.float64)), denoise=False)
    y = last(counting, x)
    assert counting.times == [0.3]
    torch.testing.assert_close(y, counting.inner(x, torch.tensor(0.3, dtype=torch.float64)), rtol=1e-9, atol=1e-9)
    interval = Interval.between(counting, *torch.tensor([0.3, 0.0], dtype=torch.float64).unbind())
    by_hand, _ = last.step(counting, x, interval, unheard, None)
    torch.testing.assert_close(by_hand, y, rtol=1e-9, atol=1e-9)


def test_phi_agrees_with_quadrature_on_both_sides_of_its_switch() -> None:
    z = torch.tensor([-9.0, -1.0001, -0.9999, -0.3, -1e-9, 0.0, 1e-4, 0.7, 0.9999, 1.0001, 6.0], dtype=torch.float64)
    tau = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for k, value in enumerate(phi(z, 5), start=1):
        integrand = torch.exp((1 - tau) * z[:, None]) * tau ** (k - 1) / math.factorial(k - 1)
        torch.testing.assert_close(value, integrand.mean(1), rtol=1e-5, atol=0)
    numbers = torch.tensor([phi(value, 5) for value in z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(numbers.T, torch.stack(phi(z, 5)), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DPMSolver(order=4), "DPMSolver needs order 1, 2 or 3, got 4"),
        (lambda: DPMSolver(order=True), "DPMSolver needs order 1, 2 or 3, got True"),
        (lambda: DPMSolver(prediction="v"), "DPMSolver needs prediction eps or data, got 'v'"),
        (lambda: DPMSolverFast(steps=0), "DPMSolverFast needs 1 <= steps <= 1000000, a whole number, got steps=0"),
        (lambda: Heun(s_churn=-1.0), "Heun needs 0 <= s_churn < inf, got s_churn=-1.0"),
        (lambda: Heun(s_min=2.0, s_max=1.0), "s_min=2.0, s_max=1.0"),
        (lambda: Heun(s_noise=0.0), "s_noise=0.0"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_the_presets_have_no_order_to_set() -> None:
    with pytest.raises(TypeError, match="order"):
        DPMSolverPP2S(order=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("denoise", [True, False])
def test_heun_with_churn_is_algorithm_2_of_karras(sde: SDE, denoise: bool) -> None:
    """Their notation: x is our x/α, σ our σ/α, D(x; σ) the denoiser at that level; N counts the step to σ = 0."""
    times = torch.tensor([0.9, 0.6, 0.35, 0.1, 0.05], dtype=torch.float64)
    sigmas = sde.sigma(times) / sde.alpha(times)
    churn, s_noise, s_min, s_max = 1.2, 1.1, float(sigmas[3]) * 1.01, float(sigmas[0]) * 0.99
    solver = Heun(
        steps=4, grid=placed(times), s_churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise, denoise=denoise
    )
    denoiser, start = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    draws = torch.randn(2, 8, 2, dtype=torch.float64)
    rows = iter(draws)
    result = solver(denoiser, start, noise=lambda t, s: next(rows))

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        t = sde.time(-2 * sigma.log())
        return denoiser(sde.alpha(t) * x, t)

    rows, x = iter(draws), start / sde.alpha(times[0])
    ladder = [*sigmas, *([torch.tensor(0.0)] if denoise else [])]
    for here, there in pairwise(ladder):
        gamma = min(churn / (4 + denoise), math.sqrt(2) - 1) if s_min <= here <= s_max else 0.0
        hat = here * (1 + gamma)
        if gamma:
            x = x + torch.sqrt(hat**2 - here**2) * s_noise * next(rows)
        d = (x - D(x, hat)) / hat
        euler = x + (there - hat) * d
        if there > 0:
            euler = x + (there - hat) * 0.5 * (d + (euler - D(euler, there)) / there)
        x = euler
    expected = x if denoise else sde.alpha(times[-1]) * x
    torch.testing.assert_close(result, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_churn_never_raises_the_noise_above_that_of_time_one(sde: SDE) -> None:
    counting, x = Counting(mixture(sde)), sde.prior_std * torch.randn(3, 2, dtype=torch.float64)
    drawn = []

    def noise(t: Tensor, s: Tensor) -> Tensor:
        drawn.append((float(t), float(s)))
        return torch.randn(3, 2, dtype=torch.float64)

    Heun(steps=30, s_churn=40.0, s_noise=1.003)(counting, x, noise=noise)
    assert counting.times[0] == 1.0 and max(counting.times) == 1.0 and len(counting.times) == 61
    assert len(drawn) == 30 and all(t == s for t, s in drawn)  # fresh draws; none at t = 1
    assert max(counting.times[2:]) > drawn[0][0]  # but it is raised


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
def test_churn_keeps_the_marginal(sde: SDE) -> None:
    """Exactly in the limit, with errors of second order: noise up is exact, and the rest is Heun's method."""
    denoiser, exact = GaussianDenoiser(sde, MEAN, STD), torch.stack(moments(sde, 0.05))
    solver = Heun(s_churn=30.0, t_end=0.05, denoise=False)

    def solve(steps: int) -> Tensor:
        return torch.stack(chain_moments(replace(solver, steps=steps), denoiser, *moments(sde, 1.0)))

    assert convergence_order(solve, exact, steps=(120, 240)) == pytest.approx(2, abs=0.15)
    torch.testing.assert_close(solve(240), exact, rtol=2e-3, atol=0)
    assert not solver.deterministic and Heun().deterministic
    with pytest.raises(ValueError, match="Heun cannot encode"):
        solver.encode(denoiser, torch.randn(2, 2))


def test_karras_grid_and_churn_of_a_gaussian_in_single_precision() -> None:
    sde = VESDE()
    y = Heun(steps=40, s_churn=5.0, grid=karras_grid)(GaussianDenoiser(sde, MEAN, STD), 50 * torch.randn(4000, 1))
    assert y.dtype == torch.float32
    assert float(y.mean()) == pytest.approx(MEAN, abs=0.05) and float(y.std()) == pytest.approx(STD, rel=0.05)
