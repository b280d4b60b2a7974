"""Moment matching: the Gaussian approximation of p(x0 | x_t), conditioned on a measurement."""

from __future__ import annotations

from torch import Tensor

from scoresde.checks import check_numbers, check_whole
from scoresde.denoiser import Denoiser
from scoresde.inverse.linearised import Linearised
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.posterior_denoiser import Estimate, PosteriorDenoiser


class MMPS(PosteriorDenoiser):
    """Moment matching posterior sampling: p(x0 | x_t) ≈ N(x̂0, C), with C from the denoiser's Jacobian.

        score' = score + ∇ log N(y; A x̂0, A C Aᵀ + Σ_y)                          (Rozet et al. 2024, eq. 17)
        x̂0'    = x̂0 + C Aᵀ (A C Aᵀ + Σ_y)⁻¹ (y − A x̂0),      C = Cov[x0 | x_t] = σ²/α Jᵀ,   J = ∂x̂0/∂x

    The posterior mean of that Gaussian, exact for a Gaussian prior; the derivative of C is left out. The system is
    solved by conjugate gradients, with step sizes per sample. A that is not linear is linearised at x̂0.

    The Jacobian of a network is not quite symmetric: the iterations of a sample end where that shows, before they lead
    far from the first ones.

    A call costs one forward pass of the denoiser and one backward pass per iteration. As many iterations as y has
    entries solve the system; with fewer, the directions of large A C Aᵀ + Σ_y come first. With 2 or 4 entries of y
    one iteration costs a factor of 2 to 4 in the distance to the posterior.

    Args:
        denoiser: The prior.
        measurement: y, A and the noise, whose covariance is taken at A(x̂0).
        iterations: Of conjugate gradients; None: as many as y has entries, at most 8.
        tolerance: They stop at this part of ‖y − A x̂0‖.

    References:
        Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization", 2024, arXiv:2405.13712.
    """

    def __init__(
        self, denoiser: Denoiser, measurement: Measurement, iterations: int | None = None, tolerance: float = 1e-8
    ) -> None:
        super().__init__(denoiser, measurement)
        check_whole(self, "1 <= iterations or null", iterations=iterations)
        check_numbers(self, "0 <= tolerance < 1", tolerance=tolerance)
        self.iterations, self.tolerance = iterations, tolerance

    def shift(self, estimate: Estimate, near: Linearised) -> Tensor:
        return near.conditioned(estimate.covariance, self.iterations, self.tolerance)

    def _with(self, denoiser: Denoiser, measurement: Measurement) -> Denoiser:
        return MMPS(denoiser, measurement, self.iterations, self.tolerance)
