"""The probability-flow ODE: adaptive steps for every sample by itself, or torchdiffeq's solvers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.integrate.adaptive import Solution, integrate
from scoresde.integrate.coordinates import ADAPTIVE_METHODS, FlowCoordinates, check_ode_arguments, odeint_options
from scoresde.integrate.methods import Adams, Field, Method, State, Tableau
from scoresde.noise.sources import NoiseSource
from scoresde.sde import expand
from scoresde.solvers.base import Solver


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlowODE(Solver):
    """Deterministic sampling by an adaptive ODE solver.

        dx/dt = f x − ½ g² ∇ log p_t(x)                             (Song et al. 2021, eq. 13)

    Integrated in `FlowCoordinates`, so all SDEs cost about the same. Every sample has its own steps
    and tolerance (root mean square over its entries) and does not depend on its batch mates; samples that have arrived
    leave the batch if the denoiser knows how to go on without them (`Denoiser.select`). The network is never asked
    outside [t_end, 1].

    Args:
        method: adams (variable steps at one call each, for smooth models), or a pair of torchdiffeq: dopri5, dopri8,
            bosh3, fehlberg2, adaptive_heun; or with `steps` equal steps of asinh(½ logsnr): euler, midpoint, heun2,
            heun3, rk4.
        rtol, atol: Relative and absolute tolerance of the adaptive methods, for x scaled to unit variance.
        steps: Number of steps of the fixed-step methods; None for adaptive ones.
        per_sample: False for torchdiffeq's own adaptive solver, whose steps the batch shares.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    per_sample: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ode_arguments("ProbabilityFlowODE", self.method, self.rtol, self.atol, self.steps)
        if self.method == "adams" and not self.per_sample:
            raise ValueError("ProbabilityFlowODE with per_sample=False needs a method of torchdiffeq, got 'adams'.")

    def __call__(
        self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None, gradient: bool = False
    ) -> Tensor:
        """Integrate from x at t = 1 (B, *) to data (B, *).

        Args:
            denoiser: Supplies ε̂.
            x: Start at t = 1, float32 or float64.
            noise: Not used.
            gradient: Whether to keep the graph, for gradients by x and by the denoiser's parameters; the steps chosen
                count as constants.
        Raises:
            FloatingPointError: If the network returns NaN or infinity, or if the tolerance cannot be met.
        """
        return self.solution(denoiser, x, gradient=gradient).x

    @torch.no_grad()
    def encode(self, denoiser: Denoiser, x: Tensor) -> Tensor:
        """The latent at t = 1 of data x at t_end: the same ODE run the other way, shape (B, *)."""
        return self.solve(denoiser, x, backward=True)

    def solution(self, denoiser: Denoiser, x: Tensor, *, backward: bool = False, gradient: bool = False) -> Solution:
        """The result of a call, or with `backward` of `encode`, and its cost per sample."""
        with nullcontext() if gradient else torch.no_grad():
            found = self._solve(denoiser, x, backward)
            if backward or not self.denoise:
                return found
            end = torch.tensor(self.end(denoiser.sde), dtype=torch.float64, device=x.device)
            return found._replace(x=denoiser(found.x, end), nfe=found.nfe + 1)

    def solve(self, denoiser: Denoiser, x: Tensor, *, backward: bool) -> Tensor:
        """Integrate from t = 1 to t_end, or from t_end to 1, without denoising and with gradients."""
        return self._solve(denoiser, x, backward).x

    def _solve(self, denoiser: Denoiser, x: Tensor, backward: bool) -> Solution:
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"ProbabilityFlowODE needs a float32 or float64 state, got {x.dtype}: "
                f"half precision loses the small steps near the data. Use autocast for the network instead."
            )
        flow = FlowCoordinates(denoiser.sde, self.end(denoiser.sde), "ProbabilityFlowODE")
        ends, t_ends = (flow.noise_end, flow.data_end), (1.0, flow.t_end)
        start, end = ends[::-1] if backward else ends
        t_start, t_stop = t_ends[::-1] if backward else t_ends
        y = x / flow.scale(t_start)
        if self.per_sample and self.method in ADAPTIVE_METHODS:
            (y,), nfe, accepted, rejected = integrate(
                flow_field(flow, denoiser, len(x)), (y,), start, end, adaptive_method(self.method),
                rtol=self.rtol, atol=self.atol, owner="ProbabilityFlowODE",
            )  # fmt: skip
        else:
            y, *counts = self._shared_steps(flow, denoiser, y, start, end)
            nfe, accepted, rejected = (torch.full((len(x),), count, device=x.device) for count in counts)
        return Solution(flow.scale(t_stop) * y, nfe, accepted, rejected)

    def _shared_steps(
        self, flow: FlowCoordinates, denoiser: Denoiser, y: Tensor, start: float, end: float
    ) -> tuple[Tensor, int, int, int]:
        from torchdiffeq import odeint

        rate = _Counted(flow, denoiser)
        times = torch.tensor([start, end], dtype=torch.float64, device=y.device)
        options = odeint_options(self.method, start, end, self.steps, device=y.device)
        if self.method in ADAPTIVE_METHODS:
            rate.callback_accept_step, rate.callback_reject_step = rate.accept, rate.reject
        try:
            y = odeint(rate, y, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options)[-1]
        except AssertionError as error:  # torchdiffeq's "underflow in dt" and "non-finite values in state"
            raise FloatingPointError(
                f"ProbabilityFlowODE stopped ({error}): the denoiser returned NaN or infinity, or rtol={self.rtol:g} "
                f"is below what {y.dtype} can resolve. Check the model, or loosen rtol and atol."
            ) from None
        return y, rate.nfe, rate.accepted if self.steps is None else self.steps, rate.rejected


def flow_field(flow: FlowCoordinates, denoiser: Denoiser, batch: int) -> Field:
    """The probability flow of a denoiser as a right-hand side for `integrate`."""

    def rate(at: Tensor, state: State) -> State:
        (y,) = state
        return (flow.slope(at, y, denoiser.eps(expand(at[1], y) * y, at[0])),)

    def select(index: Tensor) -> Field | None:
        smaller = denoiser.select(index, batch)
        return None if smaller is None else flow_field(flow, smaller, batch)

    return Field(flow.coefficients, rate, select)


@cache
def adaptive_method(name: str) -> Method:
    """Adams, or an embedded pair with torchdiffeq's coefficients."""
    if name == "adams":
        return Adams()
    from torchdiffeq._impl.odeint import SOLVERS

    solver = SOLVERS[name]
    nodes, rows, weights, error = solver.tableau
    return Tableau(
        solver.order,
        tuple(nodes.tolist()),
        tuple(tuple(row.tolist()) for row in rows),
        tuple(weights.tolist()),
        tuple(error.tolist()),
    )


class _Counted:
    """dy/dz for torchdiffeq, one z for the batch, counting calls and steps."""

    callback_accept_step: Any
    callback_reject_step: Any

    def __init__(self, flow: FlowCoordinates, denoiser: Denoiser) -> None:
        self.flow, self.denoiser = flow, denoiser
        self.nfe = self.accepted = self.rejected = 0

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        at = self.flow.coefficients(z)
        return self.flow.slope(at, y, self.denoiser.eps(at[1] * y, at[0]))

    def accept(self, z: Tensor, y: Tensor, dz: Tensor) -> None:
        self.accepted += 1

    def reject(self, z: Tensor, y: Tensor, dz: Tensor) -> None:
        self.rejected += 1
