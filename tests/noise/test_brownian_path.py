from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import MEAN, STD, mixture
from torch import Tensor

from scoresde import VPSDE, EulerMaruyama, GaussianDenoiser, karras_grid, uniform_grid
from scoresde.noise import brownian_noise
from scoresde.noise.brownian_path import BrownianPath

SHAPES = [(3, 5), (3, 2, 50)]  # few entries, which are hashed, and many, which are drawn
GRIDS = {"any times": None, "times": torch.linspace(1.0, 1e-3, 21, dtype=torch.float64)}


def t(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def increments(path: BrownianPath, times: list[float]) -> list[Tensor]:
    return [path.increment(t(a), t(b)) for a, b in pairwise(times)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("times", GRIDS.values(), ids=GRIDS)
def test_parts_add_up_in_any_order(shape: tuple[int, ...], times: Tensor | None) -> None:
    x = torch.zeros(shape, dtype=torch.float64)
    random.seed(0)
    for parts in (2, 3, 20, 100):
        ends = sorted([random.uniform(1e-3, 1.0) for _ in range(parts)], reverse=True)
        pairs = list(pairwise(ends))
        random.shuffle(pairs)
        path = brownian_noise(x, 5, times=times)
        whole = brownian_noise(x, 5, times=times).increment(t(ends[0]), t(ends[-1]))
        total = sum(path.increment(t(a), t(b)) for a, b in pairs)
        torch.testing.assert_close(total, whole, rtol=0, atol=1e-12)
        torch.testing.assert_close(path.value(t(ends[0])) - path.value(t(ends[-1])), whole, rtol=0, atol=1e-12)
        single = brownian_noise(x.float(), 5, times=times)
        total = sum(single(t(a), t(b)).double() * (a - b) ** 0.5 for a, b in pairs)
        torch.testing.assert_close(total, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", [3, 14])
@pytest.mark.parametrize("unit", [1, 4, 12])
@pytest.mark.parametrize("kind", ["general", "grid", "clock"])
def test_the_covariance_of_a_path_is_exactly_that_of_brownian_motion(depth: int, unit: int, kind: str) -> None:
    """Cov(W(u), W(v)) = min(u, v), from the weights themselves: no sampling. One time for each finest cell."""
    x = torch.zeros(1, 1)
    times = t(np.append(np.sort(np.random.default_rng(unit).uniform(0.01, 0.99, unit))[::-1], 0.0))
    clock = (lambda t: 2 - t.square()) if kind == "clock" else None
    path = brownian_noise(x, 0, depth=depth, clock=clock, times=None if kind == "general" else times)
    mesh = path._mesh
    rng = np.random.default_rng(0)
    finest = np.concatenate([np.linspace(a, b, 2**3 + 1)[:-1] for a, b in pairwise(mesh.ends)])[-60:]
    width = np.diff(np.append(finest, mesh.ends[-1]))
    clocks = np.concatenate([finest + width * rng.uniform(0.05, 0.95, len(finest)), mesh.ends])
    ids, weights, variance, _ = mesh.steps(np.full_like(clocks, mesh.ends[0]), clocks)
    names = {node: k for k, node in enumerate(np.unique(ids))}
    rows = np.zeros((len(clocks), len(names)))
    for row, (nodes, values) in enumerate(zip(ids, weights, strict=True)):
        for node, value in zip(nodes, values, strict=True):
            rows[row, names[node]] += value
    expected = np.minimum.outer(clocks, clocks) - mesh.ends[0]
    np.testing.assert_allclose(rows @ rows.T, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(variance, clocks - mesh.ends[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", [uniform_grid, karras_grid])
@pytest.mark.parametrize("aligned", [False, True])
def test_twenty_and_forty_steps_share_a_path(shape: tuple[int, ...], grid: Any, aligned: bool) -> None:
    x = torch.zeros(shape, dtype=torch.float64)
    coarse, fine = (grid(VPSDE(), steps, 1e-3) for steps in (20, 40))
    few, many = (brownian_noise(x, 3, times=times if aligned else None, depth=18) for times in (coarse, fine))
    for k, (a, b) in enumerate(pairwise(coarse)):
        m = fine[2 * k + 1]
        halves = many(a, m) * (a - m).sqrt() + many(m, b) * (m - b).sqrt()
        torch.testing.assert_close(few(a, b) * (a - b).sqrt(), halves, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps, draws", [(20, 20), (40, 40), (25, 25), (64, 64), (7, 7), (1, 1)])
def test_on_its_grid_a_step_draws_once(steps: int, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoresde.noise import keyed as counter

    made, real = 0, counter.fill_normals

    def counted(*arguments: Any) -> Tensor:
        nonlocal made
        made += 1
        return real(*arguments)

    monkeypatch.setattr(counter, "fill_normals", counted)
    x, times = torch.zeros(2, 100), uniform_grid(VPSDE(), steps, 1e-3)
    path = brownian_noise(x, 0, times=times)
    for a, b in pairwise(times):
        path(a, b)
    assert made == draws
    made, path = 0, brownian_noise(x, 0)
    for a, b in pairwise(times):
        path(a, b)
    assert made < steps * (18 - np.log2(steps)) + 10


@pytest.mark.parametrize("shape", [(5, 1), (5, 3, 7), (5, 64), (5, 7, 11, 3)], ids=str)
@pytest.mark.parametrize("times", GRIDS.values(), ids=GRIDS)
def test_a_sample_alone_is_the_sample_in_a_batch(shape: tuple[int, ...], times: Tensor | None) -> None:
    x, seeds = torch.zeros(shape), [3, 1, 4, 1, 5]
    batch = brownian_noise(x, seeds, times=times)
    asked = [(1.0, 0.3), (0.3, 0.25), (0.25, 0.25), (0.25, 0.01), *pairwise(GRIDS["times"].tolist()[:4])]
    for a, b in asked:
        together = batch(t(a), t(b))
        for k in range(5):
            alone = brownian_noise(x[k : k + 1], seeds[k : k + 1], times=times)
            assert torch.equal(together[k : k + 1], alone(t(a), t(b)))
        assert torch.equal(together[1], together[3]) and not torch.equal(together[0], together[1])
    assert torch.equal(batch(t(1.0), t(0.3)), brownian_noise(x, seeds, times=times)(t(1.0), t(0.3)))  # no history


def test_single_and_double_precision_share_a_path() -> None:
    for shape in SHAPES:
        x = torch.zeros(shape)
        single, double = brownian_noise(x, 1), brownian_noise(x.double(), 1)
        for a, b in [(1.0, 0.5), (0.5, 0.499), (0.499, 0.499), (3e-5, 1e-5)]:
            torch.testing.assert_close(single(t(a), t(b)).double(), double(t(a), t(b)), rtol=0, atol=3e-6)
        half = brownian_noise(x.bfloat16(), 1)(t(1.0), t(0.5))
        assert torch.equal(half, single(t(1.0), t(0.5)).bfloat16())


@pytest.mark.parametrize("shape", [(4, 3), (4, 100)], ids=str)
def test_samples_may_be_at_their_own_times_and_leave_the_batch(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, dtype=torch.float64)
    path = brownian_noise(x, [1, 2, 3, 4])
    high, low = t([1.0, 0.9, 0.5, 0.2]), t([0.7, 0.8, 0.5, 0.1])
    z = path(high, low)
    rest = path.select(torch.tensor([3, 1]))
    few = path.select(torch.tensor([False, True, False, False]))
    for k in (0, 1, 3):
        alone = brownian_noise(x[k : k + 1], [k + 1])
        assert torch.equal(z[k : k + 1], alone(high[k], low[k]))
        torch.testing.assert_close(
            path.increment(high, low)[k], z[k] * (high[k] - low[k]).sqrt(), rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(path.value(high)[k : k + 1], alone.value(high[k]), rtol=0, atol=0)
    assert torch.equal(rest(high[[3, 1]], low[[3, 1]]), z[[3, 1]]) and torch.equal(few(t(0.9), t(0.8)), z[1:2])
    assert torch.equal(path.increment(high[[1]], low[[1]], rows=[1]), path.increment(high, low)[1:2])
    assert torch.equal(rest.select([1])(t(0.9), t(0.8)), z[1:2]) and len(rest) == 2
    # fresh draws are counted for each sample, whoever asks: sample 2 has made one, which was its part of z
    fresh = brownian_noise(x[2:3], [3])
    assert torch.equal(fresh(t(0.1), t(0.1)), z[2:3])
    assert torch.equal(fresh(t(0.1), t(0.1)), path.select([2, 0])(t(0.1), t(0.1))[:1])
    assert torch.equal(fresh(t(0.3), t(0.3)), path(t(0.1), t(0.1))[2:3])


@pytest.mark.parametrize("entries", [3, 100])
def test_a_batch_may_be_empty(entries: int) -> None:
    path = brownian_noise(torch.zeros(2, entries), 0).select([])
    for high, low in [(t(0.5), t(0.2)), (torch.zeros(0), torch.zeros(0)), (t(0.5), t(0.5))]:
        assert path(high, low).shape == (0, entries)


def test_tiny_steps_near_the_data_keep_unit_variance() -> None:
    noise = brownian_noise(torch.zeros(5000, 1, dtype=torch.float64), 0, depth=30)
    for high, low in [(1e-5 + 1e-7, 1e-5), (0.3 + 1e-8, 0.3), (0.3, 0.3 - 1e-6)]:
        assert abs(float(noise(t(high), t(low)).std()) - 1) < 4 / 10_000**0.5


def test_a_clock_moves_the_path() -> None:
    """Along u(t) = t², decreasing clocks too: z(t, s) is the increment of one path in u."""
    x = torch.zeros(2, 80, dtype=torch.float64)
    for clock in (torch.square, lambda t: 3 - t.square()):
        path = brownian_noise(x, 0, clock=clock)
        whole = path(t(0.9), t(0.2)) * (0.81 - 0.04) ** 0.5
        parts = path(t(0.9), t(0.5)) * (0.81 - 0.25) ** 0.5 + path(t(0.5), t(0.2)) * (0.25 - 0.04) ** 0.5
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
        torch.testing.assert_close(whole, path.value(t(0.9)) - path.value(t(0.2)), rtol=0, atol=1e-12)
        torch.testing.assert_close(whole, -path.increment(t(0.2), t(0.9)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("aligned", [False, True])
def test_euler_maruyama_converges_strongly_along_one_path(aligned: bool) -> None:
    """Runs with 20, 40 and 80 steps that share a seed follow the same fine solution at order one (additive noise)."""
    denoiser = GaussianDenoiser(VPSDE(beta_max=5.0), MEAN, STD)
    x = torch.randn(100, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def solve(steps: int, seed: int = 1) -> Tensor:
        solver = EulerMaruyama(steps=steps, grid=uniform_grid, t_end=0.2, denoise=False)
        times = uniform_grid(denoiser.sde, steps, 0.2) if aligned else None
        return solver(denoiser, x, noise=brownian_noise(x, seed, times=times))

    fine = solve(640)
    errors = [float((solve(steps) - fine).square().mean().sqrt()) for steps in (20, 40, 80)]
    assert errors[0] / errors[1] > 1.7 and errors[1] / errors[2] > 1.7
    assert float((solve(640, seed=2) - fine).square().mean().sqrt()) > 10 * errors[0]


def test_it_reaches_a_solver_in_single_precision() -> None:
    x = torch.randn(4, 1, 2)
    y = EulerMaruyama(steps=10)(mixture(VPSDE()), x, noise=brownian_noise(x, 0))
    assert y.dtype == torch.float32 and y.shape == x.shape


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"times \(\) or one per sample: expected \(2,\), got \(3,\)"):
        brownian_noise(x, 0)(t([1.0, 0.5, 0.2]), t(0.1))
    with pytest.raises(ValueError, match=r"a step from 0.5 to 0.4999999 inside one cell at depth=6: pass a larger"):
        brownian_noise(x, 0, depth=6)(t([0.5, 0.6]), t([0.4999999, 0.5]))
    with pytest.raises(ValueError, match=r"from 0.1 to 1, got 0.05 at t = 0.05: stay inside"):
        brownian_noise(x, 0, times=t([1.0, 0.5, 0.1]))(t(0.5), t(0.05))
    with pytest.raises(ValueError, match=r"times to be a decreasing grid \(N \+ 1,\), got shape \(3,\): pass what"):
        brownian_noise(x, 0, times=t([1.0, 0.5, 0.5]))
    with pytest.raises(ValueError, match=r"a clock that is finite and strictly monotone, got \[-inf"):
        brownian_noise(x, 0, clock=torch.log)
    with pytest.raises(ValueError, match=r"depth to be a whole number from 1 to 40, got 0"):
        brownian_noise(x, 0, depth=0)
