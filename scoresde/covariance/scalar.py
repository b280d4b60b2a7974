"""Analytic-DPM: one variance for all entries, from the second moment of the score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.covariance.covariance_denoiser import CovarianceDenoiser, DataRange
from scoresde.covariance.moments import SecondMoment, interpolate
from scoresde.denoiser import Denoiser
from scoresde.sde import expand


class AnalyticVariance(CovarianceDenoiser):
    """A denoiser with the best variance that is the same for all entries and all x.

        tr E Cov[x0 | x_t] / d = (σ²/α²)(1 − E‖ε̂‖²/d)               (Bao et al. 2022, Theorem 1)

    The second factor is interpolated linearly in logsnr; with more noise than in the table, the variance stays. With
    `corrected`, it is E‖ε − ε̂‖²/d: the mean squared error of x̂0 as it is, which for an inexact x̂0 is more than the
    covariance, and which is the variance that maximises the bound on the likelihood.

    Args:
        denoiser: Gives x̂0.
        moments: The table of `second_moment`.
        data_range: (low, high) of the data, (−1, 1) for images; None leaves out the upper bound.
        corrected: Use the error of x̂0 instead of the covariance.

    References:
        Bao et al., "Analytic-DPM", 2022, arXiv:2201.06503.
        Bao et al., "Estimating the Optimal Covariance with Imperfect Mean", 2022, arXiv:2206.07309.
    """

    logsnr: Tensor
    share: Tensor

    def __init__(
        self, denoiser: Denoiser, moments: SecondMoment, data_range: DataRange | None = None, *, corrected: bool = False
    ) -> None:
        super().__init__(denoiser, data_range)
        self.register_buffer("logsnr", moments.logsnr.double())
        self.register_buffer("share", (moments.error if corrected else 1 - moments.value).double())

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self.denoiser(x, t, **cond), expand(self.at(t), x)

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return expand(self.at(t), x)  # needs no call of the denoiser

    def at(self, t: Tensor) -> Tensor:
        """The variance at times t, in float64."""
        logsnr = self.sde.logsnr(t.double()).to(self.logsnr.device)
        known = logsnr.clamp_min(self.logsnr[-1])
        return self.bounded(torch.exp(-known) * interpolate(known, self.logsnr, self.share))
