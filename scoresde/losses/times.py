"""Distributions of training times, as quantile functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_whole
from scoresde.sde import SDE

TimeLaw = Callable[[SDE, Tensor], Tensor]  # (sde, u (B,) uniform in [0, 1)) -> t (B,)


def uniform_times(sde: SDE, u: Tensor) -> Tensor:
    """t uniform on [t_min, 1]."""
    return sde.t_min + (1 - sde.t_min) * u


def discrete_times(sde: SDE, u: Tensor, *, steps: int = 1000) -> Tensor:
    """t uniform on {1/steps, 2/steps, ..., 1}: the states of a discrete DDPM chain."""
    check_whole("discrete_times", "1 <= steps <= 1000000", steps=steps)
    return (torch.floor(u * steps) + 1).clamp(1, steps) / steps


def lognormal_times(sde: SDE, u: Tensor, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """log(σ/α) ~ N(mean, std²), the noise distribution of arXiv:2206.00364, cut to [t_min, 1]."""
    check_numbers("lognormal_times", "-30 <= mean <= 30", "0 <= std <= 30", mean=mean, std=std)
    quantile = torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))
    return sde.time(-2 * (mean + std * quantile)).clamp(sde.t_min, 1).to(u.dtype)


def logsnr_times(sde: SDE, u: Tensor) -> Tensor:
    """logsnr uniform from t_min to 1: importance sampling for likelihood weighting, p(t) ∝ g²/σ² (arXiv:2101.09258).

    On every linear SDE g²/σ² = −d logsnr/dt. For VP this is B(t) = log(1 + (e^B_ε − 1)((e^B_1 − 1)/(e^B_ε − 1))^u).
    Its companion is `importance_weighting`.
    """
    ends = sde.logsnr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64, device=u.device))
    return sde.time(torch.lerp(ends[0], ends[1], u.double())).clamp(sde.t_min, 1).to(u.dtype)
