"""torchdiffeq: its embedded pairs for steps per sample, and its own loop for steps that the batch shares."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_whole
from scoresde.integrate.adaptive import Integral
from scoresde.integrate.methods import Adams, Field, Method, State, Tableau

ADAPTIVE_METHODS = ("adams", "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4")


def check_ode_arguments(owner: str, method: str, rtol: float, atol: float, steps: int | None) -> None:
    """Raise one sentence if the arguments of an ODE solve do not fit together."""
    if method not in ADAPTIVE_METHODS + FIXED_METHODS:
        raise ValueError(
            f"{owner} needs a method: adaptive {', '.join(ADAPTIVE_METHODS)} "
            f"or fixed-step {', '.join(FIXED_METHODS)}, got {method!r}."
        )
    if method in FIXED_METHODS:
        check_whole(f"{owner} with the fixed-step method {method}", "1 <= steps <= 1000000", steps=steps)
    if method in ADAPTIVE_METHODS and steps is not None:
        raise ValueError(f"{owner} chooses its own steps with {method!r}: set rtol and atol, and leave steps null.")
    check_numbers(owner, "0 < rtol < 1", "0 < atol < 1", rtol=rtol, atol=atol)


@cache
def adaptive_method(name: str) -> Method:
    """Adams, or an embedded pair with torchdiffeq's coefficients."""
    if name == "adams":
        return Adams()
    from torchdiffeq._impl.odeint import SOLVERS

    solver = SOLVERS[name]
    nodes, rows, weights, error = solver.tableau
    return Tableau(
        solver.order, tuple(nodes.tolist()), tuple(tuple(row.tolist()) for row in rows), tuple(weights.tolist()),
        tuple(error.tolist()),
    )  # fmt: skip


def integrate_together(
    field: Field, state: State, start: float, end: float, method: str, *, rtol: float, atol: float, steps: int | None,
    owner: str = "integrate_together",
) -> Integral:  # fmt: skip
    """Integrate from start to end by `torchdiffeq.odeint`, with steps that the batch shares.

    Args:
        field, state, start, end, owner: As for `integrate`.
        method: One of torchdiffeq's `ADAPTIVE_METHODS` or `FIXED_METHODS`.
        rtol, atol: Of an adaptive method, whose steps are those of the worst sample.
        steps: Number of equal steps of a fixed-step method; None for an adaptive one.
    Raises:
        FloatingPointError: If an adaptive solve meets NaN or infinity, or a tolerance out of reach.
    """
    from torchdiffeq import odeint

    device, rate = state[0].device, _Counted(field)
    times = torch.tensor([start, end], dtype=torch.float64, device=device)
    options: dict[str, Any] = {"step_size": abs(end - start) / (steps or 1)}
    if steps is None:
        rate.callback_accept_step, rate.callback_reject_step = rate.accept, rate.reject
        options = {
            "norm": _per_sample_norm,
            "first_step": abs(end - start) / 20,  # torchdiffeq's own guess probes outside the interval
            "step_t": times[1:],  # land on the end, do not step past it
        }
    try:
        path = odeint(rate, state, times, rtol=rtol, atol=atol, method=method, options=options)
    except AssertionError as error:  # torchdiffeq's "underflow in dt" and "non-finite values in state"
        raise FloatingPointError(
            f"{owner} stopped ({error}): the denoiser returned NaN or infinity, or rtol={rtol:g} "
            f"is below what {state[0].dtype} can resolve. Check the model, or loosen rtol and atol."
        ) from None
    counts = rate.calls, rate.accepted if steps is None else steps, rate.rejected
    nfe, accepted, rejected = (torch.full((len(state[0]),), count, device=device) for count in counts)
    return Integral(tuple(part[-1] for part in path), nfe, accepted, rejected)


def _per_sample_norm(error: tuple[Tensor, ...]) -> Tensor:
    """Largest root-mean-square of any one sample's error: the worst sample decides the step, not the average."""
    return torch.stack([part[:, None].flatten(1).square().mean(1).sqrt().max() for part in error]).max()


class _Counted:
    """A field as torchdiffeq asks for it, one z for the batch, counting calls and steps."""

    callback_accept_step: Any
    callback_reject_step: Any

    def __init__(self, field: Field) -> None:
        self.field = field
        self.calls = self.accepted = self.rejected = 0

    def __call__(self, z: Tensor, state: State) -> State:
        self.calls += 1
        return self.field.rate(self.field.coefficients(z), state)

    def accept(self, z: Tensor, state: State, dz: Tensor) -> None:
        self.accepted += 1

    def reject(self, z: Tensor, state: State, dz: Tensor) -> None:
        self.rejected += 1
