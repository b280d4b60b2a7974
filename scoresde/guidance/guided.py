"""Denoisers conditioned on a differentiable log p(y | x_t)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_flag, check_numbers
from scoresde.denoiser import Denoiser
from scoresde.denoiser.dependence import asks_for_gradient
from scoresde.denoiser.inference_mode import differentiates
from scoresde.guidance.gradients import gradient, smallest
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

    @property
    def unguided(self) -> Denoiser:
        return self.denoiser.unguided

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

        x̂0' = x̂0 + v / (1 + h),     v = C g,   C = Cov[x0 | x_t] = σ²/α Jᵀ,   J = ∂x̂0/∂x
        g   = scale ∇ log p(y | x0 = x̂0),     h = vᵀ H v / gᵀ v,   H = −scale ∇² log p(y | x0 = x̂0)

    The most likely x0 along v, under N(x̂0, C) and the likelihood's second-order model: for a Gaussian likelihood one
    step of `MMPS`, exact if y is one number. With `plug_in` it is x̂0' = x̂0 + v (Chung et al. 2023, eq. 15-16), which
    puts p(y | x̂0) for p(y | x_t): too sharp wherever h is not small, so that x̂0' overshoots y by the factor 1 + h. Such
    a score is stiff, its law is too narrow, and only solvers with about 1000 small steps follow it, such as
    `EulerMaruyama`.

    One forward and one backward pass of the denoiser. Where a process ends without signal, all is asked at
    α/σ = 10⁻³, at the same x/σ, for levels with less.

    Args:
        denoiser: The prior.
        log_likelihood: Called as log_likelihood(x0_hat) -> (B,); differentiated twice, with `plug_in` once.
        scale: Power of the likelihood.
        plug_in: Whether to leave out h.

    References:
        Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv:2209.14687.
        Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization", 2024, arXiv:2405.13712.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_likelihood: Callable[[Tensor], Tensor],
        scale: float = 1.0,
        plug_in: bool = False,
    ) -> None:
        super().__init__()
        _check_scale(self, scale)
        check_flag(self, "plug_in", plug_in)
        self.sde, self.denoiser, self.log_likelihood, self.scale = denoiser.sde, denoiser, log_likelihood, scale
        self.plug_in, self.last = plug_in, last_signal(self.sde)

    @property
    def unguided(self) -> Denoiser:
        return self.denoiser.unguided

    @differentiates
    def narrowest(self, x: Tensor) -> float | None:
        """1/√(largest eigenvalue of H), by the power method at x0 = 0."""
        if isinstance(self.scale, Tensor) or self.plug_in:
            return None
        x0 = torch.zeros_like(x).requires_grad_()
        slope, v = gradient(self.log_likelihood, x0, "ReconstructionGuided", graph=True), torch.ones_like(x)
        for _ in range(4):
            curved = -self.scale * _derivative(slope, x0, v, True).detach()
            size = torch.linalg.vector_norm(curved.flatten(1), dim=1)
            v = curved / size.clamp_min(torch.finfo(x.dtype).tiny).reshape(-1, *[1] * (x.ndim - 1))
        return smallest(size.rsqrt())

    @differentiates
    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        x, level = nearest_signal(self.sde, x, level, self.last)
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            x0 = self.denoiser.x0(leaf, level, **cond)
            through = asks_for_gradient(x0, leaf, x)
            at = x0 if through else x0.detach().requires_grad_()
            slope = gradient(self.log_likelihood, at, "ReconstructionGuided", graph=through or not self.plug_in)
        g = self.scale * (slope if through else slope.detach())
        pulled = torch.autograd.grad(x0, leaf, g, create_graph=through)[0]
        v = level.sigma**2 / level.alpha * pulled
        if not self.plug_in:
            v = v / (1 + _sharpness(g, v, -self.scale * _derivative(slope, at, v, through)))
        return at + v if through else (x0 + v).detach()


def _derivative(slope: Tensor, x0: Tensor, v: Tensor, through: bool) -> Tensor:
    """∇² log p v, from ∇ log p; 0 of a linear one."""
    if not slope.requires_grad:
        return torch.zeros_like(v)
    try:
        return torch.autograd.grad(slope, x0, v, create_graph=through, materialize_grads=True)[0]
    except RuntimeError as error:
        raise RuntimeError(
            "ReconstructionGuided differentiates log_likelihood twice, and could not: with plug_in=True once is enough."
        ) from error


def _sharpness(g: Tensor, v: Tensor, curved: Tensor) -> Tensor:
    """h = vᵀ H v / gᵀ v of each sample; 0 where the likelihood curves upwards."""
    along, curvature = ((part * v).flatten(1).sum(1) for part in (g, curved))
    known = (along != 0) & (curvature > 0)
    h = torch.where(known, curvature / torch.where(known, along.abs(), 1), 0)
    return h.reshape(-1, *[1] * (v.ndim - 1))


def _shifted_v(v: Tensor, shift: Tensor, level: Level) -> Tensor:
    """v̂ of a denoiser whose x̂0 is moved by a shift: v = α ε − σ x0 = (α x − (α² + σ²) x0)/σ."""
    return v - (level.alpha**2 + level.sigma**2) / level.sigma * shift


def _check_scale(guided: Denoiser, scale: float) -> None:
    if not isinstance(scale, Tensor):  # a tensor may hold one scale per sample
        check_numbers(guided, "-inf < scale < inf", scale=scale)
