from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, chain_moments, mixture, moments, name
from torch import Tensor

from scoresde import SDE, VPSDE, Denoiser, GaussianDenoiser, ReverseSDE, per_sample_noise
from scoresde.testing import convergence_order

END = 0.05


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("method, least, accuracy", [("euler", 0.8, 0.1), ("milstein", 0.8, 0.1), ("srk", 1.6, 0.01)])
def test_moments_converge(sde: SDE, method: str, least: float, accuracy: float) -> None:
    """Weak order, from the exact responses of the run to every noise it draws: no Monte Carlo."""
    denoiser, prior = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    exact = torch.stack(moments(sde, END))

    def solve(steps: int) -> Tensor:
        return torch.stack(chain_moments(
            ReverseSDE(method=method, steps=steps, t_end=END, denoise=False), denoiser, *prior
        ))  # fmt: skip

    fine = 40 if method == "srk" else 100  # whose responses cost the square of its draws
    assert convergence_order(solve, exact, steps=(fine // 2, fine)) > least
    torch.testing.assert_close(solve(fine), exact, rtol=accuracy, atol=0)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_euler_is_the_reverse_sde_written_in_t(sde: SDE) -> None:
    """Steps of y = x/ν, equal in z with ½ logsnr = sinh z, from dx = (f x − g² score) dt + g dw."""
    steps, draws = 20, torch.randn(20, 4, 2, dtype=torch.float64)
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(4, 2, dtype=torch.float64)
    rows = iter(draws)
    solver = ReverseSDE(method="euler", steps=steps, t_end=END, denoise=False)
    result = solver(denoiser, x, noise=lambda t, s: next(rows))

    ends = torch.asinh(sde.logsnr(torch.tensor([1.0, END], dtype=torch.float64)) / 2)
    h = (ends[1] - ends[0]) / steps
    y = x / torch.hypot(sde.alpha(torch.ones(()).double()), sde.sigma(torch.ones(()).double()))
    for k in range(steps):
        z = ends[0] + k * h
        t = sde.time(2 * torch.sinh(z)).clamp(END, 1)
        nu, g = torch.hypot(sde.alpha(t), sde.sigma(t)), sde.g(t)
        dt_dz = -2 * torch.cosh(z) * (sde.sigma(t) / g).square()
        nu_slope = (sde.f(t) * nu**2 + g**2 / 2) / nu
        drift = (sde.drift(nu * y, t) - g.square() * denoiser.score(nu * y, t)) / nu - y * nu_slope / nu
        y = y + dt_dz * drift * h + g / nu * (-dt_dz * h).sqrt() * draws[k]
    t = torch.tensor(END, dtype=torch.float64)
    torch.testing.assert_close(result, y * torch.hypot(sde.alpha(t), sde.sigma(t)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_adaptive_steps_sample_the_marginal(sde: SDE) -> None:
    denoiser, (mean, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    end_mean, end_std = moments(sde, END)
    x = mean + std * torch.randn(1000, 2, dtype=torch.float64)
    y = ReverseSDE(adaptive=True, rtol=1e-2, atol=1e-2, steps=30, seed=3, t_end=END, denoise=False)(denoiser, x)
    assert abs(float((y.mean() - end_mean) / end_std)) * 2000**0.5 < 4.5
    assert abs(float(y.std() / end_std) - 1) * 4000**0.5 < 4.5


@pytest.mark.parametrize("method, calls", [("euler", 1), ("milstein", 1), ("srk", 3)])
def test_network_calls_per_step(method: str, calls: int) -> None:
    asked = 0

    class Counting(Denoiser):
        sde, inner = VPSDE(), mixture(VPSDE())

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal asked
            asked += 1
            return self.inner(x, t)

        def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal asked
            asked += 1
            return self.inner.eps(x, t)

    ReverseSDE(method=method, steps=40, t_end=END, denoise=False)(Counting(), torch.randn(2, 2, dtype=torch.float64))
    assert asked <= 40 * calls + 1


def test_adaptive_paths_follow_the_seed() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(3, 2, dtype=torch.float64)
    first, again, other = (
        ReverseSDE(adaptive=True, rtol=0.1, atol=0.1, steps=10, seed=seed, t_end=END)(denoiser, x) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("method", ["euler", "srk"])
def test_a_sample_alone_is_the_sample_in_a_batch(method: str) -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(5, 1, 2, 1, dtype=torch.float64)
    solver = ReverseSDE(method=method, steps=15)
    together = solver(denoiser, x, noise=per_sample_noise(x, range(5)))
    alone = solver(denoiser, x[2:3], noise=per_sample_noise(x[2:3], [2]))
    torch.testing.assert_close(together[2:3], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_denoiser_is_never_asked_outside_its_times(sde: SDE) -> None:
    times: list[float] = []

    class Recording(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.inner = sde, mixture(sde)

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            times.append(float(t))
            return self.inner(x, t)

    for solver in (ReverseSDE(steps=8, t_end=0.03), ReverseSDE(adaptive=True, rtol=0.1, atol=0.1, steps=5, t_end=0.03)):
        y = solver(Recording(), sde.prior_std * torch.randn(2, 2))
        assert y.dtype == torch.float32
    assert min(times) >= 0.03 and max(times) <= 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "heun"}, "ReverseSDE needs method euler, milstein or srk, got 'heun'"),
        ({"steps": 0}, "ReverseSDE needs 1 <= steps <= 1000000, a whole number, got steps=0"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ReverseSDE(**options)


def test_adaptive_tolerances_share_one_path() -> None:
    denoiser, x = GaussianDenoiser(VPSDE(), MEAN, STD), torch.randn(20, 2, dtype=torch.float64)
    loose, tight, other = (
        ReverseSDE(adaptive=True, rtol=tol, atol=tol, steps=10, seed=seed, t_end=END, denoise=False)(denoiser, x)
        for tol, seed in ((3e-2, 1), (1e-3, 1), (1e-3, 2))
    )
    assert float((loose - tight).abs().max()) < 0.1 < float((other - tight).abs().median())
