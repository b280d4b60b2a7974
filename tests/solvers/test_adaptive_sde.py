from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, mixture, moments, name
from torch import Tensor

from scoresde import SDE, VPSDE, Denoiser, GaussianDenoiser, gaussian_noise, per_sample_noise
from scoresde.integrate.coordinates import FlowCoordinates
from scoresde.noise import PathNoise
from scoresde.solvers.adaptive_sde import AdaptiveSDE, path_noise

END = 0.01


class TabulatedPath(PathNoise):
    """Brownian paths known at equally spaced times and straight between them, one per row of `values`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        length = (t - s).clamp(min=1e-15).reshape(-1, *[1] * (self.values.ndim - 2))
        return (self._at(t) - self._at(s)) / length.sqrt()

    def select(self, index: Tensor) -> TabulatedPath:
        return TabulatedPath(self.values[index])

    def _at(self, t: Tensor) -> Tensor:
        place, rows = t * (self.values.shape[1] - 1), torch.arange(len(self.values))
        cell = place.floor().long().clamp(max=self.values.shape[1] - 2)
        part = (place - cell).reshape(-1, *[1] * (self.values.ndim - 2))
        return torch.lerp(self.values[rows, cell], self.values[rows, cell + 1], part)


def path(rows: int, event: tuple[int, ...] = (2,), cells: int = 4096) -> TabulatedPath:
    steps = torch.randn(rows, cells, *event, dtype=torch.float64) / cells**0.5
    return TabulatedPath(torch.cat([torch.zeros(rows, 1, *event, dtype=torch.float64), steps.cumsum(1)], 1))


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_law_is_the_marginal(sde: SDE) -> None:
    denoiser, (mean, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    end_mean, end_std = moments(sde, END)
    x = mean + std * torch.randn(1500, 2, dtype=torch.float64)
    found = AdaptiveSDE(rtol=0.05, atol=0.05, t_end=END, denoise=False).solution(denoiser, x)
    y, entries = (found.x - end_mean) / end_std, x.numel()
    assert abs(float(y.mean())) * entries**0.5 < 4
    assert abs(float(y.std()) - 1) * (2 * entries) ** 0.5 < 4
    assert float(found.rejected.double().mean()) > 0.5


def test_errors_fall_with_the_tolerance_along_one_path() -> None:
    sde = VPSDE()
    denoiser, x = GaussianDenoiser(sde, MEAN, 0.2), torch.randn(200, 2, dtype=torch.float64)
    w = path(200, cells=16384)

    def solve(tolerance: float) -> Tensor:
        return AdaptiveSDE(rtol=tolerance, atol=tolerance, t_end=END, denoise=False)(denoiser, x, noise=w)

    exact = solve(1e-3)
    errors = [float((solve(tolerance) - exact).square().mean().sqrt()) for tolerance in (0.3, 0.1, 0.03, 0.01)]
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2] > 1.5**2 * 1.2 * errors[3]
    assert errors[-1] < 0.02


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_step_is_the_improved_euler_step_of_the_reverse_sde_written_in_t(sde: SDE) -> None:
    """With no tolerance to meet, steps grow tenfold (on the ladder) from 1/20; slopes are those at the predictions."""
    draws = torch.randn(3, 4, 2, dtype=torch.float64)
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(4, 2, dtype=torch.float64)
    rows = iter(draws)
    solver = AdaptiveSDE(t_end=END, denoise=False)
    for key in ("rtol", "atol"):
        object.__setattr__(solver, key, 1e12)  # beyond what it may be given: no step is refused
    found = solver.solution(denoiser, x, noise=lambda t, s: next(rows))
    assert found.nfe.tolist() == [4] * 4

    z0, z1 = torch.asinh(sde.logsnr(torch.tensor([1.0, END], dtype=torch.float64)) / 2)

    def drift(y: Tensor, z: Tensor) -> Tensor:
        t = sde.time(2 * torch.sinh(z)).clamp(END, 1)
        nu, g = torch.hypot(sde.alpha(t), sde.sigma(t)), sde.g(t)
        dt_dz = -2 * torch.cosh(z) * (sde.sigma(t) / g).square()
        nu_slope = (sde.f(t) * nu**2 + g**2 / 2) / nu
        return dt_dz * ((sde.drift(nu * y, t) - g.square() * denoiser.score(nu * y, t)) / nu - y * nu_slope / nu)

    times = z0 + (z1 - z0) * torch.tensor([0, 0.05, 0.05 + 0.05 * 2 ** (53 / 16), 1.0], dtype=torch.float64)
    y = x / torch.hypot(sde.alpha(torch.ones(()).double()), sde.sigma(torch.ones(()).double()))
    slope = drift(y, times[0])
    for z, z_to, draw in zip(times[:-1], times[1:], draws, strict=True):
        h = z_to - z
        noise = (torch.exp(-2 * torch.sinh(z)).log1p() - torch.exp(-2 * torch.sinh(z_to)).log1p()).sqrt() * draw
        slope_to = drift(y + h * slope + noise, z_to)
        y, slope = y + h / 2 * (slope + slope_to) + noise, slope_to
    t = torch.tensor(END, dtype=torch.float64)
    torch.testing.assert_close(found.x, y * torch.hypot(sde.alpha(t), sde.sigma(t)), rtol=1e-6, atol=1e-6)


def test_the_variance_of_a_step_is_the_integral_of_the_squared_diffusion() -> None:
    flow = FlowCoordinates(VPSDE(), 1e-3, "test")
    ends = torch.tensor([[flow.noise_end, 0.0], [-0.5, 1.0], [2.0, flow.data_end]], dtype=torch.float64)
    for z, z_to in ends:
        grid = torch.linspace(float(z), float(z_to), 20001, dtype=torch.float64)
        integral = torch.trapezoid(flow.diffusion(grid).square(), grid)
        torch.testing.assert_close(flow.variance(z, z_to), integral, rtol=1e-6, atol=0)


def test_rejected_steps_keep_their_path() -> None:
    """Points seen ahead are met again exactly, and points between them are bridges, whatever made a row stop there."""
    flow = FlowCoordinates(VPSDE(), END, "test")
    n = 40000
    noise: Any = path_noise(flow, torch.zeros(n, 1, dtype=torch.float64), gaussian_noise(torch.zeros(n, 1).double()))
    z = torch.zeros(n, dtype=torch.float64)

    def ask(z: Tensor, z_to: Tensor, take: Tensor) -> tuple[Tensor, Tensor]:
        w = noise(z, z_to)[:, 0] * ((z_to - z) / flow.variance(z, z_to)).sqrt()  # W(z_to) − W(z)
        now = torch.where(take, z_to, z)
        noise.reserve(int(noise.update(now, take, ~take)))
        return w, now

    every, none = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    whole, z = ask(z, z + 1.0, none)
    near, z = ask(z, z + 0.5, none)
    nearest, z = ask(z, z + 0.2, none)
    first, z = ask(z, z + 0.3, every)
    second, z = ask(z, torch.full_like(z, 0.5), every)
    big = second.abs() > 0.3
    z_ahead = z + 0.7
    beyond, z = ask(z, z_ahead, ~big)  # looks past the known point at 1
    third, z = ask(z, torch.where(big, z + 0.4, z + 0.1), every)
    torch.testing.assert_close(first + second, near)

    w = {0.2: nearest, 0.3: first, 0.5: near, 1.0: whole, 1.2: near + beyond}
    for a, at_a in w.items():
        for b, at_b in w.items():
            assert abs(float((at_a * at_b).mean()) - min(a, b)) < 4.5 * (2 * a * b / n) ** 0.5, (a, b)
    for chosen, length in ((big, 0.4), (~big, 0.1)):
        assert float(third[chosen].var()) == pytest.approx(length, rel=0.06)
    fourth, z = ask(z, torch.where(big, z_ahead, z + 0.1), every)
    torch.testing.assert_close((third + fourth)[big], beyond[big])


class Counting(Denoiser):
    def __init__(self, *, split: bool) -> None:
        super().__init__()
        self.inner, self.sde, self.split = mixture(VPSDE()), VPSDE(), split
        self.rows: list[int] = []
        self.times: list[float] = []

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.rows.append(len(x))
        self.times.extend(t.flatten().tolist())
        return self.inner(x, t)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        return self if self.split else None


@pytest.mark.parametrize("given", ["path", "draws"])
def test_a_sample_does_not_depend_on_its_batch_nor_on_who_is_dropped(given: str) -> None:
    x, w = torch.randn(12, 2, dtype=torch.float64), path(12)

    def noise(rows: slice) -> Any:
        return w.select(torch.arange(12)[rows]) if given == "path" else per_sample_noise(x[rows], list(range(12))[rows])

    solver = AdaptiveSDE(rtol=0.03, atol=0.03)
    splitting, whole = Counting(split=True), Counting(split=False)
    found, expected = (solver.solution(d, x, noise=noise(slice(None))) for d in (splitting, whole))
    assert set(whole.rows) == {12} and min(splitting.rows[:-1]) < 9
    for alone in [expected, solver.solution(whole, x[3:4], noise=noise(slice(3, 4)))]:
        rows = slice(3, 4) if len(alone.x) == 1 else slice(None)
        torch.testing.assert_close(found.x[rows], alone.x, rtol=1e-12, atol=1e-12)
        for column, other in zip(found[1:], alone[1:], strict=True):
            assert torch.equal(column[rows], other)
    assert len(set(found.nfe.tolist())) > 3


@pytest.mark.parametrize("denoise", [False, True])
def test_the_report_counts_calls_inside_the_interval(denoise: bool) -> None:
    denoiser = Counting(split=False)
    found = AdaptiveSDE(rtol=0.1, atol=0.1, t_end=0.03, denoise=denoise).solution(denoiser, torch.randn(1, 2))
    assert found.x.dtype == torch.float32
    assert found.nfe.tolist() == [len(denoiser.rows)]
    assert found.nfe - int(denoise) == 1 + found.accepted + found.rejected
    assert min(denoiser.times) >= 0.03 and max(denoiser.times) <= 1


def test_events_of_any_shape() -> None:
    denoiser = GaussianDenoiser(VPSDE(), MEAN, STD)
    for shape in ((3, 5), (2, 1, 4, 4), (2, 1, 2, 2, 2)):
        assert AdaptiveSDE(rtol=0.5, atol=0.5)(denoiser, torch.randn(shape)).shape == shape


def test_wrong_arguments_and_broken_models_are_named() -> None:
    with pytest.raises(ValueError, match=r"AdaptiveSDE needs 0 < rtol < 1, got rtol=0.0"):
        AdaptiveSDE(rtol=0.0)
    with pytest.raises(TypeError, match=r"AdaptiveSDE needs a float32 or float64 state, got torch.bfloat16"):
        AdaptiveSDE()(mixture(VPSDE()), torch.randn(2, 2, dtype=torch.bfloat16))

    class Broken(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return torch.where(expand_late(t, x), float("nan"), x)

    def expand_late(t: Tensor, x: Tensor) -> Tensor:
        return (t < 0.5).reshape(-1, 1).expand(x.shape) & (torch.arange(len(x)) == 1)[:, None]

    with pytest.raises(FloatingPointError, match=r"AdaptiveSDE stopped at t = 0\.[1-4]\d*: .* infinity for sample 1\."):
        AdaptiveSDE()(Broken(), torch.randn(3, 2))
