"""Second-order deterministic solvers: Heun and DPM-Solver++(2M)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import expand
from scoresde.solvers.base import StepSolver
from scoresde.solvers.grids import Grid, karras_grid
from scoresde.solvers.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class Heun(StepSolver):
    """Heun's method in the coordinates of EDM; second order, two network calls per step.

        d(x/α) = ε̂ d(σ/α)
        x_s/α_s = x_t/α_t + (σ_s/α_s − σ_t/α_t) ½ (ε̂(x_t, t) + ε̂(x'_s, s))              (Karras et al., Alg. 1)

    where x'_s is the Euler step.

    A step to σ_s = 0 is Euler's.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    steps: int = 18
    grid: Grid = karras_grid

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        sde = denoiser.sde
        scale = sde.alpha(s) / sde.alpha(t)
        shift = sde.sigma(s) - scale * sde.sigma(t)  # α_s (σ_s/α_s − σ_t/α_t)

        eps = denoiser.eps(x, t)
        x_s = expand(scale, x) * x + expand(shift, x) * eps
        if bool((sde.sigma(s) > 0).all()):
            x_s = x_s + expand(0.5 * shift, x) * (denoiser.eps(x_s, s) - eps)
        return x_s, None


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(StepSolver):
    """Second-order multistep DPM-Solver++; deterministic, one network call per step.

        D   = x̂0(x_t) + h / (2 h') (x̂0(x_t) − x̂0')               h = λ_s − λ_t,  λ = ½ logsnr
        x_s = σ_s/σ_t x_t − α_s (e^(−h) − 1) D                     (Lu et al. 2022, Algorithm 2)

    where primes are the previous step's values; the first step has D = x̂0 (first order), and so has a step to σ_s = 0.
    Good at 10-30 steps.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    steps: int = 20
    grid: Grid = karras_grid

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: NoiseSource,
        state: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        sde = denoiser.sde
        h = (sde.logsnr(s) - sde.logsnr(t)) / 2

        x0_hat = denoiser(x, t)
        if state is None:
            d = x0_hat
        else:
            x0_hat_prev, h_prev = state
            ratio = torch.where(torch.isfinite(h), h / (2 * h_prev), 0)
            d = x0_hat + expand(ratio, x) * (x0_hat - x0_hat_prev)

        x_s = expand(sde.sigma(s) / sde.sigma(t), x) * x - expand(sde.alpha(s) * torch.expm1(-h), x) * d
        return x_s, (x0_hat, h)
