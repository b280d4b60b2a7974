"""Times and weights that minimise the error of a solver at the end of reference paths."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_whole
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.fitting.calibrated import CalibratedMultistep, Calibration, check_levels, load_fit, save_fit
from scoresde.fitting.gaussian_flow import GaussianFlow
from scoresde.fitting.level_parameters import LevelParameters, first_guess, level_range
from scoresde.fitting.reference_paths import ReferencePaths
from scoresde.sde import SDE
from scoresde.sde.grids import Start, StartedGrid, uniform_grid
from scoresde.sde.levels import Levels, Schedule
from scoresde.solvers.base import Plan, Solver, StepSolver
from scoresde.solvers.exponential import adams_weights

Progress = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class OptimisedGrid(StartedGrid):
    """A grid fitted to one model and one solver: use it as `grid=`.

    Args:
        logsnr: Of its steps + 1 levels, increasing.
        record: Errors on held-out paths before and after, and what the fit cost.
        start: Flow that leads from t = 1 to the first level without a network call; None if that is t = 1.
    """

    logsnr: tuple[float, ...]
    record: dict[str, float]
    start: GaussianFlow | None = None

    def times(self, sde: SDE, steps: int, t_end: float) -> Tensor:
        if steps != len(self.logsnr) - 1:
            raise ValueError(
                f"OptimisedGrid was fitted to {len(self.logsnr) - 1} steps, got steps={steps}: "
                f"fit one for that number with scoresde.optimise_grid."
            )
        levels = torch.tensor(self.logsnr, dtype=torch.float64)
        times = sde.time(levels)
        if self.start is None:
            times[0], levels[0] = 1.0, sde.logsnr(torch.ones((), dtype=torch.float64))
        check_levels("OptimisedGrid", sde, levels, times)
        return times

    def save(self, path: str | Path) -> None:
        """Write tensors and numbers, through a temporary name."""
        save_fit(path, self)

    @classmethod
    def load(cls, path: str | Path) -> OptimisedGrid:
        """Read what `save` wrote; runs no code."""
        return cls(**load_fit(path, cls))


@differentiates
@torch.enable_grad()
def optimise_grid(
    denoiser: Denoiser,
    solver: Solver,
    paths: ReferencePaths,
    *,
    gaussian_start: bool = True,
    iterations: int = 200,
    batch: int = 64,
    lr: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> OptimisedGrid:
    """The times at which a deterministic solver errs least at the end of a model's own paths.

        minimise  log RMS(e) + log mean(e),       e = ‖solver(x_1) − x_0‖ over paths

    by Adam on the logarithms of the log-SNR steps, with gradients through the solver and the network; a part of the
    paths is held out, and the first guess is kept if it does better on them: the solver's own grid, or with
    `gaussian_start` equal steps in (σ/α)^(1/3).

    Args:
        denoiser: The model.
        solver: Any deterministic step solver, with the number of steps wanted.
        paths: From `reference_paths`.
        gaussian_start: Whether to begin below t = 1, after the flow of Gaussian data; else the first time stays 1.
        iterations, batch, lr, seed: Of the fit.
        progress: Called with 1 after every iteration.

    References:
        Tong et al., "Learning to Discretize Denoising Diffusion ODEs", 2024, arXiv:2405.15506.
    """
    if not isinstance(solver, StepSolver) or not solver.deterministic:
        raise ValueError(
            f"optimise_grid needs a deterministic solver with steps, got {type(solver).__name__}: for example DDIM, "
            f"DPMSolverPP2M or ExponentialAdams."
        )
    sde, ends = denoiser.sde, level_range(denoiser.sde, solver.end(denoiser.sde))
    if gaussian_start:
        count = len(replace(solver, grid=uniform_grid)._times(sde)[0])
        own = first_guess(paths.gaussian.std, count, within=ends)
    else:
        own = sde.logsnr(solver._times(sde)[0])
    parts, start = LevelParameters(ends, own, free_start=gaussian_start), paths.gaussian if gaussian_start else None

    def run(denoiser: Denoiser, x: Tensor) -> Tensor:
        levels = parts.stencil(sde)
        return _end(solver, denoiser, levels.landed() if solver.denoise else levels, parts, start, x)

    record = _fit([{"params": [parts.logits], "lr": lr}], run, denoiser, paths, iterations, batch, seed, progress)
    return OptimisedGrid(tuple(parts().tolist()), record, start)


@differentiates
@torch.enable_grad()
def calibrate(
    denoiser: Denoiser,
    nfe: int,
    paths: ReferencePaths,
    *,
    order: int = 3,
    iterations: int = 200,
    batch: int = 64,
    lr: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> CalibratedMultistep:
    """A solver of `nfe` network calls with times and weights fitted to a model's own paths.

    Starts from the exact Adams weights of the given order in v, after the flow of Gaussian data, and minimises the
    same loss as `optimise_grid` over the times and all weights. See `CalibratedMultistep` for the solver.

    Args:
        denoiser: The model.
        nfe: Network calls of the solver, at least 2.
        paths: From `reference_paths`; more are needed than for the grid alone, say 500.
        order: Of the weights that the fit starts from.
        iterations, batch, lr, seed: Of the fit.
        progress: Called with 1 after every iteration.
    """
    check_whole("calibrate", "nfe >= 2", "1 <= order <= 4", nfe=nfe, order=order)
    sde, std = denoiser.sde, paths.gaussian.std
    ends = level_range(sde, sde.t_min)
    parts = LevelParameters(ends, first_guess(std, nfe, within=ends), free_start=True)
    change = torch.zeros(nfe, nfe, dtype=torch.float64, requires_grad=True)
    keep_change = torch.zeros(nfe, dtype=torch.float64, requires_grad=True)

    def made(levels: Levels, record: dict[str, float]) -> CalibratedMultistep:
        """The solver as it is now, with gradients; levels of a stencil."""
        scaled = levels.scaled(std)
        keep, base = adams_weights(scaled, "v", tuple(range(order)))
        norm = torch.hypot(scaled.alpha, scaled.sigma)
        own = torch.stack([*base, *[torch.zeros_like(keep)] * nfe], 1)[:, :nfe] / norm[1:, None]
        size = own[:, :1].abs()
        keep = keep * norm[:-1] / norm[1:] + size[:, 0] * keep_change[:, None]
        keep, weights = map(parts.differentiable, (keep, own + size * change.tril()[..., None]))
        return CalibratedMultistep(calibration=Calibration(parts(), keep, weights, paths.gaussian, std, record))

    def run(denoiser: Denoiser, x: Tensor) -> Tensor:
        levels = parts.stencil(sde).landed()
        return _end(made(levels, {}), denoiser, levels, parts, paths.gaussian, x)

    groups = [{"params": [parts.logits], "lr": lr}, {"params": [change, keep_change], "lr": 0.2 * lr}]
    record = _fit(groups, run, denoiser, paths, iterations, batch, seed, progress)
    with torch.no_grad():
        return made(parts.stencil(sde).landed(), record)


def _end(
    solver: StepSolver, denoiser: Denoiser, levels: Levels, parts: LevelParameters, start: Start | None, x: Tensor
) -> Tensor:
    """Where the solver ends on levels of a stencil, with gradients by the parameters of the levels."""
    times = parts.unbind(levels.t)
    schedule = Schedule(replace(levels, whole=True), [time.to(x.device) for time in times], times, x, parts.unbind)
    plan = Plan(levels.sde, schedule.intervals, start)
    ((end, _),) = deque(solver._run(denoiser, plan, x, None, solver.step), maxlen=1)
    return end


def _fit(
    groups: list[dict[str, Any]],
    run: Callable[[Denoiser, Tensor], Tensor],
    denoiser: Denoiser,
    paths: ReferencePaths,
    iterations: int,
    batch: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, float]:
    """Adam with a cosine decay and a short warm-up; the best state on held-out paths is kept."""
    check_whole(
        "The fit of a solver",
        "iterations >= 0",
        "batch >= 1",
        "seed >= 0",
        iterations=iterations,
        batch=batch,
        seed=seed,
    )
    check_numbers("The fit of a solver", "0 < lr < inf", lr=groups[0]["lr"])
    held = max(1, len(paths) // 10, min(32, len(paths) // 4))
    train = len(paths) - held
    rms, parameters = paths.rms, [p for group in groups for p in group["params"]]
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)

    def errors(rows: Tensor | slice) -> Tensor:
        ends = run(paths.given(denoiser, rows), paths.start[rows])
        return (ends - paths.end[rows]).flatten(1).square().mean(1) / rms**2

    def loss(squares: Tensor) -> Tensor:
        return 0.5 * (squares.mean() + 1e-14).log() + (squares + 1e-14).sqrt().mean().log()

    @torch.no_grad()
    def test() -> Tensor:
        parts = range(train, len(paths), batch)
        return torch.cat([errors(slice(first, min(first + batch, len(paths)))) for first in parts])

    best = before = test()
    if not bool(torch.isfinite(before).all()):
        raise FloatingPointError("The first guess of a fit gave NaN or infinity: check the model and its paths.")
    kept = [p.detach().clone() for p in parameters]
    checks = max(1, iterations // 5)
    for index in range(iterations):
        decay = min(1, (index + 1) / 20) * (0.5 * (1 + math.cos(math.pi * index / iterations)) + 0.003)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * decay
        rows = torch.randperm(train, generator=generator)[:batch].to(paths.start.device)
        value = loss(errors(rows))
        gradients = torch.autograd.grad(value, parameters)
        if not all(bool(torch.isfinite(number).all()) for number in (value, *gradients)):
            raise FloatingPointError(
                f"The fit of a solver met NaN or infinity at iteration {index}: check the model, or lower lr."
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        if (index + 1) % checks == 0 or index + 1 == iterations:
            now = test()
            if float(loss(now)) < float(loss(best)):
                best, kept = now, [p.detach().clone() for p in parameters]
        if progress is not None:
            progress(1)
    with torch.no_grad():
        for parameter, value_ in zip(parameters, kept, strict=True):
            parameter.copy_(value_)
    return {
        "median_before": float(before.sqrt().median()),
        "rms_before": float(before.mean().sqrt()),
        "median": float(best.sqrt().median()),
        "rms": float(best.mean().sqrt()),
        "paths": len(paths),
        "paths_nfe": len(paths) * paths.nfe,
        "iterations": iterations,
        "batch": batch,
    }
