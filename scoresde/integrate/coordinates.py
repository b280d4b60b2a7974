"""Coordinates in which all linear SDEs are one problem, for adaptive and torchsde solves, and torchdiffeq options."""

from __future__ import annotations

from typing import Any

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

    def rate(self, x: Tensor, z: Tensor, t: Tensor, eps: Tensor, *, eps_weight: float = 1.0) -> Tensor:
        """dy/dz of the probability flow, or with eps_weight 2 the drift of the reverse SDE; z, t () or (B,)."""
        sigma, scale = self.sde.sigma(t), self.scale(t)
        outer, inner = expand(torch.cosh(z) * sigma / scale, x), expand(sigma / scale.square(), x)
        return outer * (inner * x - eps_weight * eps)

    def divergence(self, at: Tensor, traces: Tensor, entries: int) -> Tensor:
        """Trace of ∂(dy/dz)/∂y of the probability flow, from traces of ∂ε̂/∂x (B, ...), with the `coefficients` at."""
        _, scale, pull, gain = at.unbind()
        return expand(pull, traces) * entries - expand(gain * scale, traces) * traces

    def spread(self, z: Tensor, t: Tensor) -> Tensor:
        """Diffusion of y per √dz; shape of z."""
        return self.sde.sigma(t) / self.scale(t) * (2 * torch.cosh(z)).sqrt()

    def variance(self, z: Tensor, z_to: Tensor) -> Tensor:
        """Of the noise that the reverse SDE adds to y between z and z_to ≥ z, in closed form; shape of z.

        ∫ spread² dz = ∫ 2 cosh z / (1 + e^(2 sinh z)) dz = log(1 + 1/SNR(z)) − log(1 + 1/SNR(z_to))
        """
        start, stop = 2 * torch.sinh(z), 2 * torch.sinh(z_to)
        # log((1 + e^−start) / (1 + e^−stop)); the logarithms themselves would cancel where both SNR are large
        return torch.log1p(-torch.expm1(start - stop) * torch.sigmoid(stop) * torch.exp(-start))


ADAPTIVE_METHODS = ("adams", "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_METHODS = ("euler", "midpoint", "heun2", "heun3", "rk4")


def per_sample_norm(error: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Largest root-mean-square of any one sample's error: the worst sample decides the step, not the average."""
    parts = error if isinstance(error, tuple) else (error,)
    return torch.stack([part.flatten(1).square().mean(1).sqrt().max() for part in parts]).max()


def odeint_options(method: str, start: float, end: float, steps: int | None, *, device: Any = None) -> dict[str, Any]:
    """torchdiffeq options that keep a solve inside [start, end] and judge every sample by itself."""
    if method in ADAPTIVE_METHODS:
        return {
            "norm": per_sample_norm,
            "first_step": abs(end - start) / 20,  # torchdiffeq's own guess probes outside the interval
            "step_t": torch.tensor([end], dtype=torch.float64, device=device),  # land on the end, do not step past it
        }
    return {"step_size": abs(end - start) / (steps or 1)}


def check_ode_arguments(owner: str, method: str, rtol: float, atol: float, steps: int | None) -> None:
    """Raise one sentence if the arguments of an ODE solve do not fit together."""
    if method not in ADAPTIVE_METHODS + FIXED_METHODS:
        raise ValueError(
            f"{owner} needs a method: adaptive {', '.join(ADAPTIVE_METHODS)} "
            f"or fixed-step {', '.join(FIXED_METHODS)}, got {method!r}."
        )
    if method in FIXED_METHODS and (steps is None or steps < 1):
        raise ValueError(f"{owner} with the fixed-step method {method!r} needs steps of at least 1, got {steps}.")
    if method in ADAPTIVE_METHODS and steps is not None:
        raise ValueError(f"{owner} chooses its own steps with {method!r}: set rtol and atol, and leave steps null.")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"{owner} needs rtol > 0 and atol > 0, got rtol={rtol}, atol={atol}.")
