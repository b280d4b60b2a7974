"""A multistep solver with given times and weights: two routes, other processes, and its files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from closed_forms import mixture, name
from torch import Tensor

from scoresde import EDMSDE, SDE, VESDE, VPSDE, CosineSDE, ExponentialAdams, GaussianDenoiser, Interval, gaussian_noise
from scoresde.fitting import CalibratedMultistep, GaussianFlow, OptimisedGrid
from scoresde.fitting.calibrated import Calibration
from scoresde.sde.grids import StartedGrid
from scoresde.sde.levels import Levels
from scoresde.solvers.exponential import adams_weights

ONE = torch.ones((), dtype=torch.float64)
RECORD = {"rms": 0.1, "paths": 3, "paths_nfe": 300}


def flow_of(rank: int = 2) -> GaussianFlow:
    variances = torch.tensor([2.0, 0.5], dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    return GaussianFlow(torch.tensor([0.3, -0.2], dtype=torch.float64), axes[:rank], variances[:rank], 0.25)


def levels_of(nfe: int) -> Tensor:
    """Uneven on purpose."""
    steps = 1 + 0.5 * torch.sin(torch.arange(nfe, dtype=torch.float64))
    places = steps.cumsum(0)
    return -4.0 + 10.0 * (places - places[0]) / (places[-1] - places[0])


def adams(sde: SDE, nfe: int, order: int, std: float) -> Calibration:
    """The exact Adams weights in v, of y = x/√(α² c² + σ²) where c² scales with the data."""
    logsnr = levels_of(nfe)
    scaled = Levels.of(sde, sde.time(logsnr)).landed().scaled(std)
    keep, weights = adams_weights(scaled, "v", tuple(range(order)))
    norm = torch.hypot(scaled.alpha, scaled.sigma)
    columns = torch.stack([*weights, *[torch.zeros_like(keep)] * (nfe - order)], 1)
    return Calibration(logsnr, keep * norm[:-1] / norm[1:], columns / norm[1:, None], flow_of(), std, RECORD)


@dataclass(frozen=True, eq=False)
class Given(StartedGrid):
    """A grid of given levels that brings its start."""

    logsnr: Tensor
    start: GaussianFlow

    def times(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        return sde.time(self.logsnr)


@pytest.mark.parametrize("std", [1.0, 0.4])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unfitted_weights_are_exponential_adams_in_v(order: int, std: float) -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), sde.prior_sample((20, 2), dtype=torch.float64)
    made = adams(sde, 6, order, std)
    grid = Given(made.logsnr, made.start)
    route = ExponentialAdams(steps=5, order=order, prediction="v", corrector=False, sigma_data=std, grid=grid)
    solver = CalibratedMultistep(calibration=made)
    assert solver.steps == 5
    torch.testing.assert_close(solver(denoiser, x), route(denoiser, x), rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(solver.trajectory(denoiser, x), route.trajectory(denoiser, x), strict=True):
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("landed", [False, True])
def test_levels_of_scaled_data_belong_together(landed: bool) -> None:
    levels = Levels.of(VPSDE(), torch.tensor([1.0, 0.5, 0.01], dtype=torch.float64))
    levels = levels.landed() if landed else levels
    scaled = levels.scaled(0.4)
    torch.testing.assert_close(scaled.lam, (scaled.alpha / scaled.sigma).log())
    torch.testing.assert_close(scaled.ratio, levels.ratio / 0.4)


def test_a_step_is_the_formula() -> None:
    """Random weights against a literal transcription in y and the velocity of y in the angle."""
    sde, nfe, c = VPSDE(), 4, 0.6
    keep, weights = torch.rand(nfe, dtype=torch.float64), torch.randn(nfe, nfe, dtype=torch.float64)
    logsnr = levels_of(nfe)
    made = Calibration(logsnr, keep, weights, flow_of(), c, RECORD)
    denoiser, x = mixture(sde), sde.prior_sample((7, 2), dtype=torch.float64)

    times = [*sde.time(logsnr)]
    x_i, speeds = made.start(sde, x, ONE, times[0]), []
    for i, t in enumerate(times):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        norm = torch.hypot(alpha * c, sigma)
        angle, y = torch.atan2(sigma, alpha * c), x_i / norm
        eps, x0 = denoiser.eps(x_i, t), denoiser(x_i, t)
        speeds.insert(0, torch.cos(angle) * eps - torch.sin(angle) * x0 / c)
        y = keep[i] * y + sum(weights[i, j] * speed for j, speed in enumerate(speeds))
        landing = i == nfe - 1
        x_i = y * (c if landing else torch.hypot(sde.alpha(times[i + 1]) * c, sde.sigma(times[i + 1])))
    torch.testing.assert_close(CalibratedMultistep(calibration=made)(denoiser, x), x_i)


@pytest.mark.parametrize("sde", [EDMSDE(), VESDE(), CosineSDE()], ids=lambda sde: type(sde).__name__)
def test_the_process_does_not_matter(sde: SDE) -> None:
    """The same weights on the same law: x/α at the first level is the same, hence the samples are."""
    first = VPSDE()
    solver = CalibratedMultistep(calibration=adams(first, 6, 3, 0.8))
    x = first.prior_sample((20, 2), dtype=torch.float64)
    start, t, s = solver.calibration.start, *(p.time(solver.calibration.logsnr[:1])[0] for p in (first, sde))
    below = start(first, x, ONE, t) * (sde.alpha(s) / first.alpha(t))
    other = start(sde, below, s, ONE)
    torch.testing.assert_close(solver(mixture(sde), other), solver(mixture(first), x), rtol=1e-7, atol=1e-8)


def test_calls_and_float32() -> None:
    calls = 0

    class Counting(GaussianDenoiser):
        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return super().forward(x, t, **cond)

    sde = VPSDE()
    solver = CalibratedMultistep(calibration=adams(sde, 5, 2, 1.0))
    x = sde.prior_sample((8, 2), dtype=torch.float64)
    exact = solver(Counting(sde, 0.2, 0.7), x)
    assert calls == 5
    single = solver(GaussianDenoiser(sde, 0.2, 0.7), x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, exact.float(), rtol=1e-4, atol=1e-4)


class Narrow(SDE):
    """Without a formula for its time: outside its noise levels bisection returns an end."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return 0.001 * 3000**t  # 3 at most


@pytest.mark.parametrize("sde", [VESDE(sigma_max=5.0), VESDE(sigma_min=0.2), Narrow()], ids=name)
def test_levels_outside_a_process_are_refused(sde: SDE) -> None:
    x = torch.randn(2, 2, dtype=torch.float64)
    solver = CalibratedMultistep(calibration=adams(VPSDE(), 4, 2, 1.0))
    with pytest.raises(ValueError, match="CalibratedMultistep was fitted to noise levels outside those of this"):
        solver(mixture(sde), x)
    grid = OptimisedGrid(tuple(levels_of(4).tolist()), RECORD, flow_of())
    with pytest.raises(ValueError, match="OptimisedGrid was fitted to noise levels outside those of this"):
        ExponentialAdams(steps=3, grid=grid)(mixture(sde), x)


def test_a_calibration_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"needs a calibration, got None: make one with scoresde\.calibrate"):
        CalibratedMultistep()
    with pytest.raises(ValueError, match="cannot encode: only a deterministic solver"):
        CalibratedMultistep(calibration=adams(VPSDE(), 4, 2, 1.0)).encode(mixture(VPSDE()), torch.randn(2, 2))


Fit = Calibration | OptimisedGrid
FITS: dict[str, Callable[[], Fit]] = {
    "calibration": lambda: adams(VPSDE(), 6, 3, 0.8),
    "grid with a start": lambda: OptimisedGrid((-4.0, 0.1, 6.0), RECORD, flow_of(1)),
    "grid without a start": lambda: OptimisedGrid((-10.0, 0.1, 6.0), RECORD),
}


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    for field in fields(a):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, GaussianFlow):
            assert_same(mine, other)
        elif isinstance(mine, Tensor):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other)
        else:
            assert mine == other
            assert type(mine) is type(other)


@pytest.mark.parametrize("make", FITS.values(), ids=FITS)
def test_files_hold_every_bit(make: Callable[[], Fit], tmp_path: Path) -> None:
    fit, path = make(), tmp_path / "new folder" / "fit.one"
    fit.save(path)
    assert_same(fit, type(fit).load(path))
    assert_same(fit, type(fit).load(str(path)))
    assert [p.name for p in path.parent.iterdir()] == ["fit.one"], "no temporary file is left"
    if isinstance(fit, Calibration):
        sde, x = VPSDE(), torch.randn(4, 2)
        again = CalibratedMultistep(calibration=str(path))
        assert torch.equal(again(mixture(sde), x), CalibratedMultistep(calibration=fit)(mixture(sde), x))


@pytest.mark.parametrize("make", FITS.values(), ids=FITS)
def test_files_of_earlier_versions_are_read(make: Callable[[], Fit], tmp_path: Path) -> None:
    """Their records count pilots."""
    fit, path = make(), tmp_path / "fit.pt"
    replace(fit, record={"rms": 0.1, "pilots": 3, "pilot_nfe": 300}).save(path)
    assert_same(type(fit).load(path), fit)


def test_steps_by_hand_are_the_run_and_times_may_differ_by_sample() -> None:
    sde = VPSDE()
    made = adams(sde, 5, 3, 0.8)
    solver, denoiser, x = CalibratedMultistep(calibration=made), mixture(sde), torch.randn(3, 2).double()
    times = sde.time(made.logsnr)
    z = y = made.start(sde, x, ONE, times[0])
    state: Any = None
    rows: Any = None
    for t, s in pairwise(times):
        y, state = solver.step(denoiser, y, Interval.between(sde, t, s), gaussian_noise(x), state)
        each = Interval.between(sde, t.expand(3), s.expand(3), x)
        z, rows = solver.step(denoiser, z, each, gaussian_noise(x), rows)
    expected = list(solver.trajectory(denoiser, x))[-2].x
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-10)


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    fit = FITS["calibration"]()
    fit.save(path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        replace(fit, record={"rms": lambda: 0}).save(path)
    assert path.read_bytes() == before


class Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("kind", [Calibration, OptimisedGrid], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("damage", ["truncated", "empty", "bomb", "torch bomb", "list", "other", "start"])
def test_damaged_files_get_one_sentence(damage: str, kind: Any, tmp_path: Path) -> None:
    path, target = tmp_path / "fit.pt", tmp_path / "exploded"
    mine, other = ("calibration", "grid with a start")[:: 1 if kind is Calibration else -1]
    FITS[other if damage == "other" else mine]().save(path)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "bomb":
        path.write_bytes(pickle.dumps(Bomb(str(target))))
    elif damage == "torch bomb":
        torch.save({"logsnr": Bomb(str(target))}, path)
    elif damage == "list":
        torch.save([1, 2, 3], path)
    elif damage == "start":
        torch.save({**torch.load(path), "start": {"mean": 0.0}}, path)
    left = path.read_bytes()
    with pytest.raises(ValueError, match=kind.__name__) as raised:
        kind.load(path)
    said = str(raised.value)
    assert "\n" not in said
    assert said.endswith("delete it and fit again.")
    assert str(path) in said
    assert raised.value.__cause__ is None
    assert path.read_bytes() == left
    assert not target.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"there is no saved Calibration at .*: fit one and save it there\."
        ):
            CalibratedMultistep(calibration=path)
    with pytest.raises(FileNotFoundError, match="there is no saved OptimisedGrid at"):
        OptimisedGrid.load(tmp_path / "none.pt")


def test_a_grid_of_another_number_of_steps() -> None:
    grid = FITS["grid with a start"]()
    with pytest.raises(ValueError, match=r"fitted to 2 steps, got steps=5: fit one for that number with"):
        ExponentialAdams(steps=5, grid=grid)(mixture(VPSDE()), torch.randn(2, 2))


def test_a_grid_without_a_start_begins_at_one() -> None:
    grid, sde = FITS["grid without a start"](), VPSDE()
    times = grid(sde, 2, 1e-5)
    assert times[0] == 1
    torch.testing.assert_close(sde.logsnr(times[1:]), torch.tensor([0.1, 6.0], dtype=torch.float64))
    below = FITS["grid with a start"]().times(sde, 2, 1e-5)
    assert below[0] < 1
    torch.testing.assert_close(sde.logsnr(below), torch.tensor([-4.0, 0.1, 6.0], dtype=torch.float64))
