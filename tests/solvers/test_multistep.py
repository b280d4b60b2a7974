"""Multistep DPM-Solvers and iPNDM, against second transcriptions and the exact exponential Adams methods."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import SDES, mixture, name
from torch import Tensor

from scoresde import SDE, VESDE, VPSDE, Denoiser
from scoresde.sde.grids import Grid
from scoresde.sde.levels import Interval
from scoresde.solvers.adams import IPNDM, ExponentialAdams
from scoresde.solvers.base import StepSolver
from scoresde.solvers.ddim import DDIM
from scoresde.solvers.dpm_solver import DPMSolver, DPMSolverPP2S, DPMSolverPP3S
from scoresde.solvers.dpm_solver_pp import DPMSolverMultistep, DPMSolverPP2M, DPMSolverPP3M
from scoresde.solvers.heun import Heun
from scoresde.solvers.unipc import UniPC
from scoresde.testing import convergence_order

UNEVEN = torch.tensor([1.0, 0.8, 0.35, 0.3, 0.12, 0.02], dtype=torch.float64)


def unheard(t: Tensor, s: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver drew noise")


def placed(times: Tensor) -> Grid:
    return lambda sde, steps, t_end: times


def authors_multistep(
    denoiser: Denoiser, x: Tensor, times: Tensor, orders: list[int], prediction: str, kind: str = "dpmsolver"
) -> Tensor:
    """Multistep updates of the DPM-Solver authors' code, in its own terms."""
    sde = denoiser.sde
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    lam = alpha.log() - sigma.log()
    m: list[Tensor] = []
    for i, order in enumerate(orders):
        m = [denoiser(x, times[i]) if prediction == "data" else denoiser.eps(x, times[i]), *m][:3]
        h = lam[i + 1] - lam[i]
        if prediction == "data":
            phi_1 = torch.exp(-h) - 1
            phi_2, phi_3 = phi_1 / h + 1, (phi_1 + h) / h**2 - 0.5
            keep, scale, signs = sigma[i + 1] / sigma[i], alpha[i + 1], (-1, 1, -1)
        else:
            phi_1 = torch.exp(h) - 1
            phi_2, phi_3 = phi_1 / h - 1, (phi_1 - h) / h**2 - 0.5
            keep, scale, signs = alpha[i + 1] / alpha[i], sigma[i + 1], (-1, -1, -1)
        x = keep * x + signs[0] * scale * phi_1 * m[0]
        if order >= 2:
            r0 = (lam[i] - lam[i - 1]) / h
            d1_0 = (m[0] - m[1]) / r0
        if order == 2:
            x = x + (signs[0] * 0.5 * scale * phi_1 if kind == "dpmsolver" else signs[1] * scale * phi_2) * d1_0
        if order == 3:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            d1_1 = (m[1] - m[2]) / r1
            d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + signs[1] * scale * phi_2 * d1 + signs[2] * scale * phi_3 * d2
    return x


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("prediction", ["data", "eps"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("lower", [False, True])
def test_published_steps_on_an_uneven_grid(sde: SDE, prediction: str, order: int, lower: bool) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    solver = DPMSolverMultistep(
        order=order, prediction=prediction, lower_order_final=lower, steps=5, grid=placed(UNEVEN), denoise=False
    )
    orders = [min(i + 1, order, 5 - i if lower else order) for i in range(5)]
    expected = authors_multistep(denoiser, x, UNEVEN, orders, prediction)
    torch.testing.assert_close(solver(denoiser, x), expected, rtol=1e-8, atol=1e-8)
    if prediction == "data" and not lower:
        preset = {2: DPMSolverPP2M, 3: DPMSolverPP3M}[order](steps=5, grid=placed(UNEVEN), denoise=False)
        assert torch.equal(preset(denoiser, x), solver(denoiser, x))


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("prediction", ["data", "eps"])
@pytest.mark.parametrize("order", [2, 3])
def test_exact_weights_are_those_of_exponential_adams(sde: SDE, prediction: str, order: int) -> None:
    """Two routes to the integral of a polynomial: φ-functions of divided differences, and quadrature of Lagrange's."""
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    common: dict[str, Any] = {"order": order, "prediction": prediction, "steps": 5, "grid": placed(UNEVEN)}
    y = DPMSolverMultistep(exact=True, denoise=False, **common)(denoiser, x)
    torch.testing.assert_close(
        y, ExponentialAdams(corrector=False, denoise=False, **common)(denoiser, x), rtol=1e-8, atol=1e-8
    )


def test_the_exact_second_order_step_is_the_heun_type_of_others() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    y = DPMSolverPP2M(exact=True, steps=5, grid=placed(UNEVEN), denoise=False)(denoiser, x)
    expected = authors_multistep(denoiser, x, UNEVEN, [1, 2, 2, 2, 2], "data", kind="heun")
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_ddim_with_an_extrapolated_noise(sde: SDE, order: int) -> None:
    weights = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    y = IPNDM(order=order, steps=5, grid=placed(UNEVEN), denoise=False)(denoiser, x)
    past: list[Tensor] = []
    for i in range(5):
        past = [denoiser.eps(x, UNEVEN[i]), *past]
        blend = sum(w * eps for w, eps in zip(weights[min(i, order - 1)], past, strict=False))
        x0 = (x - sde.sigma(UNEVEN[i]) * blend) / sde.alpha(UNEVEN[i])
        x = sde.alpha(UNEVEN[i + 1]) * x0 + sde.sigma(UNEVEN[i + 1]) * blend
    torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_has_its_order_on_equal_steps_of_the_noise_level(order: int) -> None:
    """After a start that is exact to rounding; on other grids the order is 2 (test_orders)."""
    sde = VESDE()
    denoiser, start = mixture(sde), 5 * torch.randn(16, 2, dtype=torch.float64)
    fine = {"steps": 1500, "grid": equal_steps}
    exact = ExponentialAdams(order=3, corrector=True, denoise=False, **fine)(denoiser, start)  # type: ignore[arg-type]

    def solve(steps: int) -> Tensor:
        times = equal_steps(sde, steps, 0.0)
        x, state = start, None
        solver = IPNDM(order=order)
        parts = 16
        for i, (t, s) in enumerate(pairwise(times)):
            interval = Interval.between(sde, t, s)
            if i < order - 1:
                sigma = torch.linspace(float(sde.sigma(t)), float(sde.sigma(s)), parts + 1, dtype=torch.float64)
                inner = sde.time(-2 * sigma.log())
                inner[0], inner[-1] = t, s
                _, state = solver.step(denoiser, x, interval, unheard, state)
                x = ExponentialAdams(order=3, corrector=True, steps=parts, grid=placed(inner), denoise=False)(
                    denoiser, x
                )
            else:
                x, state = solver.step(denoiser, x, interval, unheard, state)
        return x

    assert convergence_order(solve, exact, steps=(100, 200)) == pytest.approx(order, abs=0.35)


def equal_steps(sde: SDE, steps: int, t_end: float) -> Tensor:
    """Equal steps of σ from 5 to 1."""
    return sde.time(-2 * torch.linspace(5, 1, steps + 1, dtype=torch.float64).log())


ALL = [
    DPMSolverPP2M(),
    DPMSolverPP2M(exact=True),
    DPMSolverPP3M(),
    DPMSolverPP3M(exact=True),
    DPMSolverMultistep(prediction="eps"),
    DPMSolverMultistep(order=3, prediction="eps", lower_order_final=True),
    IPNDM(),
]


@pytest.mark.parametrize("solver", ALL, ids=["2M", "2M-exact", "3M", "3M-exact", "eps-2M", "eps-3M", "IPNDM"])
def test_a_run_ends_in_a_first_order_step_to_no_noise(solver: StepSolver) -> None:
    times = torch.tensor([1.0, 0.6, 0.3, 0.2], dtype=torch.float64)
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    open_run = replace(solver, steps=3, grid=placed(times), denoise=False)
    if isinstance(solver, DPMSolverMultistep):  # the last steps of both runs have the same orders then
        open_run = replace(open_run, lower_order_final=False)
        solver = replace(solver, lower_order_final=False)
    before = open_run(denoiser, x)
    after = replace(solver, steps=3, grid=placed(times))(denoiser, x)
    torch.testing.assert_close(after, denoiser(before, times[-1]), rtol=1e-9, atol=1e-9)
    zero = torch.cat([times, times.new_zeros(1)])
    torch.testing.assert_close(replace(solver, steps=4, grid=placed(zero))(denoiser, x), after, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DPMSolverMultistep(order=1), "DPMSolverMultistep needs order 2 or 3, got 1"),
        (lambda: DPMSolverMultistep(prediction="v"), "DPMSolverMultistep needs prediction data or eps, got 'v'"),
        (lambda: DPMSolverPP3M(steps=0), "DPMSolverPP3M needs 1 <= steps <= 1000000, a whole number, got steps=0"),
        (lambda: IPNDM(order=5), "IPNDM needs order 1, 2, 3 or 4, got 5"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_first_order_ipndm_is_ddim() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    common: dict[str, Any] = {"steps": 5, "grid": placed(UNEVEN)}
    torch.testing.assert_close(IPNDM(order=1, **common)(denoiser, x), DDIM(**common)(denoiser, x), rtol=1e-9, atol=1e-9)


class Straight(SDE):
    """α = 1 − t, σ = t: no signal at all at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t


@pytest.mark.parametrize(
    "solver",
    [
        DPMSolverPP2M(),
        DPMSolverPP3M(),
        DPMSolverPP3M(exact=True),
        DPMSolverPP2S(),
        DPMSolverPP3S(),
        UniPC(order=2),
        UniPC(order=3, variant="bh1"),
        UniPC(order=3, prediction="eps"),
        DPMSolverMultistep(order=3, prediction="eps"),
        DPMSolver(order=3),
        Heun(),
        ExponentialAdams(order=3, prediction="eps"),
        ExponentialAdams(order=3, prediction="data"),
        ExponentialAdams(order=3, prediction="eps", clock="time"),
    ],
    ids=name,
)
def test_a_start_without_signal_is_left_by_a_first_order_step(solver: StepSolver) -> None:
    class Bent(Denoiser):
        sde = Straight()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return torch.tanh(2 * x) * torch.cos(t)

    times = torch.tensor([1.0, 0.8, 0.55, 0.4, 0.1], dtype=torch.float64)
    denoiser, x = Bent(), torch.randn(8, 2, dtype=torch.float64)
    y = replace(solver, steps=4, grid=placed(times), denoise=False)(denoiser, x)
    x = 0.2 * denoiser(x, times[0]) + 0.8 * x
    torch.testing.assert_close(y, replace(solver, steps=3, grid=placed(times[1:]), denoise=False)(denoiser, x))


@pytest.mark.parametrize(
    "solver",
    [DPMSolverPP2M(lower_order_final=True), DPMSolverPP3M(lower_order_final=True), UniPC(lower_order_final=True)],
    ids=["2M", "3M", "UniPC"],
)
def test_only_a_run_knows_its_last_steps(solver: StepSolver) -> None:
    """By hand no step is the last one, however many there were before."""
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    solver = replace(solver, steps=len(UNEVEN) - 1, grid=placed(UNEVEN), denoise=False)
    y, state = x, None
    for t, s in pairwise(UNEVEN):
        y, state = solver.step(denoiser, y, Interval.between(denoiser, t, s), unheard, state)
    plain = replace(solver, lower_order_final=False)(denoiser, x)
    torch.testing.assert_close(y, plain, rtol=1e-9, atol=1e-9)
    assert float((solver(denoiser, x) - plain).abs().max()) > 1e-4
