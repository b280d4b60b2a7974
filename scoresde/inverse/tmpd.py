"""TMPD: the covariance of what is measured by its row sums."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.inverse.linearised import Linearised
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.posterior_denoiser import Estimate, PosteriorDenoiser


class TMPD(PosteriorDenoiser):
    """Tweedie moment projected diffusion, the diagonal form: A C Aᵀ is replaced by its row sums.

        x̂0' = x̂0 + C Aᵀ (y − A x̂0) / (A C Aᵀ 1 + Σ_y 1),      C = Cov[x0 | x_t] = σ²/α Jᵀ      (Boys et al. 2023, §3)

    Right where A C Aᵀ is diagonal: a mask of data with independent entries. The row sums of a dense A are no variances:
    they may be near 0 or below, and the quotient explodes. Sums below 0 count as 0 here, which keeps its sign and not
    its size; `MMPS` solves the system instead. A call costs one forward and two backward passes.

    Args:
        denoiser: The prior.
        measurement: y, A and the noise, of which the row sums of Σ_y are used too.

    References:
        Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", 2023, arXiv:2310.06721.
    """

    def shift(self, estimate: Estimate, near: Linearised) -> Tensor:
        ones = torch.ones_like(near.residual)
        variance = near.times(estimate.covariance(near.adjoint(ones))).clamp_min(0) + near.noise(ones)
        weighted = torch.where(variance > 0, near.residual / torch.where(variance > 0, variance, 1), 0)
        return estimate.covariance(near.adjoint(weighted))

    def _with(self, denoiser: Denoiser, measurement: Measurement) -> Denoiser:
        return TMPD(denoiser, measurement)
