"""Denoisers conditioned on a differentiable log p(y | x_t)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.guidance.gradients import gradient
from scoresde.guidance.potential import on_process
from scoresde.sde.clock import last_signal, nearest_signal
from scoresde.sde.levels import Level

LogProbability = Callable[[Tensor, Tensor], Tensor]  # (x (B, *), t () or (B,)) -> log p(y | x_t = x) (B,)


class ClassifierGuided(Denoiser):
    """A denoiser conditioned on y through any differentiable log p(y | x_t).

        score = score(x) + scale ∇ₓ log p(y | x_t = x)          (Dhariwal and Nichol 2021, eq. 14)
        x̂0    = x̂0(x) + scale σ²/α ∇ₓ log p(y | x_t = x)

    With scale 1 and the exact likelihood this is the exact posterior denoiser E[x0 | x_t, y]. Where a process ends
    without signal, 1/α times the gradient is ∞ · 0: the gradient is then that at α/σ = 10⁻³, at the same x/σ, for all
    levels with less signal, which is off by 10⁻³.

    Args:
        denoiser: The prior.
        log_prob: Called as log_prob(x, t) -> (B,); log p(y | x_t) up to a constant. It must see noisy data. A
            `Potential` of another process is asked at equal σ/α.
        scale: Guidance scale.

    References:
        Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv:2105.05233.
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456, eq. 14.
    """

    def __init__(self, denoiser: Denoiser, log_prob: LogProbability, scale: float = 1.0) -> None:
        super().__init__()
        _check_scale(self, scale)
        self.sde, self.denoiser, self.scale = denoiser.sde, denoiser, scale
        self.log_prob = on_process(log_prob, self.sde)
        self.last = last_signal(self.sde)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.x0(x, level, **cond) + self._shift(x, level)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return _shifted_v(self.denoiser.v_at(x, level, **cond), self._shift(x, level), level)

    @differentiates
    def _shift(self, x: Tensor, level: Level) -> Tensor:
        """Of x̂0."""
        x, near = nearest_signal(self.sde, x, level, self.last)
        slope = gradient(lambda x: self.log_prob(x, near.time), x, "ClassifierGuided")
        return self.scale * near.sigma**2 / near.alpha * slope


class ReconstructionGuided(Denoiser):
    """A denoiser conditioned on a measurement through the likelihood of its own x̂0.

        x̂0' = x̂0 + scale σ²/α ∇ₓ log p(y | x̂0(x))             (Chung et al. 2023, eq. 15-16)

    Replaces p(y | x_t) = E[p(y | x0) | x_t] by the likelihood at the mean, which is too sharp where Cov[x0 | x_t] is
    not small. The gradient passes through the network. Where a process ends without signal, all is asked at
    α/σ = 10⁻³, at the same x/σ, for levels with less.

    Args:
        denoiser: The prior.
        log_likelihood: Called as log_likelihood(x0_hat) -> (B,).
        scale: Guidance scale.

    References:
        Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv:2209.14687.
    """

    def __init__(self, denoiser: Denoiser, log_likelihood: Callable[[Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        _check_scale(self, scale)
        self.sde, self.denoiser, self.log_likelihood, self.scale = denoiser.sde, denoiser, log_likelihood, scale
        self.last = last_signal(self.sde)

    @differentiates
    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        x, level = nearest_signal(self.sde, x, level, self.last)
        kept: list[Tensor] = []

        def potential(x: Tensor) -> Tensor:
            kept.append(self.denoiser.x0(x, level, **cond))
            return self.log_likelihood(kept[0])

        slope = gradient(potential, x, "ReconstructionGuided")
        x0_hat = kept[0] if torch.is_grad_enabled() else kept[0].detach()
        return x0_hat + self.scale * level.sigma**2 / level.alpha * slope


def _shifted_v(v: Tensor, shift: Tensor, level: Level) -> Tensor:
    """v̂ of a denoiser whose x̂0 is moved by a shift: v = α ε − σ x0 = (α x − (α² + σ²) x0)/σ."""
    return v - (level.alpha**2 + level.sigma**2) / level.sigma * shift


def _check_scale(guided: Denoiser, scale: float) -> None:
    if not isinstance(scale, Tensor):  # a tensor may hold one scale per sample
        check_numbers(guided, "-inf < scale < inf", scale=scale)
