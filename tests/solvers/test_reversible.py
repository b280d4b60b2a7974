"""Reversible solvers: round trips to rounding whatever the network, second order both ways, second transcriptions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, exact_flow, mixture, moments, name
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Denoiser,
    DPMSolverPP2M,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Grid,
    Heun,
    Interval,
    StepSolver,
    VPrediction,
    expand,
    karras_grid,
    logsnr_grid,
    uniform_grid,
)
from scoresde.denoiser import NetworkDenoiser
from scoresde.sde.grids import Start, StartedGrid
from scoresde.solvers import heun
from scoresde.solvers.obelm import OBELM
from scoresde.solvers.reversible import Reversible, ReversibleSolver, ReversibleState
from scoresde.testing import convergence_order

SOLVERS = [Reversible(), Reversible(solver=Heun(), coupling=0.95), OBELM(), OBELM(clock="sigma")]
UNEVEN = torch.tensor([1.0, 0.8, 0.35, 0.3, 0.12, 0.02], dtype=torch.float64)


def kind(solver: ReversibleSolver) -> str:
    return "-".join(
        str(getattr(part, "clock", type(part).__name__)) for part in (solver, getattr(solver, "solver", ""))
    )


class Jumps(torch.nn.Module):
    """A network that jumps, in its input and in the noise level."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return 2 * torch.sign(torch.sin(3 * x + 5 * expand(c_noise, x))) + 0.5 * x.flip(1).round()


class Kinks(torch.nn.Module):
    """A triangle wave: continuous, so that rounding in float32 does not decide between branches."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return (torch.remainder(2 * x.flip(1) + expand(c_noise, x), 2) - 1).abs()


def jumps(sde: SDE) -> Denoiser:
    return NetworkDenoiser(Jumps(), sde, VPrediction())


def kinks(sde: SDE) -> Denoiser:
    return NetworkDenoiser(Kinks(), sde, VPrediction())


def latents(sde: SDE, dtype: torch.dtype = torch.float64, dim: int = 2) -> Tensor:
    z = torch.randn(16, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (float(sde.prior_std) * z).to(dtype)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    ("solver", "steps"),  # one or two Heun steps across all noise levels are no map to build on
    [(solver, steps) for solver in SOLVERS[:3] for steps in (1, 2, 5, 40) if steps > 2 or "Heun" not in repr(solver)],
    ids=lambda value: kind(value) if isinstance(value, ReversibleSolver) else str(value),
)
@pytest.mark.parametrize("make", [mixture, jumps])
def test_round_trips(sde: SDE, solver: ReversibleSolver, steps: int, make: Any) -> None:
    round_trip(make(sde), replace(solver, steps=steps), torch.float64, 1e-10, 1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[2]], ids=kind)
@pytest.mark.parametrize("steps", [5, 40])
@pytest.mark.parametrize("make, tolerance", [(mixture, 1e-4), (kinks, 2e-3)])
def test_round_trips_in_single_precision(
    sde: SDE, solver: ReversibleSolver, steps: int, make: Any, tolerance: float
) -> None:
    round_trip(make(sde), replace(solver, steps=steps, t_end=1e-3), torch.float32, tolerance, tolerance)


def round_trip(
    denoiser: Denoiser, solver: ReversibleSolver, dtype: torch.dtype, at_data: float, at_noise: float
) -> None:
    x0 = mixture(denoiser.sde).sample(16, generator=torch.Generator().manual_seed(1)).to(dtype)
    latent = solver.encode(denoiser, x0)
    back = solver.decode(denoiser, latent)
    assert back.dtype == latent.x.dtype == dtype
    assert float((back - x0).abs().max()) < at_data

    scale, z = float(denoiser.sde.prior_std), latents(denoiser.sde, dtype)
    again = solver.encode(denoiser, solver.transport(denoiser, z))
    assert again.residual is not None
    assert float((again.x - z).abs().max()) < at_noise * scale
    assert float(again.residual.abs().max()) < 20 * at_noise * scale


@pytest.mark.parametrize("steps, plain, exact", [(5, 1e-2, 1e-13), (20, 1e-3, 1e-13)])
def test_plain_encoding_is_only_as_exact_as_its_order(steps: int, plain: float, exact: float) -> None:
    denoiser = mixture(VPSDE(t_min=1e-3))
    x = denoiser.sample(32, generator=torch.Generator().manual_seed(0))
    for solver in (DDIM(steps=steps, grid=karras_grid, denoise=False), Heun(steps=steps, denoise=False)):
        assert float((solver(denoiser, solver.encode(denoiser, x)) - x).abs().max()) > plain
    for solver in (Reversible(steps=steps), OBELM(steps=steps)):
        assert float((solver.decode(denoiser, solver.encode(denoiser, x)) - x).abs().max()) < exact


@pytest.mark.parametrize("grid", [uniform_grid, karras_grid])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineSDE()], ids=name)
@pytest.mark.parametrize("solver", SOLVERS[:1] + SOLVERS[2:3], ids=kind)
def test_many_steps_lose_nothing(sde: SDE, grid: Grid, solver: ReversibleSolver) -> None:
    """Neither direction lets rounding or the residual grow: data with directions 1e-2 wide and 1 wide."""
    spread = torch.tensor([[1e-4, 1e-2, 1.0]], dtype=torch.float64).repeat(3, 1)
    means = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(sde, torch.ones(3), means, spread)
    solver, z = replace(solver, steps=300, grid=grid), latents(sde, dim=3)[:2]
    data = solver.transport(denoiser, z)
    again = solver.encode(denoiser, data)
    assert float((again.x - z).abs().max()) < 1e-9 * float(sde.prior_std)
    assert data.residual is not None and float(data.residual.abs().max()) < 0.05
    x = denoiser.sample(2, generator=torch.Generator().manual_seed(0))
    assert float((solver.decode(denoiser, solver.encode(denoiser, x)) - x).abs().max()) < 1e-9


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver, grid",
    [
        (SOLVERS[0], karras_grid),
        (SOLVERS[1], karras_grid),
        (SOLVERS[2], karras_grid),
        (SOLVERS[2], logsnr_grid),
        (SOLVERS[3], karras_grid),
    ],
    ids=lambda v: kind(v) if isinstance(v, StepSolver) else v.__name__,
)
def test_second_order_both_ways(sde: SDE, solver: ReversibleSolver, grid: Grid) -> None:
    denoiser, (mean, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    x = mean + std * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = exact_flow(sde, x, 1.0, 1e-2)

    def make(steps: int) -> ReversibleSolver:
        return replace(solver, steps=steps, grid=grid, t_end=1e-2, denoise=False)

    assert convergence_order(lambda n: make(n)(denoiser, x), exact, steps=(80, 160)) == pytest.approx(2, abs=0.15)
    if isinstance(solver, OBELM) or solver.coupling == 1:  # damping is growth on the way up
        order = convergence_order(lambda n: make(n).encode(denoiser, exact).x, x, steps=(80, 160))
        assert order == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[2]], ids=kind)
def test_second_order_on_a_mixture(sde: SDE, solver: ReversibleSolver) -> None:
    denoiser, x = mixture(sde), latents(sde)
    fine = Heun(steps=800, t_end=1e-2, denoise=False)(denoiser, x)

    def solve(steps: int) -> Tensor:
        return replace(solver, steps=steps, t_end=1e-2, denoise=False)(denoiser, x)

    assert convergence_order(solve, fine, steps=(80, 160)) == pytest.approx(2, abs=0.3)


@pytest.fixture
def formulas_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a run are not shortened, however long: see `scoresde.solvers.long_steps`."""
    monkeypatch.setattr(heun, "too_long", lambda t, s, *factors: torch.zeros_like(factors[0], dtype=torch.bool))


@pytest.mark.usefixtures("formulas_alone")
@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("coupling", [1.0, 0.8])
def test_reversible_is_the_papers_pair_of_updates_in_scaled_coordinates(sde: SDE, coupling: float) -> None:
    """y ← λ y + (1 − λ) z + Ψ_h(z), z ← z − Ψ_−h(y), with Ψ the increment of Heun's step in the coordinates x/c."""
    denoiser, x = mixture(sde), latents(sde)
    solver = Reversible(
        steps=5, grid=lambda sde, steps, t_end: UNEVEN, denoise=False, solver=Heun(), coupling=coupling
    )  # fmt: skip
    data = solver.transport(denoiser, x)

    a, b = sde.alpha(UNEVEN), sde.sigma(UNEVEN)
    c = ((a.square() + b.square()).sqrt() * b).sqrt()

    def increment(u: Tensor, i: int, j: int) -> Tensor:
        """Heun in σ/α on x/α, there and back from the coordinates x/c."""
        v, h = u * c[i] / a[i], b[j] / a[j] - b[i] / a[i]
        slope = denoiser.eps(v * a[i], UNEVEN[i])
        v = v + h / 2 * (slope + denoiser.eps((v + h * slope) * a[j], UNEVEN[j]))
        return v * a[j] / c[j] - u

    y = z = x / c[0]
    for i in range(5):
        y = coupling * y + (1 - coupling) * z + increment(z, i, i + 1)
        z = z - increment(y, i + 1, i)
    assert data.residual is not None
    torch.testing.assert_close(data.x, c[-1] * (y + z) / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(data.residual, c[-1] * (y - z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_obelm_is_the_papers_recursion_with_its_clock(sde: SDE) -> None:
    """x̄_s = (h/h')² x̄_u + (1 − (h/h')²) x̄_t + h (h + h')/h' ε̂(x_t), x̄ = x/α, on an uneven grid; then its own clock."""
    denoiser, x = mixture(sde), latents(sde)
    a, b = sde.alpha(UNEVEN), sde.sigma(UNEVEN)
    solver = OBELM(steps=5, grid=lambda sde, steps, t_end: UNEVEN, denoise=False)
    level = b / a

    u, v = x / a[0], x / a[0] + (level[1] - level[0]) * denoiser.eps(x, UNEVEN[0])
    for i in range(1, 5):
        h, before = level[i + 1] - level[i], level[i] - level[i - 1]
        weight, slope = (h / before) ** 2, denoiser.eps(v * a[i], UNEVEN[i])
        u, v = v, weight * u + (1 - weight) * v + h * (h + before) / before * slope
    y = replace(solver, clock="sigma")(denoiser, x)
    torch.testing.assert_close(y, v * a[-1], rtol=1e-9, atol=1e-9)

    clock, scale = torch.asinh(torch.log(a / b)), (a.square() + b.square()) ** (3 / 8) * b**0.25
    u, v = x, a[1] * (x / a[0] + (level[1] - level[0]) * denoiser.eps(x, UNEVEN[0]))
    for i in range(1, 5):
        weight = scale[i + 1] / scale[i - 1] * ((clock[i + 1] - clock[i]) / (clock[i] - clock[i - 1])) ** 2
        slope = denoiser.eps(v, UNEVEN[i])
        down = a[i + 1] * (v / a[i] + (level[i + 1] - level[i]) * slope)
        up = a[i - 1] * (v / a[i] + (level[i - 1] - level[i]) * slope)
        u, v = v, down + weight * (u - up)
    torch.testing.assert_close(solver(denoiser, x), v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", ["even", "odd"])
def test_obelm_is_second_order_on_a_grid_that_never_becomes_smooth(step: str) -> None:
    """Steps alternate 1 : 2, so that h/h' never tends to 1 and a wrong power of it costs the order."""
    sde = VPSDE()
    denoiser, (mean, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    x = mean + std * torch.linspace(-2, 2, 32, dtype=torch.float64)[:, None]

    def zigzag(sde: SDE, steps: int, t_end: float) -> Tensor:
        sizes = torch.ones(steps, dtype=torch.float64)
        sizes[(0 if step == "even" else 1) :: 2] = 2
        place = torch.cat([sizes.new_zeros(1), sizes.cumsum(0) / sizes.sum()])
        ends = sde.logsnr(torch.tensor([1.0, t_end], dtype=torch.float64))
        times = sde.time(ends[0] + place * (ends[1] - ends[0]))
        times[0], times[-1] = 1.0, t_end
        return times

    def solve(steps: int) -> Tensor:
        return OBELM(steps=steps, grid=zigzag, t_end=1e-2, denoise=False, clock="sigma")(denoiser, x)

    order = convergence_order(solve, exact_flow(sde, x, 1.0, 1e-2), steps=(160, 320, 640))
    assert order == pytest.approx(2, abs=0.25)


@pytest.mark.usefixtures("formulas_alone")
@pytest.mark.parametrize("solver", SOLVERS, ids=kind)
def test_steps_by_hand_are_the_run_and_times_may_differ_by_sample(solver: ReversibleSolver) -> None:
    sde = VESDE()
    denoiser, x = mixture(sde), latents(sde)[:3]
    solver = replace(solver, steps=5, grid=lambda sde, steps, t_end: UNEVEN, denoise=False)
    y: Tensor = x
    z: Tensor = x
    state: Any = None
    rows: Any = None
    for t, s in pairwise(UNEVEN):
        y, state = solver.step(denoiser, y, Interval.between(denoiser, t, s), lambda t, s: x, state)
        each = Interval.between(denoiser, t.expand(3), s.expand(3), x)
        z, rows = solver.step(denoiser, z, each, lambda t, s: x, rows)
    torch.testing.assert_close(y, solver(denoiser, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(z, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS, ids=kind)
def test_a_latent_goes_on_to_a_sample_and_edits_through_another_denoiser(solver: ReversibleSolver) -> None:
    sde = VPSDE(t_min=1e-3)
    denoiser, other = mixture(sde), GaussianDenoiser(sde, MEAN, STD)
    x = denoiser.sample(8, generator=torch.Generator().manual_seed(2))
    latent = solver.encode(denoiser, x)
    end = torch.tensor(1e-3, dtype=torch.float64)
    torch.testing.assert_close(solver(denoiser, latent), denoiser(x, end), rtol=1e-9, atol=1e-9)
    assert [step.index for step in solver.trajectory(denoiser, latent)][-1] == solver.steps + 1
    torch.testing.assert_close(list(solver.trajectory(denoiser, latent))[-2].x, x, rtol=1e-9, atol=1e-9)
    # a plain tensor is a latent without residual
    plain = replace(solver, denoise=False)
    assert torch.equal(plain(other, latent.x), solver.decode(other, latent.x))
    assert torch.equal(plain(other, latent.x), solver.decode(other, ReversibleState(latent.x)))
    assert not torch.equal(plain(other, latent.x), solver.decode(other, latent))


class Growing(Start):
    def __call__(self, sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x * (1.5 + s) / (1.5 + t)


class Late(StartedGrid):
    """A grid that starts below t = 1 and says how to get there."""

    start = Growing()

    def times(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        return UNEVEN[1:]


@pytest.mark.parametrize("solver", SOLVERS, ids=kind)
def test_a_grid_with_a_start_of_its_own(solver: ReversibleSolver) -> None:
    sde = VESDE()
    denoiser, z = mixture(sde), latents(sde)
    late = replace(solver, steps=4, grid=Late(), denoise=False)
    plain = replace(late, grid=lambda sde, steps, t_end: UNEVEN[1:])
    data = late.transport(denoiser, z)
    torch.testing.assert_close(data.x, plain(denoiser, z * 2.3 / 2.5), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(late(denoiser, z), data.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(late.encode(denoiser, data).x, z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver, calls", [(Reversible(), 2), (Reversible(solver=Heun()), 4), (OBELM(), 1)], ids=name)
def test_network_calls(solver: ReversibleSolver, calls: int) -> None:
    asked = []

    class Counting(GaussianDenoiser):
        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            asked.append(float(t))
            return super().forward(x, t, **cond)

        def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            asked.append(float(t))
            return super().eps(x, t, **cond)

    replace(solver, steps=7)(Counting(VESDE(), MEAN, STD), torch.randn(2, 2))
    assert len(asked) == 7 * calls + 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Reversible(coupling=0.0), "0 < coupling <= 1, got coupling=0.0"),
        (lambda: Reversible(coupling=1.1), "0 < coupling <= 1"),
        (lambda: Reversible(solver=DDPM()), "deterministic one-step solver, got DDPM"),
        (lambda: Reversible(solver=DDIM(eta=0.5)), "deterministic one-step solver, got DDIM"),
        (
            lambda: Reversible(solver=DPMSolverPP2M())(mixture(VPSDE()), torch.randn(2, 2)),
            "deterministic one-step solver, got DPMSolverPP2M",
        ),
        (lambda: OBELM(clock="t"), "clock flow or sigma, got 't'"),
        (lambda: OBELM(t_end=0.0)(mixture(VPSDE()), torch.randn(2, 2)), "needs noise at the data end: σ is 0"),
        (lambda: Reversible(t_end=0.0).plan(mixture(VPSDE())), "needs noise at the data end"),
        (lambda: OBELM().plan(mixture(VPSDE()), backward=True), "runs back through the inverse of its steps"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
