"""`grid=...` of `sample.py`: another grid, or times and weights fitted to the run's model and kept in its directory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from scoresde.checks import check_choice, check_flags, check_whole
from scoresde.commands.batches import own_conditions
from scoresde.commands.build import INTERFACES, ConfigError, require
from scoresde.commands.call_counter import calls_counted
from scoresde.commands.conditions import own_data
from scoresde.commands.interfaces import SolverGrid
from scoresde.commands.load import TrainedModel
from scoresde.commands.variance import moments_of
from scoresde.denoiser import Denoiser
from scoresde.files import inside
from scoresde.fitting import (
    CalibratedMultistep,
    Calibration,
    OptimisedGrid,
    ReferencePaths,
    calibrate,
    optimal_grid,
    optimise_grid,
    reference_paths,
)
from scoresde.fitting.calibrated import fit_fields, fit_state
from scoresde.fitting.optimal_grid import COSTS
from scoresde.progress import Progress
from scoresde.solvers import Solver, StepSolver
from scoresde.training import CheckpointError, load_checkpoint, save_checkpoint

PATHS_AT_ONCE = 256
Fit = TypeVar("Fit", OptimisedGrid, Calibration)


def on_grid(solver: Solver, grid: Any, trained: TrainedModel) -> Solver:
    """The solver on what `grid=...` built: a `SolverGrid`, or a function (sde, steps, t_end) -> times."""
    if not isinstance(grid, SolverGrid):
        if not callable(grid) or isinstance(grid, INTERFACES):
            require(grid, SolverGrid, "grid")
        return replace(_with_steps(solver), grid=grid)
    return grid(solver, trained)


@dataclass(frozen=True, kw_only=True)
class OwnGrid(SolverGrid):
    """The solver's own grid."""

    def __call__(self, solver: Solver, trained: TrainedModel) -> Solver:
        return solver


@dataclass(frozen=True, kw_only=True)
class OptimalGrid(SolverGrid):
    """The least bound on −log p of the model, for likelihoods of few steps: see `optimal_grid`.

    Args:
        variance: Of the steps that the bound is for: "optimal", "small", "large".
        samples, levels: Of the table, see `moments_of`.
    """

    variance: str = "optimal"
    samples: int = 500
    levels: int | None = None

    def __post_init__(self) -> None:
        check_choice(self, "variance", self.variance, tuple(COSTS))
        check_whole(self, "samples >= 3", "levels >= 2 or null")

    def __call__(self, solver: Solver, trained: TrainedModel) -> Solver:
        steps, sde = _with_steps(solver), trained.denoiser.sde
        grid = partial(
            optimal_grid, moments=moments_of(trained, samples=self.samples, levels=self.levels), variance=self.variance
        )
        try:
            grid(sde, steps.steps, steps.end(sde))
        except ValueError as error:
            raise ConfigError(f"grid=optimal with solver.steps={steps.steps} and grid.levels: {error}") from None
        return replace(steps, grid=grid)


@dataclass(frozen=True, kw_only=True)
class OptimisedTimes(SolverGrid):
    """Times fitted to the model and the solver by `optimise_grid`, on first use: kept under `grids/` of the run.

    Args:
        gaussian_start: Begin below t = 1, after the exact flow of Gaussian data.
        reference_paths, reference_steps: Number of fine runs to fit to, and their steps.
        iterations, batch: Of the fit.
        refit: Fit again even if the run has a fit.
    """

    gaussian_start: bool = True
    reference_paths: int = 256
    reference_steps: int = 60
    iterations: int = 100
    batch: int = 32
    refit: bool = False

    def __post_init__(self) -> None:
        _check_fit(self)

    def __call__(self, solver: Solver, trained: TrainedModel) -> Solver:
        steps = _with_steps(solver)
        options = [(f.name, getattr(steps, f.name)) for f in fields(steps) if f.name not in ("grid", "steps")]
        path = _path(type(steps).__name__, steps.steps, (options, replace(self, refit=False)), trained)
        fit: Any = partial(optimise_grid, solver=steps, gaussian_start=self.gaussian_start)  # type: ignore[arg-type]
        return replace(steps, grid=_fitted(OptimisedGrid, fit, path, self, trained))


@dataclass(frozen=True, kw_only=True)
class CalibratedTimes(SolverGrid):
    """Times and weights of a multistep solver of solver.steps + 1 calls in place of the solver, by `calibrate`.

    Args:
        reference_paths, reference_steps, iterations, batch, refit: As for `OptimisedTimes`.
    """

    reference_paths: int = 512
    reference_steps: int = 60
    iterations: int = 150
    batch: int = 32
    refit: bool = False

    def __post_init__(self) -> None:
        _check_fit(self)

    def __call__(self, solver: Solver, trained: TrainedModel) -> Solver:
        steps = _with_steps(solver).steps

        def fit(denoiser: Denoiser, *, paths: ReferencePaths, **numbers: Any) -> Calibration:
            return calibrate(denoiser, steps + 1, paths, **numbers).calibration

        path = _path("calibrated", steps, replace(self, refit=False), trained)
        return CalibratedMultistep(calibration=_fitted(Calibration, fit, path, self, trained))


def _check_fit(grid: SolverGrid) -> None:
    check_flags(grid)
    check_whole(grid, "reference_paths >= 2", "reference_steps >= 1", "iterations >= 0", "batch >= 1")


def _with_steps(solver: Solver) -> StepSolver:
    if not isinstance(solver, StepSolver):
        raise ConfigError(f"grid=... needs a solver with steps, got {type(solver).__name__}: for example solver=ddim.")
    return solver


def _path(name: str, steps: int, depends_on: Any, trained: TrainedModel) -> Path:
    """Of a fit: one per solver, its options, the fit's options and the state of training."""
    depends_on = depends_on if trained.process is None else (depends_on, trained.process)
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:8]
    folder = inside(trained.run, trained.run.path / "grids")
    return folder / f"{name}-{steps}steps-{key}-at{trained.step}.pt"


def _known(kind: type[Fit], path: Path, trained: TrainedModel) -> Fit | None:
    """The fit in a file, if it is whole and was made for the run's weights; otherwise says why it is made again."""
    if not path.is_file():
        return None
    try:
        content = load_checkpoint(path)
        if content.get("fitted_to") == trained.weights:
            return kind(**fit_fields(content, kind, path))
        reason = "was fitted to other weights"
    except (CheckpointError, ValueError):
        reason = "is damaged, or of an earlier version"
    print(f"{path} {reason}: it is fitted again.")
    return None


def _fitted(
    kind: type[Fit],
    fit: Callable[..., Fit],
    path: Path,
    options: OptimisedTimes | CalibratedTimes,
    trained: TrainedModel,
) -> Fit:
    """The fit that the run has, or a new one: of the model without guidance and labels, with its data's conditions."""
    if not options.refit and (known := _known(kind, path, trained)) is not None:
        return known
    with trained.run.locked():
        return _made(fit, path, options, trained)


def _made(fit: Callable[..., Fit], path: Path, options: OptimisedTimes | CalibratedTimes, trained: TrainedModel) -> Fit:
    denoiser, count, device = trained.given(None), options.reference_paths, trained.device
    others = set(trained.conditions) - {"label"}
    cond = own_conditions(own_data(trained), count, labelled=False) if others else {}
    calls = math.ceil(count / PATHS_AT_ONCE) * (options.reference_steps + 2)
    with Progress("reference paths", calls, "calls") as progress, calls_counted(trained.net, progress):
        generator = torch.Generator(device=device).manual_seed(0)
        paths = reference_paths(
            denoiser, trained.shape, count, steps=options.reference_steps, batch=PATHS_AT_ONCE, generator=generator,
            device=device, cond=cond,
        )  # fmt: skip
    with Progress("fitting", options.iterations, "iterations") as progress:
        numbers = {"iterations": options.iterations, "batch": options.batch, "progress": progress.advance}
        made = fit(denoiser, paths=paths, **numbers)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, {**fit_state(made), "fitted_to": trained.weights})
    record = made.record
    print(
        f"fitted to {record['paths']:.0f} reference paths ({record['paths_nfe']:.0f} network calls for them): "
        f"error on held-out paths, relative to the data's rms: median {record['median']:.3g} (first guess "
        f"{record['median_before']:.3g}), rms {record['rms']:.3g} ({record['rms_before']:.3g}); {path}"
    )
    return made
