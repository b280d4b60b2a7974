"""Denoisers of p(x0 | y) against the exact posteriors of Gaussian priors."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import (
    DDPM,
    EDMSDE,
    SDE,
    VPSDE,
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Interval,
    ProbabilityFlowODE,
    StraightSDE,
    log_prob,
)
from scoresde.inverse import (
    DPS,
    MMPS,
    TMPD,
    DiffPIR,
    GaussianNoise,
    GaussianPosterior,
    LinearFunction,
    Mask,
    Matrix,
    Measurement,
    Operator,
    PiGDM,
)
from scoresde.inverse.linearised import conjugate_gradients

Method = Callable[..., Denoiser]
SDES = [VPSDE(), EDMSDE(), StraightSDE()]


def problem(d: int = 4, m: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and covariance of a Gaussian prior, A, and the covariance of the noise."""
    g = torch.Generator().manual_seed(seed)
    mean, root, a, noise = (torch.randn(s, generator=g).double() for s in ((d,), (d, d), (m, d), (m, m)))
    return mean, root @ root.T / d + 0.05 * torch.eye(d), a, 0.1 * noise @ noise.T + 0.02 * torch.eye(m)


def conditioned(mean: Tensor, cov: Tensor, a: Tensor, noise: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x0 given y = A x0 + n, by Bayes' rule in the form of precisions."""
    precision = torch.linalg.inv(cov) + a.T @ torch.linalg.solve(noise, a)
    posterior = torch.linalg.inv(precision)
    return posterior @ (torch.linalg.solve(cov, mean) + a.T @ torch.linalg.solve(noise, y)), posterior


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("method", [MMPS, GaussianPosterior])
def test_of_a_gaussian_they_are_the_exact_denoiser_of_the_posterior(method: Method, sde: SDE) -> None:
    mean, cov, a, noise = problem()
    y = a @ mean + torch.tensor([1.0, -0.7])
    guided = method(GaussianDenoiser(sde, mean, cov=cov), Measurement(Matrix(a), y[None], GaussianNoise(cov=noise)))
    posterior_mean, posterior_cov = conditioned(mean, cov, a, noise, y)
    exact = GaussianDenoiser(sde, posterior_mean, cov=posterior_cov)

    t = torch.tensor([0.99, 0.7, 0.3, 0.05, 1e-3]).double()
    x = sde.alpha(t)[:, None] * mean + sde.sigma(t)[:, None] * torch.randn(5, 4).double()
    for ask in ("__call__", "score", "v", "velocity"):
        torch.testing.assert_close(getattr(guided, ask)(x, t), getattr(exact, ask)(x, t), rtol=1e-8, atol=1e-8)
        alone = torch.cat([getattr(guided, ask)(x[row : row + 1], t[row]) for row in range(5)])
        torch.testing.assert_close(getattr(guided, ask)(x, t), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [MMPS, GaussianPosterior])
def test_the_flow_of_a_gaussian_ends_in_the_exact_posterior(method: Method) -> None:
    """The flow is affine: four starts give it, and with it mean and covariance at the data, without sampling."""
    mean, cov, a, noise = problem(d=3)
    sde, y = EDMSDE(sigma_min=1e-4), a @ mean + torch.tensor([1.0, -0.7])
    guided = method(GaussianDenoiser(sde, mean, cov=cov), Measurement(Matrix(a), y[None], GaussianNoise(cov=noise)))
    exact_mean, exact_cov = conditioned(mean, cov, a, noise, y)

    ends = ProbabilityFlowODE(rtol=1e-7, atol=1e-9)(guided, torch.cat([torch.zeros(1, 3), torch.eye(3)]).double())
    offset, slope = ends[0], (ends[1:] - ends[0]).T

    start = exact_cov + 80.0**2 * torch.eye(3)
    torch.testing.assert_close(offset + slope @ exact_mean, exact_mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(slope @ start @ slope.T, exact_cov, rtol=0, atol=1e-6)


def test_log_prob_of_the_posterior() -> None:
    mean, cov, a, noise = problem(d=2, m=1)
    sde, y = VPSDE(), a @ mean + 1.0
    guided = MMPS(GaussianDenoiser(sde, mean, cov=cov), Measurement(Matrix(a), y[None], GaussianNoise(cov=noise)))
    posterior_mean, posterior_cov = conditioned(mean, cov, a, noise, y)
    x = torch.distributions.MultivariateNormal(posterior_mean, posterior_cov).sample((2,))

    ours = log_prob(guided, x, divergence="exact", rtol=1e-5, atol=1e-5).log_prob

    exact = GaussianDenoiser(sde, posterior_mean, cov=posterior_cov)
    exact_density = log_prob(exact, x, divergence="exact", rtol=1e-5, atol=1e-5).log_prob
    torch.testing.assert_close(ours, exact_density, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [MMPS, GaussianPosterior])
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_masks_of_each_sample_and_measurements_without_noise(method: Method, std: float) -> None:
    """Of a coordinate that is observed without noise nothing is left to estimate."""
    mean, cov, _, _ = problem(d=3)
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    truth = mean + torch.randn(3, 3).double()
    measurement = Measurement(Mask(mask, shape=(3,)), mask * truth, std)
    guided, x = method(GaussianDenoiser(VPSDE(), mean, cov=cov), measurement), torch.randn(3, 3).double()
    t = torch.tensor(0.4).double()
    for row in range(3):
        a = torch.eye(3).double()[mask[row].bool()]
        law = conditioned(mean, cov, a, max(std, 1e-4) ** 2 * torch.eye(len(a)).double(), a @ truth[row])
        exact = GaussianDenoiser(VPSDE(), law[0], cov=0.5 * (law[1] + law[1].T)) if len(a) else guided.denoiser
        torch.testing.assert_close(guided(x, t)[row], exact(x, t)[row], rtol=1e-6, atol=1e-6)
        part = guided.select(torch.tensor([row]), 3)
        torch.testing.assert_close(part(x[row : row + 1], t)[0], guided(x, t)[row], rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        inside = guided(x, t)
    torch.testing.assert_close(inside, guided(x, t))
    assert guided(x.float(), t.float()).dtype == torch.float32 and not guided(x, t).requires_grad


@pytest.mark.parametrize("method", [MMPS, GaussianPosterior])
def test_where_there_is_no_signal(method: Method) -> None:
    mean, cov, a, noise = problem()
    y, sde = a @ mean + 0.5, StraightSDE()
    guided = method(GaussianDenoiser(sde, mean, cov=cov), Measurement(Matrix(a), y[None], GaussianNoise(cov=noise)))
    posterior_mean, _ = conditioned(mean, cov, a, noise, y)
    x = torch.randn(3, 4).double()
    for t in (torch.ones(()), torch.tensor([1.0, 1.0, 1 - 1e-9]).double()):
        torch.testing.assert_close(guided(x, t), posterior_mean.expand(3, 4), rtol=0, atol=1e-2)
        torch.testing.assert_close(guided.v(x, t), -guided(x, t), rtol=0, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_pigdm_is_exact_for_data_of_one_variance(sde: SDE) -> None:
    _, _, a, noise = problem()
    y, prior = torch.tensor([[1.0, -0.7]]).double(), 1.7**2 * torch.eye(4).double()
    guided = PiGDM(GaussianDenoiser(sde, 0.0, 1.7), Measurement(Matrix(a), y, GaussianNoise(cov=noise)), std=1.7)
    mean, cov = conditioned(torch.zeros(4).double(), prior, a, noise, y[0])
    x, t = sde.prior_std * torch.randn(3, 4).double(), torch.tensor([0.9, 0.5, 0.05]).double()
    torch.testing.assert_close(guided(x, t), GaussianDenoiser(sde, mean, cov=cov)(x, t), rtol=1e-8, atol=1e-8)


def test_tmpd_is_exact_for_a_mask_of_independent_entries_and_explodes_for_a_dense_matrix() -> None:
    std, mask, x = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([1, 0, 1]), torch.randn(4, 3).double()
    prior, t = GaussianDenoiser(VPSDE(), 0.3, std), torch.tensor(0.4).double()
    measurement = Measurement(Mask(mask), mask * torch.ones(1, 3).double(), 0.2)
    torch.testing.assert_close(TMPD(prior, measurement)(x, t), MMPS(prior, measurement)(x, t), rtol=1e-9, atol=1e-9)
    opposite = Measurement(Matrix(torch.tensor([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])), torch.ones(1, 2).double(), 0.01)
    ratio = (TMPD(prior, opposite)(x, t) - prior(x, t)).norm() / (MMPS(prior, opposite)(x, t) - prior(x, t)).norm()
    assert ratio > 100  # its row sums are 0


def test_diffpir_is_the_proximal_point() -> None:
    mean, cov, a, _ = problem()
    prior, x, t = GaussianDenoiser(VPSDE(), mean, cov=cov), torch.randn(3, 4).double(), torch.tensor(0.3).double()
    y, sde = torch.randn(3, 2).double(), VPSDE()
    x0, rho = prior(x, t), 3.0 * 0.2**2 * sde.alpha(t) ** 2 / sde.sigma(t) ** 2
    expected = torch.linalg.solve(a.T @ a + rho * torch.eye(4).double(), (y @ a + rho * x0).T).T
    guided = DiffPIR(prior, Measurement(Matrix(a), y, 0.2), strength=3.0)
    torch.testing.assert_close(guided(x, t), expected, rtol=1e-8, atol=1e-8)
    exact = DiffPIR(prior, Measurement(Matrix(a), y, 0.0), strength=3.0)
    torch.testing.assert_close(exact(x, t) @ a.T, y, rtol=1e-8, atol=1e-8)


def test_dps_steps_down_the_misfit_of_each_sample() -> None:
    mean, cov, a, _ = problem()
    sde = VPSDE()
    prior, x, y = GaussianDenoiser(sde, mean, cov=cov), torch.randn(3, 4).double(), torch.randn(3, 2).double()
    interval = Interval.between(sde, torch.tensor(0.5).double(), torch.tensor(0.4).double())
    z = torch.randn(3, 4).double()
    solver = DPS(measurement=Measurement(Matrix(a), y, 0.1), zeta=0.3)

    ours, _ = solver.step(prior, x, interval, lambda t, s: z, None)

    plain, _ = DDPM().step(prior, x, interval, lambda t, s: z, None)
    alpha, sigma, one = interval.t.alpha, interval.t.sigma, torch.eye(4).double()
    jacobian = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * one)
    misfit = y - prior(x, 0.5) @ a.T
    expected = plain + 0.3 * (misfit / misfit.norm(dim=1, keepdim=True)) @ a @ jacobian
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        assert replace(solver, steps=3)(prior, x).isfinite().all()


class Squares(Operator):
    shape = (4,)

    def forward(self, x0: Tensor) -> Tensor:
        return x0[:, :2].square()


@pytest.mark.parametrize("method", [MMPS, GaussianPosterior])
def test_a_function_is_linearised_at_the_estimate(method: Method) -> None:
    mean, cov, _, _ = problem()
    prior, x, t = GaussianDenoiser(VPSDE(), mean, cov=cov), torch.randn(3, 4).double(), torch.tensor(0.3).double()
    y = torch.tensor([[0.5, 2.0]]).double()
    guided, x0 = method(prior, Measurement(Squares(), y, 0.1)), prior(x, t)
    for row in range(3):
        a = torch.diag(2 * x0[row, :2]) @ torch.eye(4).double()[:2]
        tangent = Measurement(Matrix(a), (y - x0[row, :2].square() + a @ x0[row]), 0.1)
        torch.testing.assert_close(guided(x, t)[row], method(prior, tangent)(x, t)[row], rtol=1e-8, atol=1e-8)


class Counted(Denoiser):
    """A denoiser that counts its passes forward and backward."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.forward_passes, self.backward_passes = denoiser, denoiser.sde, 0, 0

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.forward_passes += 1
        x0 = self.inner(x, t)
        if x0.requires_grad:
            x0.register_hook(self._count)
        return x0

    def _count(self, gradient: Tensor) -> None:
        self.backward_passes += 1


@pytest.mark.parametrize(
    ("method", "backward"), [(MMPS, 4), (partial(MMPS, iterations=2), 2), (TMPD, 2), (PiGDM, 1), (DiffPIR, 0)]
)
def test_passes_of_the_denoiser_in_a_call(method: Method, backward: int) -> None:
    """MMPS has as many backward passes as iterations: the last product with the Jacobian is the sum of theirs."""
    mean, cov, a, noise = problem(d=5, m=4)
    counted = Counted(GaussianDenoiser(VPSDE(), mean, cov=cov))
    measurement = Measurement(Matrix(a), (a @ mean)[None] + 1, GaussianNoise(cov=noise))
    method(counted, measurement)(torch.randn(3, 5).double(), 0.5)
    assert (counted.forward_passes, counted.backward_passes) == (1, backward)


def test_passes_of_the_denoiser_in_a_run() -> None:
    mean, cov, a, _ = problem()
    counted = Counted(GaussianDenoiser(VPSDE(), mean, cov=cov))
    measurement = Measurement(Matrix(a), (a @ mean)[None] + 1, 0.3)
    DPS(measurement=measurement, steps=7)(counted, torch.randn(3, 4).double())
    assert (counted.forward_passes, counted.backward_passes) == (8, 7)  # the last call denoises


@pytest.mark.parametrize("method", [MMPS, GaussianPosterior, TMPD, PiGDM, DiffPIR])
def test_gradients_pass_through(method: Method) -> None:
    """By x, as likelihoods ask: against differences, for an operator whose adjoint is a gradient itself."""
    mean, cov, a, _ = problem()
    prior = GaussianMixtureDenoiser(VPSDE(), torch.ones(2), torch.stack([mean, -mean]), torch.stack([cov, 0.5 * cov]))
    operators = LinearFunction(lambda x0: x0 @ a.T, (4,)), Squares()
    x, t, v = torch.randn(3, 4).double(), torch.tensor(0.4).double(), torch.randn(3, 4).double()
    for operator in operators:
        guided = method(prior, Measurement(operator, torch.ones(1, 2).double(), 0.5))
        leaf = x.clone().requires_grad_()
        (pulled,) = torch.autograd.grad((guided(leaf, t) * v).sum(), leaf)
        slope = ((guided(x + 1e-5 * v, t) - guided(x - 1e-5 * v, t)) / 2e-5 * v).flatten(1).sum(1)
        torch.testing.assert_close((pulled * v).sum(1), slope, rtol=1e-5, atol=1e-6)


def test_conjugate_gradients_stop_where_the_jacobian_of_a_network_is_not_symmetric() -> None:
    """The first direction is still right: further ones of such a matrix lead far away."""
    matrix = torch.tensor([[1.0, 0.9, 0.0], [-0.9, 1.0, 0.2], [0.0, 0.5, 0.01]]).double()
    b = torch.tensor([[1.0, 1.0, 1.0], [1.0, -0.5, 0.3]]).double()

    def system(u: Tensor) -> tuple[Tensor, Tensor]:
        return u @ matrix.T, u

    first, three = (conjugate_gradients(system, b, iterations, 1e-8) for iterations in (1, 3))
    torch.testing.assert_close(first, three)
    symmetric = matrix @ matrix.T
    solved = conjugate_gradients(lambda u: (u @ symmetric, u), b, 3, 1e-12)
    torch.testing.assert_close(solved @ symmetric, b, rtol=1e-8, atol=1e-8)


def test_bad_arguments_are_named() -> None:
    mean, cov, a, _ = problem()
    prior, measurement = GaussianDenoiser(VPSDE(), mean, cov=cov), Measurement(Matrix(a), torch.zeros(3, 2), 0.1)
    with pytest.raises(ValueError, match="MMPS needs 1 <= iterations, a whole number, or null, got iterations=0"):
        MMPS(prior, measurement, iterations=0)
    with pytest.raises(TypeError, match="MMPS needs measurement to be a Measurement"):
        MMPS(prior, torch.zeros(3, 2))
    with pytest.raises(TypeError, match="GaussianPosterior needs a denoiser with covariance"):
        GaussianPosterior(Counted(prior), measurement)
    with pytest.raises(ValueError, match=r"A measurement of 3 events of shape \(4,\) needs as many samples"):
        MMPS(prior, measurement)(torch.zeros(2, 4), 0.5)
