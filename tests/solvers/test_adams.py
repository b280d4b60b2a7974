"""Exponential Adams methods: their weights by an independent route, orders, uneven grids, the step to noise 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from closed_forms import MEAN, SDES, STD, exact_flow, mixture, moments, name
from torch import Tensor

from scoresde import (
    DDIM,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    ExponentialAdams,
    GaussianDenoiser,
    Levels,
    ProbabilityFlowODE,
    karras_grid,
    vp_grid,
)
from scoresde.solvers.exponential import adams_weights
from scoresde.testing import convergence_order

END = 1e-2
UNEVEN = torch.tensor([1.0, 0.8, 0.35, 0.3, 0.11, 0.02], dtype=torch.float64)


def solve_fixed(solver: ExponentialAdams, denoiser: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    fixed = replace(solver, steps=len(times) - 1, grid=lambda sde, steps, t_end: times, denoise=False)
    return fixed(denoiser, x)


@pytest.mark.parametrize("corrector", [False, True], ids=["predict", "correct"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("prediction", ["eps", "data", "v", "flow"])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
def test_observed_orders(sde: SDE, prediction: str, order: int, corrector: bool) -> None:
    """p, and p + 1 with the corrector; of the fourth order, whose start-up is of lower order, only that it is high."""
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    mean, std = moments(sde, 1.0)
    x = mean + std * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = exact_flow(sde, x, 1.0, END)

    def solve(count: int) -> Tensor:
        solver = ExponentialAdams(
            steps=count, order=order, prediction=prediction, corrector=corrector, grid=karras_grid, t_end=END,
            denoise=False,
        )  # fmt: skip
        return solver(denoiser, x)

    expected = order + corrector
    if expected <= 3:
        assert convergence_order(solve, exact, steps=(160, 320)) == pytest.approx(expected, abs=0.2)
    else:  # the error changes its sign on the way, so one of two ranges must show it
        assert max(convergence_order(solve, exact, steps=(first, 160)) for first in (40, 80)) > 3.2


@pytest.mark.parametrize("prediction", ["eps", "data", "v", "flow"])
def test_third_order_on_a_mixture(prediction: str) -> None:
    denoiser = mixture(VPSDE())
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine = ProbabilityFlowODE(method="dopri8", rtol=1e-11, atol=1e-11, t_end=END, denoise=False)(denoiser, x)

    def solve(count: int) -> Tensor:
        solver = ExponentialAdams(
            steps=count, order=3, prediction=prediction, corrector=False, grid=vp_grid, t_end=END, denoise=False
        )
        return solver(denoiser, x)

    assert convergence_order(solve, fine, steps=(320, 640)) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("prediction", ["eps", "data", "v", "flow"])
def test_weights_integrate_the_interpolating_polynomial(sde: SDE, prediction: str) -> None:
    """Second route: numpy fits the polynomial through given values, and a fine trapezoidal sum integrates it."""
    levels = Levels.of(sde, UNEVEN)
    values = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)
    keep, weights = adams_weights(levels, prediction, (0, 1, 2))
    alpha, sigma, lam = levels.alpha.numpy(), levels.sigma.numpy(), levels.lam.numpy()
    own = {
        "eps": (lam, alpha, lambda c: np.exp(-c)),
        "data": (lam, sigma, np.exp),
        "v": (np.arctan2(sigma, alpha), np.hypot(alpha, sigma), lambda c: c),
        "flow": (sigma / (alpha + sigma), alpha + sigma, lambda c: c),
    }
    clock, scale, measure = own[prediction]
    for i in range(5):
        used = min(3, i + 1)
        nodes = clock[i - used + 1 : i + 1]
        fit = np.polynomial.Polynomial.fit(nodes, values[i - used + 1 : i + 1].numpy(), used - 1)
        c = np.linspace(clock[i], clock[i + 1], 200_001)
        q, m = fit(c), measure(c)
        integral = scale[i + 1] * float((0.5 * (q[1:] + q[:-1]) * np.diff(m)).sum())
        ours = sum(float(weights[j][i]) * float(values[i - j]) for j in range(used))
        assert ours == pytest.approx(integral, rel=1e-7, abs=1e-9)
        assert float(keep[i]) == pytest.approx(scale[i + 1] / scale[i], rel=1e-12)
        assert all(float(weights[j][i]) == 0 for j in range(used, 3))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
def test_predictor_and_corrector_equal_a_literal_second_transcription_on_an_uneven_grid(sde: SDE) -> None:
    """Second order in ε with its corrector, each integral written out for a line or a parabola in λ."""
    denoiser, x = mixture(sde), float(sde.prior_std) * torch.randn(8, 2, dtype=torch.float64)
    y = solve_fixed(ExponentialAdams(order=2, prediction="eps", corrector=True), denoiser, x, UNEVEN)

    lam = torch.log(sde.alpha(UNEVEN) / sde.sigma(UNEVEN)).tolist()
    alpha = sde.alpha(UNEVEN).tolist()
    mass, nodes = np.polynomial.legendre.leggauss(24)[::-1]

    def integral(a: float, b: float, points: list[float], values: list[Tensor]) -> Tensor:
        """∫ ε d(σ/α) from λ = a to b, of the polynomial through the points, by Newton's divided differences."""
        total = torch.zeros_like(values[0])
        for node, w in zip(nodes, mass, strict=True):
            at = 0.5 * (a + b) + 0.5 * (b - a) * node
            p = values[0]
            if len(points) > 1:
                first = (values[1] - values[0]) / (points[1] - points[0])
                p = p + (at - points[0]) * first
            if len(points) > 2:
                second = ((values[2] - values[1]) / (points[2] - points[1]) - first) / (points[2] - points[0])
                p = p + (at - points[0]) * (at - points[1]) * second
            total = total - 0.5 * (b - a) * w * np.exp(-at) * p
        return total

    states, values, predicted = [x / alpha[0]], [], x / alpha[0]
    for i in range(5):
        values.append(denoiser.eps(alpha[i] * predicted, UNEVEN[i]))
        if i:
            use = [i, i - 1, i - 2][: min(3, i + 1)]
            step = integral(lam[i - 1], lam[i], [lam[k] for k in use], [values[k] for k in use])
            states.append(states[i - 1] + step)
        use = [i, i - 1][: min(2, i + 1)]
        predicted = states[i] + integral(lam[i], lam[i + 1], [lam[k] for k in use], [values[k] for k in use])
    torch.testing.assert_close(y, alpha[5] * predicted, rtol=1e-10, atol=1e-10)


def test_first_order_is_ddim() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    expected = DDIM(steps=5, grid=lambda sde, steps, t_end: UNEVEN, denoise=False)(denoiser, x)
    for prediction in ("eps", "data"):
        y = solve_fixed(ExponentialAdams(order=1, prediction=prediction, corrector=False), denoiser, x, UNEVEN)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


def test_lms_weights_on_an_even_grid_are_the_classical_ones() -> None:
    """ε in σ/α with equal steps: Adams-Bashforth's 55, −59, 37, −9 over 24."""
    sde = VESDE()
    ratios = torch.linspace(40.0, 10.0, 6, dtype=torch.float64)
    levels = Levels.of(sde, sde.time(-2 * ratios.log()))
    _, weights = adams_weights(levels, "eps", (0, 1, 2, 3), clock="ratio")
    ours = torch.stack([column[4] for column in weights]) / -6.0
    torch.testing.assert_close(ours, torch.tensor([55, -59, 37, -9], dtype=torch.float64) / 24, rtol=1e-9, atol=1e-9)
    _, weights = adams_weights(levels, "eps", (-1, 0, 1, 2), clock="ratio")
    ours = torch.stack([column[4] for column in weights]) / -6.0
    torch.testing.assert_close(ours, torch.tensor([9, 19, -5, 1], dtype=torch.float64) / 24, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_the_step_to_noise_0_is_exact_for_what_the_polynomial_can_express(prediction: str) -> None:
    """Replacing q by a straight line in its own clock and landing must give that line's integral to noise 0."""
    sde = VPSDE()
    levels = Levels.of(sde, UNEVEN[:4]).landed()
    keep, weights = adams_weights(levels, prediction, (0, 1))
    ratio = float(levels.ratio[3])
    lam = levels.lam
    if prediction == "eps":  # ∫ (1 + λ − λ_t) d(σ/α) from ρ to 0 = −ρ (1 + 1)
        clock, expected = lam, -ratio * 2
        q = lambda c: 1 + c - lam[3]  # noqa: E731
    elif prediction == "v":
        clock = torch.atan(levels.ratio)
        expected = -float(clock[3]) * (1 - 0.5 * float(clock[3]))
        q = lambda c: 1 - c  # noqa: E731
    else:
        clock = levels.ratio / (1 + levels.ratio)
        expected = -float(clock[3]) * (1 - 0.5 * float(clock[3]))
        q = lambda c: 1 - c  # noqa: E731
    ours = float(weights[0][3] * q(clock[3]) + weights[1][3] * q(clock[2]))
    assert ours == pytest.approx(expected, rel=1e-10)
    assert float(keep[3]) == pytest.approx(1 / float({
        "eps": levels.alpha[3],
        "v": torch.hypot(levels.alpha[3], levels.sigma[3]),
        "flow": levels.alpha[3] + levels.sigma[3],
    }[prediction]), rel=1e-12)  # fmt: skip


def test_landing_with_history_beats_a_plain_denoising_call() -> None:
    denoiser = mixture(VPSDE())
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = ProbabilityFlowODE(method="dopri8", rtol=1e-10, atol=1e-10, t_end=1e-6)(denoiser, x)
    solver = ExponentialAdams(steps=60, order=3, prediction="v", corrector=True, t_end=0.02)
    landed = solver(denoiser, x)
    plain = denoiser(replace(solver, denoise=False)(denoiser, x), torch.tensor(0.02, dtype=torch.float64))
    assert float((landed - exact).norm()) < 0.15 * float((plain - exact).norm())


@pytest.mark.parametrize("prediction", ["eps", "data", "v", "flow"])
def test_encoding_returns_to_the_start(prediction: str) -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(16, 2, dtype=torch.float64)

    def there_and_back(count: int) -> Tensor:
        solver = ExponentialAdams(
            steps=count, order=3, prediction=prediction, corrector=False, grid=vp_grid, t_end=END, denoise=False
        )
        return solver.encode(denoiser, solver(denoiser, x))

    assert convergence_order(there_and_back, x, steps=(320, 640)) > 1.7


def test_scaling_the_data_with_sigma_data_scales_the_result() -> None:
    sde, x = VESDE(), 50 * torch.randn(16, 2, dtype=torch.float64)
    big = VESDE(sigma_min=0.05, sigma_max=250.0)
    times = torch.tensor([1.0, 0.7, 0.4, 0.2, 0.05], dtype=torch.float64)
    for prediction in ("v", "flow"):
        small = solve_fixed(
            ExponentialAdams(prediction=prediction), GaussianDenoiser(sde, 0.3, torch.tensor([0.5, 2.0])), x, times
        )
        scaled = solve_fixed(
            ExponentialAdams(prediction=prediction, sigma_data=5.0),
            GaussianDenoiser(big, 1.5, torch.tensor([2.5, 10.0])),
            5 * x,
            times,
        )
        torch.testing.assert_close(scaled, 5 * small, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"order": 5}, "ExponentialAdams needs 1 <= order <= 4, a whole number, or null, got order=5"),
        ({"prediction": "x0"}, "needs prediction eps, data, v or flow, got 'x0'"),
        ({"clock": "t"}, "needs clock own, logsnr, ratio or time, got 't'"),
        ({"clock": "time", "prediction": "v"}, "with clock=time needs prediction eps or data, got 'v'"),
        ({"sigma_data": 0.0}, "needs 0 < sigma_data <= 1e9, got sigma_data=0.0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExponentialAdams(**arguments)  # type: ignore[arg-type]


def test_few_steps_get_what_suits_few_steps() -> None:
    in_force = {steps: ExponentialAdams(steps=steps) for steps in (4, 6, 7, 12, 13, 50)}
    assert [solver.degree for solver in in_force.values()] == [2, 2, 2, 2, 3, 3]
    assert [solver.corrects for solver in in_force.values()] == [False, False, True, True, True, True]
    asked = ExponentialAdams(steps=4, order=4, corrector=True)
    assert asked.degree == 4 and asked.corrects
    denoiser, x = mixture(VPSDE()), torch.randn(200, 2, generator=torch.Generator().manual_seed(3)).double()
    exact = ProbabilityFlowODE(method="dopri8", rtol=1e-10, atol=1e-10, t_end=1e-6)(denoiser, x)

    def error(solver: ExponentialAdams) -> float:
        return float((solver(denoiser, x) - exact).norm(dim=1).median())

    assert error(ExponentialAdams(steps=4)) < 0.85 * error(
        ExponentialAdams(steps=4, order=3, corrector=True, grid=vp_grid)
    )


def test_a_grid_that_ends_early_is_led_back_to_the_data_when_encoding() -> None:
    sde = VPSDE()
    denoiser, x = GaussianDenoiser(sde, MEAN, STD), MEAN + STD * torch.randn(50, 2, dtype=torch.float64)
    latent = ExponentialAdams(steps=30, t_end=1e-3).encode(denoiser, x)
    torch.testing.assert_close(latent, exact_flow(sde, x, 1e-3, 1.0), rtol=0, atol=2e-3)
