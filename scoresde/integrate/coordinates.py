"""Coordinates in which all linear SDEs are one problem, for adaptive and torchsde solves."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.sde import SDE, expand


class FlowCoordinates:
    """Coordinates in which the flow of unit Gaussian data stands still and every SDE takes the same steps.

        y = x / ν,   ν² = α² + σ²             clock z:  ½ logsnr(t) = sinh z
        probability flow   dy/dz = cosh z (σ/ν) (σ x / ν² − ε̂)
        reverse SDE        dy    = cosh z (σ/ν) (σ x / ν² − 2 ε̂) dz + (σ/ν) √(2 cosh z) dw_z

    σ x / ν² is ε̂ of N(0, I) data: only what the data add to that is left to integrate. f and g drop out, so nothing is
    stiff as t → 0; sinh gives the middle noise levels, where data take shape, most of the clock.

    Args:
        sde: The forward process.
        t_end: End of the data side, where σ must be positive.
        owner: Named in the error message.
    """

    def __init__(self, sde: SDE, t_end: float, owner: str) -> None:
        self.sde, self.t_end = sde, t_end
        ends = torch.asinh(0.5 * sde.logsnr(torch.tensor([1.0, t_end], dtype=torch.float64))).tolist()
        self.noise_end, self.data_end = ends
        if not self.noise_end < self.data_end < float("inf"):
            raise ValueError(
                f"{owner} needs noise at the data end: σ is 0 at t_end={t_end} of {type(sde).__name__}. "
                f"Use t_end > 0, for example the SDE's t_min={sde.t_min:g}."
            )

    def time(self, z: Tensor) -> Tensor:
        """t at z in float64, never outside [t_end, 1]; shape of z."""
        return self.sde.time(2 * torch.sinh(z.double())).clamp(self.t_end, 1)

    def scale(self, t: Tensor | float) -> Tensor:
        """ν, the factor from y to x; float64, shape of t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.hypot(self.sde.alpha(t), self.sde.sigma(t))

    def coefficients(self, z: Tensor) -> Tensor:
        """t, ν, cosh z σ²/ν² and cosh z σ/ν: all that either equation needs besides ε̂; float64, (4, *z.shape)."""
        z = z.double()
        t = self.time(z)
        scale = self.scale(t)
        ratio = self.sde.sigma(t) / scale
        gain = torch.cosh(z) * ratio
        return torch.stack([t, scale, gain * ratio, gain])

    def slope(self, at: Tensor, y: Tensor, eps: Tensor, *, eps_weight: float = 1.0) -> Tensor:
        """dy/dz with the `coefficients` at (4,) or (4, B); eps_weight 2 gives the drift of the reverse SDE."""
        _, _, pull, gain = at.unbind()
        return torch.addcmul(expand(pull, y) * y, expand(gain, y).to(y), eps, value=-eps_weight)

    def divergence(self, at: Tensor, traces: Tensor, entries: int) -> Tensor:
        """Trace of ∂(dy/dz)/∂y of the probability flow, from traces of ∂ε̂/∂x (B, ...), with the `coefficients` at."""
        _, scale, pull, gain = at.unbind()
        return expand(pull, traces) * entries - expand(gain * scale, traces) * traces

    def diffusion(self, z: Tensor) -> Tensor:
        """Diffusion coefficient of y in the reverse SDE; shape of z."""
        t = self.time(z)
        return self.sde.sigma(t) / self.scale(t) * (2 * torch.cosh(z)).sqrt()

    def variance(self, z: Tensor, z_to: Tensor) -> Tensor:
        """Of the noise that the reverse SDE adds to y between z and z_to ≥ z, in closed form; shape of z.

        ∫ diffusion² dz = ∫ 2 cosh z / (1 + e^(2 sinh z)) dz = log(1 + 1/SNR(z)) − log(1 + 1/SNR(z_to))
        """
        start, stop = 2 * torch.sinh(z), 2 * torch.sinh(z_to)
        # log((1 + e^−start) / (1 + e^−stop)); the logarithms themselves would cancel where both SNR are large
        return torch.log1p(-torch.expm1(start - stop) * torch.sigmoid(stop) * torch.exp(-start))
