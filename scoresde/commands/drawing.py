"""Samples from a denoiser and a solver, each a function of its own streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.commands.conditions import Conditions
from scoresde.commands.interfaces import Guidance, Steering, Variance
from scoresde.denoiser import Denoiser
from scoresde.noise import per_sample_noise, stream_generator, stream_seed
from scoresde.solvers import Solver, StepSolver
from scoresde.solvers.base import Step


class Chosen(NamedTuple):
    """How samples are drawn, as the command line has it; `grid` is a `SolverGrid` or a function."""

    solver: Solver
    grid: Any
    guidance: Guidance
    variance: Variance


def conditioned(steering: Steering, conditions: Conditions, indices: range, device: torch.device) -> Denoiser:
    """The guided denoiser of some samples, with what they are conditioned on."""
    label = rows_of(conditions.label, indices, device)
    given = {key: rows_of(value, indices, device) for key, value in conditions.beside.items()}
    return steering(label).given(**given) if given else steering(label)


def rows_of(value: Tensor | None, indices: range, device: torch.device) -> Tensor | None:
    """Some rows of conditions, if there are any."""
    return None if value is None else value[indices.start : indices.stop].to(device)


def draw(
    denoiser: Denoiser,
    solver: Solver,
    shape: tuple[int, ...],
    seed: int,
    indices: range,
    device: torch.device,
    watch: Sequence[Callable[[Step, int], object]] = (),
) -> Tensor:
    """Samples number `indices`, each a function of (seed, index) alone.

    Args:
        watch: Told of every state of a solver with steps, and the number of its steps.
    """
    x = start(denoiser, shape, seed, indices, device)
    return solved(denoiser, solver, x, [stream_seed(seed, "noise", k) for k in indices], watch)


def solved(
    denoiser: Denoiser, solver: Solver, x: Tensor, seeds: Sequence[int],
    watch: Sequence[Callable[[Step, int], object]] = (),
) -> Tensor:  # fmt: skip
    """What a solver makes of x_1, with the noise of one seed per sample; `watch` as for `draw`."""
    noise = partial(per_sample_noise, x, seeds)
    if not watch or not isinstance(solver, StepSolver):
        return solver(denoiser, x, noise=noise())
    plan = solver.plan(denoiser, device=x.device)
    for state in solver.trajectory(denoiser, x, noise=noise(), plan=plan):
        for told in watch:
            told(state, len(plan.intervals))
    if bool(torch.isfinite(state.x).all()):
        return state.x
    return solver(denoiser, x, noise=noise(), plan=plan)  # which says where it went wrong


def start(denoiser: Denoiser, shape: tuple[int, ...], seed: int, indices: range, device: torch.device) -> Tensor:
    """Where samples number `indices` start, at t = 1."""
    drawn = [denoiser.sde.prior_sample(shape, generator=stream_generator(seed, "latent", k)) for k in indices]
    return torch.stack(drawn).to(device)


def describe(solver: Solver) -> str:
    """Name and main numbers of a solver, for people."""
    numbers = ("method", "steps", "rtol", "variance")
    shown = {key: getattr(solver, key) for key in numbers if getattr(solver, key, None) is not None}
    return f"{type(solver).__name__}({', '.join(f'{key}={value}' for key, value in shown.items())})"
