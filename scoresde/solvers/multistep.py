"""Second-order deterministic solvers: Heun and DPM-Solver++(2M)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.solvers.base import TabulatedSolver, linear
from scoresde.solvers.grids import Grid, karras_grid
from scoresde.solvers.levels import Levels
from scoresde.solvers.noise import NoiseSource


@dataclass(frozen=True, kw_only=True)
class Heun(TabulatedSolver):
    """Heun's method in the coordinates of EDM; second order, two network calls per step.

        d(x/α) = ε̂ d(σ/α)
        x_s/α_s = x_t/α_t + (σ_s/α_s − σ_t/α_t) ½ (ε̂(x_t, t) + ε̂(x'_s, s))              (Karras et al., Alg. 1)

    where x'_s is the Euler step.

    A step to σ_s = 0 is Euler's.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    deterministic: ClassVar[bool] = True

    steps: int = 18
    grid: Grid = karras_grid

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        scale = levels.alpha[1:] / levels.alpha[:-1]
        shift = levels.sigma[1:] - scale * levels.sigma[:-1]  # α_s (σ_s/α_s − σ_t/α_t)
        return scale, shift, torch.where(levels.sigma[1:] > 0, 0.5 * shift, 0)

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: None
    ) -> tuple[Tensor, None]:
        scale, shift, half = row
        eps = denoiser.eps(x, t)
        x_s = linear((scale, x), (shift, eps))
        if not _is_zero(half):
            x_s = x_s + half * (denoiser.eps(x_s, s) - eps)
        return x_s, None


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(TabulatedSolver):
    """Second-order multistep DPM-Solver++; deterministic, one network call per step.

        D   = x̂0(x_t) + h / (2 h') (x̂0(x_t) − x̂0')               h = λ_s − λ_t,  λ = ½ logsnr
        x_s = σ_s/σ_t x_t − α_s (e^(−h) − 1) D                     (Lu et al. 2022, Algorithm 2)

    where primes are the previous step's values; the first step has D = x̂0 (first order), and so has a step to σ_s = 0.
    Good at 10-30 steps.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    deterministic: ClassVar[bool] = True

    steps: int = 20
    grid: Grid = karras_grid

    @property
    def memory(self) -> int:
        return 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        h = levels.lam.diff(dim=0)
        earlier = torch.cat([torch.full_like(h[:1], float("inf")), h[:-1]])
        ratio = torch.where(torch.isfinite(h), h / (2 * earlier), 0)
        gain = -levels.alpha[1:] * torch.expm1(-h)
        return levels.sigma[1:] / levels.sigma[:-1], gain * (1 + ratio), -gain * ratio

    def update(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        row: tuple[Any, ...],
        noise: NoiseSource,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        keep, now, before = row
        x0_hat = denoiser(x, t)
        x_s = linear((keep, x), (now, x0_hat)) if state is None else linear((keep, x), (now, x0_hat), (before, state))
        return x_s, x0_hat


def _is_zero(value: Any) -> bool:
    return value == 0 if isinstance(value, float) else bool((value == 0).all())
