"""Coordinates in which all linear SDEs are one problem, for adaptive and torchsde solves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.sde import SDE, expand
from scoresde.sde.clock import FAINT


class FlowCoordinates:
    """Coordinates in which the flow of unit Gaussian data stands still and every SDE takes the same steps.

        y = x / ν,   ν² = α² + σ²             clock z:  sinh z = log(α/σ + c),      c = 0
        probability flow   dy/dz = −q (ασ/ν²) v̂/ν,                                  q = dλ/dz = cosh z (1 + c σ/α)
        reverse SDE        dy    = q (σ/ν) (σ x / ν² − 2 ε̂) dz + (σ/ν) √(2 q) dw_z

    v̂ = α ε̂ − σ x̂0 is 0 for N(0, I) data: only what the data add to that is left to integrate. f and g drop out, so
    nothing is stiff as t → 0; sinh gives the middle noise levels, where data take shape, most of the clock.

    From no signal, c is 0.01: the clock stays finite, and so does the flow. The reverse SDE does not, as it forgets its
    start at once: it is solved from some α/σ > 0 on.

    Args:
        sde: The forward process.
        t_end: End of the data side, where σ must be positive.
        owner: Named in the error message.
        t_start: Where the noise side begins.
    """

    def __init__(self, sde: SDE, t_end: float, owner: str, *, t_start: float = 1.0) -> None:
        self.sde, self.t_end = sde, t_end
        self.faint = FAINT if sde.ends_silent else 0.0
        lam = 0.5 * sde.logsnr(torch.tensor([t_start, t_end], dtype=torch.float64))
        self.noise_end, self.data_end = torch.asinh(self._clock(lam)).tolist()
        if not self.noise_end < self.data_end < math.inf:
            raise ValueError(
                f"{owner} needs noise at the data end: σ is 0 at t_end={t_end} of {type(sde).__name__}. "
                f"Use t_end > 0, for example the SDE's t_min={sde.t_min:g}."
            )

    def time(self, z: Tensor) -> Tensor:
        """t at z in float64, never outside [t_end, 1]; shape of z."""
        return self.sde.time(2 * self._lam(z.double())).clamp(self.t_end, 1)

    def scale(self, t: Tensor | float) -> Tensor:
        """ν, the factor from y to x; float64, shape of t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.hypot(self.sde.alpha(t), self.sde.sigma(t))

    def coefficients(self, z: Tensor) -> Tensor:
        """t, ν, q ασ/ν², ν²/(q σ²), κ = σ/(α + c σ): what the flow and its density need; float64, (5, *z.shape)."""
        z = z.double()
        t = self.time(z)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        scale = torch.hypot(alpha, sigma)
        signal = alpha + self.faint * sigma
        push, known = torch.cosh(z) * signal * sigma / scale.square(), alpha * (scale / sigma).square()
        return torch.stack([t, scale, push, known / (torch.cosh(z) * signal), sigma / signal])

    def slope(self, at: Tensor, v: Tensor) -> Tensor:
        """dy/dz of the probability flow from v̂ (B, *), with the `coefficients` at (5,) or (5, B)."""
        _, scale, push, *_ = at.unbind()
        return -expand(push / scale, v) * v

    def score(self, at: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """∇_y log p = −ν ε̂/σ, with ε̂ solved from dy/dz."""
        return expand(at[3], y) * slope - y

    def traced(self, at: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """v̂ + κ x, whose trace is to be estimated: ν² ε̂/α for c = 0, of which small noise leaves little."""
        return v + expand(at[4], x).to(x) * x

    def divergence(self, at: Tensor, traces: Tensor, entries: int) -> Tensor:
        """Trace of ∂(dy/dz)/∂y of the probability flow, from traces of ∂(v̂ + κ x)/∂x (B, ...)."""
        return -expand(at[2], traces) * (traces - expand(at[4], traces) * entries)

    def reverse_coefficients(self, z: Tensor) -> Tensor:
        """t, ν, q σ²/ν² and q σ/ν, for the reverse SDE; float64, (4, *z.shape)."""
        z = z.double()
        t = self.time(z)
        scale = self.scale(t)
        ratio = self.sde.sigma(t) / scale
        gain = self._rate(z, t) * ratio
        return torch.stack([t, scale, gain * ratio, gain])

    def reverse_drift(self, at: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        """Drift of y in the reverse SDE from ε̂ (B, *), with the `reverse_coefficients` at (4,) or (4, B)."""
        _, _, pull, gain = at.unbind()
        return torch.addcmul(expand(pull, y) * y, expand(gain, y).to(y), eps, value=-2)

    def diffusion(self, z: Tensor) -> Tensor:
        """Diffusion coefficient of y in the reverse SDE; shape of z."""
        t = self.time(z)
        return self.sde.sigma(t) / self.scale(t) * (2 * self._rate(z, t)).sqrt()

    def variance(self, z: Tensor, z_to: Tensor) -> Tensor:
        """Of the noise that the reverse SDE adds to y between z and z_to ≥ z, in closed form; shape of z.

        ∫ diffusion² dz = ∫ 2 dλ / (1 + e^(2λ)) = log(1 + 1/SNR(z)) − log(1 + 1/SNR(z_to))
        """
        start, stop = 2 * self._lam(z), 2 * self._lam(z_to)
        # log((1 + e^−start) / (1 + e^−stop)); the logarithms themselves would cancel where both SNR are large
        return torch.log1p(-torch.expm1(start - stop) * torch.sigmoid(stop) * torch.exp(-start))

    def _clock(self, lam: Tensor) -> Tensor:
        return torch.logaddexp(lam, torch.full_like(lam, math.log(self.faint))) if self.faint else lam

    def _lam(self, z: Tensor) -> Tensor:
        """λ = log(α/σ)."""
        if not self.faint:
            return torch.sinh(z)
        return torch.sinh(z) + torch.log1p(-(self.faint * torch.exp(-torch.sinh(z))).clamp_max(1))

    def _rate(self, z: Tensor, t: Tensor) -> Tensor:
        """q."""
        return torch.cosh(z) * (1 + self.faint * self.sde.sigma(t) / self.sde.alpha(t))
