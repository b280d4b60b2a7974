"""The noise levels that a run visits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scoresde.sde.base import SDE


@dataclass(frozen=True)
class Levels:
    """Noise levels in the order in which a run visits them, in float64; every tensor has shape (n, ...).

    Args:
        sde: The forward process.
        t, alpha, sigma: Times and their coefficients.
        lam: λ = log(α/σ) = ½ logsnr; infinite where σ is 0.
    """

    sde: SDE
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lam: Tensor

    @classmethod
    def of(cls, sde: SDE, times: Tensor) -> Levels:
        return cls(sde, times, sde.alpha(times), sde.sigma(times), 0.5 * sde.logsnr(times))

    def __len__(self) -> int:
        return len(self.t)

    @property
    def ratio(self) -> Tensor:
        """σ/α: the noise level of x/α."""
        return self.sigma / self.alpha

    def landed(self) -> Levels:
        """With one more level at the end: the data themselves, α = 1 and σ = 0."""

        def append(values: Tensor, value: float) -> Tensor:
            return torch.cat([values, torch.full_like(values[-1:], value)])

        return replace(
            self,
            t=torch.cat([self.t, self.t[-1:]]),
            alpha=append(self.alpha, 1.0),
            sigma=append(self.sigma, 0.0),
            lam=append(self.lam, float("inf")),
        )

    def scaled(self, std: float) -> Levels:
        """For data divided by `std`: unit data with noise σ/std."""
        return replace(self, sigma=self.sigma / std, lam=self.lam + math.log(std))
