"""Laws of noise against distributions of torch and against their own samples."""

import pytest
import torch
from torch.distributions import Normal, Poisson

from scoresde.inverse import Mask, Measurement, PoissonNoise, QuantisedNoise


def test_poisson_noise_is_counts() -> None:
    law, clean = PoissonNoise(0.25, offset=1.0), torch.tensor([[-0.5, 0.0, 2.0]]).double()
    k = torch.tensor([[3.0, 0.0, 11.0]]).double()
    truth = Poisson((clean + 1) / 0.25).log_prob(k).sum(1)
    assert torch.allclose(law.log_prob(0.25 * k - 1, clean), truth, rtol=1e-12)
    y = law.sample(clean.expand(100_000, 3), torch.Generator().manual_seed(0))
    variance = law.covariance_times(torch.ones_like(clean), clean)
    assert torch.allclose(variance, 0.25 * (clean + 1), rtol=1e-12)
    assert torch.allclose(y.mean(0), clean[0], atol=5 * float(variance.max() / 1e5) ** 0.5)
    assert torch.allclose(y.var(0), variance[0], rtol=0.03)
    below = law.log_prob(0.25 * k - 1, clean - 5)
    assert bool(below.isfinite().all()) and float(law.log_prob(clean - 5, clean)) == -torch.inf


def test_quantised_noise_is_a_rounded_gaussian() -> None:
    law, clean = QuantisedNoise(0.5, 0.3), torch.tensor([[0.1, -0.7]], requires_grad=True, dtype=torch.float64)
    y = torch.tensor([[0.5, -1.0]]).double()
    normal = Normal(clean, 0.3)
    truth = (normal.cdf(y + 0.25) - normal.cdf(y - 0.25)).log().sum(1)
    assert torch.allclose(law.log_prob(y, clean), truth, rtol=1e-10)
    readings = 0.5 * torch.arange(-40, 41).double()[:, None]
    assert float(law.log_prob(readings, torch.full((81, 1), 0.13).double()).exp().sum()) == pytest.approx(1, abs=1e-12)
    far = law.log_prob(y + 50, clean)
    assert bool(far.isfinite().all()) and bool(torch.autograd.grad(far.sum(), clean)[0].isfinite().all())
    seen = law.sample(clean.detach().expand(100_000, 2), torch.Generator().manual_seed(0))
    assert torch.equal(seen, 0.5 * (seen / 0.5).round())
    expected = law.covariance_times(torch.ones(1, 1).double(), clean)
    assert float(seen[:, 0].var()) == pytest.approx(float(expected), rel=0.03)
    assert float(expected) == pytest.approx(0.09 + 0.25 / 12)


def test_unobserved_entries_say_nothing() -> None:
    for law in (PoissonNoise(0.1, 2.0), QuantisedNoise(0.1, 0.2)):
        x = torch.tensor([[0.3, 0.9]]).double()
        part = Measurement(Mask(torch.tensor([1, 0])), torch.tensor([[0.2, 0.0]]).double(), law)
        whole = Measurement(Mask(torch.ones(1)), torch.tensor([[0.2]]).double(), law)
        assert torch.equal(part.log_likelihood(x), whole.log_likelihood(x[:, :1]))


def test_ranges() -> None:
    with pytest.raises(ValueError, match="PoissonNoise needs 0 < gain < inf, got gain=-1"):
        PoissonNoise(-1)
    with pytest.raises(ValueError, match="QuantisedNoise needs 0 < std < inf, got std=0"):
        QuantisedNoise(0.1, 0)
