"""Denoising diffusion implicit models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.covariance.reverse_variance import check_variance, limited_std, optimal
from scoresde.denoiser import Denoiser
from scoresde.sde.grids import Grid, balanced_grid
from scoresde.sde.levels import Interval
from scoresde.solvers.base import linear
from scoresde.solvers.mean_shift import GaussianStepSolver


@dataclass(frozen=True, kw_only=True)
class DDIM(GaussianStepSolver):
    """Denoising diffusion implicit models.

        x_s = α_s x̂0 + √(σ_s² − λ²) ε̂ + λ z,      λ = η √β̃          (Song et al. 2021, eq. 12 and 16)
        σ*² = λ² + (α_s − √(σ_s² − λ²) α_t/σ_t)² Cov[x0 | x_t]      variance "optimal", in place of λ² in front of z
                                                                    (Bao et al. 2022, Theorem 1)

    η = 0 is deterministic, first order in log-SNR; η = 1 is `DDPM` with the small variance. With the optimal variance
    there is noise at every η. The row "σ̂" in the paper's tables is `DDPM` with the large variance.

    Args:
        eta: η, from 0 to 1.
        variance: "small" is λ²; "optimal" needs a denoiser that knows its covariance, see `scoresde.covariance`.
        clip_denoised: (low, high) to which x̂0 is clipped, while ε̂ stays that of the unclipped x̂0; None does not clip.
        clip_last_noise: y, as for `DDPM`.

    References:
        Song et al., "Denoising Diffusion Implicit Models", 2021, arXiv:2010.02502.
        Bao et al., "Analytic-DPM", 2022, arXiv:2201.06503.
    """

    grid: Grid = balanced_grid
    eta: float = 0.0
    variance: str = "small"
    clip_denoised: tuple[float, float] | None = None
    clip_last_noise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= eta <= 1")
        check_variance(self, ("small", "optimal"))

    @property
    def deterministic(self) -> bool:
        return self.eta == 0 and self.variance == "small"

    def mean_and_std(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> tuple[Tensor, Any]:
        t, s = interval.t, interval.s
        std = self.eta * s.sigma * interval.removed**0.5 if self.eta else 0.0  # λ
        direction = (s.sigma**2 - std**2) ** 0.5 / t.sigma  # √(σ_s² − λ²) ε̂ = direction (x − α_t x̂0)
        gain = s.alpha - direction * t.alpha
        x0, std = (denoiser.x0(x, t), std) if self.variance == "small" else optimal(denoiser, x, interval, std, gain)
        x_s = linear((direction, x), (gain, x0))
        if self.clip_denoised is not None:
            x_s = x_s + s.alpha * (x0.clamp(*self.clip_denoised) - x0)
        if self.clip_last_noise is not None and interval.last_noise:
            std = limited_std(std, self.clip_last_noise, self.clip_denoised)
        return x_s, std
