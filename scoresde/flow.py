"""Reverse dynamics in the log-SNR clock, where VP, sub-VP, VE and every other linear SDE are equally stiff."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.sde import SDE, expand


class LogSNRClock:
    """Change of variable ℓ = logsnr(t) on [t_end, 1].

        dℓ = −(g²/σ²) dt
        probability flow   dx/dℓ = c(ℓ) x − ½ σ ε̂                  c = −f σ²/g²
        reverse SDE        dx    = (c(ℓ) x − σ ε̂) dℓ + σ dw_ℓ

    Both right-hand sides stay bounded as t → 0, unlike those in t.

    Args:
        sde: The forward process.
        t_end: End of the data side, where σ must be positive.
        owner: Named in the error message.
    """

    def __init__(self, sde: SDE, t_end: float, owner: str) -> None:
        self.sde, self.t_end = sde, t_end
        ends = sde.logsnr(torch.tensor([1.0, t_end], dtype=torch.float64)).tolist()
        self.noise_end, self.data_end = ends
        if not self.noise_end < self.data_end < float("inf"):
            raise ValueError(
                f"{owner} needs noise at the data end: σ is 0 at t_end={t_end} of {type(sde).__name__}. "
                f"Use t_end > 0, for example the SDE's t_min={sde.t_min:g}."
            )

    def time(self, logsnr: Tensor) -> Tensor:
        """t at ℓ in float64, never outside [t_end, 1]."""
        return self.sde.time(logsnr.double()).clamp(self.t_end, 1)

    def contraction(self, t: Tensor) -> Tensor:
        """c = −f σ²/g²."""
        return -self.sde.f(t) * (self.sde.sigma(t) / self.sde.g(t)).square()

    def rate(self, x: Tensor, t: Tensor, eps: Tensor, noise_weight: float) -> Tensor:
        """dx/dℓ with `noise_weight` ½ (probability flow) or 1 (drift of the reverse SDE)."""
        return expand(self.contraction(t), x) * x - noise_weight * expand(self.sde.sigma(t), x) * eps


ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
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
            "first_step": abs(end - start) / 100,  # torchdiffeq's own guess probes outside the interval
            "step_t": torch.tensor([end], dtype=torch.float64, device=device),  # land on the end, do not step past it
        }
    return {"step_size": abs(end - start) / (steps or 1)}


def check_ode_arguments(owner: str, method: str, rtol: float, atol: float, steps: int | None) -> None:
    """Raise one sentence if the arguments of an ODE solve do not fit together."""
    if method not in ADAPTIVE_METHODS + FIXED_METHODS:
        raise ValueError(
            f"{owner} needs a torchdiffeq method: adaptive {', '.join(ADAPTIVE_METHODS)} "
            f"or fixed-step {', '.join(FIXED_METHODS)}, got {method!r}."
        )
    if method in FIXED_METHODS and (steps is None or steps < 1):
        raise ValueError(f"{owner} with the fixed-step method {method!r} needs steps of at least 1, got {steps}.")
    if method in ADAPTIVE_METHODS and steps is not None:
        raise ValueError(f"{owner} chooses its own steps with {method!r}: set rtol and atol, and leave steps null.")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"{owner} needs rtol > 0 and atol > 0, got rtol={rtol}, atol={atol}.")
