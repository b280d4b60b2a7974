from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor

from scoresde.noise.brownian_motion import BrownianMotion, brownian_motion


class Swinging(torch.nn.Module):
    """dy = sin 2y dt + cos t dw: additive noise."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(2 * y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(t).expand_as(y)


def solve(y: Tensor, dt: float, method: str, **options: Any) -> Tensor:
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torchsde.sdeint(Swinging(), y, ts, bm=brownian_motion(y, 3, 0.0, 1.0), method=method, dt=dt, **options)[-1]


@pytest.mark.parametrize("depth", [2, 5])
def test_values_and_areas_have_exactly_the_law_of_brownian_motion(depth: int) -> None:
    """Cov of (W, ∫W) at one time for each finest cell, from the weights themselves: no sampling.

    E W(s)W(t) = s,   E W(s)∫W(t) = st − s²/2 (s ≤ t), s²/2 → t²/2 (t ≤ s),   E ∫W(s)∫W(t) = s²(3t − s)/6 (s ≤ t)
    """
    span = 3.0
    motion = brownian_motion(torch.zeros(1, 1), 0, -1.0, -1.0 + span, depth=depth)
    places = np.arange(2**depth) + np.random.default_rng(0).uniform(0.05, 0.95, 2**depth)
    places = np.concatenate([places, np.arange(1, 2**depth + 1)])
    terms = [motion._terms(float(place)) for place in places]
    names = {node: k for k, node in enumerate(np.unique(np.concatenate([ids for ids, _, _ in terms])))}
    w, i = np.zeros((len(places), len(names))), np.zeros((len(places), len(names)))
    for row, (ids, value, area) in enumerate(terms):
        for node, one, two in zip(ids, value, area, strict=True):
            w[row, names[node]] += one
            i[row, names[node]] += two
    times = places * span * 2.0**-depth
    s, u = np.minimum.outer(times, times), np.maximum.outer(times, times)
    np.testing.assert_allclose(w @ w.T, s, rtol=0, atol=1e-12)
    np.testing.assert_allclose(i @ i.T, s**2 * (3 * u - s) / 6, rtol=0, atol=1e-12)
    rows, columns = times[:, None], times[None, :]
    cross = np.where(rows <= columns, rows * columns - rows**2 / 2, columns**2 / 2)
    np.testing.assert_allclose(w @ i.T, cross, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (2, 70)], ids=str)
def test_increments_and_areas_of_parts_make_those_of_the_whole(shape: tuple[int, int]) -> None:
    """W adds up; U(a, c) = U(a, b) + U(b, c) + (c − b)(W(b) − W(a))."""
    x = torch.zeros(shape, dtype=torch.float64)
    random.seed(1)
    times = sorted(random.uniform(-2.0, 5.0) for _ in range(30))
    motion = brownian_motion(x, 4, -2.0, 5.0)
    pieces = {pair: motion(*pair, return_U=True) for pair in random.sample(list(pairwise(times)), 29)}
    value, area = torch.zeros_like(x), torch.zeros_like(x)
    for pair in pairwise(times):
        w, u = pieces[pair]
        area = area + u + (pair[1] - pair[0]) * value
        value = value + w
    whole = brownian_motion(x, 4, -2.0, 5.0)(times[0], times[-1], return_U=True)
    torch.testing.assert_close(value, whole[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(area, whole[1], rtol=0, atol=1e-10)
    assert torch.equal(motion(times[0], times[-1]), whole[0])


def test_the_area_of_a_short_interval_is_standard() -> None:
    """(ΔW/√h, √12 (U/h − ΔW/2)/√h) ~ N(0, I): 40 000 draws in float32."""
    motion = brownian_motion(torch.zeros(40, 1000), 0, 0.0, 1.0)
    for a, b in [(0.1, 0.9), (0.3, 0.3001), (0.5, 0.50001)]:
        w, u = (part.double() for part in motion(a, b, return_U=True))
        h = b - a
        z, v = w / h**0.5, (12 / h) ** 0.5 * (u / h - w / 2)
        for one in (z, v):
            assert abs(float(one.mean())) < 4 / 200 and abs(float(one.square().mean()) - 1) < 4 * 2**0.5 / 200
            assert abs(float((one**4).mean()) - 3) < 4 * 96**0.5 / 200
        assert abs(float((z * v).mean())) < 4 / 200


def test_srk_has_its_strong_order_along_one_path() -> None:
    y = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine = solve(y, 1 / 512, "srk")
    for method, coarse, least in [("euler", 1 / 32, 0.85), ("milstein", 1 / 32, 0.85), ("srk", 1 / 16, 1.3)]:
        errors = [
            float((solve(y, dt * (1 + 1e-9), method) - fine).square().mean().sqrt()) for dt in (coarse, coarse / 4)
        ]
        assert math.log(errors[0] / errors[1], 4) > least


@pytest.mark.parametrize("method", ["euler", "srk"])
@pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed")
def test_adaptive_steps_follow_the_same_path(method: str) -> None:
    y = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine = solve(y, 1 / 256, "srk")
    loose, tight = (solve(y, 0.1, method, adaptive=True, rtol=tol, atol=tol) for tol in (1e-2, 1e-3))
    errors = [float((result - fine).square().mean().sqrt()) for result in (loose, tight)]
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.02
    other = torchsde.sdeint(
        Swinging(), y, [0.0, 1.0], bm=brownian_motion(y, 4, 0.0, 1.0), method=method, dt=0.1, adaptive=True
    )[-1]
    assert float((other - fine).abs().mean()) > 0.1


def test_a_sample_alone_in_any_precision() -> None:
    for entries in (3, 100):
        x = torch.zeros(3, entries)
        batch, alone = brownian_motion(x, [1, 2, 3], 0.0, 1.0), brownian_motion(x[:1], [2], 0.0, 1.0)
        double = brownian_motion(x[:1].double(), [2], 0.0, 1.0)
        for interval in [(0.2, 0.7), (0.7, 0.71)]:
            for one, two, three in zip(*(m(*interval, return_U=True) for m in (batch, alone, double)), strict=True):
                assert one.dtype == torch.float32 and torch.equal(one[1:2], two)
                torch.testing.assert_close(two.double(), three, rtol=0, atol=3e-6)


def test_it_is_what_torchsde_asks_for() -> None:
    x = torch.zeros(2, 3)
    motion = brownian_motion(x, 0, torch.tensor(-1.0), torch.tensor(2.0))
    assert isinstance(motion, BrownianMotion) and motion.shape == motion.size() == x.shape
    assert motion.dtype == torch.float32 and motion.device == x.device
    assert motion.levy_area_approximation == "space-time"
    assert torch.equal(motion(torch.tensor(1.0)), motion(-1.0, 1.0)) and not motion(0.5, 0.5).any()


def test_wrong_arguments_are_named() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"start < end, got start=1 and end=0"):
        brownian_motion(x, 0, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"depth to be a whole number from 1 to 40, got 99"):
        brownian_motion(x, 0, 0.0, 1.0, depth=99)
    with pytest.raises(ValueError, match=r"BrownianMotion runs from 0 to 1, got 1.5: make it with the solver's first"):
        brownian_motion(x, 0, 0.0, 1.0)(0.5, 1.5)
    with pytest.raises(ValueError, match=r"got 0.3 and 0.301 inside one of 0.0625: pass a larger depth"):
        brownian_motion(x, 0, 0.0, 1.0, depth=4)(0.3, 0.301)
    with pytest.raises(ValueError, match=r"has the space-time area U and no Lévy area"):
        brownian_motion(x, 0, 0.0, 1.0)(0.2, 0.4, return_A=True)
