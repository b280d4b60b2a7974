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
    DPMSolverFast,
    DPMSolverPP2M,
    DPMSolverPP2S,
    ExponentialAdams,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    ProbabilityFlowODE,
    Solver,
    StepSolver,
    UniPC,
    VPrediction,
    karras_grid,
    logsnr_grid,
)
from scoresde.analytic import exact_flow
from scoresde.fitting import (
    CalibratedMultistep,
    GaussianFlow,
    ReferencePaths,
    calibrate,
    fit,
    level_parameters,
    optimise_grid,
    reference_paths,
)
from scoresde.fitting.level_parameters import LevelParameters
from scoresde.sde.grids import StartedGrid, few_step_grid
from scoresde.sde.levels import Interval, Level, Levels, Schedule
from scoresde.solvers.obelm import OBELM
from scoresde.solvers.reversible import Reversible

DIM, ITERATIONS = 4, 40


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(sde: SDE) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser.random(sde, DIM, 3, std=(0.1, 0.4), generator=seeded(0))


@cache
def paths(sde: SDE, seed: int = 1, count: int = 120) -> ReferencePaths:
    return reference_paths(problem(sde), (DIM,), count, steps=50, generator=seeded(seed), dtype=torch.float64)


def error(solver: Solver, denoiser: Denoiser, references: ReferencePaths) -> float:
    return float((solver(denoiser, references.start) - references.end).square().mean().sqrt() / references.rms)


def typical(solver: Solver, denoiser: Denoiser, references: ReferencePaths) -> float:
    """Median over paths: few-step rms is the matter of rare paths between two modes, here of one or two."""
    squares = (solver(denoiser, references.start) - references.end).flatten(1).square().mean(1)
    return float(squares.sqrt().median() / references.rms)


@dataclass(frozen=True, eq=False)
class Given(StartedGrid):
    """Levels with a start, as the second route to an unfitted solver."""

    logsnr: Tensor
    start: GaussianFlow

    def times(self, sde: SDE, steps: int, t_end: float) -> Tensor:
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


def test_references_are_paths_of_the_model() -> None:
    sde = VPSDE()
    references = paths(sde)
    exact = exact_flow(problem(sde), references.start)
    typical = (references.end - exact).square().mean(1).sqrt().median()
    assert typical < 5e-4 * references.rms
    assert len(references) == 120
    assert references.rms == pytest.approx(float(references.end.square().mean()) ** 0.5)
    assert references.nfe == 52
    known = problem(sde)
    centre = known.weights @ known.means
    found, crude = references.gaussian.mean, references.end.mean(0)
    assert (found - centre).norm() < 0.1 * (crude - centre).norm(), "x̂0 at t = 1 hardly scatters"


def test_references_count_their_calls_and_depend_on_the_generator_alone() -> None:
    calls = 0

    class Counting(GaussianDenoiser):
        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal calls
            calls += len(x)
            return super().forward(x, t, **cond)

    denoiser, done = Counting(VPSDE(), 0.3, torch.tensor([0.5, 1.0])), []
    whole = reference_paths(denoiser, (2,), 10, steps=12, generator=seeded(2), dtype=torch.float64)
    assert calls == 10 * whole.nfe
    parts = reference_paths(
        denoiser, (2,), 10, steps=12, batch=4, generator=seeded(2), dtype=torch.float64, progress=done.append
    )
    assert done == [4, 4, 2]
    torch.testing.assert_close(whole.end, parts.end)
    torch.testing.assert_close(whole.gaussian.mean, parts.gaussian.mean)


@pytest.mark.parametrize("sde", [*SDES, ByBisection()], ids=name)
def test_levels_have_the_derivative_of_their_times(sde: SDE) -> None:
    """By differences, as by the implicit function t(logsnr), whether or not a process can differentiate its `time`."""
    logsnr = torch.tensor([-3.0, -1.03, 0.47, 4.01], dtype=torch.float64)
    parts = LevelParameters(level_parameters.level_range(sde, sde.t_min), logsnr, free_start=True)
    levels, logsnr = parts.stencil(sde), parts()
    moved = sde.time(logsnr.detach()).requires_grad_()
    t = moved.detach() + (logsnr - logsnr.detach()) / torch.autograd.grad(sde.logsnr(moved).sum(), moved)[0]
    for found, exact in ((levels.t, t), (levels.alpha, sde.alpha(t)), (levels.sigma, sde.sigma(t)),
                         (levels.lam, 0.5 * logsnr)):  # fmt: skip
        torch.testing.assert_close(parts.differentiable(found), exact, rtol=1e-7, atol=1e-9)
        for row, of_row in zip(parts.unbind(found), exact + 0 * t, strict=True):
            slope = torch.autograd.grad(row + 0 * parts.logits.sum(), parts.logits, retain_graph=True)[0]
            expected = torch.autograd.grad(of_row, parts.logits, retain_graph=True)[0]
            torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("sde", [*SDES, ByBisection()], ids=name)
def test_any_logits_are_increasing_levels_inside_the_process(sde: SDE, free: bool) -> None:
    ends = level_parameters.level_range(sde, sde.t_min)
    first, last = ends
    own = sde.logsnr(karras_grid(sde, 9, sde.t_min)) if not free else level_parameters.first_guess(0.8, 10, within=ends)
    parts = LevelParameters(ends, own, free_start=free)
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
    "solver", [DDIM(), DPMSolverPP2M(), UniPC(), DPMSolverPP2S(), ExponentialAdams(order=2, sigma_data=0.5)],
    ids=lambda solver: type(solver).__name__,
)  # fmt: skip
def test_coefficients_are_differentiated_also_where_torch_cannot(solver: StepSolver, sde: SDE) -> None:
    ends = level_parameters.level_range(sde, sde.t_min)
    parts = LevelParameters(ends, level_parameters.first_guess(0.8, 5, within=ends), free_start=True)

    def numbers(schedule: Schedule) -> list[Any]:
        """Everything that steps read, of all steps, flat."""
        found = []
        for interval in schedule.intervals:
            t, s = interval.t, interval.s
            found += [t.alpha, t.sigma, s.alpha, s.sigma, t.lam, t.f, t.g, interval.decay, interval.removed]
        for row in schedule.weights(solver):
            for value in vars(row).values():
                entries = value if isinstance(value, tuple) else [value]
                found += [entry.alpha if isinstance(entry, Level) else entry for entry in entries]
        return found

    def plain(logits: Tensor) -> list[float]:
        levels = Levels.of(sde, sde.time(parts(logits))).landed()
        return numbers(Schedule(replace(levels, whole=True), levels.t.unbind(), levels.t.unbind()))

    levels, here = replace(parts.stencil(sde).landed(), whole=True), parts.logits.detach()
    times = parts.unbind(levels.t)
    moving = numbers(Schedule(levels, times, times, torch.ones(1, 1), parts.unbind))
    values = [float(value.detach()) for value in moving]
    torch.testing.assert_close(values, plain(here), rtol=1e-9, atol=1e-12, equal_nan=True)
    scales = [k + 1 if math.isfinite(value) else 0 for k, value in enumerate(values)]
    total = sum(scale * value for scale, value in zip(scales, moving, strict=True) if scale)
    slope = torch.autograd.grad(total, parts.logits)[0]
    for k in range(len(slope)):
        move = torch.zeros(len(slope), dtype=torch.float64)
        move[k] = 3e-4
        sides = [plain(here + sign * move) for sign in (1, -1)]
        ahead, behind = (sum(c * v for c, v in zip(scales, side, strict=True) if c) for side in sides)
        assert float(slope[k]) == pytest.approx((ahead - behind) / 6e-4, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_an_unfitted_calibration_is_exponential_adams(order: int) -> None:
    sde = VPSDE()
    references = paths(sde)
    solver = calibrate(problem(sde), 5, references, order=order, iterations=0)
    made = solver.calibration
    torch.testing.assert_close(made.logsnr, level_parameters.first_guess(references.gaussian.std, 5))
    assert made.sigma_data == references.gaussian.std
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


FITTED = {  # the solver on a grid with something left to fit, and the factor by which that must reduce the error
    "ddim": (DDIM(steps=5), 1.1),
    "2m": (DPMSolverPP2M(steps=5), 1.3),
    "adams": (ExponentialAdams(steps=5, grid=few_step_grid), 1.25),
    "unipc": (UniPC(steps=5), 1.5),
    "2s": (DPMSolverPP2S(steps=3, grid=logsnr_grid), 1.5),
}


@pytest.mark.parametrize("own_start", [True, False], ids=["gaussian start", "from t = 1"])
@pytest.mark.parametrize(("solver", "factor"), FITTED.values(), ids=FITTED)
def test_fitted_times_help_on_fresh_paths(solver: StepSolver, factor: float, own_start: bool) -> None:
    sde = VPSDE()
    denoiser, references, fresh = problem(sde), paths(sde), paths(sde, seed=7)
    unfitted = optimise_grid(denoiser, solver, references, gaussian_start=own_start, iterations=0)
    made = optimise_grid(denoiser, solver, references, gaussian_start=own_start, iterations=ITERATIONS, batch=32)
    assert (made.start is references.gaussian) == own_start
    assert made.record["rms"] < made.record["rms_before"]
    assert made.record["median"] < made.record["median_before"]
    before = typical(replace(solver, grid=unfitted), denoiser, fresh)
    after = typical(replace(solver, grid=made), denoiser, fresh)
    assert before / after > factor, (before, after)
    if not own_start:
        assert before == pytest.approx(typical(solver, denoiser, fresh), rel=1e-3)
    # the record is what the solver itself does on the last tenth, the fit's run is the solver's own
    held = ReferencePaths(references.start[-30:], references.end[-30:], references.gaussian, references.nfe)
    scale = held.rms / references.rms
    assert made.record["rms"] == pytest.approx(scale * error(replace(solver, grid=made), denoiser, held), rel=1e-6)
    assert made.record["paths_nfe"] == len(references) * references.nfe


@dataclass(frozen=True, kw_only=True)
class FromTimes(StepSolver):
    """A user's DDIM, from the two times of a step alone; x̂0 ends the run."""

    @property
    def deterministic(self) -> bool:
        return True

    def step(self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: Any, state: None) -> tuple[Tensor, None]:
        sde, t, s = denoiser.sde, interval.t.time, interval.s.time
        x0 = denoiser(x, t)
        if interval.to_data:
            return x0, None
        return sde.alpha(s) * x0 + sde.sigma(s) / sde.sigma(t) * (x - sde.alpha(t) * x0), None


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("kind", [DDIM, FromTimes, OBELM, Reversible, DPMSolverFast], ids=lambda kind: kind.__name__)
def test_what_is_fitted_is_the_solver_as_it_runs(kind: Any, denoise: bool) -> None:
    """With or without the call at the end, and with steps that look at their times."""
    sde = VPSDE()
    denoiser, references = problem(sde), paths(sde)
    solver = kind(steps=4, denoise=denoise)
    made = optimise_grid(denoiser, solver, references, iterations=10, batch=16)
    assert made.record["rms"] < made.record["rms_before"]
    held = ReferencePaths(references.start[-30:], references.end[-30:], references.gaussian, references.nfe)
    scale = held.rms / references.rms
    assert made.record["rms"] == pytest.approx(scale * error(replace(solver, grid=made), denoiser, held), rel=1e-6)


def test_a_fitted_grid_keeps_its_start_or_is_refused() -> None:
    """A function of its times alone would begin with other states than it was fitted to."""
    sde = VPSDE()
    denoiser, references, fresh = problem(sde), paths(sde), paths(sde, seed=7)
    made = optimise_grid(denoiser, DPMSolverPP2M(steps=5), references, iterations=ITERATIONS, batch=32)
    kept = typical(DPMSolverPP2M(steps=5, grid=made), denoiser, fresh)
    lost = DPMSolverPP2M(steps=5, grid=lambda sde, steps, t_end: made.times(sde, steps, t_end))
    assert typical(lost, denoiser, fresh) > 4 * kept
    with pytest.raises(TypeError, match="OptimisedGrid begins below t = 1 .* pass the object itself as") as raised:
        DPMSolverPP2M(steps=5, grid=lambda *given: made(*given))(denoiser, fresh.start)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("nfe", "factor"), [(4, 1.7), (7, 1.6)])
def test_a_calibration_helps_on_fresh_paths(nfe: int, factor: float) -> None:
    sde = VPSDE()
    denoiser, references, fresh = problem(sde), paths(sde), paths(sde, seed=7)
    unfitted = calibrate(denoiser, nfe, references, iterations=0)
    made = calibrate(denoiser, nfe, references, iterations=ITERATIONS, batch=32)
    record = made.calibration.record
    assert record["rms"] < 0.7 * record["rms_before"]
    assert typical(unfitted, denoiser, fresh) > factor * typical(made, denoiser, fresh)
    held = ReferencePaths(references.start[-30:], references.end[-30:], references.gaussian, references.nfe)
    assert record["rms"] == pytest.approx(held.rms / references.rms * error(made, denoiser, held), rel=1e-6)
    weights = made.calibration.weights
    assert torch.equal(weights, weights.tril()), "calls to come have no weight"
    assert (weights.tril().abs() > 0)[-1].all(), "all calls so far may have one"


@pytest.mark.parametrize("sde", [ByBisection(), VESDE(sigma_min=0.05, sigma_max=5.0), EDMSDE()], ids=name)
def test_other_processes_are_fitted_to_too(sde: SDE) -> None:
    """One without a derivative of its time, and one whose range the first guess does not fit in."""
    denoiser, references = problem(sde), paths(sde, count=100)
    for gaussian_start in (True, False):
        made = optimise_grid(denoiser, DPMSolverPP2M(steps=4), references, gaussian_start=gaussian_start, iterations=60)
        assert made.record["median"] < made.record["median_before"]
        assert error(DPMSolverPP2M(steps=4, grid=made), denoiser, references) < 1
    made = calibrate(denoiser, 4, references, iterations=60)
    assert made.calibration.record["median"] < made.calibration.record["median_before"]
    assert error(made, denoiser, references) < 1


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
    denoiser, references = problem(VPSDE()), paths(VPSDE())
    torch.manual_seed(1)
    first = calibrate(denoiser, 4, references, iterations=8, batch=16, seed=3).calibration
    torch.manual_seed(2)
    second = calibrate(denoiser, 4, references, iterations=8, batch=16, seed=3).calibration
    other = calibrate(denoiser, 4, references, iterations=8, batch=16, seed=4).calibration
    assert torch.equal(first.logsnr, second.logsnr)
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, other.weights)
    grids = [optimise_grid(denoiser, DDIM(steps=4), references, iterations=8, batch=16, seed=s) for s in (3, 3, 4)]
    assert grids[0].logsnr == grids[1].logsnr != grids[2].logsnr


@pytest.mark.parametrize("kind", ["grid", "calibration"])
def test_a_fit_that_goes_wrong_keeps_the_first_guess(kind: str) -> None:
    denoiser, references = problem(VPSDE()), paths(VPSDE())
    records, levels = [], []
    for iterations in (0, 6):
        if kind == "grid":
            made: Any = optimise_grid(denoiser, ExponentialAdams(steps=4), references, iterations=iterations, lr=300.0)
            record = made.record
        else:
            made = calibrate(denoiser, 4, references, iterations=iterations, lr=300.0).calibration
            record = made.record
        records.append(record)
        levels.append(torch.as_tensor(made.logsnr, dtype=torch.float64))
    assert records[1]["rms"] == records[0]["rms"]
    assert torch.equal(levels[0], levels[1])


def test_a_fit_is_judged_on_paths_that_it_did_not_see() -> None:
    """With a part held out that contradicts the rest, nothing that the rest teaches is kept."""
    denoiser, references = problem(VPSDE()), paths(VPSDE())
    start = calibrate(denoiser, 3, references, iterations=0)
    end = references.end.clone()
    end[-30:] = start(denoiser, references.start[-30:])  # there the first guess is perfect
    made = calibrate(
        denoiser, 3, ReferencePaths(references.start, end, references.gaussian, references.nfe), iterations=5
    )
    assert torch.equal(made.calibration.weights, start.calibration.weights)
    assert torch.equal(made.calibration.logsnr, start.calibration.logsnr)


def test_gaussian_data_are_exact_with_any_number_of_calls() -> None:
    sde = VPSDE()
    mean, root = torch.tensor([1.0, -0.5, 0.2]), torch.randn(3, 3, generator=seeded(4), dtype=torch.float64)
    denoiser = GaussianDenoiser(sde, mean, cov=root @ root.T + 0.1 * torch.eye(3))
    references = reference_paths(denoiser, (3,), 400, steps=60, generator=seeded(5), dtype=torch.float64)
    one, s = torch.ones((), dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x = sde.prior_sample((10, 3), dtype=torch.float64)
    flow = GaussianFlow(denoiser.mean, denoiser.axes.T, denoiser.std.square(), 0.0)
    torch.testing.assert_close(references.gaussian(sde, x, one, s), flow(sde, x, one, s), rtol=0, atol=0.15)
    exact = replace(references, gaussian=flow)
    made = optimise_grid(denoiser, DDIM(steps=2), exact, iterations=3)
    below = made.times(sde, 2, sde.t_min)[0]
    first = next(iter(DDIM(steps=2, grid=made).trajectory(denoiser, x))).x
    at_one = denoiser.flow(x / sde.alpha(one), sde.sigma(one) / sde.alpha(one))
    at_first = denoiser.flow(first / sde.alpha(below), sde.sigma(below) / sde.alpha(below))
    torch.testing.assert_close(at_first, at_one, rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def network() -> tuple[NetworkDenoiser, ReferencePaths]:
    denoiser = NetworkDenoiser(Network(2), VPSDE(), VPrediction())
    denoiser.eval()
    return denoiser, reference_paths(denoiser, (2,), 24, steps=20, generator=seeded(6))


@pytest.mark.parametrize("no_grad", [False, True])
def test_a_network_is_left_as_it_was(network: tuple[NetworkDenoiser, ReferencePaths], no_grad: bool) -> None:
    denoiser, references = network
    weights = {key: value.clone() for key, value in denoiser.state_dict().items()}
    assert references.end.dtype == torch.float32
    for training in (False, True):
        denoiser.train(training)
        with torch.set_grad_enabled(not no_grad):
            made = optimise_grid(denoiser, DPMSolverPP2M(steps=3), references, iterations=4, batch=8)
            solver = calibrate(denoiser, 3, references, iterations=4, batch=8)
        assert all(module.training == training for module in denoiser.modules())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in denoiser.parameters())
        assert all(torch.equal(value, weights[key]) for key, value in denoiser.state_dict().items())
    denoiser.eval()
    for run in (DPMSolverPP2M(steps=3, grid=made), solver):
        x = run(denoiser, references.start)
        assert x.dtype == torch.float32
        assert not x.requires_grad


def test_gradients_reach_the_times_through_the_network(network: tuple[NetworkDenoiser, ReferencePaths]) -> None:
    """The derivative of the end by a level, against two runs with that level moved."""
    denoiser, references = network
    denoiser.double()
    sde, seen = denoiser.sde, []
    x = references.start[:5].double()

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
        optimise_grid(Watching(), ExponentialAdams(steps=3, order=2), references)
    finally:
        fit._fit = original
    logits, run = captured
    watched = Watching()
    slope = torch.autograd.grad(run(watched, x).sum(), logits)[0]
    assert seen == [True] * 4
    for k in range(len(logits)):
        with torch.no_grad():
            values = []
            for move in (1e-4, -1e-4):
                logits[k] += move
                values.append(float(run(watched, x).sum()))
                logits[k] -= move
        assert float(slope[k]) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4, abs=1e-7)
    denoiser.float()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda d, p: calibrate(d, 1, p), "nfe >= 2, a whole number, got nfe=1"),
        (lambda d, p: calibrate(d, True, p), "nfe >= 2, a whole number, got nfe=True"),
        (lambda d, p: calibrate(d, 2.5, p), r"nfe >= 2, a whole number, got nfe=2\.5"),
        (lambda d, p: calibrate(d, 4, p, order=0), "1 <= order <= 4, a whole number, got order=0"),
        (lambda d, p: calibrate(d, 4, p, order=5), "1 <= order <= 4, a whole number, got order=5"),
        (lambda d, p: calibrate(d, 4, p, batch=0), "batch >= 1, a whole number, got batch=0"),
        (lambda d, p: calibrate(d, 4, p, iterations=-1), "iterations >= 0, a whole number, got iterations=-1"),
        (lambda d, p: optimise_grid(d, DDPM(steps=4), p), "a deterministic solver .* got DDPM: for example DDIM"),
        (lambda d, p: optimise_grid(d, DDIM(steps=4, eta=0.5), p), "a deterministic solver .* got DDIM"),
        (lambda d, p: optimise_grid(d, ProbabilityFlowODE(), p), "a deterministic solver .* got ProbabilityFlowODE"),
        (lambda d, p: reference_paths(d, (DIM,), 1), "reference_paths needs count >= 2, a whole number, got count=1"),
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
    references = paths(VPSDE())
    broken = Broken(VPSDE(), 0.0, 1.0)
    with pytest.raises(FloatingPointError, match="first guess of a fit gave NaN or infinity: check the model"):
        calibrate(broken, 4, references)
    broken.after = 10
    with pytest.raises(FloatingPointError, match="met NaN or infinity at iteration 1: check the model, or lower lr"):
        calibrate(broken, 4, references)


def test_two_references_and_progress() -> None:
    done: list[int] = []
    references = reference_paths(problem(VPSDE()), (DIM,), 2, steps=10, generator=seeded(1), dtype=torch.float64)
    made = calibrate(problem(VPSDE()), 2, references, iterations=3, progress=done.append)
    assert done == [1, 1, 1]
    assert isinstance(made, CalibratedMultistep)
    assert made.calibration.record["paths"] == 2
