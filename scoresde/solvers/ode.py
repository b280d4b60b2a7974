"""The probability-flow ODE through torchdiffeq."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.flow import FlowCoordinates, check_ode_arguments, odeint_options
from scoresde.solvers.base import Solver
from scoresde.solvers.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlowODE(Solver):
    """Deterministic sampling by an adaptive ODE solver.

        dx/dt = f x − ½ g² ∇ log p_t(x)                             (Song et al. 2021, eq. 13)

    Integrated in the coordinates of `scoresde.flow`, so all SDEs cost about the same. Tolerances hold for every sample
    by itself (root mean square over its entries); the network is never asked outside [t_end, 1].

    Args:
        method: A torchdiffeq method: dopri5, dopri8, bosh3, fehlberg2, adaptive_heun; or with `steps` equal steps
            of asinh(½ logsnr): euler, midpoint, heun2, heun3, rk4.
        rtol, atol: Relative and absolute tolerance of the adaptive methods, for x scaled to unit variance.
        steps: Number of steps of the fixed-step methods; None for adaptive ones.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ode_arguments("ProbabilityFlowODE", self.method, self.rtol, self.atol, self.steps)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x: Tensor, *, noise: NoiseSource | None = None) -> Tensor:
        x = self.solve(denoiser, x, backward=False)
        return denoiser(x, x.new_tensor(self.end(denoiser.sde), dtype=torch.float64)) if self.denoise else x

    @torch.no_grad()
    def encode(self, denoiser: Denoiser, x: Tensor) -> Tensor:
        """The latent at t = 1 of data x at t_end: the same ODE run the other way, shape (B, *)."""
        return self.solve(denoiser, x, backward=True)

    def solve(self, denoiser: Denoiser, x: Tensor, *, backward: bool) -> Tensor:
        """Integrate from t = 1 to t_end, or from t_end to 1."""
        from torchdiffeq import odeint

        flow = FlowCoordinates(denoiser.sde, self.end(denoiser.sde), "ProbabilityFlowODE")
        ends, t_ends = (flow.noise_end, flow.data_end), (1.0, flow.t_end)
        start, end = ends[::-1] if backward else ends
        t_start, t_stop = t_ends[::-1] if backward else t_ends

        def rate(z: Tensor, y: Tensor) -> Tensor:
            t = flow.time(z)
            x = flow.scale(t) * y
            return flow.rate(x, z, t, denoiser.eps(x, t))

        times = torch.tensor([start, end], dtype=torch.float64, device=x.device)
        options = odeint_options(self.method, start, end, self.steps, device=x.device)
        try:
            y = x / flow.scale(t_start)
            y = odeint(rate, y, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options)[-1]
        except AssertionError as error:  # torchdiffeq's "underflow in dt" and "non-finite values in state"
            raise FloatingPointError(
                f"ProbabilityFlowODE stopped ({error}): the denoiser returned NaN or infinity, or rtol={self.rtol:g} "
                f"is below what {x.dtype} can resolve. Check the model, or loosen rtol and atol."
            ) from None
        return flow.scale(t_stop) * y
