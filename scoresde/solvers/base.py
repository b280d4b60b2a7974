"""Solver, and the step solver with the one sampling loop of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_flags, check_numbers, check_whole
from scoresde.denoiser import Denoiser, devices_named
from scoresde.noise.sources import NoiseSource, standard_normal
from scoresde.sde import SDE
from scoresde.sde.grids import EarlyGrid, Grid, Start, StartedGrid, uniform_grid
from scoresde.sde.levels import Interval, Levels, Schedule, Weights
from scoresde.solvers.gradients import differentiable
from scoresde.solvers.rehearsal import advise
from scoresde.solvers.runaway import blame, plausible, refuse_runaway

MOST_STEPS = 10**6

# a step, or one that keeps something for gradients: (denoiser, x, interval, noise, state) -> (x, state)
Advance = Callable[[Denoiser, Tensor, Interval, NoiseSource, Any], tuple[Tensor, Any]]


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
        check_flags(self)
        check_numbers(self, "0 <= t_end < 1 or null")

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        """Integrate from x at t = 1 (B, *) to data (B, *). Runs without gradients."""

    def end(self, sde: SDE) -> float:
        """The time at which this solver stops on this SDE."""
        return sde.t_min if self.t_end is None else self.t_end


@dataclass(frozen=True, eq=False)
class Plan:
    """A run prepared beforehand: its steps, with whatever depends on the noise levels alone as numbers.

    Args:
        sde: The process.
        intervals: The steps; the last one may go to noise 0.
        start: Leads from t = 1 to the first level, where the grid begins below 1 and brings its own way to get there.
    """

    sde: SDE
    intervals: Sequence[Interval]
    start: Start | None = None

    @property
    def times(self) -> list[Tensor]:
        """Of the levels, without that of the step to noise 0; () in float64, on the device of the states."""
        visited = [self.intervals[0].t.time, *(interval.s.time for interval in self.intervals)]
        return visited[: len(visited) - self.denoises]

    @property
    def denoises(self) -> bool:
        """Whether the last step leaves the last time for noise 0."""
        return self.intervals[-1].denoising


@dataclass(frozen=True, kw_only=True)
class StepSolver(Solver):
    """A solver on a grid of times: a pure `step`, whose body is the formula, and a loop that is written only here.

    Args:
        steps: Number of steps.
        grid: Places the steps + 1 times.
    """

    steps: int = 100
    grid: Grid = uniform_grid

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, f"1 <= steps <= {MOST_STEPS}")
        if not callable(self.grid):
            raise ValueError(
                f"{type(self).__name__} needs grid to be a function (sde, steps, t_end) -> times, got {self.grid!r}."
            )

    @property
    def deterministic(self) -> bool:
        """Whether no step draws noise, so that `encode` may run the steps backwards."""
        return False

    @property
    def calls(self) -> int:
        """Network calls per step."""
        return 1

    @abstractmethod
    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        """Advance x (B, *) over an interval, from level t to level s.

        Args:
            denoiser: Asked as `denoiser.x0(x, interval.t)`, `eps_at` or `score_at`.
            x: The state at t.
            interval: What the formula needs: `t.alpha`, `s.sigma`, `h`, ... If `interval.to_data`, s is noise 0; a
                formula that has no such limit, such as one in t, returns x̂0 if `interval.denoising`.
            noise: Standard normal noise; see `add_noise`.
            state: None at the first step, then what this method returned.
        """

    def weights(self, levels: Levels) -> Weights:
        """Weights that need several levels, by name; the step reads its own as `interval.weights(self, before)`.

        Returns:
            For each name a tensor, a tuple of tensors, or the `Levels` of calls inside a step; (len(levels) − 1, ...).
        """
        return {}

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        noise: NoiseSource | None = None,
        plan: Plan | None = None,
        gradient: str | bool = "none",
        gradient_steps: int | None = None,
        state: Any = None,
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
            state: What the first step gets.
        Raises:
            FloatingPointError: If the result is not finite; the message says at which step it went wrong.
        """
        advise(self, denoiser, x)
        plan = plan or self.plan(denoiser, device=x.device)
        plain = gradient in ("none", False) and gradient_steps is None
        advance = self.step if plain else differentiable(self, plan, gradient, gradient_steps)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not plain):
            ((end, _),) = deque(self._run(denoiser, plan, x, noise, advance, state), maxlen=1)
        if not bool(plausible(denoiser, end).all()):
            if not bool(torch.isfinite(end).all()):
                raise self._diagnosis(denoiser, plan, x, noise, state)
            refuse_runaway(self, denoiser, end, lambda plain: self(plain, x, noise=noise, plan=plan, state=state))
        return end

    @torch.no_grad()
    def trajectory(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        noise: NoiseSource | None = None,
        plan: Plan | None = None,
        state: Any = None,
    ) -> Iterator[Step]:
        """Yield x at every time of the grid; with `denoise`, one more Step that holds x̂0 from t_end."""
        plan = plan or self.plan(denoiser, device=x.device)
        times = [plan.intervals[0].t.time, *(interval.s.time for interval in plan.intervals)]
        run = self._run(denoiser, plan, x, noise, self.step, state)
        for index, (time, (value, _)) in enumerate(zip(times, run, strict=True)):
            yield Step(index, time, value)

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
        plan = self.plan(denoiser, device=x.device, backward=True)
        ((x, _),) = deque(self._run(denoiser, plan, x, None, self.step), maxlen=1)
        first, one = plan.intervals[-1].s.host_time, torch.ones((), dtype=torch.float64)
        start = self.grid.start if isinstance(self.grid, StartedGrid) else None
        return x if start is None else start(denoiser.sde, x, first, one)

    @torch.no_grad()
    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        """Prepare a run: place the times and compute whatever does not depend on the states."""
        times, start = self._times(sde := denoiser.sde, backward=backward)
        if backward:  # a grid may end earlier; data are given at t_end
            times = torch.cat([times[:-1], times.new_tensor([self.end(sde)])]).flip(0)
        levels = Levels.of(sde, times)
        if self.denoise and not backward and bool(levels.sigma[-1] > 0):
            levels = levels.landed()
        clock = levels.t if device is None else levels.t.to(device)
        intervals = Schedule(replace(levels, whole=True), clock.unbind(), levels.t.unbind()).intervals
        return Plan(sde, intervals, None if backward else start)

    def _times(self, sde: SDE, steps: int | None = None, *, backward: bool = False) -> tuple[Tensor, Start | None]:
        """The times of a run, on the CPU, and what leads to the first of them."""
        grid, start = (self.grid.times, self.grid.start) if isinstance(self.grid, StartedGrid) else (self.grid, None)
        if isinstance(grid, EarlyGrid) and self.denoise and self.t_end is None and not backward:
            grid = partial(grid.early, calls=self.calls)
        times = grid(sde, steps or self.steps, self.end(sde))
        if not isinstance(times, Tensor):
            raise ValueError(f"{type(self).__name__} needs grid to return a tensor of times, got {times!r}.")
        times = times.to("cpu", torch.float64)
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or times[0] > 1 or times[-1] < 0:
            raise _bad_grid(times)
        return times, start

    def _run(
        self, denoiser: Denoiser, plan: Plan, x: Tensor, noise: NoiseSource | None, advance: Advance, state: Any = None
    ) -> Iterator[tuple[Tensor, Any]]:
        """The one sampling loop: the start, and what `advance` returns after every interval of the plan."""
        if x.dtype not in (torch.float32, torch.float64):
            raise _half_precision(self, x.dtype)
        first, given = plan.intervals[0], noise
        noise = noise or partial(standard_normal, x.detach())
        draw = given and partial(given, first.t.host_time, first.s.host_time)
        with devices_named(self, denoiser, x=x, noise=draw):
            if plan.start is not None:
                x = plan.start(plan.sde, x, torch.ones((), dtype=torch.float64), plan.intervals[0].t.host_time)
            yield x, state
            for interval in plan.intervals:
                x, state = advance(denoiser, x, interval, noise, state)
                yield x, state

    @torch.no_grad()
    def _diagnosis(
        self, denoiser: Denoiser, plan: Plan, x: Tensor, noise: NoiseSource | None, state: Any
    ) -> FloatingPointError:
        """Run again, looking at every state: only a run that failed pays for looking."""
        advice = "Check the model's weights and its output at that time, or take more steps."
        if not bool(torch.isfinite(x).all()):
            return FloatingPointError(f"{type(self).__name__} was given a start that holds NaN or infinity.")
        run = self._run(denoiser, plan, x, noise, self.step, state)
        before = next(run)
        for index, (interval, (after, kept)) in enumerate(zip(plan.intervals, run, strict=True), 1):
            bad = ~torch.isfinite(after).flatten(1).all(1)
            if bool(bad.any()):
                t = interval.t.time
                if denoiser.unguided is not denoiser:
                    draw = noise or partial(standard_normal, x)
                    plain, _ = self.step(denoiser.unguided, before[0], interval, draw, before[1])
                    advice = advice if not bool(torch.isfinite(plain).all()) else blame(denoiser, float(t))
                return FloatingPointError(
                    f"{type(self).__name__} got NaN or infinity at step {index} of {len(plan.times) - 1}, from "
                    f"t = {float(t):.6g} (σ/α = {_noise_level(plan.sde, t):.4g}), in "
                    f"{int(bad.sum())} of {len(bad)} samples, the first of them {int(bad.nonzero()[0])}. {advice}"
                )
            before = after, kept
        return FloatingPointError(f"{type(self).__name__} returned NaN or infinity in one run but not in the next.")


def linear(first: tuple[Any, Tensor], *rest: tuple[Any, Tensor]) -> Tensor:
    """Σ c x over pairs (c, x), c a number or a tensor that broadcasts against x."""
    out = first[0] * first[1]
    for c, x in rest:
        out = out.add_(x, alpha=c) if isinstance(c, float) else out + c * x
    return out


def add_noise(mean: Tensor, std: Any, noise: NoiseSource, interval: Interval) -> Tensor:
    """mean + std z; nothing is drawn if std is the number 0. Uses up `mean`."""
    if isinstance(std, float) and std == 0:
        return mean
    z = noise(interval.t.host_time, interval.s.host_time)
    return mean.add_(z, alpha=std) if isinstance(std, float) else mean + std * z


def check_step_solvers(owner: object, *names: str) -> None:
    """Raise ValueError unless the attributes of these names are step solvers."""
    for name in names:
        if not isinstance(value := getattr(owner, name), StepSolver):
            raise ValueError(f"{type(owner).__name__} needs {name} to be a solver with steps, got {value!r}.")


def _half_precision(solver: Solver, dtype: torch.dtype) -> TypeError:
    return TypeError(
        f"{type(solver).__name__} needs a float32 or float64 state, got {dtype}: "
        f"half precision loses the small steps near the data. Use autocast for the network instead."
    )


def _bad_grid(times: Tensor) -> ValueError:
    shown = [round(value, 6) for value in times.flatten()[:6].tolist()]
    return ValueError(
        f"A grid must be a strictly decreasing 1-d tensor of times between 1 and 0, got {shown}"
        f"{'...' if times.numel() > 6 else ''} with {times.numel()} entries."
    )


def _noise_level(sde: SDE, t: Tensor) -> float:
    return (sde.sigma(t) / sde.alpha(t)).item()
