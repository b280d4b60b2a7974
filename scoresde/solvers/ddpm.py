"""Ancestral sampling: DDPM, and the variances of Improved DDPM and Analytic-DPM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.covariance.reverse_variance import check_variance, learned_std, limited_std, optimal
from scoresde.denoiser import Denoiser
from scoresde.sde.levels import Interval
from scoresde.solvers.base import linear
from scoresde.solvers.mean_shift import GaussianStepSolver


@dataclass(frozen=True, kw_only=True)
class DDPM(GaussianStepSolver):
    """Ancestral sampling from q(x_s | x_t, x0 = x̂0).

        mean = α_s (1 − r) x̂0 + (α_t σ_s²)/(α_s σ_t²) x_t,         r = SNR_t / SNR_s      (Ho et al. 2020, eq. 7)
        β̃    = σ_s² (1 − r)                                         variance "small", the posterior's own
        β    = σ_t² (1 − r)                                         variance "large", the forward kernel's
        σ*²  = β̃ + (α_s (1 − r))² Cov[x0 | x_t]                     variance "optimal"    (Bao et al. 2022, Theorem 1)
        Σ    = β^v β̃^(1−v)                                          variance "learned"    (Nichol and Dhariwal, eq. 15)

    The step to σ_s = 0 adds no noise.

    Args:
        variance: "small" (optimal for a point mass x0), "large" (optimal for x0 ~ N(0, I)), "optimal" (of a denoiser
            that knows its covariance, see `scoresde.covariance`) or "learned" (of a `LearnedRange`).
        clip_denoised: (low, high) to which x̂0 is clipped, (−1, 1) for images; None does not clip.
        clip_last_noise: y: the last noise is on average at most y levels of 8 bits, E|σ z| ≤ y w, where w is 1/255 of
            the width of `clip_denoised`, or of 2; None does not limit it. Bao et al. use 1 and 2.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
        Bao et al., "Analytic-DPM", 2022, arXiv:2201.06503.
    """

    variance: str = "small"
    clip_denoised: tuple[float, float] | None = None
    clip_last_noise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variance(self, ("small", "large", "optimal", "learned"))

    def mean_and_std(self, denoiser: Denoiser, x: Tensor, interval: Interval) -> tuple[Tensor, Any]:
        t, s, removed = interval.t, interval.s, interval.removed  # 1 − r
        gain = s.alpha * removed
        std = (t if self.variance == "large" else s).sigma * removed**0.5 * (s.sigma > 0)  # √β or √β̃; none to noise 0
        if self.variance == "optimal":
            x0, std = optimal(denoiser, x, interval, std, gain)
        elif self.variance == "learned":
            x0, std = learned_std(denoiser, x, interval)
        else:
            x0 = denoiser.x0(x, t)
        x0 = x0 if self.clip_denoised is None else x0.clamp(*self.clip_denoised)
        mean = linear((gain, x0), (t.alpha / s.alpha * (s.sigma / t.sigma) ** 2, x))
        if self.clip_last_noise is not None and interval.last_noise:
            std = limited_std(std, self.clip_last_noise, self.clip_denoised)
        return mean, std
