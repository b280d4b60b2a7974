from __future__ import annotations

import pytest
import torch
from closed_forms import MEAN, STD, mixture
from torch import Tensor

from scoresde import (
    VPSDE,
    EulerMaruyama,
    GaussianDenoiser,
    brownian_noise,
    gaussian_noise,
    per_sample_noise,
    uniform_grid,
)


def t(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_brownian_increments_are_those_of_one_path() -> None:
    x = torch.zeros(3, 2, 2, dtype=torch.float64)
    coarse, fine = brownian_noise(x, seed=5), brownian_noise(x, seed=5)
    whole = coarse(t(1.0), t(0.2)) * 0.8**0.5
    parts = sum(fine(t(a), t(b)) * (a - b) ** 0.5 for a, b in [(1.0, 0.7), (0.7, 0.3), (0.3, 0.2)])
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(coarse(t(0.5), t(0.4)), brownian_noise(x, seed=6)(t(0.5), t(0.4)))


def test_brownian_increments_are_standard_normal_and_independent() -> None:
    noise = brownian_noise(torch.zeros(20_000, 1, dtype=torch.float64), seed=0)
    a, b, fresh = noise(t(1.0), t(0.6)), noise(t(0.6), t(0.59)), noise(t(0.59), t(0.59))
    for z in (a, b, fresh):
        assert abs(float(z.mean())) < 4 / 20_000**0.5 and abs(float(z.std()) - 1) < 4 / 40_000**0.5
    for one, two in ((a, b), (b, fresh)):
        assert abs(float((one * two).mean())) < 4 / 20_000**0.5


def test_tiny_steps_near_the_data_keep_unit_variance() -> None:
    noise = brownian_noise(torch.zeros(5000, 1, dtype=torch.float64), seed=0)
    for high, low in [(1e-5 + 1e-7, 1e-5), (0.3 + 1e-8, 0.3), (0.3, 0.3 - 1e-6)]:
        assert abs(float(noise(t(high), t(low)).std()) - 1) < 4 / 10_000**0.5


def test_euler_maruyama_converges_strongly_along_one_path() -> None:
    """Runs with 20, 40 and 80 steps that share a seed follow the same fine solution at order one (additive noise)."""
    denoiser = GaussianDenoiser(VPSDE(beta_max=5.0), MEAN, STD)
    x = torch.randn(200, 1, dtype=torch.float64)

    def solve(steps: int) -> Tensor:
        solver = EulerMaruyama(steps=steps, grid=uniform_grid, t_end=0.2, denoise=False)
        return solver(denoiser, x, noise=brownian_noise(x, seed=1))

    fine = solve(640)
    errors = [float((solve(steps) - fine).square().mean().sqrt()) for steps in (20, 40, 80)]
    assert errors[0] / errors[1] > 1.7 and errors[1] / errors[2] > 1.7
    other = EulerMaruyama(steps=640, t_end=0.2, denoise=False)(denoiser, x, noise=brownian_noise(x, seed=2))
    assert float((other - fine).square().mean().sqrt()) > 10 * errors[0]


def test_per_sample_noise_depends_on_the_seed_alone() -> None:
    x = torch.zeros(3, 2, 4)
    batch, alone = per_sample_noise(x, [4, 5, 6]), per_sample_noise(x[:1], [5])
    for _ in range(3):
        assert torch.equal(batch(t(1.0), t(0.5))[1:2], alone(t(1.0), t(0.5)))
    again = per_sample_noise(x, [5, 5, 9])(t(1.0), t(0.5))
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])


def test_gaussian_noise_follows_its_generator() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    one, two = (gaussian_noise(x, torch.Generator().manual_seed(1)) for _ in "ab")
    first = one(t(1.0), t(0.5))
    assert first.dtype == torch.float64 and torch.equal(first, two(t(1.0), t(0.5)))
    assert not torch.equal(first, one(t(1.0), t(0.5)))


def test_brownian_noise_reaches_a_solver_in_single_precision() -> None:
    x = torch.randn(4, 1, 2)
    y = EulerMaruyama(steps=10)(mixture(VPSDE()), x, noise=brownian_noise(x, seed=0))
    assert y.dtype == torch.float32 and y.shape == x.shape


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"one seed per sample: expected 3, got 2"):
        per_sample_noise(torch.zeros(3, 2), [1, 2])
    with pytest.raises(ValueError, match=r"one clock for the whole batch: t and s must be scalars"):
        brownian_noise(torch.zeros(2, 2), 0)(torch.tensor([1.0, 0.5]), torch.tensor([0.5, 0.2]))
    with pytest.raises(ValueError, match=r"steps longer than 2 tol, got one of 1e-07 with tol=1e-06"):
        brownian_noise(torch.zeros(2, 2), 0, tol=1e-6)(t(0.5), t(0.5 - 1e-7))
