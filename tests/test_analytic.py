from __future__ import annotations

import pytest
import torch
from closed_forms import MEAN, SDES, STD, mixture, name

from scoresde import SDE, VPSDE, GaussianDenoiser, GaussianMixtureDenoiser, SubVPSDE

TIMES = torch.tensor([1e-5, 0.02, 0.3, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_scores_are_the_gradients_of_log_prob(sde: SDE) -> None:
    full = mixture(sde)
    diagonal = GaussianMixtureDenoiser(sde, full.weights, full.means, full.variances)
    for denoiser in (GaussianDenoiser(sde, MEAN, torch.tensor([STD, 1.9])), full, diagonal):
        x = (sde.alpha(TIMES)[:, None] * torch.randn(4, 2, dtype=torch.float64)).requires_grad_()
        (gradient,) = torch.autograd.grad(denoiser.log_prob(x, TIMES).sum(), x)
        torch.testing.assert_close(denoiser.score(x, TIMES), gradient, rtol=1e-9, atol=1e-12)
        tweedie = (x + sde.sigma(TIMES)[:, None].square() * gradient) / sde.alpha(TIMES)[:, None]
        torch.testing.assert_close(denoiser(x, TIMES), tweedie, rtol=1e-6, atol=1e-7)


def test_log_prob_of_a_mixture_is_torchs() -> None:
    sde, t = VPSDE(), torch.tensor(0.2, dtype=torch.float64)
    denoiser = mixture(sde)
    covs = torch.einsum("kij,kj,klj->kil", denoiser.axes, denoiser.variances, denoiser.axes)
    diffused = sde.alpha(t).square() * covs + sde.sigma(t).square() * torch.eye(2, dtype=torch.float64)
    family = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(denoiser.weights),
        torch.distributions.MultivariateNormal(sde.alpha(t) * denoiser.means, diffused),
    )
    x = torch.randn(20, 2, dtype=torch.float64)
    torch.testing.assert_close(denoiser.log_prob(x, t), family.log_prob(x), rtol=1e-12, atol=1e-12)


def test_a_mixture_of_one_is_the_gaussian_on_events_of_any_shape() -> None:
    sde = SubVPSDE()
    mean, std = torch.randn(1, 2, 2), torch.rand(1, 2, 2) + 0.3
    one = GaussianMixtureDenoiser(sde, torch.ones(1), mean.flatten()[None], std.flatten().square()[None])
    gaussian = GaussianDenoiser(sde, mean, std)
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(one(x, TIMES), gaussian(x, TIMES), rtol=1e-6, atol=1e-6)  # std is float32 here
    torch.testing.assert_close(one.log_prob(x, TIMES), gaussian.log_prob(x, TIMES), rtol=1e-6, atol=1e-5)


def test_samples_have_the_mixtures_moments() -> None:
    denoiser = mixture(VPSDE())
    x = denoiser.sample(40_000, generator=torch.Generator().manual_seed(0))
    covs = torch.einsum("kij,kj,klj->kil", denoiser.axes, denoiser.variances, denoiser.axes)
    mean = denoiser.weights @ denoiser.means
    second = torch.einsum(
        "k,kij->ij", denoiser.weights, covs + torch.einsum("ki,kj->kij", denoiser.means, denoiser.means)
    )
    cov = second - torch.outer(mean, mean)

    error = (x.mean(0) - mean).abs() / (cov.diagonal() / 40_000).sqrt()
    assert float(error.max()) < 4
    torch.testing.assert_close(x.T.cov(), cov, rtol=0.05, atol=0.02 * float(cov.diagonal().max()))


@pytest.mark.parametrize("batched", [False, True])
def test_float32_states_with_float64_times_keep_their_dtype_and_digits(batched: bool) -> None:
    for sde in SDES:
        t = torch.tensor([0.01, 0.2, 0.9], dtype=torch.float64) if batched else torch.tensor(0.01, dtype=torch.float64)
        x = float(sde.sigma(torch.tensor(0.01))) * torch.randn(3, 2)
        for denoiser in (GaussianDenoiser(sde, MEAN, STD), mixture(sde)):
            for method in (denoiser, denoiser.eps, denoiser.score):
                value = method(x, t)
                assert value.dtype == torch.float32
                torch.testing.assert_close(value.double(), method(x.double(), t), rtol=1e-4, atol=1e-4)


def test_float32_eps_keeps_its_digits_at_tiny_noise() -> None:
    sde, t = SubVPSDE(), torch.tensor(1e-5, dtype=torch.float64)  # σ = 1e-6
    x = torch.randn(8, 2)
    for denoiser in (GaussianDenoiser(sde, MEAN, STD), mixture(sde)):
        torch.testing.assert_close(denoiser.eps(x, t).double(), denoiser.eps(x.double(), t), rtol=1e-4, atol=1e-10)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"GaussianDenoiser needs std > 0, got 0"):
        GaussianDenoiser(VPSDE(), 0.0, 0.0)
    with pytest.raises(ValueError, match=r"needs weights \(K,\), means \(K, d\).*got \(2,\), \(3, 2\), \(3, 2\)"):
        GaussianMixtureDenoiser(VPSDE(), torch.ones(2), torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"positive weights and positive-definite covariances"):
        GaussianMixtureDenoiser(VPSDE(), torch.ones(2), torch.zeros(2, 2), -torch.ones(2, 2))
