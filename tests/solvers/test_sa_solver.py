"""SA-Solver against a second transcription of its algorithm, exact moments and its reductions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import SDES, mixture, name, replay, std_of_chains
from torch import Tensor

from scoresde import DDPM, SDE, VPSDE, GaussianDenoiser, Interval, StepSolver
from scoresde.solvers.adams import ExponentialAdams
from scoresde.solvers.sa_solver import SASolver
from scoresde.solvers.sde_dpm_solver import SDEDPMSolverPP
from scoresde.testing import convergence_order

UNEVEN = torch.tensor([1.0, 0.85, 0.45, 0.4, 0.15, 0.1, 0.04], dtype=torch.float64)
LAST = len(UNEVEN) - 1


def on_uneven_grid(solver: StepSolver, denoise: bool = True) -> StepSolver:
    return replace(solver, steps=LAST, grid=lambda sde, steps, t_end: UNEVEN, t_end=float(UNEVEN[-1]), denoise=denoise)


def lagrange(nodes: list[float], j: int) -> list[float]:
    """Coefficients of ℓ_j by rising powers."""
    poly = [1.0]
    for m, node in enumerate(nodes):
        if m != j:
            gap = nodes[j] - node
            shifted = [0.0, *poly]
            poly = [(a - node * b) / gap for a, b in zip(shifted, [*poly, 0.0], strict=True)]
    return poly


def exponential_power(k: float, n: int, at: float) -> float:
    """Antiderivative of e^(kλ) λⁿ by parts."""
    value = math.exp(k * at) * at**n / k
    return value if n == 0 else value - n / k * exponential_power(k, n - 1, at)


def rational_power(k: float, n: int, at: float) -> float:
    """Antiderivative of k ρ^(−k−1) ρⁿ, negated: paths lead to smaller ρ."""
    return -k * (math.log(at) if n == k else at ** (n - k) / (n - k))


def algorithm_1(sde: SDE, clock: str, tau: Any, p: int, c: int, denoiser: Any, x: Tensor, noises: Tensor) -> Tensor:
    """Xue et al., Algorithm 1: buffer, predictor, evaluation, corrector, in the order of the paper."""
    alpha, sigma = sde.alpha(UNEVEN).tolist(), sde.sigma(UNEVEN).tolist()
    lam = [math.log(a / b) for a, b in zip(alpha, sigma, strict=True)]
    place = lam if clock == "logsnr" else [math.exp(-value) for value in lam]
    buffer: list[tuple[float, Tensor]] = [(place[0], denoiser(x, UNEVEN[0]))]

    def update(x: Tensor, i: int, values: list[tuple[float, Tensor]], z: Tensor) -> Tensor:
        k, h = 1 + tau(math.exp(-lam[i])) ** 2, lam[i] - lam[i - 1]
        out = (
            sigma[i] / sigma[i - 1] * math.exp(-(k - 1) * h) * x
            + sigma[i] * math.sqrt(1 - math.exp(-2 * (k - 1) * h)) * z
        )
        for j, (_, value) in enumerate(values):
            b = 0.0
            for n, coefficient in enumerate(lagrange([node for node, _ in values], j)):
                if clock == "logsnr":
                    part = exponential_power(k, n, lam[i]) - exponential_power(k, n, lam[i - 1])
                    b += coefficient * k * math.exp(-k * lam[i]) * part
                else:
                    part = rational_power(k, n, place[i]) - rational_power(k, n, place[i - 1])
                    b += coefficient * place[i] ** k * part
            out = out + alpha[i] * b * value
        return out

    for i in range(1, LAST + 1):
        predicted = update(x, i, buffer[-p:], noises[i - 1])
        if i == LAST:
            return predicted
        buffer.append((place[i], denoiser(predicted, UNEVEN[i])))
        x = update(x, i, buffer[-c:], noises[i - 1]) if c else predicted
    return x


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("clock", ["logsnr", "ratio"])
@pytest.mark.parametrize("p, c", [(1, 0), (2, 2), (3, 4), (4, 1), (3, 0), (1, 3)])
def test_steps_are_the_papers_algorithm_1_on_an_uneven_grid(sde: SDE, clock: str, p: int, c: int) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)
    solver = SASolver(predictor_order=p, corrector_order=c, tau=0.7, clock=clock)
    y = on_uneven_grid(solver, denoise=False)(denoiser, x, noise=replay(noises))
    literal = algorithm_1(sde, clock, lambda ratio: 0.7, p, c, denoiser, x, noises)
    torch.testing.assert_close(y, literal, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["interval", "function"])
def test_tau_is_decided_by_the_level_at_the_end_of_each_step(form: str) -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(8, 2, dtype=torch.float64)
    levels = (sde.sigma(UNEVEN) / sde.alpha(UNEVEN)).tolist()
    low, high = 0.99 * levels[4], 1.01 * levels[2]  # on for the steps that end at levels 2, 3 and 4

    def tau(ratio: float) -> float:
        return 0.9 if low <= ratio <= high else 0.0

    solver = SASolver(tau=0.9, interval=(low, high))
    if form == "function":
        solver = SASolver(tau=lambda ratio: 0.9 * ((ratio >= low) & (ratio <= high)).double())
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)
    y = on_uneven_grid(solver, denoise=False)(denoiser, x, noise=replay(noises[1:4]))
    literal = algorithm_1(sde, "logsnr", tau, 3, 4, denoiser, x, noises)
    torch.testing.assert_close(y, literal, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_sa_solver_reduces_to_ddpm_to_sde_dpm_solver_and_to_exponential_adams(sde: SDE) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)

    def run(solver: StepSolver) -> Tensor:
        return on_uneven_grid(solver)(denoiser, x, noise=replay(noises))

    def same(a: StepSolver, b: StepSolver) -> None:
        torch.testing.assert_close(run(a), run(b), rtol=1e-8, atol=1e-8)

    same(SASolver(predictor_order=1, corrector_order=0), DDPM())
    for order in (1, 2, 3):
        for tau in (0.0, 0.6, 1.0):
            sa = SASolver(predictor_order=order, corrector_order=0, tau=tau)
            same(sa, SDEDPMSolverPP(order=order, eta=tau, exact=order > 1))
        pece = SASolver(predictor_order=order, corrector_order=order + 1, tau=0)
        same(pece, ExponentialAdams(order=order, prediction="data", corrector=True))


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver, order",
    [
        (SASolver(predictor_order=1, corrector_order=0), 1),
        (SASolver(predictor_order=2, corrector_order=0), 2),
        (SASolver(predictor_order=1, corrector_order=2), 2),
        (SASolver(predictor_order=3, corrector_order=4), 2),
        (SASolver(predictor_order=3, corrector_order=4, clock="ratio"), 2),
        (SASolver(predictor_order=2, corrector_order=3, tau=0.5, clock="ratio"), 2),
        (SASolver(predictor_order=2, corrector_order=3, tau=0, clock="ratio"), 2.5),
        (SASolver(predictor_order=2, corrector_order=0, tau=lambda ratio: ratio / (1 + ratio)), 0.9),
    ],
    ids=name,
)
def test_variance_of_sa_solver_converges_at_the_weak_order(sde: SDE, solver: SASolver, order: float) -> None:
    solve, std = std_of_chains(sde, solver)

    assert convergence_order(solve, std, steps=(100, 200)) > order - 0.2
    assert abs(float(solve(100) / std) - 1) < (0.12 if order <= 1 else 0.02)


@pytest.mark.parametrize("clock", ["logsnr", "ratio"])
def test_steps_of_sa_solver_by_hand_with_times_per_sample(clock: str) -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(4, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 4, 2, dtype=torch.float64)
    solver = SASolver(clock=clock)
    whole = on_uneven_grid(solver, denoise=False)(denoiser, x, noise=replay(noises))
    noise, twin, state, joint, y, together = replay(noises), replay(noises), None, None, x, x
    for t, s in pairwise(UNEVEN):
        y, state = solver.step(denoiser, y, Interval.between(denoiser, t, s), noise, state)
        each = Interval.between(denoiser, t.expand(4), s.expand(4), x)
        together, joint = solver.step(denoiser, together, each, twin, joint)
    torch.testing.assert_close(y, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together, whole, rtol=1e-9, atol=1e-9)


def test_the_step_to_no_noise_is_the_denoised_state_or_its_extrapolation() -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(4, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 4, 2, dtype=torch.float64)

    def run(clock: str, denoise: bool, corrector_order: int = 0) -> Tensor:
        solver = SASolver(predictor_order=2, corrector_order=corrector_order, clock=clock)
        return on_uneven_grid(solver, denoise=denoise)(denoiser, x, noise=replay(noises))

    torch.testing.assert_close(run("logsnr", True), denoiser(run("logsnr", False), UNEVEN[-1]), rtol=1e-9, atol=1e-9)

    class Line(GaussianDenoiser):
        """x̂0 that depends on the level alone, linearly in σ/α."""

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return (3 + 2 * sde.sigma(t) / sde.alpha(t)) * torch.ones_like(x)

    for corrector_order in (0, 2):
        solver = SASolver(predictor_order=2, corrector_order=corrector_order, clock="ratio")
        y = on_uneven_grid(solver)(Line(sde), x)
        torch.testing.assert_close(y, torch.full_like(x, 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SASolver(predictor_order=5), "SASolver needs 1 <= predictor_order <= 4"),
        (lambda: SASolver(corrector_order=-1), "SASolver needs 0 <= corrector_order <= 4"),
        (lambda: SASolver(tau=-1.0), "SASolver needs 0 <= tau <= 100, got tau=-1.0"),
        (
            lambda: SASolver(interval=(1.0, 0.5)),
            r"SASolver needs interval \[low, high\] with 0 <= low < high, got \[1.0, 0.5\]",
        ),
        (lambda: SASolver(clock="time"), "SASolver needs clock logsnr or ratio, got 'time'"),
    ],
)
def test_wrong_arguments_of_sa_solver_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
