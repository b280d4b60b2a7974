"""Closed-form processes: VP, sub-VP, VE, EDM, cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.sde.base import SDE


@dataclass(frozen=True, kw_only=True)
class VPSDE(SDE):
    """Variance-preserving SDE, the continuous limit of DDPM.

        dx  = -½ β(t) x dt + √β(t) dw                              (Song et al. 2021, eq. 11)
        α_t = e^(−B(t)/2)
        σ_t = √(1 − e^(−B(t)))
        β(t) = beta_min + (beta_max − beta_min) t,   B(t) = ∫₀ᵗ β

    Args:
        beta_min: β(0), positive.
        beta_max: β(1), larger than beta_min.
        t_min: Numerical end of the data side.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    prior_std = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "0 < beta_min < beta_max <= 1000", "0 < t_min < 1")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._B(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._B(t)))

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta(t))

    def logsnr(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._B(t)).log()

    def time(self, logsnr: Tensor) -> Tensor:
        B = torch.nn.functional.softplus(-logsnr)  # the root below has no cancellation
        return 2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B))

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _B(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()


@dataclass(frozen=True, kw_only=True)
class SubVPSDE(SDE):
    """Sub-variance-preserving SDE: VP drift with a smaller diffusion.

        dx  = -½ β(t) x dt + √(β(t) (1 − e^(−2B(t)))) dw          (Song et al. 2021, §3.4)
        α_t = e^(−B(t)/2)
        σ_t = 1 − e^(−B(t))
        β(t) = beta_min + (beta_max − beta_min) t,   B(t) = ∫₀ᵗ β

    Its variance is below VP's at every t, which helps likelihoods.

    Args:
        beta_min: β(0), positive.
        beta_max: β(1), larger than beta_min.
        t_min: Numerical end of the data side.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    prior_std = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "0 < beta_min < beta_max <= 1000", "0 < t_min < 1")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._B(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._B(t))

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(-self._beta(t) * torch.expm1(-2 * self._B(t)))

    def time(self, logsnr: Tensor) -> Tensor:
        B = 2 * torch.asinh(0.5 * torch.exp(-0.5 * logsnr))  # σ/α = 2 sinh(B/2)
        return 2 * B / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B))

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _B(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()


@dataclass(frozen=True, kw_only=True)
class VESDE(SDE):
    """Variance-exploding SDE, the continuous limit of SMLD.

        dx  = σ_t √(2 log(sigma_max/sigma_min)) dw                 (Song et al. 2021, eq. 9)
        α_t = 1
        σ_t = sigma_min (sigma_max/sigma_min)^t

    σ_0 is sigma_min, not 0: data at t = 0 already carry that noise.

    Args:
        sigma_min: Smallest noise level, positive.
        sigma_max: Largest noise level; the greatest distance between two data points is a good choice.
        t_min: Numerical end of the data side.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Song and Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020, arXiv:2006.09011.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers(self, "0 < sigma_min < sigma_max <= 1e9", "0 < t_min < 1")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

    def time(self, logsnr: Tensor) -> Tensor:
        return (-0.5 * logsnr - math.log(self.sigma_min)) / self._log_ratio

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True, kw_only=True)
class EDMSDE(SDE):
    """The process of Karras et al., x_t = x_0 + σ_t ε, on a clock in which their sampling steps are uniform.

        α_t = 1
        σ_t = (sigma_min^(1/ρ) + t (sigma_max^(1/ρ) − sigma_min^(1/ρ)))^ρ       (Karras et al. 2022, eq. 5)

    Args:
        sigma_min: Smallest noise level, positive.
        sigma_max: Largest noise level.
        rho: ρ; larger values spend more time at small noise.
        t_min: Numerical end of the data side.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers(self, "0 < sigma_min < sigma_max <= 1e9", "0 < rho <= 1000", "0 < t_min < 1")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._root(t) ** self.rho

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        return self.sigma(t) * torch.sqrt(2 * self.rho * self._slope / self._root(t))

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * self.rho * self._root(t).log()

    def time(self, logsnr: Tensor) -> Tensor:
        return (torch.exp(-0.5 * logsnr / self.rho) - self.sigma_min ** (1 / self.rho)) / self._slope

    def _root(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 / self.rho) + t * self._slope

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _slope(self) -> float:
        return self.sigma_max ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)


@dataclass(frozen=True, kw_only=True)
class CosineSDE(SDE):
    """Variance-preserving process with the cosine schedule of Improved DDPM.

        α_t = cos θ_t / cos θ_0,   σ_t² = 1 − α_t²                 (Nichol and Dhariwal 2021, eq. 17)
        θ_t = θ_0 + t (θ_1 − θ_0),  θ_0 = s/(1+s) · π/2

    The published θ_1 = π/2 has α_1 = 0, where ε-prediction is undefined; θ_1 is the angle at which logsnr equals
    `logsnr_min` instead. The default −20 is where clipping β at 0.999 stops the published 1000-step table
    (ᾱ = 2.4e-9), and moves the clock by 3e-5.

    Args:
        s: Offset that keeps β small near the data.
        logsnr_min: logsnr at t = 1.
        t_min: Numerical end of the data side.

    References:
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
    """

    s: float = 0.008
    logsnr_min: float = -20.0
    t_min: float = 1e-5
    prior_std = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "0 < s < 1", "-60 < logsnr_min < 0", "0 < t_min < 1")

    def alpha(self, t: Tensor) -> Tensor:
        # cos θ as a sine of the small angle π/2 − θ: exact digits near t = 1
        return torch.sin((math.pi / 2 - self._theta1) + (1 - t) * self._span) / math.cos(self._theta0)

    def sigma(self, t: Tensor) -> Tensor:
        # cos²θ_0 − cos²θ = sin(θ − θ_0) sin(θ + θ_0)
        turn = t * self._span
        return torch.sqrt(torch.sin(turn) * torch.sin(2 * self._theta0 + turn)) / math.cos(self._theta0)

    def f(self, t: Tensor) -> Tensor:
        return -self._span / torch.tan((math.pi / 2 - self._theta1) + (1 - t) * self._span)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(-2 * self.f(t))

    def time(self, logsnr: Tensor) -> Tensor:
        wide = logsnr.double()
        variance = torch.sigmoid(-wide)
        sine = torch.sqrt(math.sin(self._theta0) ** 2 + math.cos(self._theta0) ** 2 * variance)
        theta = torch.atan2(sine, math.cos(self._theta0) * torch.sigmoid(wide).sqrt())
        # near t = 0 the difference of angles cancels; sin(θ − θ_0) = cos²θ_0 σ² / sin(θ + θ_0) does not
        turn = torch.asin((math.cos(self._theta0) ** 2 * variance / torch.sin(theta + self._theta0)).clamp(-1, 1))
        turn = torch.where(variance < 0.5, turn, theta - self._theta0)
        return (turn / self._span).to(logsnr.dtype)

    def _theta(self, alpha: float) -> float:
        return math.pi / 2 - math.asin(alpha * math.cos(self._theta0))

    @property
    def _theta0(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    @property
    def _theta1(self) -> float:
        return self._theta(math.sqrt(1 / (1 + math.exp(-self.logsnr_min))))

    @property
    def _span(self) -> float:
        return self._theta1 - self._theta0
