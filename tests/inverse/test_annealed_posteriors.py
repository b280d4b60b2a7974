"""DDRM and DAPS: the papers' formulas by another route, and the exact law of a run on Gaussian data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import SDE, VESDE, VPSDE, Denoiser, GaussianDenoiser, Solver, uniform_grid
from scoresde.inverse import (
    DAPS,
    DDRM,
    DownSample,
    Function,
    GaussianNoise,
    Mask,
    Matrix,
    Measurement,
    PoissonNoise,
)
from scoresde.noise import per_sample_noise
from scoresde.sde import StraightSDE
from scoresde.sde.levels import Interval

SIZE = 3
COV = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.0, 0.3], [0.2, 0.3, 0.5]]).double()
MEAN = torch.tensor([0.5, -0.3, 0.2]).double()
A = torch.tensor([[1.0, -0.5, 0.0], [0.3, 0.2, 2.0]]).double()
NOISES = [
    GaussianNoise(0.4),
    GaussianNoise(torch.tensor([0.4, 0.1])),
    GaussianNoise(cov=torch.tensor([[0.3, 0.1], [0.1, 0.2]])),
]
GIVEN = [
    *(Measurement(Matrix(A), torch.tensor([[0.7, -1.0]]).double(), noise) for noise in [0.0, *NOISES]),
    Measurement(Mask(torch.tensor([1, 0, 1])), torch.tensor([[1.5, 0, 0.3]]).double(), torch.tensor([0.0, 1.0, 0.5])),
]  # fmt: skip


def posterior(measurement: Measurement) -> tuple[Tensor, Tensor]:
    """Mean and covariance, by Gaussian conditioning."""
    a, noise, y = measurement.operator.matrix(MEAN), measurement.noise, measurement.y[0]
    if isinstance(measurement.operator, Mask):
        rows = measurement.operator.mask
        a, y, r = a[rows], y[rows], noise.std[rows].square().diag()
    else:
        r = noise.cov if noise.cov is not None else noise.std.square().expand(2).diag()
    gain = COV @ a.T @ torch.linalg.inv(a @ COV @ a.T + r)
    return MEAN + gain @ (y - a @ MEAN), COV - gain @ a @ COV


def law(solver: Solver, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a run whose result is affine in its start and its noise: one row for each unit of them."""
    draws = 0

    def count(t: Tensor, s: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        return torch.zeros(1, SIZE).double()

    solver(denoiser, torch.zeros(1, SIZE).double(), noise=count)
    units = torch.zeros(draws + 1, 1 + (draws + 1) * SIZE, SIZE).double()
    for k in range(draws + 1):
        units[k, 1 + k * SIZE : 1 + (k + 1) * SIZE] = torch.eye(SIZE)
    rows = iter(units[1:])
    found = solver(denoiser, denoiser.sde.prior_std * units[0], noise=lambda t, s: next(rows))
    each = found[1:] - found[0]
    return found[0], each.T @ each


@pytest.mark.parametrize("measurement", GIVEN, ids=range(len(GIVEN)))
def test_daps_with_the_known_covariance_is_the_exact_posterior(measurement: Measurement) -> None:
    denoiser = GaussianDenoiser(StraightSDE(), MEAN, cov=COV)
    mean, cov = law(DAPS(measurement=measurement, steps=4, covariance="known"), denoiser)
    exact_mean, exact_cov = posterior(measurement)
    assert torch.allclose(mean, exact_mean, atol=1e-9)
    assert torch.allclose(cov, exact_cov, atol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=50.0)], ids=["VP", "VE"])
def test_daps_forgets_a_start_from_the_prior(sde: SDE) -> None:
    denoiser = GaussianDenoiser(sde, MEAN, cov=COV)
    mean, cov = law(DAPS(measurement=GIVEN[1], steps=8, covariance="known"), denoiser)
    exact_mean, exact_cov = posterior(GIVEN[1])
    assert torch.allclose(mean, exact_mean, atol=1e-4)
    assert torch.allclose(cov, exact_cov, atol=1e-4)


def test_daps_with_a_diagonal_covariance_is_exact_for_independent_entries() -> None:
    class Diagonal(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.exact = StraightSDE(), GaussianDenoiser(StraightSDE(), MEAN, COV.diagonal().sqrt())

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return self.exact(x, t)

        def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return self.exact.mean_and_covariance(x, t)[1]

    y = GIVEN[-1]
    mean, cov = law(DAPS(measurement=y, steps=3, covariance="known"), Diagonal())
    known = torch.tensor([1.5, MEAN[1], (0.3 * 0.5 + 0.2 * 0.25) / 0.75]).double()
    assert torch.allclose(mean, known, atol=1e-9)
    assert torch.allclose(cov, torch.tensor([0.0, 1.0, 0.5 * 0.25 / 0.75]).double().diag(), atol=1e-9)


def test_one_level_of_daps_is_bayes_rule_for_a_round_guess() -> None:
    sde, x = VPSDE(), torch.randn(1, SIZE).double()
    denoiser, y = GaussianDenoiser(sde, MEAN, cov=COV), GIVEN[3]
    for covariance in ("noise", "unit"):
        solver = DAPS(measurement=y, covariance=covariance, ode_steps=1)
        interval = Interval.between(sde, torch.tensor(0.6), torch.tensor(0.0))
        eye = torch.cat([torch.zeros(1, SIZE), torch.eye(SIZE)]).double()
        found, _ = solver.step(denoiser, x.expand(4, SIZE), interval, lambda t, s, z=eye: z, None)
        alpha, sigma = sde.alpha(interval.t.time).double(), sde.sigma(interval.t.time).double()
        variance = (sigma / alpha) ** 2 if covariance == "noise" else sigma**2 / (alpha**2 + sigma**2)
        precision = torch.eye(SIZE) / variance + A.T @ torch.linalg.inv(y.noise.cov) @ A
        target = denoiser(x, interval.t.time)[0] / variance + A.T @ torch.linalg.inv(y.noise.cov) @ y.y[0]
        each = (found[1:] - found[0]) / interval.s.alpha
        assert torch.allclose(found[0], torch.linalg.solve(precision, target), atol=1e-6)
        assert torch.allclose(each.T @ each, torch.linalg.inv(precision), atol=1e-6)


def test_the_flow_of_daps_ends_where_the_probability_flow_does() -> None:
    sde = VPSDE()
    denoiser, x = GaussianDenoiser(sde, MEAN, cov=COV), torch.randn(5, SIZE).double()
    interval = Interval.between(sde, torch.tensor(0.6).double(), torch.tensor(0.5).double())
    alpha, sigma = sde.alpha(interval.t.time), sde.sigma(interval.t.time)
    exact = denoiser.flow(x / alpha, sigma / alpha)
    errors = []
    for steps in (40, 80):
        solver = DAPS(measurement=GIVEN[0], ode_steps=steps)
        errors.append(float((solver._flow_end(denoiser, x, interval) - exact).abs().max()))
    assert errors[1] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)


def test_langevin_steps_draw_what_the_exact_draw_does() -> None:
    torch.manual_seed(0)
    denoiser, y = GaussianDenoiser(StraightSDE(), MEAN, cov=COV), GIVEN[1]
    blind = Measurement(Function(lambda x: x @ A.to(x).T, (SIZE,)), y.y, y.noise)  # not known to be linear
    for covariance, n in (("known", 500), ("unit", 2000)):
        solver = DAPS(measurement=blind, steps=1, covariance=covariance, langevin_steps=100, langevin_rate=0.1)
        with torch.inference_mode():
            found = solver(denoiser, torch.randn(n, SIZE).double())
        mean, cov = law(replace(solver, measurement=y), denoiser)
        error = (found.mean(0) - mean) / (cov.diagonal() / len(found)).sqrt()
        assert error.abs().max() < 4
        assert torch.allclose(found.T.cov(), cov, atol=(0.05 + 4 * (2 / n) ** 0.5) * float(cov.diagonal().max()))


def test_daps_takes_any_noise_and_any_operator() -> None:
    torch.manual_seed(0)
    denoiser = GaussianDenoiser(VPSDE(), torch.ones(SIZE))
    counts = Measurement(Function(lambda x: x.square(), (SIZE,)), torch.tensor([[4.0, 0.0, 9.0]]), PoissonNoise(1.0))
    x = DAPS(measurement=counts, steps=6)(denoiser, torch.randn(100, SIZE))
    assert torch.isfinite(x).all()
    assert x.square().mean(0)[2] > x.square().mean(0)[0] > x.square().mean(0)[1]


@pytest.mark.parametrize("eta, eta_b", [(0.85, 1.0), (0.3, 0.6)])
def test_a_step_of_ddrm_is_the_papers(eta: float, eta_b: float) -> None:
    """Equations 7 and 8 in x/α with σ/α, entry by entry."""
    sde, x, z = VPSDE(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    a = torch.diag(torch.tensor([2.0, 0.05, 1.0, 0.0])).double()[:3]
    y = torch.tensor([[1.0, 0.05, -0.7]]).double()
    cov = torch.eye(4).double() + 0.5
    denoiser, solver = GaussianDenoiser(sde, torch.ones(4), cov=cov), None
    solver = DDRM(measurement=Measurement(Matrix(a), y, 0.1), eta=eta, eta_b=eta_b)
    t, s = torch.tensor(0.5).double(), torch.tensor(0.35).double()
    _, known = solver.step(denoiser, x, Interval.between(sde, t, s), lambda t, s: 0 * z, None)
    found, _ = solver.step(denoiser, x, Interval.between(sde, t, s), lambda t, s: z, known)

    ratio_t, ratio_s = (sde.sigma(when) / sde.alpha(when) for when in (t, s))
    x0, x_t = denoiser(x, t), x / sde.alpha(t)
    expected = torch.empty_like(x)
    for i, s_i in enumerate([2.0, 0.05, 1.0, 0.0]):
        if s_i == 0:
            mean, std = x0[:, i] + (1 - eta**2) ** 0.5 * ratio_s * (x_t[:, i] - x0[:, i]) / ratio_t, eta * ratio_s
        elif ratio_s < 0.1 / s_i:
            y_i = y[0, i] / s_i
            mean, std = x0[:, i] + (1 - eta**2) ** 0.5 * ratio_s * (y_i - x0[:, i]) / (0.1 / s_i), eta * ratio_s
        else:
            mean = (1 - eta_b) * x0[:, i] + eta_b * y[0, i] / s_i
            std = (ratio_s**2 - (0.1 / s_i) ** 2 * eta_b**2) ** 0.5
        expected[:, i] = sde.alpha(s) * (mean + std * z[:, i])
    assert ratio_s < 0.1 / 0.05
    assert torch.allclose(known.along(found).abs(), known.along(expected).abs(), rtol=1e-9)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_ddrm_on_independent_normals_has_the_known_loss_of_variance() -> None:
    """c_s = (α_s α_t + √(1 − η²) σ_s σ_t) c_t + η σ_s z for N(0, 1) data; known entries are y."""
    sde, y = VPSDE(), torch.tensor([[1.0, 0, 0]]).double()
    solver = DDRM(measurement=Measurement(Mask(torch.tensor([1, 0, 0])), y, 0.0), grid=uniform_grid)
    mean, cov = law(solver, GaussianDenoiser(sde))
    levels = [(float(sde.alpha(t)), float(sde.sigma(t))) for t in torch.linspace(1, sde.t_min, 21).double()]
    variance = sde.prior_std**2
    for (a, b), (alpha, sigma) in zip(levels, [*levels[1:], (1.0, 0.0)], strict=True):
        gain = (alpha * a + (1 - 0.85**2) ** 0.5 * sigma * b) / (a**2 + b**2)
        variance = gain**2 * variance + (0.85 * sigma) ** 2
    assert torch.allclose(mean, torch.tensor([1.0, 0, 0]).double(), atol=1e-9)
    assert torch.allclose(cov, torch.tensor([0.0, variance, variance]).double().diag(), rtol=1e-4, atol=1e-9)
    _, cov = law(replace(solver, steps=200), GaussianDenoiser(sde))
    assert float(cov[1, 1]) == pytest.approx(0.5 * (1 + (1 - 0.85**2) ** 0.5), rel=0.04)


def test_ddrm_super_resolution_keeps_the_small_picture() -> None:
    operator = DownSample((1, 4, 4), 2)
    y = torch.randn(3, 1, 2, 2).double()
    x = DDRM(measurement=Measurement(operator, y, 0.0))(
        GaussianDenoiser(StraightSDE()), torch.randn(3, 1, 4, 4).double()
    )
    assert torch.allclose(operator(x), y, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: DDRM(measurement=m, steps=4),
        lambda m: DAPS(measurement=m, steps=3),
        lambda m: DAPS(measurement=m, steps=3, covariance="known"),
    ],
)
def test_a_sample_depends_on_its_own_noise_mask_and_y_alone(make: Callable[[Measurement], Solver]) -> None:
    denoiser = GaussianDenoiser(VPSDE(), torch.zeros(SIZE), cov=COV)
    masks, seeds = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0]]), [11, 12, 13]
    y, x = masks * torch.randn(3, SIZE).double(), torch.randn(3, SIZE).double()
    given = Measurement(Mask(masks, (SIZE,)), y, 0.2)
    whole = make(given)(denoiser, x, noise=per_sample_noise(x, seeds))
    for k in range(3):
        one = given.select(torch.tensor([k]), 3)
        alone = make(one)(denoiser, x[k : k + 1], noise=per_sample_noise(x[k : k + 1], seeds[k : k + 1]))
        assert torch.allclose(alone[0], whole[k], rtol=0, atol=1e-12)


def test_langevin_of_a_sample_depends_on_itself_alone() -> None:
    denoiser, x, seeds = GaussianDenoiser(VPSDE(), MEAN), torch.randn(3, SIZE).double(), [11, 12, 13]
    given = Measurement(Function(torch.sin, (SIZE,)), torch.rand(3, SIZE).double(), 0.2)
    solver = DAPS(measurement=given, steps=2, langevin_steps=5)
    whole = solver(denoiser, x, noise=per_sample_noise(x, seeds))
    one = replace(solver, measurement=given.select(torch.tensor([1]), 3))
    alone = one(denoiser, x[1:2], noise=per_sample_noise(x[1:2], seeds[1:2]))
    assert torch.allclose(alone[0], whole[1], rtol=0, atol=1e-12)


def test_a_mask_takes_noise_of_its_own_for_each_entry_of_each_sample() -> None:
    denoiser, x, seeds = GaussianDenoiser(VPSDE(), MEAN, cov=COV), torch.randn(2, SIZE).double(), [11, 12]
    std = torch.tensor([[0.1, 0.0, 0.3], [0.5, 0.2, 0.0]])
    mask, y = Mask(torch.tensor([1, 0, 1])), torch.tensor([[0.3, 0.0, 1.0]]).double()
    both = DDRM(measurement=Measurement(mask, y, std))(denoiser, x, noise=per_sample_noise(x, seeds))
    for k in range(2):
        one = Measurement(mask, y, std[k : k + 1])
        alone = DDRM(measurement=one)(denoiser, x[k : k + 1], noise=per_sample_noise(x[k : k + 1], seeds[k : k + 1]))
        assert torch.allclose(alone[0], both[k], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_state_stays_and_calls_are_counted(dtype: torch.dtype) -> None:
    denoiser, calls = GaussianDenoiser(StraightSDE(), MEAN, cov=COV), 0

    class Counting(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde = denoiser.sde

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal calls
            calls += 1
            assert (t >= 0.01).all()
            return denoiser(x, t)

        def covariance(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return denoiser.covariance(x, t)

    x = torch.randn(2, SIZE, dtype=dtype)
    for solver, each in (
        (DDRM(measurement=GIVEN[1], steps=4, t_end=0.01), 1),
        (DAPS(measurement=GIVEN[1], steps=4, t_end=0.01, ode_steps=5), 5),
        (DAPS(measurement=GIVEN[1], steps=4, t_end=0.01, covariance="known"), 1),
    ):
        calls = 0
        assert solver(Counting(), x).dtype == dtype
        assert calls == 5 * each
        assert solver.calls == each


def test_bad_arguments_are_named_in_one_sentence() -> None:
    good, x = GIVEN[1], torch.zeros(2, SIZE)
    sine, straight = Function(torch.sin, (SIZE,)), GaussianDenoiser(StraightSDE())
    partly = Measurement(Matrix(A), x[:1, :2], torch.tensor([0.0, 1.0]))
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: DDRM(measurement=good, eta=1.5), "needs 0 <= eta <= 1"),
        (lambda: DDRM(measurement=good, eta_b=-1), "needs 0 <= eta_b <= 1"),
        (lambda: DDRM(measurement=good, steps=0), "needs 1 <= steps"),
        (lambda: DDRM(measurement=Measurement(sine, x[:1], 0.1)), "DDRM needs a linear operator, got Function: use"),
        (lambda: DDRM(measurement=Measurement(Matrix(A), x[:1, :2], PoissonNoise(1.0))), "DDRM needs Gaussian noise"),
        (lambda: DAPS(measurement=Measurement(sine, x[:1], 0.0)), "needs noise above 0 for an operator that is not"),
        (lambda: DAPS(measurement=x), "DAPS needs measurement to be a Measurement"),
        (lambda: DAPS(measurement=good, ode_steps=0), "needs 1 <= ode_steps"),
        (lambda: DAPS(measurement=good, langevin_steps=0), "needs 1 <= langevin_steps"),
        (lambda: DAPS(measurement=good, langevin_rate=1), "needs 0 < langevin_rate < 1"),
        (lambda: DAPS(measurement=good, covariance="abc"), "needs covariance noise, unit or known"),
        (lambda: DAPS(measurement=good, covariance="known", ode_steps=3), "has no use for ode_steps=3"),
        (lambda: DAPS(measurement=good, covariance="noise")(straight, x), "needs signal at t = 1"),
        (lambda: DAPS(measurement=good)(GaussianDenoiser(VPSDE()), torch.zeros(2, 4)), r"states of shape \(B, 3\)"),
        (lambda: DDRM(measurement=partly)(GaussianDenoiser(VPSDE()), x), "needs a Mask"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
