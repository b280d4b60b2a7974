"""Solver, Step, and the one sampling loop of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource, gaussian_noise
from scoresde.sde import SDE
from scoresde.sde.grids import Grid, uniform_grid
from scoresde.solvers.gradients import differentiable


@dataclass(frozen=True)
class Step:
    """One state of a trajectory: index 0 is the start; t is () in float64."""

    index: int
    t: Tensor
    x: Tensor


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Turns x_1 ~ prior into x_0 with the help of a denoiser.

    Args:
        t_end: Time at which to stop; None is the SDE's own t_min.
        denoise: Whether to go on to x̂0 from t_end, which removes the noise left there.
    """

    t_end: float | None = None
    denoise: bool = True

    def __post_init__(self) -> None:
        if self.t_end is not None and not 0 <= self.t_end < 1:
            raise ValueError(f"{type(self).__name__} needs 0 <= t_end < 1 (0 is data), got t_end={self.t_end}.")

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        """Integrate from x at t = 1 (B, *) to data (B, *). Runs without gradients."""

    def end(self, sde: SDE) -> float:
        """The time at which this solver stops on this SDE."""
        return sde.t_min if self.t_end is None else self.t_end


@dataclass(frozen=True)
class Plan:
    """A run prepared beforehand: its times, and for tabulated solvers the coefficients of every step.

    Args:
        denoiser: The denoiser, with its own coefficients at these times.
        times: steps + 1 times, each () in float64 on the device of the states.
        stride: Called as stride(index, x, noise, state) for the step number `index`, from 0; returns (x, state).
        landing: Whether one more step than there are intervals goes from the last time to noise 0.
        inverse: Called as inverse(index, x, state) with what stride number `index` returned; returns the x and state
            that it was given, to rounding. None where steps have no exact inverse.
        start: Called as start(sde, x, t, s): takes x from t = 1 to the first time, where the grid starts below 1 and
            brings its own way to get there.
    """

    denoiser: Denoiser
    times: tuple[Tensor, ...]
    stride: Callable[[int, Tensor, NoiseSource, Any], tuple[Tensor, Any]]
    landing: bool
    inverse: Callable[[int, Tensor, Any], tuple[Tensor, Any]] | None = None
    start: Callable[[SDE, Tensor, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class StepSolver(Solver):
    """A solver on a grid of times: a pure `step`, and a loop that is written only here.

    Args:
        steps: Number of steps.
        grid: Places the steps + 1 times.
    """

    deterministic: ClassVar[bool] = False  # whether `encode` may run the steps backwards

    steps: int = 100
    grid: Grid = uniform_grid

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(
                f"{type(self).__name__} needs steps to be a whole number of at least 1, got {self.steps!r}."
            )

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        """Advance x from t to s < t, both () or (B,). `state` is None at the first step, then what this returned."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        noise: NoiseSource | None = None,
        plan: Plan | None = None,
        gradient: str | bool = "none",
        gradient_steps: int | None = None,
    ) -> Tensor:
        """Integrate from x at t = 1 (B, *) to data (B, *).

        Args:
            denoiser: Supplies x̂0, ε̂ and the score.
            x: Start at the first time of the grid.
            noise: Source of standard normal noise; None draws from torch's global generator.
            plan: What `plan(denoiser)` returned, to spend the set-up once for many calls.
            gradient: What is kept for gradients by x, by the denoiser's parameters and by bound conditions: "none";
                "full", all activations; "checkpoint", the states between steps; "reversible", the last state, for
                solvers whose steps have an exact inverse. The last three give the same gradients. False is "none",
                True is "full".
            gradient_steps: Only the last so many steps, and the call at t_end, are differentiated; None is all.
        Raises:
            FloatingPointError: If the result is not finite; the message says at which step it went wrong.
        """
        plan = self.plan(denoiser, device=x.device) if plan is None else plan
        start = x = x.detach() if gradient in ("none", False) else x
        for last in self._run(differentiable(plan, gradient, gradient_steps, type(self).__name__), x, noise):
            x = last.x
        if not bool(torch.isfinite(x).all()):
            raise self._diagnosis(plan, start, noise)
        return x

    @torch.no_grad()
    def trajectory(
        self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None, plan: Plan | None = None
    ) -> Iterator[Step]:
        """Yield x at every time of the grid; with `denoise`, one more Step that holds x̂0 from t_end."""
        yield from self._run(self.plan(denoiser, device=x.device) if plan is None else plan, x, noise)

    @torch.no_grad()
    def encode(self, denoiser: Denoiser, x: Tensor) -> Tensor:
        """The latent at t = 1 of data x at t_end: the same steps taken in the other direction, shape (B, *).

        Raises:
            ValueError: If the solver adds noise, or if σ is 0 at t_end.
        """
        if not self.deterministic:
            raise ValueError(
                f"{type(self).__name__} cannot encode: only a deterministic solver follows a path both ways. "
                f"Use eta=0 where there is one, or ProbabilityFlowODE."
            )
        if not float(denoiser.sde.sigma(torch.tensor(self.end(denoiser.sde), dtype=torch.float64))) > 0:
            raise ValueError(
                f"{type(self).__name__}.encode needs noise at the data end: σ is 0 at t_end={self.end(denoiser.sde)}. "
                f"Use t_end > 0, for example the SDE's t_min={denoiser.sde.t_min:g}."
            )

        def down_to_data(sde: SDE, steps: int, t_end: float) -> Tensor:
            times = self.grid(sde, steps, t_end).clone()
            times[-1] = t_end  # a grid may end earlier; data are given at t_end
            return times

        plan = replace(self, grid=down_to_data).plan(denoiser, device=x.device, backward=True)
        for last in self._run(plan, x, None):
            x = last.x
        start = self._start()
        return x if start is None else start(denoiser.sde, x, plan.times[-1], torch.ones_like(plan.times[-1]))

    @torch.no_grad()
    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        """Prepare a run: place the times and compute whatever does not depend on the states."""
        times = self._times(denoiser.sde, backward)
        on_device = times.to(device).unbind() if device is not None else times.unbind()

        def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
            if index == len(on_device) - 1:
                return denoiser(x, on_device[-1]), None
            return self.step(denoiser, x, on_device[index], on_device[index + 1], noise, state)

        landing = self._lands(denoiser.sde, times, backward)
        return Plan(denoiser, on_device, stride, landing, start=None if backward else self._start())

    def _times(self, sde: SDE, backward: bool) -> Tensor:
        times = checked_grid(self.grid(sde, self.steps, self.end(sde))).cpu()
        return times.flip(0) if backward else times

    def _start(self) -> Callable[[SDE, Tensor, Tensor, Tensor], Tensor] | None:
        return getattr(self.grid, "start", None)

    def _lands(self, sde: SDE, times: Tensor, backward: bool) -> bool:
        return self.denoise and not backward and float(sde.sigma(times[-1])) > 0

    def _run(self, plan: Plan, x: Tensor, noise: NoiseSource | None) -> Iterator[Step]:
        if not x.dtype.is_floating_point or x.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"{type(self).__name__} needs a float32 or float64 state, got {x.dtype}: "
                f"half precision loses the small steps near the data. Use autocast for the network instead."
            )
        noise = gaussian_noise(x) if noise is None else noise
        state, times = None, plan.times
        if x.device.type != "cpu":
            noise = _on_host(noise, times)
        if plan.start is not None:
            x = plan.start(plan.denoiser.sde, x, torch.ones_like(times[0]), times[0])
        yield Step(0, times[0], x)
        for index in range(len(times) - 1):
            x, state = plan.stride(index, x, noise, state)
            yield Step(index + 1, times[index + 1], x)
        if plan.landing:
            x, state = plan.stride(len(times) - 1, x, noise, state)
            yield Step(len(times), times[-1], x)

    def _diagnosis(self, plan: Plan, x: Tensor, noise: NoiseSource | None) -> FloatingPointError:
        """Run again, looking at every state: only a run that failed pays for looking."""
        advice = "Check the model's weights and its output at that time, or take more steps."
        if not bool(torch.isfinite(x).all()):
            return FloatingPointError(f"{type(self).__name__} was given a start that holds NaN or infinity.")
        for before, after in pairwise(torch.no_grad()(self._run)(plan, x, noise)):
            bad = ~torch.isfinite(after.x).flatten(1).all(1)
            if bool(bad.any()):
                return FloatingPointError(
                    f"{type(self).__name__} got NaN or infinity at step {after.index} of {len(plan.times) - 1}, from "
                    f"t = {float(before.t):.6g} (σ/α = {_noise_level(plan.denoiser.sde, before.t):.4g}), in "
                    f"{int(bad.sum())} of {len(bad)} samples, the first of them {int(bad.nonzero()[0])}. {advice}"
                )
        return FloatingPointError(f"{type(self).__name__} returned NaN or infinity in one run but not in the next.")


def checked_grid(times: Tensor) -> Tensor:
    """The grid itself, if it is a strictly decreasing 1-d tensor in [0, 1]."""
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or not 0 <= times[-1] < times[0] <= 1:
        shown = [round(value, 6) for value in times.flatten()[:6].tolist()]
        raise ValueError(
            f"A grid must be a strictly decreasing 1-d tensor of times between 1 and 0, got {shown}"
            f"{'...' if times.numel() > 6 else ''} with {times.numel()} entries."
        )
    return times


def _on_host(noise: NoiseSource, times: tuple[Tensor, ...]) -> NoiseSource:
    """The source, asked with times on the CPU: one copy beforehand instead of a wait in every step."""
    copies = {id(time): copy for time, copy in zip(times, torch.stack(times).cpu().unbind(), strict=True)}
    return lambda t, s: noise(copies.get(id(t), t), copies.get(id(s), s))


def _noise_level(sde: SDE, t: Tensor) -> float:
    return (sde.sigma(t) / sde.alpha(t)).item()
