"""`grid=...` of `sample.py`: another grid, or times and weights fitted to the run's model and kept in its directory."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from scoresde.commands.build import ConfigError, build
from scoresde.commands.load import TrainedModel
from scoresde.commands.variance import moments_of
from scoresde.denoiser import Denoiser
from scoresde.fitting import (
    CalibratedMultistep,
    Calibration,
    OptimisedGrid,
    ReferencePaths,
    calibrate,
    optimise_grid,
    reference_paths,
)
from scoresde.fitting.optimal_grid import optimal_grid
from scoresde.sde import Grid
from scoresde.solvers import Solver, StepSolver

FITS: dict[str, Any] = {"optimised": OptimisedGrid, "calibrated": Calibration}


def with_grid(
    solver: Solver, config: dict[str, Any], trained: TrainedModel, device: torch.device, extensions: list[str]
) -> Solver:
    """The solver on the grid that was asked for; a fit is made on first use and kept under `grids/` of the run.

    Fits use the model without guidance, and without labels where it can do without.
    """
    kind = config.get("kind")
    if kind == "own":
        return solver
    if not isinstance(solver, StepSolver):
        raise ConfigError(f"grid=... needs a solver with steps, got {type(solver).__name__}: for example solver=ddim.")
    if kind is None:
        return replace(solver, grid=build(config, "grid", extensions))
    if kind == "optimal":
        return replace(solver, grid=_optimal(solver, config, trained, extensions))
    if kind not in FITS:
        raise ConfigError(f"grid.kind needs to be own, optimal, {' or '.join(FITS)}, got {kind!r}.")
    path = _path(solver, config, trained)
    fit: Any = None
    if path.is_file() and not config["refit"]:
        fit = FITS[kind].load(path)
    else:
        fit = _fit(solver, config, trained, device)
        fit.save(path)
        print(
            f"fitted to {fit.record['paths']:.0f} paths ({fit.record['paths_nfe']:.0f} network calls for them): "
            f"error on held-out paths, relative to the data's rms: median {fit.record['median']:.3g} (first guess "
            f"{fit.record['median_before']:.3g}), rms {fit.record['rms']:.3g} ({fit.record['rms_before']:.3g}); {path}"
        )
    return CalibratedMultistep(calibration=fit) if kind == "calibrated" else replace(solver, grid=fit)


def _optimal(solver: StepSolver, config: dict[str, Any], trained: TrainedModel, extensions: list[str]) -> Grid:
    table = moments_of(trained, samples=config["samples"], levels=config["levels"], extensions=extensions)
    grid = partial(optimal_grid, moments=table, variance=config["variance"])
    try:
        grid(trained.model.sde, solver.steps, solver.end(trained.model.sde))
    except ValueError as error:
        raise ConfigError(f"grid=optimal with solver.steps={solver.steps} and grid.levels: {error}") from None
    return grid


def _fit(solver: StepSolver, config: dict[str, Any], trained: TrainedModel, device: torch.device) -> Any:
    denoiser: Denoiser = trained.model  # type: ignore[assignment]  # sample.py has made sure
    if trained.config["model"].get("num_classes") is not None:
        denoiser = denoiser.given(label=None)
    paths = _paths(denoiser, config, trained.shape, device)
    with tqdm(total=config["iterations"], desc="fitting", unit="iteration", disable=None, leave=False) as bar:
        numbers = {"iterations": config["iterations"], "batch": config["batch"], "progress": bar.update}
        if config["kind"] == "calibrated":
            return calibrate(denoiser, solver.steps + 1, paths, **numbers).calibration
        return optimise_grid(denoiser, solver, paths, gaussian_start=config["gaussian_start"], **numbers)  # type: ignore[arg-type]


def _paths(denoiser: Denoiser, config: dict[str, Any], shape: tuple[int, ...], device: torch.device) -> ReferencePaths:
    with tqdm(total=config["pilots"], desc="reference paths", unit="run", disable=None, leave=False) as bar:
        generator = torch.Generator(device=device).manual_seed(0)
        return reference_paths(
            denoiser, shape, config["pilots"], steps=config["pilot_steps"], generator=generator, device=device,
            progress=bar.update,
        )  # fmt: skip


def _path(solver: StepSolver, config: dict[str, Any], trained: TrainedModel) -> Path:
    """Of the fit: one per solver, its options, the fit's options and the state of training."""
    if config["kind"] == "calibrated":
        options = ""
    else:
        options = repr([(f.name, getattr(solver, f.name)) for f in fields(solver) if f.name not in ("grid", "steps")])
    asked = repr(sorted((key, value) for key, value in config.items() if key != "refit"))
    key = hashlib.sha256((options + asked).encode()).hexdigest()[:8]
    name = "calibrated" if config["kind"] == "calibrated" else type(solver).__name__
    return trained.run.path / "grids" / f"{name}-{solver.steps}steps-{key}-at{trained.step}.pt"
