"""Twisted SMC against exact posteriors and evidences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scoresde import VPSDE, GaussianDenoiser, GaussianMixtureDenoiser, StraightSDE
from scoresde.inverse import Function, Mask, Matrix, Measurement, PoissonNoise, TwistedSMC
from scoresde.inverse.krylov import matrix_function
from scoresde.inverse.populations import systematic
from scoresde.noise import gaussian_noise, per_sample_noise

D = torch.float64
MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=D)
COV = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]], dtype=D)
A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4]], dtype=D)
Y = torch.tensor([[0.9, -0.4]], dtype=D)


def start(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=D)


def noise(x: Tensor, seed: int = 1) -> object:
    return gaussian_noise(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("sde", [VPSDE(), StraightSDE()], ids=lambda sde: type(sde).__name__)
def test_gaussian_prior_has_equal_weights_and_its_evidence(sde: VPSDE, std: float) -> None:
    """The kernels are exact, whatever the steps: an error in any coefficient makes the weights unequal."""
    cov_y = A @ COV @ A.T + std**2 * torch.eye(2, dtype=D)
    gain = COV @ A.T @ torch.linalg.inv(cov_y)
    smc = TwistedSMC(measurement=Measurement(Matrix(A), Y, std), steps=3, particles=2000, root_iterations=3)
    found = smc.run(GaussianDenoiser(sde, MEAN, cov=COV), x := start(500, 3), noise=noise(x))
    assert float(found.ess.min()) > 0.999
    evidence = torch.distributions.MultivariateNormal(A @ MEAN, cov_y).log_prob(Y)
    torch.testing.assert_close(found.log_evidence, evidence, rtol=0, atol=2e-3)

    mean, cov = MEAN + gain @ (Y[0] - A @ MEAN), COV - gain @ A @ COV
    scale = cov.diagonal().sqrt()
    error = (found.x[0].mean(0) - mean) / scale
    assert float(error.abs().max()) < 4 / 2000**0.5
    assert float(((torch.cov(found.x[0].T) - cov) / (scale[:, None] * scale)).abs().max()) < 6 / 2000**0.5
    if std == 0:
        torch.testing.assert_close(found.x[0] @ A.T, Y.expand(2000, 2), rtol=0, atol=1e-9)


def mixture() -> GaussianMixtureDenoiser:
    means = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.7, 0.9]], dtype=D)
    return GaussianMixtureDenoiser(VPSDE(), torch.tensor([0.5, 0.2, 0.3]), means, torch.full((3, 2), 0.04))


def exact(row: Tensor, y: float, std: float) -> tuple[Tensor, Tensor]:
    """Posterior weights of the components and log p(y), of y = row · x0 + noise."""
    prior = mixture()
    law = torch.distributions.Normal(prior.means @ row, (0.04 * row.square().sum() + std**2).sqrt())
    joint = prior.weights.log() + law.log_prob(torch.tensor(y, dtype=D))
    return joint.softmax(0), joint.logsumexp(0)


def test_mixture_posterior_and_an_unbiased_evidence() -> None:
    """64 populations of 100 particles, each with its own estimate of p(y)."""
    row, y = torch.tensor([1.0, 0.2], dtype=D), 0.35
    weights, log_evidence = exact(row, y, 0.3)
    measurement = Measurement(Matrix(row[None]), torch.tensor([[y]], dtype=D), 0.3)
    smc = TwistedSMC(measurement=measurement, steps=20, particles=100, independent=True, t_end=0.02)
    found = smc.run(mixture(), x := start(64, 2), noise=noise(x))
    assert found.x.shape == (64, 100, 2) and found.ess.shape == (22, 64)

    ratio = (found.log_evidence - log_evidence).exp()
    assert float((ratio.mean() - 1).abs()) < 4 * float(ratio.std()) / 8 < 0.15
    owner = torch.cdist(found.x, mixture().means).argmin(2)
    share = ratio[:, None] * torch.stack([(found.log_weights.exp() * (owner == k)).sum(1) for k in range(3)], 1)
    error = share.mean(0) - weights  # Σ w f over populations, weighted by their evidence, is unbiased too
    assert bool((error.abs() < 4 * share.std(0) / 8 + 0.01).all()), (share.mean(0), weights)


def test_resampling_and_its_threshold_change_no_law() -> None:
    """One y far from the prior's largest component: particles must move between components by their weights."""
    row, y = torch.tensor([1.0, 0.0], dtype=D), 0.2
    weights, log_evidence = exact(row, y, 0.4)
    measurement = Measurement(Matrix(row[None]), torch.tensor([[y]], dtype=D), 0.4)
    for threshold in (0.0, 1.0):
        smc = TwistedSMC(measurement=measurement, steps=20, particles=1000, threshold=threshold, t_end=0.02)
        found = smc.run(mixture(), x := start(500, 2), noise=noise(x))
        owner = torch.cdist(found.x[0], mixture().means).argmin(1)
        share = torch.stack([(found.log_weights[0].exp() * (owner == k)).sum() for k in range(3)])
        torch.testing.assert_close(share, weights, rtol=0, atol=0.08)
        assert abs(float(found.log_evidence) - float(log_evidence)) < 0.15


def test_a_sample_with_its_own_y_is_a_function_of_its_noise_alone() -> None:
    row, y = torch.tensor([[1.0, 0.2]], dtype=D), torch.tensor([[0.3], [-0.9], [0.6]], dtype=D)
    smc = TwistedSMC(measurement=Measurement(Matrix(row), y, 0.3), steps=4, particles=16)
    x, rows = start(3, 2), [2, 0]
    whole = smc(mixture(), x, noise=per_sample_noise(x, [5, 6, 7]))
    part = replace(smc, measurement=Measurement(Matrix(row), y[rows], 0.3), rows=10)
    torch.testing.assert_close(part(mixture(), x[rows], noise=per_sample_noise(x[rows], [7, 5])), whole[rows])


def test_other_noise_and_functions_end_with_the_exact_likelihood() -> None:
    """x ~ N(1, 0.3²); y = counts of x, or a curve of x: against quadrature."""
    grid = torch.linspace(-0.5, 2.5, 3001, dtype=D)[:, None]
    denoiser, prior = GaussianDenoiser(VPSDE(), torch.tensor([1.0], dtype=D), 0.3), torch.distributions.Normal(1.0, 0.3)
    for measurement in (
        Measurement(Matrix(torch.ones(1, 1)), torch.tensor([[1.5]], dtype=D), PoissonNoise(0.1)),
        Measurement(Function(lambda x: x + 0.4 * x.square(), (1,)), torch.tensor([[2.2]], dtype=D), 0.2),
    ):
        inside = grid[grid[:, 0] > 0.02]
        log_joint = prior.log_prob(inside[:, 0]) + measurement.log_likelihood(inside)
        mean = (log_joint.softmax(0) * inside[:, 0]).sum()
        evidence = log_joint.logsumexp(0) + math.log(1e-3)
        smc = TwistedSMC(measurement=measurement, steps=12, particles=3000)
        found = smc.run(denoiser, x := start(500, 1), noise=noise(x))
        assert abs(float((found.log_weights.exp()[0] * found.x[0, :, 0]).sum() - mean)) < 0.02
        assert abs(float(found.log_evidence) - float(evidence)) < 0.03


def test_masked_entries_say_nothing() -> None:
    denoiser = GaussianDenoiser(VPSDE(), MEAN, cov=COV)
    mask, matrix = Mask(torch.tensor([1, 0, 1])), Matrix(torch.eye(3)[[0, 2]])
    y = torch.tensor([[0.4, 0.0, 0.1]], dtype=D)
    several = Mask(torch.tensor([[1, 0, 1], [1, 0, 1]]), (3,))
    seen = Measurement(matrix, y[:, [0, 2]], 0.2), Measurement(mask, y, 0.2), Measurement(several, y.repeat(2, 1), 0.2)
    for measurement in seen:
        smc = TwistedSMC(measurement=measurement, steps=3, particles=300, root_iterations=3)
        found = smc.run(denoiser, x := start(2, 3), noise=noise(x))
        law = torch.distributions.MultivariateNormal(MEAN[[0, 2]], COV[[0, 2]][:, [0, 2]] + 0.04 * torch.eye(2))
        expected = law.log_prob(y[0, [0, 2]]).expand(len(found.x))
        torch.testing.assert_close(found.log_evidence, expected, rtol=0, atol=5e-3)


def test_isotropic_covariance_is_exact_for_unit_data() -> None:
    smc = TwistedSMC(measurement=Measurement(Matrix(A), Y, 0.3), steps=3, particles=200, covariance="isotropic")
    with torch.inference_mode():
        found = smc.run(GaussianDenoiser(VPSDE()), x := start(50, 3), noise=noise(x))
    assert float(found.ess.min()) > 0.999


def test_functions_of_a_matrix_by_its_products() -> None:
    root = start(5, 4, 4)
    c, v = root @ root.mT, start(5, 2, 2)
    values, vectors = torch.linalg.eigh(c)

    def times(v: Tensor) -> Tensor:
        return (c @ v.flatten(1)[..., None]).reshape(v.shape)

    for power in (0.5, -0.5):
        expected = (vectors * (0.1 + values)[:, None] ** power) @ vectors.mT @ v.flatten(1)[..., None]
        found = matrix_function(times, v, 9, lambda c, power=power: (0.1 + c) ** power)
        torch.testing.assert_close(found.flatten(1), expected[..., 0], rtol=1e-8, atol=1e-8)
    c = torch.diag_embed(torch.tensor([[2.0, 3.0, 3.0, 2.0]], dtype=D))  # two eigenvalues, two products
    found = matrix_function(lambda v: (c @ v[..., None])[..., 0], start(1, 4), 2, torch.sqrt)
    torch.testing.assert_close(found, start(1, 4) * c.diagonal(dim1=1, dim2=2).sqrt(), rtol=1e-12, atol=1e-12)


def test_systematic_resampling_takes_each_particle_its_share_of_times() -> None:
    weights = torch.rand(3, 50, generator=torch.Generator().manual_seed(0), dtype=D)
    index = systematic(weights.log() + 7, torch.tensor([0.0, 0.4, 0.99]), 40)
    counts = torch.stack([torch.bincount(row - 50 * k, minlength=50) for k, row in enumerate(index)])
    assert float((counts - 40 * weights / weights.sum(1, keepdim=True)).abs().max()) < 1


def test_bad_input_is_one_sentence() -> None:
    measurement = Measurement(Matrix(A), Y, 0.3)
    with pytest.raises(ValueError, match="1 <= particles, a whole number, got particles=0"):
        TwistedSMC(measurement=measurement, particles=0)
    with pytest.raises(ValueError, match="particles=5 for 6 samples"):
        TwistedSMC(measurement=measurement, particles=5)(GaussianDenoiser(VPSDE()), start(6, 3))
    with pytest.raises(ValueError, match="one for each, got 2 for 3 samples"):
        TwistedSMC(measurement=Measurement(Matrix(A), Y.repeat(2, 1), 0.3))(GaussianDenoiser(VPSDE()), start(3, 3))
    with pytest.raises(TypeError, match="measurement to be a Measurement"):
        TwistedSMC(measurement=Y)  # type: ignore[arg-type]
