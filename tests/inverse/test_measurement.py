"""Operators and measurements against matrices."""

import pytest
import torch

from scoresde.inverse import GaussianNoise, Mask, Matrix, Measurement


def test_a_matrix_and_its_adjoint_and_pseudo_inverse() -> None:
    torch.manual_seed(0)
    a, x, y = torch.randn(2, 6).double(), torch.randn(3, 1, 2, 3).double(), torch.randn(3, 2).double()
    operator = Matrix(a, (1, 2, 3))
    assert torch.equal(operator(x), x.flatten(1) @ a.T)
    assert torch.allclose((operator(x) * y).sum(), (x * operator.adjoint(y)).sum(), rtol=1e-12)
    assert torch.allclose(operator.pseudo_inverse(y).flatten(1), y @ torch.linalg.pinv(a).T)


def test_log_likelihood_is_the_gaussian_density_of_what_is_observed() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(4, 3).double(), torch.tensor([1, 0, 1])
    measurement = Measurement(Mask(mask), mask * torch.randn(1, 3).double(), 0.3)
    truth = torch.distributions.Normal(x, 0.3).log_prob(measurement.y)[:, [0, 2]].sum(1)
    assert torch.allclose(measurement.log_likelihood(x), truth, rtol=1e-12)
    cov = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 0.3]]).double()
    matrix = Measurement(Matrix(torch.eye(3)), measurement.y, GaussianNoise(cov=cov))
    truth = torch.distributions.MultivariateNormal(x, cov).log_prob(measurement.y)
    assert torch.allclose(matrix.log_likelihood(x), truth, rtol=1e-12)


def test_a_measurement_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(B, 3\)"):
        Measurement(Mask(torch.ones(3)), torch.zeros(2, 4), 0.1)
    with pytest.raises(ValueError, match="std >= 0"):
        Measurement(Mask(torch.ones(3)), torch.zeros(2, 3), -0.1)
