"""Euler, midpoint, Heun and rk4 for dx/dt on the straight path and elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import mixture
from torch import Tensor, nn

from scoresde import (
    DDIM,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    Interval,
    NetworkDenoiser,
    ProbabilityFlowODE,
    StraightSDE,
    Velocity,
    uniform_grid,
)
from scoresde.solvers import RungeKutta
from scoresde.testing import convergence_order

Field = Callable[[float, Tensor], Tensor]  # dx/dt


class Counted(Denoiser):
    """Another denoiser, and how often and where it was asked."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.asked = inner, inner.sde, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.asked.append(float(t))
        return self.inner(x, t, **cond)


class Network(nn.Module):
    """Somebody's flow-matching network u(x, t), without c_in and with t itself as its label."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) + t[:, None] * x.flip(1)


def start(rows: int = 16) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def textbook(method: str, u: Field, x: Tensor, times: list[float]) -> Tensor:
    """As torchdyn, torchdiffeq and flow_matching's ODESolver take them."""
    for t, s in pairwise(times):
        h = s - t
        k1 = u(t, x)
        if method == "euler":
            x = x + h * k1
        elif method == "midpoint":
            x = x + h * u(t + h / 2, x + h / 2 * k1)
        elif method == "heun":
            x = x + h / 2 * (k1 + u(s, x + h * k1))
        else:
            k2 = u(t + h / 2, x + h / 2 * k1)
            k3 = u(t + h / 2, x + h / 2 * k2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + u(s, x + h * k3))
    return x


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_a_flow_matching_network_is_sampled_as_by_its_own_system(method: str) -> None:
    """x + (s − t) u, whatever stands between: label t, input x, and dx/dt = u on the straight path."""
    net, x, times = Network(), start(), torch.linspace(1, 0.2, 5, dtype=torch.float64)
    denoiser = NetworkDenoiser(net, StraightSDE(), Velocity(scale_input=False))
    expected = textbook(method, lambda t, x: net(x, x.new_full((len(x),), t)), x, times.tolist())
    solver = RungeKutta(method=method, steps=4, grid=uniform_grid, t_end=0.2, denoise=False)
    torch.testing.assert_close(solver(denoiser, x), expected, rtol=1e-12, atol=1e-12)
    per_sample, y = times[:, None].expand(-1, len(x)), x
    for t, s in pairwise(per_sample):
        y, _ = solver.step(denoiser, y, Interval.between(denoiser, t, s, x), _no_noise, None)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_flow_match_schedulers_of_diffusers_on_their_own_levels() -> None:
    """σ = 1 ... 1/1000 in equal steps, then 0; the step to 0 is Euler's in FlowMatchHeunDiscreteScheduler too."""
    net, x = Network(), start()
    denoiser = NetworkDenoiser(net, StraightSDE(), Velocity(scale_input=False))
    times = torch.cat([torch.linspace(1, 1e-3, 6, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    u: Field = lambda t, x: net(x, x.new_full((len(x),), t))  # noqa: E731
    for method in ("euler", "heun"):
        expected = textbook("euler", u, textbook(method, u, x, times.tolist()[:-1]), times.tolist()[-2:])
        solver = RungeKutta(method=method, steps=6, t_end=0.0, grid=lambda sde, steps, t_end: times)
        torch.testing.assert_close(solver(denoiser, x), expected, rtol=1e-12, atol=1e-12)


def test_euler_on_the_straight_path_is_ddim() -> None:
    """x + (s − t)(ε̂ − x̂0) = (1 − s) x̂0 + s ε̂, step for step, from no signal to noise 0."""
    denoiser, x = mixture(StraightSDE()), start()
    runs = [
        solver.trajectory(denoiser, x) for solver in (RungeKutta(method="euler", t_end=0.0), DDIM(steps=20, t_end=0.0))
    ]
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-10, atol=1e-10)


@cache
def reference(sde: SDE, end: float, scale: float = 1.0) -> Tensor:
    solver = ProbabilityFlowODE(method="dopri8", rtol=1e-10, atol=1e-10, t_end=end or 1e-7, denoise=end == 0)
    return solver(mixture(sde), scale * start(4))


@pytest.mark.parametrize("end, low", [(0.05, 4), (0.0, 3)])
@pytest.mark.parametrize("method, order", [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_orders_from_no_signal_to_data(method: str, order: int, end: float, low: int) -> None:
    denoiser, x = mixture(StraightSDE()), start(4)
    exact = reference(StraightSDE(), end)

    def solve(steps: int) -> Tensor:
        return RungeKutta(method=method, steps=steps, t_end=end, denoise=False)(denoiser, x)

    found = convergence_order(solve, exact, steps=(40, 80) if order == 4 else (60, 120))
    assert min(order, low) - 0.25 < found < order + 0.6


@pytest.mark.parametrize("method, calls", [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_calls_are_counted_and_none_is_at_noise_zero(method: str, calls: int) -> None:
    counted = Counted(mixture(StraightSDE()))
    solver = RungeKutta(method=method, steps=5, t_end=0.0)
    y = solver(counted, start())
    assert y.isfinite().all() and len(counted.asked) == {1: 5, 2: 10 - (method == "heun"), 4: 18}[calls]
    assert min(counted.asked) > 0 and max(counted.asked) == 1
    counted.asked.clear()
    replace(solver, t_end=None)(counted, start())  # and one more call, at t_end
    assert len(counted.asked) == 5 * calls + 1
    t, s = torch.tensor([0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, 0.0], dtype=torch.float64)
    x = start(2)
    both, _ = solver.step(counted.inner, x, Interval.between(StraightSDE(), t, s, x), _no_noise, None)
    for k in range(2):
        one, _ = solver.step(counted.inner, x[k : k + 1], Interval.between(StraightSDE(), t[k], s[k]), _no_noise, None)
        torch.testing.assert_close(both[k : k + 1], one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
def test_every_process_is_taken_along_the_straight_path(sde: SDE) -> None:
    """States as on the straight path at equal σ/α, but for their scale, and the order of the method."""
    x, exact = sde.prior_std * start(4), reference(sde, 0.05, sde.prior_std)

    def solve(steps: int) -> Tensor:
        return RungeKutta(steps=steps, t_end=0.05, denoise=False)(mixture(sde), x)

    assert convergence_order(solve, exact, steps=(80, 160)) == pytest.approx(2, abs=0.3)
    straight, t, s = StraightSDE(), torch.tensor(0.6).double(), torch.tensor(0.4).double()
    t_there, s_there = (straight.time(sde.logsnr(time)) for time in (t, s))
    norms = [sde.alpha(time) + sde.sigma(time) for time in (t, s)]
    for method in ("euler", "midpoint", "heun", "rk4"):
        solver = RungeKutta(method=method)
        ours, _ = solver.step(mixture(sde), norms[0] * x, Interval.between(sde, t, s), _no_noise, None)
        theirs, _ = solver.step(mixture(straight), x, Interval.between(straight, t_there, s_there), _no_noise, None)
        torch.testing.assert_close(ours, norms[1] * theirs, rtol=1e-9, atol=1e-9)


def _no_noise(t: Tensor, s: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver drew noise")
