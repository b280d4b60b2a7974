"""What a run keeps of its graph: everything, the states between steps, or nothing but the last state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from scoresde.noise.sources import NoiseSource
    from scoresde.solvers.base import Plan

GRADIENTS = ("none", "full", "checkpoint", "reversible")


def differentiable(plan: Plan, gradient: str | bool, steps: int | None, owner: str) -> Plan:
    """The same run with strides that keep what gradients need, and no more.

        none        no graph
        full        all activations of all steps; one network call in a step stays one
        checkpoint  the states between steps (and the noises); a step is computed again when its gradient is due
        reversible  the last state alone; earlier ones are computed back through `Plan.inverse`

    The last two have the gradients of "full", at the price of one more, or of two more, forward passes. "reversible"
    needs a network without dropout; "checkpoint" replays torch's random numbers. Neither, nor "full", differentiates
    by the schedule: coefficients are numbers.

    Args:
        plan: The run.
        gradient: One of the above; False is "none" and True "full".
        steps: Only this many last steps are differentiated, the start of them is constant; None is all of them.
        owner: The solver's name, for the messages.

    References:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.
        McCallum and Foster, "Efficient, Accurate and Stable Gradients for Neural ODEs", 2024, arXiv:2410.11648.
        Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards", 2024,
            arXiv:2309.17400 (the last steps).
    """
    gradient = ("full" if gradient else "none") if isinstance(gradient, bool) else gradient
    if gradient not in GRADIENTS:
        raise ValueError(f"{owner} needs gradient none, full, checkpoint or reversible, got {gradient!r}.")
    if steps is not None and (gradient == "none" or steps < 1):
        raise ValueError(
            f"{owner} needs gradient_steps of at least 1 and a gradient to truncate, "
            f"got gradient_steps={steps} with gradient={gradient!r}."
        )
    if gradient == "reversible" and plan.inverse is None:
        raise ValueError(
            f"{owner} cannot compute its states back from the last one: gradient='reversible' needs Reversible or "
            f"OBELM. Use gradient='checkpoint' for any other solver."
        )
    kept = {"none": _detached, "full": _full, "checkpoint": _checkpointed, "reversible": _reversible}[gradient](plan)
    count = len(plan.times) - 1
    return kept if steps is None or steps >= count else replace(plan, stride=_from(count - steps, plan, kept))


def _detached(plan: Plan) -> Plan:
    return replace(plan, stride=torch.no_grad()(plan.stride))


def _full(plan: Plan) -> Plan:
    return plan


def _from(first: int, plan: Plan, kept: Plan) -> Callable[..., tuple[Tensor, Any]]:
    """Strides without a graph before number `first`."""

    def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        if index >= first:
            return kept.stride(index, x, noise, state)
        with torch.no_grad():
            out = plan.stride(index, x, noise, state)
        torch.clear_autocast_cache()  # weights cast without a graph must not serve the steps that need one
        return out

    return stride


def _checkpointed(plan: Plan) -> Plan:
    def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        return _again(plan, index, noise, lambda x: (x, state), x, preserve_rng_state=True)

    return replace(plan, stride=stride)


def _reversible(plan: Plan) -> Plan:
    tape = _Tape(plan)

    def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        if index == len(plan.times) - 1:  # the call at t_end is no step and has no inverse
            return _again(plan, index, noise, lambda x: (x, None), x, preserve_rng_state=False)
        needed = tuple(isinstance(value, Tensor) and value.requires_grad for value in (x, state))
        live = [(x, state)]

        def before() -> tuple[Tensor, Any]:
            if live:
                return live.pop()  # no reference stays: the states of the pass itself are freed
            return tape.before(index, needed)

        if not tape.started:
            tape.start(index, x, state)
        del x, state
        out = _again(plan, index, noise, before, preserve_rng_state=False)
        tape.finish(index + 1, *out)
        return out

    return replace(plan, stride=stride)


def _again(
    plan: Plan,
    index: int,
    noise: NoiseSource,
    before: Callable[..., tuple[Tensor, Any]],
    *given: Tensor,
    preserve_rng_state: bool,
) -> tuple[Tensor, Any]:
    """One stride from the state that `before(*given)` returns, computed again with the same noise when needed."""
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
        return plan.stride(index, x, source, state)

    out: tuple[Tensor, Any] = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=preserve_rng_state)
    return out


class _Tape:
    """The states of a run, of which only the first, the last and the one being looked at exist."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.first: tuple[int, Tensor, Any] | None = None
        self.last: tuple[int, Tensor, Any] | None = None
        self.here: tuple[int, Tensor, Any] | None = None

    @property
    def started(self) -> bool:
        return self.first is not None

    def start(self, index: int, x: Tensor, state: Any) -> None:
        self.first = (index, x.detach(), _detach(state))

    def finish(self, index: int, x: Tensor, state: Any) -> None:
        self.last = self.here = (index, x.detach(), _detach(state))

    @torch.no_grad()
    def before(self, index: int, needed: tuple[bool, ...]) -> tuple[Tensor, Any]:
        """The state before stride `index`, as leaves that need gradients where the original did."""
        if self.here is None or self.here[0] < index:
            self.here = self.last  # a second backward pass over the same run
        assert self.first is not None and self.here is not None and self.plan.inverse is not None
        if index == self.first[0]:
            _, x, state = self.first
        else:
            at, x, state = self.here
            while at > index:
                at -= 1
                x, state = self.plan.inverse(at, x, state)
            self.here = (at, x, state)
            torch.clear_autocast_cache()  # weights cast without a graph must not serve the step that needs one
        return _leaf(x, needed[0]), _leaf(state, needed[1]) if isinstance(state, Tensor) else state


def _leaf(x: Tensor, needed: bool) -> Tensor:
    return x.detach().requires_grad_(needed)


def _detach(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else state
