"""Moment matching with a covariance that the denoiser knows."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser, KnowsFullCovariance
from scoresde.inverse.linearised import Linearised
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.posterior_denoiser import Estimate, PosteriorDenoiser


class GaussianPosterior(PosteriorDenoiser):
    """MMPS in closed form, for a denoiser that knows Cov[x0 | x_t]: the analytic ones.

        x̂0' = x̂0 + C Aᵀ (A C Aᵀ + Σ_y)⁻¹ (y − A x̂0),      C = Cov[x0 | x_t]

    Exact for a Gaussian prior, linear A and Gaussian noise. The same as the gradient form of `MMPS`, as
    C = σ²/α Jᵀ: no gradients, and one solution of a system with as many unknowns as y has entries.

    Args:
        denoiser: The prior; with `covariance(x, t)`.
        measurement: y, A and the noise.

    References:
        Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization", 2024, arXiv:2405.13712.
    """

    differentiable = False

    def __init__(self, denoiser: Denoiser, measurement: Measurement) -> None:
        super().__init__(denoiser, measurement)
        if not isinstance(denoiser, KnowsFullCovariance):
            raise TypeError(
                f"GaussianPosterior needs a denoiser with covariance(x, t), as the analytic ones have; got "
                f"{type(denoiser).__name__}. MMPS takes the covariance from the Jacobian of any denoiser."
            )

    def shift(self, estimate: Estimate, near: Linearised) -> Tensor:
        assert isinstance(self.denoiser, KnowsFullCovariance)
        c = self.denoiser.covariance(estimate.x, estimate.level.time, **estimate.cond).double()  # (B, d, d)
        a, noise = near.matrices()  # (B, m, d) and (B, m, m)
        ca = c @ a.mT
        gain = ca @ _inverse(a @ ca + noise)
        return (gain @ near.residual.double().flatten(1)[..., None]).reshape(estimate.x0.shape).to(estimate.x0.dtype)

    def _with(self, denoiser: Denoiser, measurement: Measurement) -> Denoiser:
        return GaussianPosterior(denoiser, measurement)


def _inverse(matrix: Tensor) -> Tensor:
    """Of covariances (B, m, m), without entries of variance 0; to rounding where exact measurements repeat."""
    scale = matrix.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(scale > 0, scale, 1).rsqrt()
    scaled = scale[..., :, None] * matrix * scale[..., None, :]
    rounding = 4 * torch.finfo(matrix.dtype).eps
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    silent = torch.diag_embed((matrix.diagonal(dim1=-2, dim2=-1) <= 0).to(matrix))
    factor = torch.linalg.cholesky_ex(scaled + silent + rounding * len(one) * one).L
    return scale[..., :, None] * torch.cholesky_solve(one.expand_as(factor), factor) * scale[..., None, :]
