"""Importance-sampled times: the law, its closed forms, and what it does to the loss."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import MEAN, SDES, STD, name
from torch import Tensor

from scoresde import (
    SDE,
    VPSDE,
    CosineSDE,
    DenoisingLoss,
    DiscreteVPSDE,
    GaussianDenoiser,
    SubVPSDE,
    likelihood_weighting,
    linear_betas,
)
from scoresde.losses.times import logsnr_times, uniform_times
from scoresde.losses.weightings import importance_weighting, velocity_weighting

ONE = torch.ones((), dtype=torch.float64)


def linear_beta_time(B: Tensor) -> Tensor:
    """Root of 0.05·2 t/2 + ... : 9.95 t² + 0.1 t = B."""
    return (-0.1 + (0.01 + 4 * 9.95 * B).sqrt()) / (2 * 9.95)


def test_times_are_the_published_closed_form_on_vp() -> None:
    """Song et al. 2021 (arXiv:2101.09258), App. A: B(t) = log(1 + (e^B_ε − 1)((e^B_1 − 1)/(e^B_ε − 1))^u)."""
    u = torch.linspace(0, 1, 41, dtype=torch.float64)
    b_start, b_end = 0.1e-5 + 9.95e-10, 10.05
    power = math.expm1(b_end) / math.expm1(b_start)
    expected = linear_beta_time(torch.log1p(math.expm1(b_start) * power**u))
    torch.testing.assert_close(logsnr_times(VPSDE(), u), expected, rtol=1e-6, atol=0)
    assert math.log(power) == pytest.approx(23.864, abs=5e-4)
    assert float(importance_weighting(VPSDE(), ONE)) == pytest.approx(math.log(power) / (1 - 1e-5), rel=1e-9)


def test_times_are_the_closed_form_on_sub_vp() -> None:
    """p(t) ∝ g²/σ² = β (1 + e^−B)/(1 − e^−B), the derivative of 2 log sinh(B/2)."""
    u = torch.linspace(0, 1, 41, dtype=torch.float64)
    b_start, b_end = 0.1e-5 + 9.95e-10, 10.05
    ratio = math.sinh(b_end / 2) / math.sinh(b_start / 2)
    expected = linear_beta_time(2 * torch.asinh(math.sinh(b_start / 2) * ratio**u))
    torch.testing.assert_close(logsnr_times(SubVPSDE(), u), expected, rtol=1e-6, atol=0)
    assert 2 * math.log(ratio) == pytest.approx(37.679, abs=5e-4)
    assert float(importance_weighting(SubVPSDE(), ONE)) == pytest.approx(2 * math.log(ratio) / (1 - 1e-5), rel=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_density_is_the_likelihood_weight_over_its_integral(sde: SDE) -> None:
    """dt/du = Z σ²/g², on every process."""
    edges = torch.linspace(0, 1, 2001, dtype=torch.float64)
    middle, h = (edges[1:] + edges[:-1]) / 2, 1e-5
    t = logsnr_times(sde, middle)
    slope = (logsnr_times(sde, middle - h) - logsnr_times(sde, middle + h)) / (-2 * h)
    if isinstance(sde, DiscreteVPSDE):  # g jumps at the nodes
        inside = ((t * 1000) % 1 - 0.5).abs() < 0.4
        t, slope = t[inside], slope[inside]
    Z = importance_weighting(sde, t) * (1 - sde.t_min)
    torch.testing.assert_close(slope, Z / likelihood_weighting(sde, t), rtol=2e-4, atol=0)
    ends = logsnr_times(sde, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([sde.t_min, 1.0], dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), DiscreteVPSDE(linear_betas())], ids=name)
def test_times_are_computed_in_float64_and_returned_in_the_dtype_of_u(sde: SDE) -> None:
    u = torch.rand(500, generator=torch.Generator().manual_seed(0))
    t = logsnr_times(sde, u)
    assert t.dtype == torch.float32 and importance_weighting(sde, t).dtype == torch.float32
    torch.testing.assert_close(t.double(), logsnr_times(sde, u.double()), rtol=1e-7, atol=0)
    assert importance_weighting(sde, t).shape == t.shape


def exact_losses(sde: SDE, t: Tensor) -> Tensor:
    """E[(ε − ε̂)² | t] of the exact denoiser for N(MEAN, STD²): α² v/(α² v + σ²)."""
    signal = (sde.alpha(t) * STD).square()
    return signal / (signal + sde.sigma(t).square())


@pytest.mark.parametrize("sde", [VPSDE(t_min=1e-3), SubVPSDE(t_min=1e-3), CosineSDE(t_min=1e-3)], ids=name)
def test_both_ways_to_weight_have_the_likelihoods_expectation_and_sampling_it_the_smaller_variance(sde: SDE) -> None:
    denoiser, n = GaussianDenoiser(sde, MEAN, STD), 200_000
    x0 = MEAN + STD * torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    # ∫ g²/σ² E(ε − ε̂)² dt = ∫ α² v/(α² v + σ²) d logsnr = [log(1 + v e^logsnr)]
    ends = sde.logsnr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64))
    logs = torch.log1p(STD**2 * ends.exp())
    expected = float(logs[0] - logs[1]) / (1 - sde.t_min)

    results = {}
    for key, loss in {
        "uniform": DenoisingLoss(weighting=likelihood_weighting, time=uniform_times, sampling="independent"),
        "logsnr": DenoisingLoss(weighting=importance_weighting, time=logsnr_times, sampling="independent"),
    }.items():
        values = loss(denoiser, x0, generator=torch.Generator().manual_seed(1))
        assert abs(float(values.mean()) - expected) < 4.5 * float(values.std()) / n**0.5, key
        results[key] = float(values.var())
    assert 0 < results["logsnr"] < 0.25 * results["uniform"]


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_velocity_weighting_is_the_squared_error_of_v(sde: SDE) -> None:
    t = torch.tensor([1e-3, 0.3, 0.9], dtype=torch.float64)
    x0, noise, guess = (torch.randn(3, 2, dtype=torch.float64) for _ in range(3))
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    x = alpha * x0 + sigma * noise
    data = (x - sigma * guess) / alpha
    error = (alpha * (noise - guess) - sigma * (x0 - data)).square()
    torch.testing.assert_close(velocity_weighting(sde, t)[:, None] * (noise - guess).square(), error)
