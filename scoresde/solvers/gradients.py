"""What a run keeps of its graph: everything, the states between steps, or nothing but the last state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.checkpoint import checkpoint

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Interval

if TYPE_CHECKING:
    from scoresde.solvers.base import Advance, Plan, StepSolver

GRADIENTS = ("none", "full", "checkpoint", "reversible")


def differentiable(solver: StepSolver, plan: Plan, gradient: str | bool, last: int | None) -> Advance:
    """`solver.step` for a run that keeps what gradients need, and no more.

        none        no graph
        full        all activations of all steps; one network call in a step stays one
        checkpoint  the states between steps (and the noises); a step is computed again when its gradient is due
        reversible  the last state alone; earlier ones are computed back through `solver.inverse`

    The last two have the gradients of "full", at the price of one more, or of two more, forward passes. "reversible"
    needs a network without dropout; "checkpoint" replays torch's random numbers. Neither, nor "full", differentiates
    by the schedule: coefficients are numbers.

    Args:
        solver, plan: The run.
        gradient: One of the above; False is "none" and True "full".
        last: Only this many last steps are differentiated, the start of them is constant; None is all of them.

    References:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.
        McCallum and Foster, "Efficient, Accurate and Stable Gradients for Neural ODEs", 2024, arXiv:2410.11648.
        Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards", 2024,
            arXiv:2309.17400 (the last steps).
    """
    owner = type(solver).__name__
    gradient = ("full" if gradient else "none") if isinstance(gradient, bool) else gradient
    if gradient not in GRADIENTS:
        raise ValueError(f"{owner} needs gradient none, full, checkpoint or reversible, got {gradient!r}.")
    if last is not None and (gradient == "none" or last < 1):
        raise ValueError(
            f"{owner} needs gradient_steps of at least 1 and a gradient to truncate, "
            f"got gradient_steps={last} with gradient={gradient!r}."
        )
    if gradient == "reversible" and not isinstance(solver, ExactInverse):
        raise ValueError(
            f"{owner} cannot compute its states back from the last one: gradient='reversible' needs Reversible or "
            f"OBELM. Use gradient='checkpoint' for any other solver."
        )
    kept: Advance = solver.step
    if gradient == "checkpoint":
        kept = _checkpointed(solver.step)
    elif isinstance(solver, ExactInverse) and gradient == "reversible":
        kept = _reversible(solver, plan)
    count = len(plan.times) - 1
    return kept if last is None or last >= count else _from(count - last, solver.step, kept)


@runtime_checkable
class ExactInverse(Protocol):
    """A step solver whose steps have an exact inverse."""

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]: ...

    def inverse(self, denoiser: Denoiser, x: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        """The x and state that `step` was given, from those that it returned, to rounding."""
        ...


def _from(first: int, step: Advance, kept: Advance) -> Advance:
    """Steps without a graph before number `first`."""

    def advance(
        denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        if interval.t.index >= first:
            return kept(denoiser, x, interval, noise, state)
        with torch.no_grad():
            out = step(denoiser, x, interval, noise, state)
        torch.clear_autocast_cache()  # weights cast without a graph must not serve the steps that need one
        return out

    return advance


def _checkpointed(step: Advance) -> Advance:
    def advance(
        denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        return _again(step, denoiser, interval, noise, lambda x: (x, state), x, preserve_rng_state=True)

    return advance


def _reversible(solver: ExactInverse, plan: Plan) -> Advance:
    tape: _Tape | None = None

    def advance(
        denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        nonlocal tape
        if interval.to_data:  # the call at t_end is no step and has no inverse
            return _again(solver.step, denoiser, interval, noise, lambda x: (x, None), x, preserve_rng_state=False)
        needed = tree_map(lambda value: isinstance(value, Tensor) and value.requires_grad, (x, state))
        live = [(x, state)]
        if tape is None:
            tape = _Tape(solver, denoiser, plan, (interval.t.index, x.detach(), _detached(state)))
        states = tape

        def before() -> tuple[Tensor, Any]:
            if live:
                return live.pop()  # no reference stays: the states of the pass itself are freed
            return states.before(interval.t.index, needed)

        del x, state
        out = _again(solver.step, denoiser, interval, noise, before, preserve_rng_state=False)
        states.finish(interval.s.index, *out)
        return out

    return advance


def _again(
    step: Advance,
    denoiser: Denoiser,
    interval: Interval,
    noise: NoiseSource,
    before: Callable[..., tuple[Tensor, Any]],
    *given: Tensor,
    preserve_rng_state: bool,
) -> tuple[Tensor, Any]:
    """One step from the state that `before(*given)` returns, computed again with the same noise when needed."""
    drawn: list[Tensor] = []

    def run(*given: Tensor) -> tuple[Tensor, Any]:
        kept = iter(tuple(drawn))

        def source(t: Tensor, s: Tensor) -> Tensor:
            z = next(kept, None)
            if z is None:
                z = noise(t, s)
                drawn.append(z)
            return z

        x, state = before(*given)
        return step(denoiser, x, interval, source, state)

    out: tuple[Tensor, Any] = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=preserve_rng_state)
    return out


class _Tape:
    """The states of a run, of which only the first, the last and the one being looked at exist."""

    def __init__(self, solver: ExactInverse, denoiser: Denoiser, plan: Plan, first: tuple[int, Tensor, Any]) -> None:
        self.solver, self.denoiser, self.plan = solver, denoiser, plan
        self.first = self.last = self.here = first

    def finish(self, index: int, x: Tensor, state: Any) -> None:
        self.last = self.here = (index, x.detach(), _detached(state))

    @torch.no_grad()
    def before(self, index: int, needed: tuple[bool, Any]) -> tuple[Tensor, Any]:
        """The state before step `index`, as leaves that need gradients where the original did."""
        if self.here[0] < index:
            self.here = self.last  # a second backward pass over the same run
        if index == self.first[0]:
            _, x, state = self.first
        else:
            at, x, state = self.here
            while at > index:
                at -= 1
                x, state = self.solver.inverse(self.denoiser, x, self.plan.intervals[at], state)
            self.here = (at, x, state)
            torch.clear_autocast_cache()  # weights cast without a graph must not serve the step that needs one
        return tree_map(_leaf, (x, state), needed)  # type: ignore[return-value]


def _leaf(value: Any, needed: bool) -> Any:
    return value.detach().requires_grad_(needed) if isinstance(value, Tensor) else value


def _detached(state: Any) -> Any:
    return tree_map_only(Tensor, Tensor.detach, state)
