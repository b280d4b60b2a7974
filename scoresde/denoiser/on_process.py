"""A denoiser on the times of another process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser.denoiser import Denoiser, KnowsCovariance, KnowsFullCovariance
from scoresde.sde import SDE
from scoresde.sde.levels import Level, Levels


class OnProcess(Denoiser):
    """A denoiser of one process asked on another: `denoiser.on(sde)`.

        x = α x0 + σ ε on `sde`,   y = α' x0 + σ' ε on the denoiser's own process
        σ/α = σ'/α':   y = (α'/α) x,   x̂0(x) = x̂0'(y),   ε̂(x) = ε̂'(y)

    States at equal σ/α differ by a factor, so that nothing is lost. Beyond the levels of its own process the denoiser
    is asked at the nearer end of them:

        more noise than at its t = 1:    y = (σ'/σ) x,  x̂0 = x̂0'(y);  finite where α = 0
        less noise than at its t_min:    y = (α'/α) x,  the score of x/α is that at t_min:  ε̂ = (σ α'/(α σ')) ε̂'(y)

    Args:
        denoiser: What is asked; parameters are shared.
        sde: The process of the states that this one is given.
    """

    def __init__(self, denoiser: Denoiser, sde: SDE) -> None:
        super().__init__()
        self.denoiser, self.sde = denoiser, sde

    @staticmethod
    def of(denoiser: Denoiser, sde: SDE) -> OnProcess:
        """With the covariance of x0, if the denoiser knows it."""
        if isinstance(denoiser, KnowsFullCovariance):
            return _FullCovarianceOnProcess(denoiser, sde)
        return (_CovarianceOnProcess if isinstance(denoiser, KnowsCovariance) else OnProcess)(denoiser, sde)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        scale, of_x, of_x0, *_ = level.read("x0 on process", self, self._x0_coefficients)
        return of_x * x + of_x0 * self.denoiser.x0(scale * x, self._own(level), **cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        scale, of_x, of_eps = level.read("eps on process", self, self._eps_coefficients)
        return of_x * x + of_eps * self.denoiser.eps_at(scale * x, self._own(level), **cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        scale, of_x, of_v = level.read("v on process", self, self._v_coefficients)
        return of_x * x + of_v * self.denoiser.v_at(scale * x, self._own(level), **cond)

    def on(self, sde: SDE) -> Denoiser:
        return self.denoiser.on(sde)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        inner = self.denoiser.select(index, batch)
        return None if inner is None else type(self)(inner, self.sde)

    def _own(self, level: Level) -> Level:
        return level.mapped("own level", self, self._own_levels)

    def _own_levels(self, levels: Levels) -> Levels:
        """Those of the denoiser's process with the same σ/α, or its nearest ones."""
        own = self.denoiser.sde
        clean, noisy = own.logsnr(levels.t.new_tensor([own.t_min, 1.0])).unbind()
        wanted = torch.minimum(torch.maximum(2 * levels.lam, noisy), clean)
        t = own.time(wanted).clamp(own.t_min, 1)
        return Levels.of(own, torch.where(wanted == noisy, 1.0, t))

    def _matched(self, levels: Levels) -> tuple[Levels, Tensor, Tensor, Tensor, Tensor]:
        """Own levels, y/x, q = (σ'/α')/(σ/α) where that is below 1, r = 1/q where that is, and where r is below 1."""
        own = self._own_levels(levels)
        gap = (levels.lam - own.lam).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        scale = torch.where(gap < 0, own.sigma / levels.sigma, own.alpha / levels.alpha)
        return own, scale, torch.exp(gap.clamp_max(0)), torch.exp(-gap.clamp_min(0)), gap > 0

    def _x0_coefficients(self, levels: Levels) -> tuple[Tensor, ...]:
        """Scale of the state, of x and of the other x̂0 in x̂0; of 1 and of the other covariance in that of x0."""
        _, scale, _, r, cleaner = self._matched(levels)
        known = torch.where(cleaner, 1 - r.square(), 0)
        of_x = torch.where(cleaner, known / levels.alpha, 0)
        return scale, of_x, r.square(), torch.where(cleaner, known * levels.ratio.square(), 0), r**4

    def _eps_coefficients(self, levels: Levels) -> tuple[Tensor, ...]:
        _, scale, q, r, _ = self._matched(levels)
        return scale, (1 - q) / levels.sigma, q * r

    def _v_coefficients(self, levels: Levels) -> tuple[Tensor, ...]:
        """From v = α ε̂ − σ x̂0 on both sides."""
        own, scale, *_ = self._matched(levels)
        _, x_in_eps, eps_in_eps = self._eps_coefficients(levels)
        _, x_in_x0, x0_in_x0, *_ = self._x0_coefficients(levels)
        norm = own.alpha.square() + own.sigma.square()
        of_eps, of_x0 = levels.alpha * eps_in_eps / norm, levels.sigma * x0_in_x0 / norm
        of_x = levels.alpha * x_in_eps - levels.sigma * x_in_x0
        return scale, of_x + scale * (of_eps * own.sigma - of_x0 * own.alpha), of_eps * own.alpha + of_x0 * own.sigma


class _CovarianceOnProcess(OnProcess):
    """Cov[x0 | x_t] is the same at equal σ/α, and σ²/α² ∂x̂0/∂(x/α) below t_min."""

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.mean_and_covariance(x, t, **cond)[1]

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        level = Level.at(self.sde, t, x)
        scale, of_x, of_x0, of_one, of_cov = level.read("x0 on process", self, self._x0_coefficients)
        mean, covariance = self.denoiser.mean_and_covariance(scale * x, self._own(level).time, **cond)
        return of_x * x + of_x0 * mean, of_one + of_cov * covariance


class _FullCovarianceOnProcess(_CovarianceOnProcess):
    def covariance(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        level = Level.at(self.sde, t, x)
        scale, *_, of_one, of_cov = level.read("x0 on process", self, self._x0_coefficients)
        assert isinstance(self.denoiser, KnowsFullCovariance)
        covariance = self.denoiser.covariance(scale * x, self._own(level).time, **cond)
        of_one, of_cov = (torch.as_tensor(value).reshape(-1, 1, 1).to(covariance) for value in (of_one, of_cov))
        return of_one * torch.eye(covariance.shape[-1]).to(covariance) + of_cov * covariance
