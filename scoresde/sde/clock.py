"""log-SNR as a clock that stays finite where a process ends without signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.sde.base import SDE

if TYPE_CHECKING:
    from scoresde.sde.levels import Level

FAINT = 0.01  # c, for a process that ends without signal; VP ends at α/σ = 0.0066
LEAST = 1e-6  # of α/σ on that clock: 10⁻¹² of the data's energy lies beyond
FAINTEST = 1e-3  # of α/σ where a quotient by α is asked of a model


@dataclass(frozen=True)
class SignalClock:
    """Λ = 2 log(α/σ + c), the clock of integrals over log-SNR.

        ∫ h d logsnr = ∫ h rate dΛ,      rate = d logsnr/dΛ = 1 + c σ/α

    For a process that ends with signal c is 0, and Λ is log-SNR. Where no signal is left log-SNR is −∞, but integrands
    such as E‖ε − ε̂‖² fall like (α/σ)²: there c is 0.01, Λ ends at 2 log c, and h rate is bounded. α/σ = 10⁻⁶ stands for
    less.

    Args:
        sde: The forward process.
    """

    sde: SDE

    def at(self, t: Tensor) -> Tensor:
        """Λ at times t, in t's dtype."""
        return 2 * (self._ratio(t) + FAINT).log() if self.sde.ends_silent else self.sde.logsnr(t)

    def time(self, value: Tensor) -> Tensor:
        """The time at which Λ has a value."""
        if self.sde.ends_silent:
            value = value + 2 * torch.log1p(-(FAINT * torch.exp(-0.5 * value)).clamp_max(1))
        return self.sde.time(value)

    def rate(self, t: Tensor) -> Tensor:
        """d logsnr/dΛ, shape of t."""
        return 1 + FAINT / self._ratio(t) if self.sde.ends_silent else torch.ones_like(t)

    def _ratio(self, t: Tensor) -> Tensor:
        return (self.sde.alpha(t) / self.sde.sigma(t)).clamp_min(LEAST)


def last_signal(sde: SDE) -> float:
    """The last time with α/σ ≥ 10⁻³ of a process that ends without signal; 1 for one that ends with some."""
    if not sde.ends_silent:
        return 1.0
    return float(sde.time(2 * torch.tensor(FAINTEST, dtype=torch.float64).log()))


def nearest_signal(sde: SDE, x: Tensor, level: Level, last: float) -> tuple[Tensor, Level]:
    """x (B, *) and its level; from where there is less signal than at `last_signal`, the same x/σ at that level."""
    if last == 1 or (not isinstance(level.alpha, Tensor) and level.alpha >= FAINTEST * level.sigma):
        return x, level
    near = type(level).at(sde, level.time.double().clamp(max=last), x)
    return near.sigma / level.sigma * x, near
