"""The probability-flow ODE through torchdiffeq."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.flow import LogSNRClock, check_ode_arguments, odeint_options
from scoresde.solvers.base import Solver
from scoresde.solvers.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class ProbabilityFlowODE(Solver):
    """Deterministic sampling by an adaptive ODE solver.

        dx/dt = f x − ½ g² ∇ log p_t(x)                             (Song et al. 2021, eq. 13)

    Integrated in log-SNR, so all SDEs cost about the same. Tolerances hold for every sample by itself (root mean
    square over its entries); the network is never asked outside [t_end, 1].

    Args:
        method: A torchdiffeq method: dopri5, dopri8, bosh3, fehlberg2, adaptive_heun; or with `steps` equal steps
            in log-SNR: euler, midpoint, heun2, heun3, rk4.
        rtol, atol: Relative and absolute tolerance of the adaptive methods.
        steps: Number of steps of the fixed-step methods; None for adaptive ones.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    method: str = "dopri5"
    rtol: float = 1e-4
    atol: float = 1e-4
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

        clock = LogSNRClock(denoiser.sde, self.end(denoiser.sde), "ProbabilityFlowODE")
        ends = (clock.noise_end, clock.data_end)
        start, end = ends[::-1] if backward else ends

        def rate(logsnr: Tensor, x: Tensor) -> Tensor:
            t = clock.time(logsnr)
            return clock.rate(x, t, denoiser.eps(x, t), 0.5)

        times = torch.tensor([start, end], dtype=torch.float64, device=x.device)
        options = odeint_options(self.method, start, end, self.steps, device=x.device)
        try:
            return odeint(rate, x, times, rtol=self.rtol, atol=self.atol, method=self.method, options=options)[-1]
        except AssertionError as error:  # torchdiffeq's "underflow in dt" and "non-finite values in state"
            raise FloatingPointError(
                f"ProbabilityFlowODE stopped ({error}): the denoiser returned NaN or infinity, or rtol={self.rtol:g} "
                f"is below what {x.dtype} can resolve. Check the model, or loosen rtol and atol."
            ) from None
