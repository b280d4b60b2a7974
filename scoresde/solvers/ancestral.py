"""First-order updates: Euler-Maruyama, reverse diffusion, DDPM ancestral sampling, DDIM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import SDE, expand
from scoresde.solvers.base import StepSolver
from scoresde.solvers.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(StepSolver):
    """Euler-Maruyama for the reverse SDE, and for the family between it and the probability-flow ODE.

        x_s = x − (f x − ½ (1 + η²) g² score) (t − s) + η g √(t − s) z          (Song et al. 2021, eq. 6 and 13)

    Args:
        eta: η: 1 is the reverse SDE, 0 Euler's method for the probability-flow ODE.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self, self.eta)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        sde, g, dt = denoiser.sde, denoiser.sde.g(t), t - s
        push = expand(0.5 * (1 + self.eta**2) * g.square() * dt, x)
        x_s = x - expand(dt, x) * sde.drift(x, t) + push * denoiser.score(x, t)
        if self.eta:
            x_s = x_s + expand(self.eta * g * dt.sqrt(), x) * noise(t, s)
        return x_s, None


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(StepSolver):
    """Reverse of the forward process's own discretisation.

        x_t = a x_s + b z  forward, the exact transition from s to t
        x_s = (2 − a) x_t + ½ (1 + η²) b² score + η b z                        (Song et al. 2021, App. E)

    On a `DiscreteVPSDE`, a = √(1 − β_k) and b = √β_k.

    Args:
        eta: η: 1 samples, 0 follows the probability flow.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self, self.eta)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        a, b = denoiser.sde.transition(s, t)
        push = expand(0.5 * (1 + self.eta**2) * b.square(), x)
        x_s = expand(2 - a, x) * x + push * denoiser.score(x, t)
        if self.eta:
            x_s = x_s + expand(self.eta * b, x) * noise(t, s)
        return x_s, None


@dataclass(frozen=True, kw_only=True)
class DDPM(StepSolver):
    """Ancestral sampling from q(x_s | x_t, x0 = x̂0).

        mean = α_s (1 − r) x̂0 + (α_t σ_s²)/(α_s σ_t²) x_t,         r = SNR_t / SNR_s      (Ho et al. 2020, eq. 7)
        β̃    = σ_s² (1 − r)                                         variance "small", the posterior's own
        β    = σ_t² (1 − r)                                         variance "large", the forward kernel's

    The step to σ_s = 0 adds no noise.

    Args:
        variance: "small" (optimal for a point mass x0) or "large" (optimal for x0 ~ N(0, I)).

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance not in ("small", "large"):
            raise ValueError(f"DDPM needs variance 'small' or 'large', got {self.variance!r}.")

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        sde = denoiser.sde
        sigma_t, sigma_s, kept = sde.sigma(t), sde.sigma(s), -torch.expm1(sde.logsnr(t) - sde.logsnr(s))
        keep_x = sde.alpha(t) / sde.alpha(s) * (sigma_s / sigma_t).square()
        mean = expand(sde.alpha(s) * kept, x) * denoiser(x, t) + expand(keep_x, x) * x

        std = (sigma_s if self.variance == "small" else sigma_t) * kept.sqrt()
        return mean + expand(torch.where(sigma_s > 0, std, 0), x) * noise(t, s), None


@dataclass(frozen=True, kw_only=True)
class DDIM(StepSolver):
    """Denoising diffusion implicit models.

        x_s = α_s x̂0 + √(σ_s² − λ²) ε̂ + λ z,      λ = η √β̃          (Song et al. 2021, eq. 12 and 16)

    η = 0 is deterministic, first order in log-SNR; η = 1 is `DDPM` with the small variance.

    Args:
        eta: η, from 0 to 1.

    References:
        Song et al., "Denoising Diffusion Implicit Models", 2021, arXiv:2010.02502.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self, self.eta)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        sde = denoiser.sde
        x0_hat = denoiser(x, t)
        eps = (x - expand(sde.alpha(t), x) * x0_hat) / expand(sde.sigma(t), x)
        lam = self.eta * posterior_std(sde, t, s)
        keep = (sde.sigma(s).square() - lam.square()).clamp_min(0).sqrt()
        x_s = expand(sde.alpha(s), x) * x0_hat + expand(keep, x) * eps
        if self.eta:
            x_s = x_s + expand(lam, x) * noise(t, s)
        return x_s, None


def posterior_std(sde: SDE, t: Tensor, s: Tensor) -> Tensor:
    """√β̃: the standard deviation of x_s given x_t and x0, s < t."""
    return sde.sigma(s) * (-torch.expm1(sde.logsnr(t) - sde.logsnr(s))).sqrt()


def check_eta(solver: StepSolver, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"{type(solver).__name__} needs 0 <= eta <= 1, got eta={eta}.")
