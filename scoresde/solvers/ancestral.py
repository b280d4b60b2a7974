"""First-order updates: Euler-Maruyama, reverse diffusion, DDPM ancestral sampling, DDIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from scoresde.covariance.reverse_variance import (
    check_variance,
    checked_clipping,
    mean_and_std,
    noise_limit,
    posterior_std,
    removed,
    require_spread,
    variance_columns,
)
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Levels
from scoresde.solvers.base import Plan
from scoresde.solvers.tabulated import TabulatedSolver, linear


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(TabulatedSolver):
    """Euler-Maruyama for the reverse SDE, and for the family between it and the probability-flow ODE.

        x_s = x − (f x − ½ (1 + η²) g² score) (t − s) + η g √(t − s) z          (Song et al. 2021, eq. 6 and 13)

    Args:
        eta: η: 1 is the reverse SDE, 0 Euler's method for the probability-flow ODE.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    lands: ClassVar[bool] = False

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self, self.eta)

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        t, dt = levels.t[:-1], levels.t[:-1] - levels.t[1:]
        g = levels.sde.g(t)
        return 1 - dt * levels.sde.f(t), 0.5 * (1 + self.eta**2) * g.square() * dt, self.eta * g * dt.sqrt()

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        keep, push, std = row
        return with_noise(linear((keep, x), (push, denoiser.score(x, t))), std, self.eta, noise, t, s), None


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(TabulatedSolver):
    """Reverse of the forward process's own discretisation.

        x_t = a x_s + b z  forward, the exact transition from s to t
        x_s = (2 − a) x_t + ½ (1 + η²) b² score + η b z                        (Song et al. 2021, App. E)

    On a `DiscreteVPSDE`, a = √(1 − β_k) and b = √β_k.

    Args:
        eta: η: 1 samples, 0 follows the probability flow.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    lands: ClassVar[bool] = False

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self, self.eta)

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        a, b = levels.sde.transition(levels.t[1:], levels.t[:-1])
        return 2 - a, 0.5 * (1 + self.eta**2) * b.square(), self.eta * b

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        keep, push, std = row
        return with_noise(linear((keep, x), (push, denoiser.score(x, t))), std, self.eta, noise, t, s), None


@dataclass(frozen=True, kw_only=True)
class DDPM(TabulatedSolver):
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
        check_variance(self, self.variance, ("small", "large", "optimal", "learned"))
        object.__setattr__(self, "clip_denoised", checked_clipping(self, self.clip_denoised, self.clip_last_noise))

    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        require_spread(denoiser, self.variance)
        return super().plan(denoiser, device=device, backward=backward)

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        alpha_t, alpha_s, sigma_t, sigma_s = _ends(levels)
        keep_x, keep_x0 = alpha_t / alpha_s * (sigma_s / sigma_t).square(), alpha_s * removed(levels)
        limit = noise_limit(levels, self.clip_denoised, self.clip_last_noise)
        return keep_x, keep_x0, *variance_columns(levels, self.variance, 1.0, limit)

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        keep_x, keep_x0, *spread = row
        x0_hat, std = mean_and_std(denoiser, x, t, self.variance, *spread)
        mean = linear((keep_x, x), (keep_x0, _clipped(x0_hat, self.clip_denoised)))
        return with_noise(mean, std, 1.0, noise, t, s), None


@dataclass(frozen=True, kw_only=True)
class DDIM(TabulatedSolver):
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

    eta: float = 0.0
    variance: str = "small"
    clip_denoised: tuple[float, float] | None = None
    clip_last_noise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self, self.eta)
        check_variance(self, self.variance, ("small", "optimal"))
        object.__setattr__(self, "clip_denoised", checked_clipping(self, self.clip_denoised, self.clip_last_noise))

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        return self.eta == 0 and self.variance == "small"

    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        require_spread(denoiser, self.variance)
        return super().plan(denoiser, device=device, backward=backward)

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        alpha_t, alpha_s, sigma_t, sigma_s = _ends(levels)
        lam = self.eta * posterior_std(levels)
        keep = (sigma_s.square() - lam.square()).clamp_min(0).sqrt() / sigma_t  # of x, through ε̂ = (x − α x̂0)/σ
        limit = noise_limit(levels, self.clip_denoised, self.clip_last_noise)
        return keep, alpha_s, keep * alpha_t, *variance_columns(levels, self.variance, self.eta, limit)

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        keep_x, keep_x0, drop_x0, *spread = row
        x0_hat, std = mean_and_std(denoiser, x, t, self.variance, *spread)
        if self.clip_denoised is None:
            mean = linear((keep_x, x), (keep_x0 - drop_x0, x0_hat))
        else:
            mean = linear((keep_x, x), (keep_x0, _clipped(x0_hat, self.clip_denoised)), (-drop_x0, x0_hat))
        return with_noise(mean, std, 0.0 if self.deterministic else 1.0, noise, t, s), None


def with_noise(mean: Tensor, std: Any, eta: float, noise: NoiseSource, t: Tensor, s: Tensor) -> Tensor:
    """mean + std z; nothing is drawn if there is no noise to add. Uses up `mean`."""
    if not eta or (isinstance(std, float) and std == 0):
        return mean
    z = noise(t, s)
    return mean.add_(z, alpha=std) if isinstance(std, float) else mean + std * z


def _ends(levels: Levels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return levels.alpha[:-1], levels.alpha[1:], levels.sigma[:-1], levels.sigma[1:]


def check_eta(solver: TabulatedSolver, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{type(solver).__name__} needs 0 <= eta <= 1, got eta={eta}.")


def _clipped(x0_hat: Tensor, limits: tuple[float, float] | None) -> Tensor:
    return x0_hat if limits is None else x0_hat.clamp(*limits)
