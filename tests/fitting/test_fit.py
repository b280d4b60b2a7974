"""Fits of times and weights: what they start from, that they help, and what they leave alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor, nn

from scoresde import (
    DDIM,
    DDPM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    DPMSolverPP2M,
    DPMSolverPP2S,
    ExponentialAdams,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Heun,
    NetworkDenoiser,
    ProbabilityFlowODE,
    Solver,
    TabulatedSolver,
    UniPC,
    VPrediction,
    karras_grid,
)
from scoresde.analytic import exact_flow
from scoresde.fitting import (
    CalibratedMultistep,
    GaussianFlow,
    Pilots,
    calibrate,
    fit,
    level_parameters,
    optimise_grid,
    pilot_paths,
)
from scoresde.sde.levels import Levels
from scoresde.solvers.obelm import OBELM

DIM, ITERATIONS = 4, 40


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(sde: SDE) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser.random(sde, DIM, 3, std=(0.1, 0.4), generator=seeded(0))


@cache
def paths(sde: SDE, seed: int = 1, count: int = 120) -> Pilots:
    return pilot_paths(problem(sde), (DIM,), count, steps=50, generator=seeded(seed), dtype=torch.float64)


def error(solver: Solver, denoiser: Denoiser, pilots: Pilots) -> float:
    return float((solver(denoiser, pilots.start) - pilots.end).square().mean().sqrt() / pilots.rms)


def typical(solver: Solver, denoiser: Denoiser, pilots: Pilots) -> float:
    """Median over paths: few-step rms is the matter of rare paths between two modes, here of one or two."""
    squares = (solver(denoiser, pilots.start) - pilots.end).flatten(1).square().mean(1)
    return float(squares.sqrt().median() / pilots.rms)


@dataclass(frozen=True, eq=False)
class Given:
    """Levels with a start, as the second route to an unfitted solver."""

    logsnr: Tensor
    start: GaussianFlow

    def __call__(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        return sde.time(self.logsnr)


class ByBisection(SDE):
    """α and σ alone: `time` is bisection, which has no derivative."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 / (1 + t.square())

    def sigma(self, t: Tensor) -> Tensor:
        return 3 * t + 20 * t**3


class Network(nn.Module):
    """A random network that depends on its time embedding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(dim + 2, 24), nn.SiLU(), nn.Dropout(0.2), nn.Linear(24, dim))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        time = torch.stack([torch.sin(c_noise), torch.cos(2 * c_noise)], 1)
        out: Tensor = self.layers(torch.cat([x, time], 1))
        return out


def test_pilots_are_paths_of_the_model() -> None:
    sde = VPSDE()
    pilots = paths(sde)
    exact = exact_flow(problem(sde), pilots.start)
    typical = (pilots.end - exact).square().mean(1).sqrt().median()
    assert typical < 5e-4 * pilots.rms
    assert len(pilots) == 120
    assert pilots.rms == pytest.approx(float(pilots.end.square().mean()) ** 0.5)
    assert pilots.nfe == 52
    known = problem(sde)
    centre = known.weights @ known.means
    found, crude = pilots.gaussian.mean, pilots.end.mean(0)
    assert (found - centre).norm() < 0.1 * (crude - centre).norm(), "x̂0 at t = 1 hardly scatters"


def test_pilots_count_their_calls_and_depend_on_the_generator_alone() -> None:
    calls = 0

    class Counting(GaussianDenoiser):
        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal calls
            calls += len(x)
            return super().forward(x, t, **cond)

    denoiser, done = Counting(VPSDE(), 0.3, torch.tensor([0.5, 1.0])), []
    whole = pilot_paths(denoiser, (2,), 10, steps=12, generator=seeded(2), dtype=torch.float64)
    assert calls == 10 * whole.nfe
    parts = pilot_paths(
        denoiser, (2,), 10, steps=12, batch=4, generator=seeded(2), dtype=torch.float64, progress=done.append
    )
    assert done == [4, 4, 2]
    torch.testing.assert_close(whole.end, parts.end)
    torch.testing.assert_close(whole.gaussian.mean, parts.gaussian.mean)


@pytest.mark.parametrize("sde", [*SDES, ByBisection()], ids=name)
def test_levels_have_the_derivative_of_their_times(sde: SDE) -> None:
    logsnr = torch.tensor([-3.0, -1.03, 0.47, 4.01], dtype=torch.float64, requires_grad=True)
    levels = level_parameters.differentiable_levels(sde, logsnr)
    torch.testing.assert_close(levels.lam, 0.5 * logsnr)
    torch.testing.assert_close((levels.alpha / levels.sigma).log(), levels.lam)
    torch.testing.assert_close(levels.alpha, sde.alpha(sde.time(logsnr.detach())))
    torch.testing.assert_close(levels.sigma, sde.sigma(sde.time(logsnr.detach())))
    h = 1e-5
    with torch.no_grad():
        ahead, behind = (level_parameters.differentiable_levels(sde, logsnr + move) for move in (h, -h))
    for column in ("t", "alpha", "sigma", "lam"):
        value = getattr(levels, column).sum() + 0 * logsnr.sum()  # α of some processes is constant
        slope = torch.autograd.grad(value, logsnr, retain_graph=True)[0]
        numeric = (getattr(ahead, column) - getattr(behind, column)) / (2 * h)
        torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("sde", [*SDES, ByBisection()], ids=name)
def test_any_logits_are_increasing_levels_inside_the_process(sde: SDE, free: bool) -> None:
    ends = level_parameters.level_range(sde, sde.t_min)
    first, last = ends
    own = sde.logsnr(karras_grid(sde, 9, sde.t_min)) if not free else level_parameters.first_guess(0.8, 10, within=ends)
    parts = level_parameters.Places(ends, own, free_start=free)
    made = parts().detach()
    assert made.shape == (10,)
    torch.testing.assert_close(made, own.clamp(max=last - level_parameters.MARGIN), rtol=0, atol=2e-3)
    for scale in (0.0, 1.0, 10.0, 300.0):
        logits = scale * torch.randn(len(parts.logits), 20, dtype=torch.float64)
        levels = parts(logits)
        assert (levels.diff(dim=0) > 1e-5).all()
        assert ((first <= levels) & (levels < last)).all()
        assert bool((levels[0] == first).all()) != free
        times = sde.time(levels)
        assert ((times > 0) & (times <= 1)).all()


@pytest.mark.parametrize(
    ("std", "ends"), [(1.0, (-60.0, 60.0)), (2.0, (-4.0, 60.0)), (0.1, (-60.0, 4.0)), (1e-3, (-4.0, 4.0))]
)
def test_first_guess_spaces_its_levels_inside_the_process(std: float, ends: tuple[float, float]) -> None:
    levels = level_parameters.first_guess(std, 6, within=ends)
    roots = torch.exp(-levels / 6)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(5))
    assert levels[0] >= ends[0] - 1e-9
    assert levels[-1] <= ends[1] + 1e-9
    if ends == (-60.0, 60.0):
        assert math.exp(-levels[0] / 2) == pytest.approx(8.0)
        assert math.exp(-levels[-1] / 2) == pytest.approx(0.03)


@pytest.mark.parametrize("sde", [VPSDE(), ByBisection()], ids=name)
@pytest.mark.parametrize(
    "solver", [DDIM(), DPMSolverPP2M(), UniPC(), Heun(), ExponentialAdams(order=2, sigma_data=0.5)],
    ids=lambda solver: type(solver).__name__,
)  # fmt: skip
def test_tables_are_differentiated_also_where_torch_cannot(solver: TabulatedSolver, sde: SDE) -> None:
    ends = level_parameters.level_range(sde, sde.t_min)
    parts = level_parameters.Places(ends, level_parameters.first_guess(0.8, 5, within=ends), free_start=True)

    def table(logsnr: Tensor) -> tuple[Tensor, ...]:
        return solver.table(Levels.of(sde, sde.time(logsnr)).landed())

    def numbers(columns: tuple[Tensor, ...]) -> Tensor:
        weighed = [(column * torch.arange(1, len(column) + 1)).nan_to_num(0, 0, 0).sum() for column in columns]
        return torch.stack(weighed[:3]).sum()

    columns = parts.differentiated(table)
    for column, plain in zip(columns, table(parts().detach()), strict=True):
        torch.testing.assert_close(column.detach().to(plain), plain, equal_nan=True)
    slope = torch.autograd.grad(numbers(columns), parts.logits)[0]
    for k in range(len(slope)):
        move = torch.zeros(len(slope), dtype=torch.float64)
        move[k] = 3e-4
        here = parts.logits.detach()
        with torch.no_grad():
            numeric = (numbers(table(parts(here + move))) - numbers(table(parts(here - move)))) / 6e-4
        assert float(slope[k]) == pytest.approx(float(numeric), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_an_unfitted_calibration_is_exponential_adams(order: int) -> None:
    sde = VPSDE()
    pilots = paths(sde)
    solver = calibrate(problem(sde), 5, pilots, order=order, iterations=0)
    made = solver.calibration
    torch.testing.assert_close(made.logsnr, level_parameters.first_guess(pilots.gaussian.std, 5))
    assert made.sigma_data == pilots.gaussian.std
    assert made.record["rms"] == made.record["rms_before"]
    route = ExponentialAdams(
        steps=4, order=order, prediction="v", corrector=False, sigma_data=made.sigma_data,
        grid=Given(made.logsnr, made.start),
    )  # fmt: skip
    x = sde.prior_sample((30, DIM), dtype=torch.float64)
    torch.testing.assert_close(solver(problem(sde), x), route(problem(sde), x), rtol=1e-9, atol=1e-10)


def test_fewer_calls_than_the_order_start_from_a_lower_order() -> None:
    made = calibrate(problem(VPSDE()), 2, paths(VPSDE()), order=4, iterations=0).calibration
    assert made.weights.shape == (2, 2)
    same = calibrate(problem(VPSDE()), 2, paths(VPSDE()), order=2, iterations=0).calibration
    torch.testing.assert_close(made.weights, same.weights)


FITTED = {  # the solver, and the factor by which fitting its times must reduce the error on fresh paths
    "ddim": (DDIM(steps=5), 1.1),
    "2m": (DPMSolverPP2M(steps=5), 1.3),
    "adams": (ExponentialAdams(steps=5), 1.25),
    "unipc": (UniPC(steps=5), 1.5),
    "2s": (DPMSolverPP2S(steps=3), 1.5),
}


@pytest.mark.parametrize("own_start", [True, False], ids=["gaussian start", "from t = 1"])
@pytest.mark.parametrize(("solver", "factor"), FITTED.values(), ids=FITTED)
def test_fitted_times_help_on_fresh_paths(solver: TabulatedSolver, factor: float, own_start: bool) -> None:
    sde = VPSDE()
    denoiser, pilots, fresh = problem(sde), paths(sde), paths(sde, seed=7)
    unfitted = optimise_grid(denoiser, solver, pilots, gaussian_start=own_start, iterations=0)
    made = optimise_grid(denoiser, solver, pilots, gaussian_start=own_start, iterations=ITERATIONS, batch=32)
    assert (made.start is pilots.gaussian) == own_start
    assert made.record["rms"] < made.record["rms_before"]
    assert made.record["median"] < made.record["median_before"]
    before = typical(replace(solver, grid=unfitted), denoiser, fresh)
    after = typical(replace(solver, grid=made), denoiser, fresh)
    assert before / after > factor, (before, after)
    if not own_start:
        assert before == pytest.approx(typical(solver, denoiser, fresh), rel=1e-3)
    # the record is what the solver itself does on the last tenth, the fit's run is the solver's own
    held = Pilots(pilots.start[-30:], pilots.end[-30:], pilots.gaussian, pilots.nfe)
    scale = held.rms / pilots.rms
    assert made.record["rms"] == pytest.approx(scale * error(replace(solver, grid=made), denoiser, held), rel=1e-6)
    assert made.record["pilot_nfe"] == len(pilots) * pilots.nfe


@dataclass(frozen=True, kw_only=True)
class FromTimes(TabulatedSolver):
    """DDIM from the two times of a step alone; its table is empty of numbers, and x̂0 ends the run."""

    lands = False

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        return True

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        return (torch.ones_like(levels.t[1:]),)

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: Any, state: None
    ) -> tuple[Tensor, None]:
        sde, x0 = denoiser.sde, denoiser(x, t)
        return sde.alpha(s) * x0 + sde.sigma(s) / sde.sigma(t) * (x - sde.alpha(t) * x0), None


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("kind", [DDIM, FromTimes, OBELM], ids=lambda kind: kind.__name__)
def test_what_is_fitted_is_the_solver_as_it_runs(kind: Any, denoise: bool) -> None:
    """With or without the call at the end, and with steps that look at their times."""
    sde = VPSDE()
    denoiser, pilots = problem(sde), paths(sde)
    solver = kind(steps=4, denoise=denoise)
    made = optimise_grid(denoiser, solver, pilots, iterations=10, batch=16)
    assert made.record["rms"] < made.record["rms_before"]
    held = Pilots(pilots.start[-30:], pilots.end[-30:], pilots.gaussian, pilots.nfe)
    scale = held.rms / pilots.rms
    assert made.record["rms"] == pytest.approx(scale * error(replace(solver, grid=made), denoiser, held), rel=1e-6)


@pytest.mark.parametrize(("nfe", "factor"), [(4, 1.7), (7, 1.6)])
def test_a_calibration_helps_on_fresh_paths(nfe: int, factor: float) -> None:
    sde = VPSDE()
    denoiser, pilots, fresh = problem(sde), paths(sde), paths(sde, seed=7)
    unfitted = calibrate(denoiser, nfe, pilots, iterations=0)
    made = calibrate(denoiser, nfe, pilots, iterations=ITERATIONS, batch=32)
    record = made.calibration.record
    assert record["rms"] < 0.7 * record["rms_before"]
    assert typical(unfitted, denoiser, fresh) > factor * typical(made, denoiser, fresh)
    held = Pilots(pilots.start[-30:], pilots.end[-30:], pilots.gaussian, pilots.nfe)
    assert record["rms"] == pytest.approx(held.rms / pilots.rms * error(made, denoiser, held), rel=1e-6)
    weights = made.calibration.weights
    assert torch.equal(weights, weights.tril()), "calls to come have no weight"
    assert (weights.tril().abs() > 0)[-1].all(), "all calls so far may have one"


@pytest.mark.parametrize("sde", [ByBisection(), VESDE(sigma_min=0.05, sigma_max=5.0), EDMSDE()], ids=name)
def test_other_processes_are_fitted_to_too(sde: SDE) -> None:
    """One without a derivative of its time, and one whose range the first guess does not fit in."""
    denoiser, pilots = problem(sde), paths(sde, count=100)
    for gaussian_start in (True, False):
        made = optimise_grid(denoiser, DPMSolverPP2M(steps=4), pilots, gaussian_start=gaussian_start, iterations=60)
        assert made.record["median"] < made.record["median_before"]
        assert error(DPMSolverPP2M(steps=4, grid=made), denoiser, pilots) < 1
    made = calibrate(denoiser, 4, pilots, iterations=60)
    assert made.calibration.record["median"] < made.calibration.record["median_before"]
    assert error(made, denoiser, pilots) < 1


def test_a_calibration_serves_every_process() -> None:
    """Starts that correspond, x/α at one noise level, give the same samples."""
    first, second = VPSDE(), EDMSDE()
    solver = calibrate(problem(first), 5, paths(first), iterations=10)
    made = solver.calibration
    one = torch.ones((), dtype=torch.float64)
    x = first.prior_sample((20, DIM), dtype=torch.float64)
    t, s = (sde.time(made.logsnr[:1])[0] for sde in (first, second))
    below = made.start(first, x, one, t) * (second.alpha(s) / first.alpha(t))
    other = made.start(second, below, s, one)
    torch.testing.assert_close(solver(problem(second), other), solver(problem(first), x), rtol=1e-7, atol=1e-8)


def test_fits_follow_from_their_seed() -> None:
    denoiser, pilots = problem(VPSDE()), paths(VPSDE())
    torch.manual_seed(1)
    first = calibrate(denoiser, 4, pilots, iterations=8, batch=16, seed=3).calibration
    torch.manual_seed(2)
    second = calibrate(denoiser, 4, pilots, iterations=8, batch=16, seed=3).calibration
    other = calibrate(denoiser, 4, pilots, iterations=8, batch=16, seed=4).calibration
    assert torch.equal(first.logsnr, second.logsnr)
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, other.weights)
    grids = [optimise_grid(denoiser, DDIM(steps=4), pilots, iterations=8, batch=16, seed=s) for s in (3, 3, 4)]
    assert grids[0].logsnr == grids[1].logsnr != grids[2].logsnr


@pytest.mark.parametrize("kind", ["grid", "calibration"])
def test_a_fit_that_goes_wrong_keeps_the_first_guess(kind: str) -> None:
    denoiser, pilots = problem(VPSDE()), paths(VPSDE())
    records, levels = [], []
    for iterations in (0, 6):
        if kind == "grid":
            made: Any = optimise_grid(denoiser, ExponentialAdams(steps=4), pilots, iterations=iterations, lr=300.0)
            record = made.record
        else:
            made = calibrate(denoiser, 4, pilots, iterations=iterations, lr=300.0).calibration
            record = made.record
        records.append(record)
        levels.append(torch.as_tensor(made.logsnr, dtype=torch.float64))
    assert records[1]["rms"] == records[0]["rms"]
    assert torch.equal(levels[0], levels[1])


def test_a_fit_is_judged_on_pilots_that_it_did_not_see() -> None:
    """With a part held out that contradicts the rest, nothing that the rest teaches is kept."""
    denoiser, pilots = problem(VPSDE()), paths(VPSDE())
    start = calibrate(denoiser, 3, pilots, iterations=0)
    end = pilots.end.clone()
    end[-30:] = start(denoiser, pilots.start[-30:])  # there the first guess is perfect
    made = calibrate(denoiser, 3, Pilots(pilots.start, end, pilots.gaussian, pilots.nfe), iterations=5)
    assert torch.equal(made.calibration.weights, start.calibration.weights)
    assert torch.equal(made.calibration.logsnr, start.calibration.logsnr)


def test_gaussian_data_are_exact_with_any_number_of_calls() -> None:
    sde = VPSDE()
    mean, root = torch.tensor([1.0, -0.5, 0.2]), torch.randn(3, 3, generator=seeded(4), dtype=torch.float64)
    denoiser = GaussianDenoiser(sde, mean, cov=root @ root.T + 0.1 * torch.eye(3))
    pilots = pilot_paths(denoiser, (3,), 400, steps=60, generator=seeded(5), dtype=torch.float64)
    one, s = torch.ones((), dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x = sde.prior_sample((10, 3), dtype=torch.float64)
    flow = GaussianFlow(denoiser.mean, denoiser.axes.T, denoiser.std.square(), 0.0)
    torch.testing.assert_close(pilots.gaussian(sde, x, one, s), flow(sde, x, one, s), rtol=0, atol=0.15)
    exact = replace_gaussian(pilots, flow)
    made = optimise_grid(denoiser, DDIM(steps=2), exact, iterations=3)
    below = made(sde, 2, sde.t_min)[0]
    first = next(iter(DDIM(steps=2, grid=made).trajectory(denoiser, x))).x
    at_one = denoiser.flow(x / sde.alpha(one), sde.sigma(one) / sde.alpha(one))
    at_first = denoiser.flow(first / sde.alpha(below), sde.sigma(below) / sde.alpha(below))
    torch.testing.assert_close(at_first, at_one, rtol=1e-8, atol=1e-10)


def replace_gaussian(pilots: Pilots, flow: GaussianFlow) -> Pilots:
    return Pilots(pilots.start, pilots.end, flow, pilots.nfe)


@pytest.fixture(scope="module")
def network() -> tuple[NetworkDenoiser, Pilots]:
    denoiser = NetworkDenoiser(Network(2), VPSDE(), VPrediction())
    denoiser.eval()
    return denoiser, pilot_paths(denoiser, (2,), 24, steps=20, generator=seeded(6))


@pytest.mark.parametrize("no_grad", [False, True])
def test_a_network_is_left_as_it_was(network: tuple[NetworkDenoiser, Pilots], no_grad: bool) -> None:
    denoiser, pilots = network
    weights = {key: value.clone() for key, value in denoiser.state_dict().items()}
    assert pilots.end.dtype == torch.float32
    for training in (False, True):
        denoiser.train(training)
        with torch.set_grad_enabled(not no_grad):
            made = optimise_grid(denoiser, DPMSolverPP2M(steps=3), pilots, iterations=4, batch=8)
            solver = calibrate(denoiser, 3, pilots, iterations=4, batch=8)
        assert all(module.training == training for module in denoiser.modules())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in denoiser.parameters())
        assert all(torch.equal(value, weights[key]) for key, value in denoiser.state_dict().items())
    denoiser.eval()
    for run in (DPMSolverPP2M(steps=3, grid=made), solver):
        x = run(denoiser, pilots.start)
        assert x.dtype == torch.float32
        assert not x.requires_grad


def test_gradients_reach_the_times_through_the_network(network: tuple[NetworkDenoiser, Pilots]) -> None:
    """The derivative of the end by a level, against two runs with that level moved."""
    denoiser, pilots = network
    denoiser.double()
    sde, seen = denoiser.sde, []
    x = pilots.start[:5].double()

    class Watching(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde = sde

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            seen.append(t.requires_grad)
            return denoiser(x, t)

    captured: list[Any] = []

    def capture(groups: Any, run: Any, *rest: Any) -> dict[str, float]:
        captured.extend([groups[0]["params"][0], run])
        return {}

    original = fit._fit
    fit._fit = capture
    try:
        optimise_grid(Watching(), ExponentialAdams(steps=3, order=2), pilots)
    finally:
        fit._fit = original
    logits, run = captured
    slope = torch.autograd.grad(run(x).sum(), logits)[0]
    assert seen == [True] * 4
    for k in range(len(logits)):
        with torch.no_grad():
            values = []
            for move in (1e-4, -1e-4):
                logits[k] += move
                values.append(float(run(x).sum()))
                logits[k] -= move
        assert float(slope[k]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-7)
    denoiser.float()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda d, p: calibrate(d, 1, p), "nfe to be a whole number of at least 2, got 1"),
        (lambda d, p: calibrate(d, True, p), "nfe to be a whole number of at least 2, got True"),
        (lambda d, p: calibrate(d, 2.5, p), r"nfe to be a whole number of at least 2, got 2\.5"),
        (lambda d, p: calibrate(d, 4, p, order=0), "order 1, 2, 3 or 4, got 0"),
        (lambda d, p: calibrate(d, 4, p, order=5), "order 1, 2, 3 or 4, got 5"),
        (lambda d, p: calibrate(d, 4, p, batch=0), "batch of at least 1, a whole number, got 0"),
        (lambda d, p: calibrate(d, 4, p, iterations=-1), "iterations of at least 0, a whole number, got -1"),
        (lambda d, p: optimise_grid(d, DDPM(steps=4), p), "a deterministic solver .* got DDPM: for example DDIM"),
        (lambda d, p: optimise_grid(d, DDIM(steps=4, eta=0.5), p), "a deterministic solver .* got DDIM"),
        (lambda d, p: optimise_grid(d, ProbabilityFlowODE(), p), "a deterministic solver .* got ProbabilityFlowODE"),
        (lambda d, p: pilot_paths(d, (DIM,), 1), "pilot_paths needs at least 2 pilots, a whole number, got 1"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(attempt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        attempt(problem(VPSDE()), paths(VPSDE()))
    assert "\n" not in str(raised.value)


class Broken(GaussianDenoiser):
    """NaN with a gradient, or from a certain call on."""

    after = 0

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.after -= 1
        return super().forward(x, t) + (math.nan if self.after < 0 else 0)


def test_a_broken_model_is_named() -> None:
    pilots = paths(VPSDE())
    broken = Broken(VPSDE(), 0.0, 1.0)
    with pytest.raises(FloatingPointError, match="first guess of a fit gave NaN or infinity: check the model"):
        calibrate(broken, 4, pilots)
    broken.after = 10
    with pytest.raises(FloatingPointError, match="met NaN or infinity at iteration 1: check the model, or lower lr"):
        calibrate(broken, 4, pilots)


def test_two_pilots_and_progress() -> None:
    done: list[int] = []
    pilots = pilot_paths(problem(VPSDE()), (DIM,), 2, steps=10, generator=seeded(1), dtype=torch.float64)
    made = calibrate(problem(VPSDE()), 2, pilots, iterations=3, progress=done.append)
    assert done == [1, 1, 1]
    assert isinstance(made, CalibratedMultistep)
    assert made.calibration.record["pilots"] == 2
