"""The probability-flow ODE: adaptive steps for every sample by itself, or torchdiffeq's solvers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser, devices_named
from scoresde.integrate.adaptive import Solution, integrate
from scoresde.integrate.coordinates import FlowCoordinates
from scoresde.integrate.methods import Field, State
from scoresde.integrate.torchdiffeq_backend import adaptive_method, check_ode_arguments, integrate_together
from scoresde.noise.sources import NoiseSource
from scoresde.sde import expand
from scoresde.solvers.base import Solver
from scoresde.solvers.runaway import check_range


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
            denoiser: Supplies v̂.
            x: Start at t = 1, float32 or float64.
            noise: Not used.
            gradient: Whether to keep the graph, for gradients by x and by the denoiser's parameters; the steps chosen
                count as constants.
        Raises:
            FloatingPointError: If the network returns NaN or infinity, or if the tolerance cannot be met.
        """
        end = self.solution(denoiser, x, gradient=gradient).x
        check_range(self, denoiser, end, lambda plain: self(plain, x))
        return end

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
        field, state = flow_field(flow, denoiser, len(x)), (x / flow.scale(t_start),)
        options: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "owner": "ProbabilityFlowODE"}
        with devices_named(self, denoiser, x=x):
            if self.per_sample and self.steps is None:
                found = integrate(field, state, start, end, adaptive_method(self.method), **options)
            else:
                found = integrate_together(field, state, start, end, self.method, steps=self.steps, **options)
        return Solution(flow.scale(t_stop) * found.state[0], found.nfe, found.accepted, found.rejected)


def flow_field(flow: FlowCoordinates, denoiser: Denoiser, batch: int) -> Field:
    """The probability flow of a denoiser as a right-hand side for `integrate`."""

    def rate(at: Tensor, state: State) -> State:
        (y,) = state
        return (flow.slope(at, denoiser.v(expand(at[1], y) * y, at[0])),)

    def select(index: Tensor) -> Field | None:
        smaller = denoiser.select(index, batch)
        return None if smaller is None else flow_field(flow, smaller, batch)

    return Field(flow.coefficients, rate, select)
