"""ΠGDM: one variance for all directions of x0."""

from __future__ import annotations

from torch import Tensor

from scoresde.checks import check_numbers, check_whole
from scoresde.denoiser import Denoiser
from scoresde.inverse.linearised import CHEAP, Linearised
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.posterior_denoiser import Estimate, PosteriorDenoiser


class PiGDM(PosteriorDenoiser):
    """Pseudo-inverse guided diffusion: p(x0 | x_t) ≈ N(x̂0, r² I).

        score' = score + Jᵀ Aᵀ (r² A Aᵀ + Σ_y)⁻¹ (y − A x̂0),     r² = σ²/(σ² + α²)     (Song et al. 2023, eq. 7 and 8)
        x̂0'    = x̂0 + σ²/α Jᵀ Aᵀ (r² A Aᵀ + Σ_y)⁻¹ (y − A x̂0),    J = ∂x̂0/∂x

    r² is Cov[x0 | x_t] of data from N(0, I); of data from N(0, std² I) it is std² σ²/(σ² + α² std²). The paper's
    sampler weighs the gradient by a number of its steps; this is the score that it derives, for any solver. Without
    noise the middle is that of the pseudo-inverse, (r² A Aᵀ)⁻¹.

    A call costs one forward and one backward pass of the denoiser; the system is solved with A alone.

    Args:
        denoiser: The prior.
        measurement: y, A and the noise.
        std: Of the data.
        iterations: Of conjugate gradients; None: as many as y has entries, at most 64.
        tolerance: They stop at this part of ‖y − A x̂0‖.

    References:
        Song et al., "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        std: float = 1.0,
        iterations: int | None = None,
        tolerance: float = 1e-8,
    ) -> None:
        super().__init__(denoiser, measurement)
        check_numbers(self, "0 < std <= 1e9", std=std)
        check_numbers(self, "0 <= tolerance < 1", tolerance=tolerance)
        check_whole(self, "1 <= iterations or null", iterations=iterations)
        self.std, self.iterations, self.tolerance = std, iterations, tolerance

    def shift(self, estimate: Estimate, near: Linearised) -> Tensor:
        alpha, sigma = estimate.level.alpha, estimate.level.sigma
        variance = self.std**2 * sigma**2 / (sigma**2 + alpha**2 * self.std**2)  # r²
        wanted = near.conditioned(
            lambda v: variance * v, self.iterations, self.tolerance, CHEAP
        )  # r² Aᵀ (...)⁻¹ (y − A x̂0)
        return estimate.covariance(wanted / variance)

    def _with(self, denoiser: Denoiser, measurement: Measurement) -> Denoiser:
        return PiGDM(denoiser, measurement, self.std, self.iterations, self.tolerance)
