from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor

from scoresde import (
    DDIM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Heun,
    ProbabilityFlowODE,
    Solver,
    expand,
    logsnr_grid,
)
from scoresde.analytic import EmpiricalDenoiser, FlowError, exact_flow, flow_error
from scoresde.sde.levels import Level
from scoresde.testing import convergence_order

ONE = torch.ones((), dtype=torch.float64)


def starts(sde: SDE, n: int, d: int, seed: int = 0) -> Tensor:
    return sde.prior_sample((n, d), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(sde: SDE, dim: int = 2, components: int = 8, std: tuple[float, float] = (0.03, 0.15)) -> Any:
    return GaussianMixtureDenoiser.random(sde, dim, components, std=std, generator=torch.Generator().manual_seed(0))


class Wrapped(Denoiser):
    """A denoiser of which only x̂0 and ε̂ are known."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde = inner, inner.sde

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.inner(x, t)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.inner.eps(x, t)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_flow_of_a_gaussian_is_that_of_a_mixture_of_one(sde: SDE) -> None:
    factor = torch.tensor([[0.5, 0.2], [0.0, 0.05]], dtype=torch.float64)
    mean, cov = torch.tensor([1.5, -0.4], dtype=torch.float64), factor @ factor.T
    x = starts(sde, 20, 2)
    mixture = GaussianMixtureDenoiser(sde, torch.ones(1), mean[None], cov[None])
    torch.testing.assert_close(
        exact_flow(GaussianDenoiser(sde, mean, cov=cov), x), exact_flow(mixture, x), rtol=0, atol=2e-7
    )
    # standardised coordinates stand still
    std = torch.tensor([0.3, 2.0], dtype=torch.float64)
    start = (x - sde.alpha(ONE) * mean) / torch.hypot(sde.alpha(ONE) * std, sde.sigma(ONE).expand(2))
    end = (exact_flow(GaussianDenoiser(sde, mean, std), x) - mean) / std
    torch.testing.assert_close(start, end, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_flow_on_the_line_keeps_quantiles(sde: SDE) -> None:
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = torch.tensor([[-1.0], [0.2], [1.5]], dtype=torch.float64)
    variances = torch.tensor([[0.01], [0.09], [0.0025]], dtype=torch.float64)

    def cdf(y: Tensor, s: Tensor | float) -> Tensor:
        return torch.special.ndtr((y - means[:, 0]) / (variances[:, 0] + s**2).sqrt()) @ weights

    denoiser, x = GaussianMixtureDenoiser(sde, weights, means, variances), starts(sde, 100, 1)
    alpha, sigma = sde.alpha(ONE), sde.sigma(ONE)
    end = cdf(exact_flow(denoiser, x), 0.0)
    torch.testing.assert_close(end, cdf(x / alpha, sigma / alpha), rtol=0, atol=2e-8)


def test_flow_of_points_on_the_line_keeps_quantiles_and_ends_in_points() -> None:
    sde, data = VPSDE(), torch.tensor([[-1.0], [0.3], [0.9], [2.0]], dtype=torch.float64)
    denoiser = EmpiricalDenoiser(sde, data, weights=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = starts(sde, 200, 1)
    noisy = torch.special.ndtr((x - sde.alpha(ONE) * data[:, 0]) / sde.sigma(ONE)) @ denoiser.weights
    expected = torch.bucketize(noisy, denoiser.weights.cumsum(0))
    torch.testing.assert_close(exact_flow(denoiser, x), data[expected], rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(2, 8, (0.03, 0.15)), (64, 10, (0.01, 0.3))], ids=str)
def test_flow_is_converged_in_noise_in_tolerance_and_in_batches(shape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sde = VPSDE()
    denoiser = problem(sde, *shape)
    x = starts(sde, 60, shape[0])
    end = exact_flow(denoiser, x)
    half = exact_flow(denoiser, x, noise_end=0.5e-4 * denoiser.finest_scale())
    assert 0 < float((half - end).abs().max()) < 1e-8
    assert float((exact_flow(denoiser, x, rtol=1e-10) - end).abs().max()) < 1e-7
    assert float((exact_flow(denoiser, x[:7]) - end[:7]).abs().max()) < 1e-7
    assert end.dtype == exact_flow(denoiser, x[:2].float()).dtype == torch.float64


def test_flow_does_not_need_the_law_to_solve_on_its_own_process() -> None:
    for sde in (VPSDE(), VESDE(sigma_min=1e-6)):
        denoiser, x = problem(sde), starts(sde, 30, 2)
        exact = exact_flow(denoiser, x)
        assert float((exact_flow(Wrapped(denoiser), x, noise_end=3e-6) - exact).abs().max()) < 1e-7
        own = ProbabilityFlowODE(method="dopri8", rtol=1e-10, atol=1e-10, t_end=1e-9)(denoiser, x)
        assert float((own - exact).abs().max()) < 1e-7


def test_flow_goes_below_the_least_noise_of_its_process() -> None:
    coarse, fine = EDMSDE(sigma_min=0.5), EDMSDE(sigma_min=1e-6)
    x = starts(fine, 20, 2)
    assert torch.equal(exact_flow(problem(coarse), x), exact_flow(problem(fine), x))
    noisy = ProbabilityFlowODE(method="dopri8", rtol=1e-9, atol=1e-9, t_end=0.0)(problem(coarse), x)
    assert float((noisy - exact_flow(problem(coarse), x)).abs().max()) > 0.1


def test_flow_keeps_events_and_small_data() -> None:
    sde = VPSDE()
    denoiser, x = problem(sde, 6, 3), starts(sde, 5, 6)
    end = exact_flow(denoiser, x)
    torch.testing.assert_close(exact_flow(denoiser, x.reshape(5, 1, 3, 2)), end.reshape(5, 1, 3, 2))
    small = GaussianMixtureDenoiser(sde, denoiser.weights, 1e-3 * denoiser.means, 1e-6 * denoiser.variances)
    precise = exact_flow(small, x, rtol=1e-11)
    assert float((exact_flow(small, x) - precise).abs().max()) < 1e-3 * 1e-9


@dataclass(frozen=True, kw_only=True)
class Offset(Solver):
    """The exact flow, off by 0.3 in every entry of the first half of the samples and 0.1 of the others."""

    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: Any = None) -> Tensor:
        far = torch.arange(len(x), device=x.device) < len(x) // 2
        return exact_flow(self.law, x) + expand(torch.where(far, 0.3, 0.1), x)  # type: ignore[attr-defined]


def test_flow_error_is_the_rms_distance_in_units_of_the_data() -> None:
    law = GaussianDenoiser(VPSDE(), torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.1, 0.2, 0.3]))
    solver = Offset()
    object.__setattr__(solver, "law", law)
    x = starts(VPSDE(), 101, 3)
    error = flow_error(solver, law, x)
    rms = math.sqrt((25 + 0.14) / 3)
    expected = torch.cat([torch.full((50,), 0.3), torch.full((51,), 0.1)]).double() / rms
    torch.testing.assert_close(error.per_sample, expected, rtol=1e-6, atol=0)
    assert error.median == pytest.approx(0.1 / rms, rel=1e-6)
    assert error.rms == pytest.approx(math.sqrt((50 * 0.09 + 51 * 0.01) / 101) / rms, rel=1e-6)
    shifted = flow_error(solver, law, x, reference=exact_flow(law, x) + 1)
    assert shifted.median == pytest.approx(0.9 / rms, rel=1e-6)
    assert isinstance(error, FlowError)


def test_flow_error_shows_orders_and_counts_calls() -> None:
    denoiser = problem(VPSDE(), 3, 2, (0.5, 1.0))
    x = starts(VPSDE(), 50, 3)
    reference = exact_flow(denoiser, x)

    def error(solver: Solver) -> FlowError:
        return flow_error(solver, denoiser, x, reference=reference)

    for solver, order, calls in ((DDIM, 1, 1), (Heun, 2, 2)):
        measured = convergence_order(
            lambda steps, solver=solver: torch.tensor(
                error(solver(steps=steps, grid=logsnr_grid, t_end=1e-7)).rms  # type: ignore[misc]
            ),
            0.0,
            steps=(80, 160, 320),
        )
        assert measured == pytest.approx(order, abs=0.15)
        assert error(solver(steps=20, denoise=False)).nfe == 20 * calls
        assert error(solver(steps=20)).nfe == 20 * calls + 1
    adaptive = error(ProbabilityFlowODE(rtol=1e-8, atol=1e-8, t_end=1e-8))
    assert adaptive.rms < 1e-6 and 50 < adaptive.nfe < 2000


def test_flow_error_counts_whatever_a_solver_asks_once() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Curious(Solver):
        def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: Any = None) -> Tensor:
            t = torch.tensor(0.5, dtype=torch.float64)
            for method in (denoiser, denoiser.eps, denoiser.score, denoiser.velocity, denoiser.mean_and_covariance):
                method(x, t)
            for at_level in (denoiser.x0, denoiser.eps_at, denoiser.score_at):
                at_level(x, Level.at(denoiser.sde, t, x))
            half = denoiser.select(torch.arange(len(x) // 2), len(x))
            assert half is not None
            half(x[: len(x) // 2], t)
            denoiser.covariance_diag(x, t)  # type: ignore[operator]
            return x

    denoiser = problem(VPSDE())
    assert flow_error(Curious(), denoiser, n=10).nfe == 8.5
    assert "forward" not in vars(denoiser)
    assert flow_error(Curious(), GaussianDenoiser(VPSDE(), torch.zeros(2)), n=10).nfe == 8.5


def test_flow_error_draws_starts_reproducibly_and_names_what_is_missing() -> None:
    denoiser, solver = problem(VPSDE()), DDIM(steps=5)
    first, again = (flow_error(solver, denoiser, n=30, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.per_sample.shape == (30,) and torch.equal(first.per_sample, again.per_sample)
    x = starts(VPSDE(), 30, 2, seed=4)
    assert torch.equal(flow_error(solver, denoiser, x).per_sample, first.per_sample)
    torch.testing.assert_close(
        flow_error(solver, denoiser, x.float()).per_sample, first.per_sample, rtol=1e-3, atol=1e-5
    )
    wrapped = flow_error(solver, Wrapped(denoiser), x)
    assert wrapped.median == pytest.approx(first.median, rel=0.3)  # in units of the reference's rms
    with pytest.raises(ValueError, match=r"flow_error needs x with a reference, got None"):
        flow_error(solver, denoiser, reference=x)
    with pytest.raises(ValueError, match=r"flow_error needs x with Wrapped, got None"):
        flow_error(solver, Wrapped(denoiser))
