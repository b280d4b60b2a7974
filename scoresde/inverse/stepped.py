"""Methods around a step solver: after each of its updates something is done to the state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.inverse.measurement import Measurement
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid
from scoresde.sde.levels import Interval, Level
from scoresde.solvers.base import Plan, StepSolver, check_step_solvers
from scoresde.solvers.ddpm import DDPM
from scoresde.solvers.langevin import PredictorCorrector
from scoresde.solvers.reversible import ReversibleSolver

Change = Callable[[Tensor, Level, NoiseSource], Tensor]  # the state at a level -> the same with its known part changed


@dataclass(frozen=True, kw_only=True)
class AroundSolver(StepSolver):
    """A step solver after each of whose updates the state is changed; steps, grid and ends are those of the solver.

    With a `PredictorCorrector` that is after the predictor and after the corrector. What a multistep solver keeps are
    answers of the network at changed states, so its history stays good; solvers that keep earlier states to run back
    along them are refused.

    Args:
        measurement: What is known of each sample.
        solver: Any solver with steps.
    """

    measurement: Measurement
    solver: StepSolver = field(default_factory=DDPM)
    steps: int = field(init=False, repr=False)
    grid: Grid = field(init=False, repr=False)
    t_end: float | None = field(init=False, repr=False)
    denoise: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_step_solvers(self, "solver")
        if isinstance(self.solver, ReversibleSolver):
            raise ValueError(
                f"{type(self).__name__} changes the state between steps, which {type(self.solver).__name__} needs to "
                f"run back along: use another solver, such as DDPM or DDIM."
            )
        for name in ("steps", "grid", "t_end", "denoise"):
            object.__setattr__(self, name, getattr(self.solver, name))
        super().__post_init__()

    @property
    def calls(self) -> int:
        return self.solver.calls

    @property
    def moves(self) -> bool:
        """Whether the change after a step is made at the level where it ends, not where it began."""
        return True

    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        return self.solver.plan(denoiser, device=device, backward=backward)

    @abstractmethod
    def change(self, x: Tensor) -> Change:
        """What is done after each update of a run that starts from x (B, *)."""

    def start(self, change: Change, x: Tensor, level: Level, noise: NoiseSource) -> Tensor:
        """The first state, from x (B, *) as it was given."""
        return change(x, level, noise)

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        if state is None:
            change = self.change(x)
            x, state = self.start(change, x, interval.t, noise), (change, self.changed(change), None)
        change, solver, inner = state
        x, inner = solver.step(denoiser, x, interval, noise, inner)
        return x, (change, solver, inner)

    def changed(self, change: Change) -> StepSolver:
        """The solver with a change after each update."""
        if not isinstance(self.solver, PredictorCorrector):
            return _Changed(solver=self.solver, change=change, moves=self.moves)
        predictor = _Changed(solver=self.solver.predictor, change=change, moves=self.moves)
        corrector = _Changed(solver=self.solver.corrector, change=change, moves=False)
        return _Changed(solver=replace(self.solver, predictor=predictor, corrector=corrector), change=change, ends=True)


@dataclass(frozen=True, kw_only=True)
class _Changed(StepSolver):
    """A solver whose steps are followed by a change, at the level at which they leave the state.

    Args:
        moves: Whether its steps go from t to s; a corrector's stay at t.
        ends: Whether only the step to noise 0 is followed by it.
    """

    solver: StepSolver
    change: Change
    moves: bool = True
    ends: bool = False

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        x, state = self.solver.step(denoiser, x, interval, noise, state)
        if self.ends and not interval.to_data:
            return x, state
        return self.change(x, interval.s if self.moves else interval.t, noise), state
