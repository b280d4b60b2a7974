"""Solvers with an exact inverse: round trips to rounding with any number of steps, whatever the network."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, karras_grid
from scoresde.sde.levels import Interval, Level
from scoresde.solvers.base import Plan, Step, StepSolver, check_step_solvers
from scoresde.solvers.ddim import DDIM


class ReversibleState(NamedTuple):
    """A state, and what a reversible solver needs besides to follow its own path back exactly.

    Args:
        x: The state itself, (B, *): data at t_end, the latent at t = 1.
        residual: Of the size of one step's error, (B, *). None is zero: the state does not come from this solver.
    """

    x: Tensor
    residual: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ReversibleSolver(StepSolver):
    """A solver whose steps have an exact `inverse`, that needs no smoothness of the network.

        latent = solver.encode(denoiser, x)             data x at t_end to the latent at t = 1
        x      = solver.decode(denoiser, latent)        the same x, to rounding
        sample = solver(denoiser, latent)               and on to x̂0 with `denoise`, which has no inverse

    A latent is a `ReversibleState`; a plain tensor stands for one without residual, and `latent.x` alone is an
    ordinary latent, good to the order of the solver. `transport` gives the residual at the data end too, for round
    trips that start from a latent. What steps hand on is a tuple that begins with the residual.
    """

    @property
    def deterministic(self) -> bool:
        return True

    @abstractmethod
    def inverse(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Any, ...] | None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """The x and state that `step` was given, from those that it returned, to rounding."""

    def __call__(self, denoiser: Denoiser, x: Tensor | ReversibleState, **options: Any) -> Tensor:
        """Integrate from x at t = 1, a tensor (B, *) or a latent, to data (B, *). Options as in `StepSolver`."""
        x, state = _given(x)
        return super().__call__(denoiser, x, state=state, **options)

    def trajectory(self, denoiser: Denoiser, x: Tensor | ReversibleState, **options: Any) -> Iterator[Step]:
        """Yield x at every time of the grid, from a tensor or a latent. Options as in `StepSolver`."""
        x, state = _given(x)
        return super().trajectory(denoiser, x, state=state, **options)

    def encode(self, denoiser: Denoiser, x: Tensor | ReversibleState) -> ReversibleState:  # type: ignore[override]
        """The latent at t = 1 of data x (B, *) at t_end."""
        return self.transport(denoiser, x, backward=True)

    def decode(self, denoiser: Denoiser, latent: Tensor | ReversibleState) -> Tensor:
        """The data (B, *) at t_end of a latent at t = 1: the exact inverse of `encode`, without the call at t_end."""
        return self.transport(denoiser, latent).x

    @torch.no_grad()
    def transport(
        self, denoiser: Denoiser, start: Tensor | ReversibleState, *, backward: bool = False
    ) -> ReversibleState:
        """From t = 1 to t_end, or from t_end to t = 1 if `backward`; each is the exact inverse of the other."""
        x, state = _given(start)
        plan = replace(self, denoise=False).plan(denoiser, device=x.device)
        last = plan.intervals[-1]
        if not backward:
            ((x, state),) = deque(self._run(denoiser, plan, x, None, self.step, state), maxlen=1)
            return ReversibleState(x, self._residual(denoiser, x, last, state))

        def back(
            denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
        ) -> tuple[Tensor, tuple[Any, ...]]:
            return self.inverse(denoiser, x, interval, state)

        state, up = self._history(denoiser, x, last, state), Plan(plan.sde, plan.intervals[::-1])
        ((x, state),) = deque(self._run(denoiser, up, x, None, back, state), maxlen=1)
        if plan.start is not None:
            x = plan.start(plan.sde, x, plan.intervals[0].t.host_time, torch.ones((), dtype=torch.float64))
        return ReversibleState(x, state[0])

    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        if backward:
            raise ValueError(f"{type(self).__name__} runs back through the inverse of its steps: call encode.")
        if not float(denoiser.sde.sigma(torch.tensor(self.end(denoiser.sde), dtype=torch.float64))) > 0:
            raise ValueError(
                f"{type(self).__name__} needs noise at the data end: σ is 0 at t_end={self.end(denoiser.sde)}. "
                f"Use t_end > 0, for example the SDE's t_min={denoiser.sde.t_min:g}."
            )
        return super().plan(denoiser, device=device)

    def _residual(self, denoiser: Denoiser, x: Tensor, last: Interval, state: Any) -> Tensor:
        """The residual at the data end, from what the last step returned."""
        return state[0]  # type: ignore[no-any-return]

    def _history(self, denoiser: Denoiser, x: Tensor, last: Interval, state: Any) -> Any:
        """What the last step must have returned besides x, from the residual at the data end."""
        return state


@dataclass(frozen=True, kw_only=True)
class Reversible(ReversibleSolver):
    """Any deterministic one-step solver Φ made exactly reversible, by coupling two copies y, z of the state.

        y_s = Φ_t→s(z_t) + λ κ (y_t − z_t)                                          (McCallum & Foster 2024)
        z_s = y_s + κ (z_t − Φ_s→t(y_s))                         κ = c_s/c_t,   c = √(ν σ),   ν² = α² + σ²
        x   = (y + z)/2

    Twice the network calls of Φ. The mean is second order already for Φ = DDIM (λ → 1), which then is the cheapest; its
    residual is y − z. The paper's increments are taken in the coordinates x/c: along a direction in which Φ contracts
    by r, a difference y − z is multiplied by λ κ²/r, so c must fall like the square root of what the flow contracts
    most, σ, or differences grow; in x and in x/α they grow by up to σ_1/σ_end.

    Args:
        solver: The one-step solver Φ; its own steps, grid and ends are not used.
        coupling: λ in (0, 1]. Below 1 it damps differences by λ per step when sampling, and encoding multiplies them by
            1/λ, as it does rounding errors: keep λ^(−steps) small.

    References:
        McCallum and Foster, "Efficient, Accurate and Stable Gradients for Neural ODEs", 2024, arXiv:2410.11648.
    """

    steps: int = 20
    grid: Grid = karras_grid
    solver: StepSolver = field(default_factory=DDIM)
    coupling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 < coupling <= 1")
        check_step_solvers(self, "solver")
        self._check(self.solver.deterministic)

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: tuple[Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor] | None]:
        """From the mean x and the difference y − z at t to those at s."""
        if interval.denoising:
            return denoiser.x0(x, interval.t), None
        kappa = _scale(interval.s) / _scale(interval.t)
        z = x if state is None else x - 0.5 * state[0]
        y_s = self._map(denoiser, z, interval)
        y_s = y_s if state is None else y_s + self.coupling * kappa * state[0]
        difference = kappa * (self._map(denoiser, y_s, interval.reversed()) - z)
        return y_s - 0.5 * difference, (difference,)

    def inverse(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, state: tuple[Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor]]:
        kappa = _scale(interval.s) / _scale(interval.t)
        y_s = x if state is None else x + 0.5 * state[0]
        z = self._map(denoiser, y_s, interval.reversed())
        z = z if state is None else z - state[0] / kappa
        difference = (y_s - self._map(denoiser, z, interval)) / (self.coupling * kappa)
        return z + 0.5 * difference, (difference,)

    def _map(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> Tensor:
        """Φ over an interval."""
        x, state = self.solver.step(denoiser, x, interval, _no_noise, None)
        self._check(state is None)
        return x

    def _check(self, good: bool) -> None:
        if not good:
            raise ValueError(
                f"Reversible needs a deterministic one-step solver, got {type(self.solver).__name__}: it adds noise or "
                f"looks back at earlier steps. Use DDIM(eta=0) or Heun."
            )


def _scale(level: Level) -> Any:
    """c = √(ν σ)."""
    return ((level.alpha**2 + level.sigma**2) ** 0.5 * level.sigma) ** 0.5


def _given(x: Tensor | ReversibleState) -> tuple[Tensor, tuple[Tensor] | None]:
    """A start, and its residual as the first step gets it."""
    if isinstance(x, Tensor):
        return x, None
    return x.x, None if x.residual is None else (x.residual,)


def _no_noise(t: Tensor, s: Tensor) -> Tensor:
    raise AssertionError("A deterministic solver asked for noise.")
