"""Times and weights that minimise the error of a solver at the end of pilot paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.fitting.calibrated import (
    CalibratedMultistep,
    Calibration,
    check_levels,
    load_fit,
    save_fit,
    weighted_rows,
    weighted_update,
)
from scoresde.fitting.gaussian_flow import GaussianFlow
from scoresde.fitting.level_parameters import Places, differentiable_levels, first_guess, level_range
from scoresde.fitting.reference_paths import Pilots
from scoresde.noise.sources import gaussian_noise
from scoresde.sde import SDE
from scoresde.sde.levels import Levels
from scoresde.solvers.exponential import adams_weights
from scoresde.solvers.tabulated import TabulatedSolver

Progress = Callable[[int], Any]


@dataclass(frozen=True, eq=False)
class OptimisedGrid:
    """A grid fitted to one model and one solver: use it as `grid=`.

    Args:
        logsnr: Of its steps + 1 levels, increasing.
        record: Errors on held-out pilots before and after, and what the fit cost.
        start: Flow that leads from t = 1 to the first level without a network call; None if that is t = 1.
    """

    logsnr: tuple[float, ...]
    record: dict[str, float]
    start: GaussianFlow | None = None

    def __call__(self, sde: SDE, steps: int, t_end: float) -> Tensor:
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


@torch.enable_grad()
def optimise_grid(
    denoiser: Denoiser,
    solver: TabulatedSolver,
    pilots: Pilots,
    *,
    gaussian_start: bool = True,
    iterations: int = 200,
    batch: int = 64,
    lr: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> OptimisedGrid:
    """The times at which a deterministic solver errs least at the end of a model's own paths.

        minimise  log RMS(e) + log mean(e),       e = ‖solver(x_1) − x_0‖ over pilots

    by Adam on the logarithms of the log-SNR steps, with gradients through the solver and the network; a part of the
    pilots is held out, and the first guess is kept if it does better on them: the solver's own grid, or with
    `gaussian_start` equal steps in (σ/α)^(1/3).

    Args:
        denoiser: The model.
        solver: Any deterministic tabulated solver, with the number of steps wanted.
        pilots: From `pilot_paths`.
        gaussian_start: Whether to begin below t = 1, after the flow of Gaussian data; else the first time stays 1.
        iterations, batch, lr, seed: Of the fit.
        progress: Called with 1 after every iteration.

    References:
        Tong et al., "Learning to Discretize Denoising Diffusion ODEs", 2024, arXiv:2405.15506.
    """
    if not isinstance(solver, TabulatedSolver) or not solver.deterministic:
        raise ValueError(
            f"optimise_grid needs a deterministic solver with a table of coefficients, got {type(solver).__name__}: "
            f"for example DDIM, DPMSolverPP2M or ExponentialAdams."
        )
    sde, ends = denoiser.sde, level_range(denoiser.sde, solver.end(denoiser.sde))
    if gaussian_start:
        own = first_guess(pilots.gaussian.std, solver.steps + 1, within=ends)
    else:
        own = sde.logsnr(solver._times(sde, backward=False))
    parts = Places(ends, own, free_start=gaussian_start)
    noise = gaussian_noise(pilots.start)

    def table(logsnr: Tensor) -> tuple[Tensor, ...]:
        levels = differentiable_levels(sde, logsnr)
        return solver.table(levels.landed() if solver.denoise and solver.lands else levels)

    def run(x: Tensor) -> Tensor:
        columns, state = parts.differentiated(table), None
        times = differentiable_levels(sde, parts()).t.to(x.device)
        if gaussian_start:
            x = pilots.gaussian(sde, x, torch.ones_like(times[0]), times[0])
        for i in range(len(columns[0])):
            row = tuple(column[i] for column in columns)
            x, state = solver.update(denoiser, x, times[i], times[min(i + 1, len(times) - 1)], row, noise, state)
        return denoiser(x, times[-1]) if solver.denoise and not solver.lands else x

    record = _fit([{"params": [parts.logits], "lr": lr}], run, pilots, iterations, batch, seed, progress)
    return OptimisedGrid(tuple(parts().tolist()), record, pilots.gaussian if gaussian_start else None)


@torch.enable_grad()
def calibrate(
    denoiser: Denoiser,
    nfe: int,
    pilots: Pilots,
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
        pilots: From `pilot_paths`; more are needed than for the grid alone, say 500.
        order: Of the weights that the fit starts from.
        iterations, batch, lr, seed: Of the fit.
        progress: Called with 1 after every iteration.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, int) or nfe < 2:
        raise ValueError(f"calibrate needs nfe to be a whole number of at least 2, got {nfe!r}.")
    if isinstance(order, bool) or order not in (1, 2, 3, 4):
        raise ValueError(f"calibrate needs order 1, 2, 3 or 4, got {order!r}.")
    sde, std = denoiser.sde, pilots.gaussian.std
    ends = level_range(sde, sde.t_min)
    parts = Places(ends, first_guess(std, nfe, within=ends), free_start=True)
    change = torch.zeros(nfe, nfe, dtype=torch.float64, requires_grad=True)
    keep_change = torch.zeros(nfe, dtype=torch.float64, requires_grad=True)

    def coefficients(levels: Levels) -> tuple[Tensor, Tensor]:
        scaled = levels.scaled(std)
        keep, base = adams_weights(scaled, "v", tuple(range(order)))
        norm = torch.hypot(scaled.alpha, scaled.sigma)
        own = torch.stack([*base, *[torch.zeros_like(keep)] * nfe], 1)[:, :nfe] / norm[1:, None]
        size = own[:, :1].abs()
        return keep * norm[:-1] / norm[1:] + size[:, 0] * keep_change, own + size * change.tril()

    def run(x: Tensor) -> Tensor:
        levels = differentiable_levels(sde, parts())
        landed, times = levels.landed(), levels.t.to(x.device)
        rows = weighted_rows(landed.scaled(std), *coefficients(landed))
        x, state = pilots.gaussian(sde, x, torch.ones_like(times[0]), times[0]), None
        for i in range(nfe):
            x, state = weighted_update(denoiser(x, times[i]), x, tuple(column[i] for column in rows), state)
        return x

    groups = [{"params": [parts.logits], "lr": lr}, {"params": [change, keep_change], "lr": 0.2 * lr}]
    record = _fit(groups, run, pilots, iterations, batch, seed, progress)
    with torch.no_grad():
        logsnr = parts()
        keep, weights = coefficients(differentiable_levels(sde, logsnr).landed())
    made = Calibration(logsnr, keep, weights, pilots.gaussian, std, record)
    return CalibratedMultistep(calibration=made)


def _fit(
    groups: list[dict[str, Any]],
    run: Callable[[Tensor], Tensor],
    pilots: Pilots,
    iterations: int,
    batch: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, float]:
    """Adam with a cosine decay and a short warm-up; the best state on held-out pilots is kept."""
    for name, number, least in (("iterations", iterations, 0), ("batch", batch, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"The fit of a solver needs {name} of at least {least}, a whole number, got {number!r}.")
    held = max(1, len(pilots) // 10, min(32, len(pilots) // 4))
    train = len(pilots) - held
    rms, parameters = pilots.rms, [p for group in groups for p in group["params"]]
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)

    def errors(rows: Tensor | slice) -> Tensor:
        return (run(pilots.start[rows]) - pilots.end[rows]).flatten(1).square().mean(1) / rms**2

    def loss(squares: Tensor) -> Tensor:
        return 0.5 * (squares.mean() + 1e-14).log() + (squares + 1e-14).sqrt().mean().log()

    @torch.no_grad()
    def test() -> Tensor:
        parts = range(train, len(pilots), batch)
        return torch.cat([errors(slice(first, min(first + batch, len(pilots)))) for first in parts])

    best = before = test()
    if not bool(torch.isfinite(before).all()):
        raise FloatingPointError("The first guess of a fit gave NaN or infinity: check the model and its pilots.")
    kept = [p.detach().clone() for p in parameters]
    checks = max(1, iterations // 5)
    for index in range(iterations):
        decay = min(1, (index + 1) / 20) * (0.5 * (1 + math.cos(math.pi * index / iterations)) + 0.003)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * decay
        rows = torch.randperm(train, generator=generator)[:batch].to(pilots.start.device)
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
        "pilots": len(pilots),
        "pilot_nfe": len(pilots) * pilots.nfe,
        "iterations": iterations,
        "batch": batch,
    }
