"""The flow of Gaussian data against its closed form, and runs that begin with it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor

from scoresde import (
    DDIM,
    EDMSDE,
    SDE,
    VPSDE,
    DPMSolverPP2M,
    DPMSolverPP2S,
    ExponentialAdams,
    GaussianDenoiser,
    Heun,
    ReverseDiffusion,
    StepSolver,
    UniPC,
)
from scoresde.fitting import GaussianFlow
from scoresde.sde.grids import StartedGrid

ONE = torch.ones((), dtype=torch.float64)


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def covariance(d: int) -> Tensor:
    root = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return root @ root.T / d + 0.05 * torch.eye(d, dtype=torch.float64)


def full_rank(shape: tuple[int, ...]) -> tuple[GaussianFlow, Tensor, Tensor]:
    """A flow, and the mean and covariance that it is of."""
    d = torch.Size(shape).numel()
    mean = torch.linspace(-1, 2, d, dtype=torch.float64)
    variances, axes = torch.linalg.eigh(covariance(d))
    return GaussianFlow(mean.reshape(shape), axes.T, variances, 0.0), mean, covariance(d)


def symmetric_power(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def between(sde: SDE, x: Tensor, t: Tensor, s: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """x_s = α_s m + Σ_s^½ Σ_t^(−½) (x_t − α_t m) with Σ_t = α_t² C + σ_t² I, written with matrices."""
    eye = torch.eye(len(cov), dtype=torch.float64)
    wide_t, wide_s = (sde.alpha(u).square() * cov + sde.sigma(u).square() * eye for u in (t, s))
    moved = (x.flatten(1) - sde.alpha(t) * mean) @ symmetric_power(wide_t, -0.5) @ symmetric_power(wide_s, 0.5)
    return (sde.alpha(s) * mean + moved).reshape(x.shape)


@pytest.mark.parametrize("times", [(1.0, 0.3), (0.9, 0.01), (0.02, 1.0), (0.5, 0.5)], ids=str)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_equals_the_closed_form_both_ways(sde: SDE, shape: tuple[int, ...], times: tuple[float, float]) -> None:
    flow, mean, cov = full_rank(shape)
    t, s = map(tensor, times)
    x = sde.sigma(t) * torch.randn(5, *shape, dtype=torch.float64)
    expected = between(sde, x, t, s, mean, cov)
    torch.testing.assert_close(flow(sde, x, t, s), expected, rtol=1e-8, atol=1e-9)
    single = flow(sde, x.float(), t, s)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_agrees_with_the_exact_flow_of_the_denoiser_of_this_law(sde: SDE) -> None:
    flow, mean, cov = full_rank((6,))
    denoiser = GaussianDenoiser(sde, mean, cov=cov)
    x, s = sde.prior_sample((4, 6), dtype=torch.float64), tensor(0.4005)
    x_s = flow(sde, x, ONE, s)
    # whatever the time, the same path ends at the same data
    at_one = denoiser.flow(x / sde.alpha(ONE), sde.sigma(ONE) / sde.alpha(ONE))
    at_s = denoiser.flow(x_s / sde.alpha(s), sde.sigma(s) / sde.alpha(s))
    torch.testing.assert_close(at_s, at_one, rtol=1e-7, atol=1e-9)
    # and the flow moves with the velocity of the denoiser
    h = 1e-5
    slope = (flow(sde, x_s, s, s + h) - flow(sde, x_s, s, s - h)) / (2 * h)
    torch.testing.assert_close(slope, denoiser.velocity(x_s, s), rtol=2e-4, atol=1e-5)


def test_few_axes_and_a_rest_are_the_matrix_that_they_describe() -> None:
    variances, axes = torch.linalg.eigh(covariance(7))
    low = GaussianFlow(torch.ones(7, dtype=torch.float64), axes.T[-3:], variances[-3:], 0.2)
    cov = low.axes.T @ torch.diag(low.variances - 0.2) @ low.axes + 0.2 * torch.eye(7, dtype=torch.float64)
    x, t, s = torch.randn(5, 7, dtype=torch.float64), tensor(0.8), tensor(0.2)
    torch.testing.assert_close(low(VPSDE(), x, t, s), between(VPSDE(), x, t, s, low.mean, cov))
    assert low.std == pytest.approx(float(cov.trace() / 7) ** 0.5)
    isotropic = GaussianFlow(low.mean, axes[:0], variances[:0], 0.2)
    eye = 0.2 * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(isotropic(VPSDE(), x, t, s), between(VPSDE(), x, t, s, low.mean, eye))


def test_mean_and_covariance_of_samples_are_recovered() -> None:
    n, cov = 20_000, covariance(4)
    mean = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    x = mean + torch.randn(n, 4, dtype=torch.float64) @ symmetric_power(cov, 0.5)
    flow = GaussianFlow.of(x.reshape(n, 2, 2))
    assert flow.mean.shape == (2, 2)
    assert flow.rest == 0
    assert ((flow.mean.flatten() - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    found = flow.axes.T @ torch.diag(flow.variances) @ flow.axes
    error = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / n).sqrt()
    assert ((found - cov).abs() < 4 * error).all()
    torch.testing.assert_close(flow.axes @ flow.axes.T, torch.eye(4, dtype=torch.float64))


def test_a_low_rank_keeps_the_trace_and_the_leading_axes() -> None:
    x = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.4, 0.3])
    whole, low = GaussianFlow.of(x), GaussianFlow.of(x, rank=2)
    assert low.axes.shape == (2, 6)
    torch.testing.assert_close(low.variances, whole.variances[:2])
    assert low.rest == pytest.approx(float(whole.variances[2:].mean()))
    assert low.std == pytest.approx(float(x.var(0).mean()) ** 0.5)
    assert GaussianFlow.of(x[:4]).axes.shape == (3, 6), "n samples span n − 1 directions"


def test_a_mean_that_is_given_moves_the_centre_and_not_the_spread() -> None:
    x = torch.randn(30, 3) + 4
    mean = torch.tensor([3.0, 4.0, 5.0])
    flow = GaussianFlow.of(x, mean=mean)
    torch.testing.assert_close(flow.mean, mean.double())
    torch.testing.assert_close(flow.variances, GaussianFlow.of(x).variances)


def test_a_process_without_signal_at_its_start_is_no_problem() -> None:
    class NoSignal(SDE):
        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t

        def sigma(self, t: Tensor) -> Tensor:
            return t

    flow, mean, cov = full_rank((3,))
    x = torch.randn(4, 3, dtype=torch.float64)
    s = tensor(0.5)
    eye = torch.eye(3, dtype=torch.float64)
    expected = 0.5 * mean + x @ symmetric_power(0.25 * (cov + eye), 0.5)
    torch.testing.assert_close(flow(NoSignal(), x, ONE, s), expected)


def test_mistakes_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="at least 2 samples to see a variance, got 1"):
        GaussianFlow.of(torch.randn(1, 3))
    flow, _, _ = full_rank((4,))
    with pytest.raises(ValueError, match=r"for events of shape \(4,\), got x of shape \(5, 3\)"):
        flow(VPSDE(), torch.randn(5, 3), ONE, 0.5 * ONE)


@dataclass(frozen=True, eq=False)
class Below(StartedGrid):
    """Levels from a noise level of `high` to one of `low`, after the flow of Gaussian data."""

    start: GaussianFlow
    high: float = 4.0
    low: float = 5e-3

    def times(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        ratios = torch.linspace(self.high ** (1 / 5), self.low ** (1 / 5), steps + 1, dtype=torch.float64) ** 5
        return sde.time(-2 * ratios.log())


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=name)
@pytest.mark.parametrize(
    "kind", [DDIM, DPMSolverPP2M, ExponentialAdams, UniPC, ReverseDiffusion], ids=lambda kind: kind.__name__
)
def test_a_run_begins_with_the_flow(kind: type[StepSolver], sde: SDE) -> None:
    """One step that goes nowhere leaves the flow alone: its end is exact, whatever the solver."""
    flow, mean, cov = full_rank((5,))
    denoiser = GaussianDenoiser(sde, mean, cov=cov)
    options = {"eta": 0.0} if kind is ReverseDiffusion else {}
    x = sde.prior_sample((3, 5), dtype=torch.float64)
    first, *_, last = kind(steps=3, grid=Below(flow), denoise=False, **options).trajectory(denoiser, x)
    torch.testing.assert_close(first.x, between(sde, x, ONE, first.t, mean, cov))
    assert float(sde.sigma(first.t) / sde.alpha(first.t)) == pytest.approx(4.0)
    assert float(sde.sigma(last.t) / sde.alpha(last.t)) == pytest.approx(5e-3)


@pytest.mark.parametrize("kind", [Heun, DPMSolverPP2S], ids=lambda kind: kind.__name__)
def test_a_run_of_a_staged_solver_begins_with_the_flow(kind: type[StepSolver]) -> None:
    test_a_run_begins_with_the_flow(kind, VPSDE())


@pytest.mark.parametrize("steps", [1, 4])
def test_gaussian_data_arrive_exactly_when_the_flow_goes_all_the_way(steps: int) -> None:
    flow, mean, cov = full_rank((5,))
    sde = VPSDE()
    denoiser = GaussianDenoiser(sde, mean, cov=cov)
    x = sde.prior_sample((6, 5), dtype=torch.float64)
    exact = denoiser.flow(x / sde.alpha(ONE), sde.sigma(ONE) / sde.alpha(ONE))
    for kind in (DDIM, DPMSolverPP2M, ExponentialAdams, UniPC):
        solver = kind(steps=steps, grid=Below(flow, high=2e-5, low=1e-5), t_end=1e-6)
        assert (solver(denoiser, x) - exact).abs().max() < 1e-9, kind


def test_encode_undoes_a_run_with_a_start() -> None:
    flow, mean, cov = full_rank((5,))
    sde = VPSDE()
    other = GaussianDenoiser(sde, 0.7 * mean, cov=2 * cov)  # the flow of the start is not that of the model
    x = sde.prior_sample((6, 5), dtype=torch.float64)
    errors = []
    grid = Below(flow, low=1e-2)
    t_end = float(grid.times(sde, 20, 0.0)[-1])  # data are given there
    for steps in (20, 40):
        solver = ExponentialAdams(steps=steps, grid=grid, t_end=t_end, denoise=False)
        errors.append(float((solver.encode(other, solver(other, x)) - x).abs().max()))
    assert errors[1] < 2e-3
    assert errors[0] > 4 * errors[1]
    torch.testing.assert_close(flow(sde, flow(sde, x, ONE, 0.3 * ONE), 0.3 * ONE, ONE), x)
