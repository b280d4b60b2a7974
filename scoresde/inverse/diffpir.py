"""DiffPIR: x̂0 replaced by the proximal point of the measurement."""

from __future__ import annotations

from torch import Tensor

from scoresde.checks import check_numbers, check_whole
from scoresde.denoiser import Denoiser
from scoresde.inverse.linearised import CHEAP, Linearised
from scoresde.inverse.measurement import Measurement
from scoresde.inverse.posterior_denoiser import Estimate, PosteriorDenoiser


class DiffPIR(PosteriorDenoiser):
    """Plug-and-play restoration: half-quadratic splitting with the denoiser as the prior's step.

        x̂0' = argmin_x ½ (y − A x)ᵀ Σ_y⁻¹ (y − A x) + ½ λ α²/σ² ‖x − x̂0‖²             (Zhu et al. 2023, eq. 12a-13)
            = argmin_x ‖y − A x‖² + ρ ‖x − x̂0‖²,    ρ = λ σ_y² α²/σ²                   for Σ_y = σ_y² I
            = x̂0 + C Aᵀ (A C Aᵀ + Σ_y)⁻¹ (y − A x̂0),   C = σ²/(λ α²) I

    The last form has a limit without noise. λ = 1 takes x0 | x_t for N(x̂0, σ²/α² I), far too wide at high noise:
    samples are no draws from p(x0 | y). The paper's sampler is `DDIM` with this denoiser: its ζ, the share of fresh
    noise in x_s = α_s x̂0' + σ_s (√(1−ζ) ε̂ + √ζ z), is η² (1 − SNR_t/SNR_s); DDIM(eta=0) has ζ = 0.

    A call costs one forward pass of the denoiser and no gradients.

    Args:
        denoiser: The prior.
        measurement: y, A and the noise.
        strength: λ, of the prior against the measurement; the paper tunes it to the task.
        iterations: Of conjugate gradients in A alone; None: as many as y has entries, at most 64.
        tolerance: They stop at this part of ‖y − A x̂0‖.

    References:
        Zhu et al., "Denoising Diffusion Models for Plug-and-Play Image Restoration", 2023, arXiv:2305.08995.
    """

    differentiable = False

    def __init__(
        self,
        denoiser: Denoiser,
        measurement: Measurement,
        strength: float = 8.0,
        iterations: int | None = None,
        tolerance: float = 1e-8,
    ) -> None:
        super().__init__(denoiser, measurement)
        check_numbers(self, "0 < strength < inf", strength=strength)
        check_numbers(self, "0 <= tolerance < 1", tolerance=tolerance)
        check_whole(self, "1 <= iterations or null", iterations=iterations)
        self.strength, self.iterations, self.tolerance = strength, iterations, tolerance

    def shift(self, estimate: Estimate, near: Linearised) -> Tensor:
        variance = (estimate.level.sigma / estimate.level.alpha) ** 2 / self.strength
        return near.conditioned(lambda v: variance * v, self.iterations, self.tolerance, CHEAP)

    def _with(self, denoiser: Denoiser, measurement: Measurement) -> Denoiser:
        return DiffPIR(denoiser, measurement, self.strength, self.iterations, self.tolerance)
