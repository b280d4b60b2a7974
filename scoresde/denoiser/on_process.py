"""A denoiser on the times of another process."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

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
        own, at = self._matched(level)
        return at.x_in_x0 * x + at.x0_in_x0 * self.denoiser.x0(at.scale * x, own, **cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        own, at = self._matched(level)
        return at.x_in_eps * x + at.eps_in_eps * self.denoiser.eps_at(at.scale * x, own, **cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        own, at = self._matched(level)
        return at.x_in_v * x + at.v_in_v * self.denoiser.v_at(at.scale * x, own, **cond)

    def on(self, sde: SDE) -> Denoiser:
        return self.denoiser.on(sde)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        inner = self.denoiser.select(index, batch)
        return None if inner is None else type(self)(inner, self.sde)

    def _matched(self, level: Level) -> tuple[Level, _Matched]:
        """The denoiser's own level, and how its answers there are taken over."""
        own = level.mapped("own level", self, self._own_levels)
        columns = partial(_coefficients, own=own.schedule.levels)
        return own, _Matched(*level.read("on process", self, columns))

    def _own_levels(self, levels: Levels) -> Levels:
        """Those of the denoiser's process with the same σ/α, or its nearest ones."""
        own = self.denoiser.sde
        clean, noisy = own.logsnr(levels.t.new_tensor([own.t_min, 1.0])).unbind()
        wanted = torch.minimum(torch.maximum(2 * levels.lam, noisy), clean)
        t = own.time(wanted).clamp(own.t_min, 1)
        return Levels.of(own, torch.where(wanted == noisy, 1.0, t))


class _Matched(NamedTuple):
    """y/x, and what of x and of the denoiser's answer is in x̂0, ε̂, v and Cov[x0 | x_t]; of 1 in the covariance."""

    scale: Any
    x_in_x0: Any
    x0_in_x0: Any
    x_in_eps: Any
    eps_in_eps: Any
    x_in_v: Any
    v_in_v: Any
    one_in_cov: Any
    cov_in_cov: Any


def _coefficients(levels: Levels, *, own: Levels) -> _Matched:
    gap = (levels.lam - own.lam).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    cleaner, alpha, sigma = gap > 0, levels.alpha, levels.sigma
    scale = torch.where(gap < 0, own.sigma / sigma, own.alpha / alpha)
    q, r = torch.exp(gap.clamp_max(0)), torch.exp(-gap.clamp_min(0))  # of σ/α and σ'/α': less noise over more, or 1
    known = torch.where(cleaner, 1 - r.square(), 0)
    x_in_x0, x0_in_x0 = torch.where(cleaner, known / alpha, 0), r.square()
    x_in_eps, eps_in_eps = (1 - q) / sigma, q * r
    norm = own.alpha.square() + own.sigma.square()
    of_eps, of_x0 = alpha * eps_in_eps / norm, sigma * x0_in_x0 / norm  # v = α ε̂ − σ x̂0 on both sides
    x_in_v = alpha * x_in_eps - sigma * x_in_x0 + scale * (of_eps * own.sigma - of_x0 * own.alpha)
    v_in_v = of_eps * own.alpha + of_x0 * own.sigma
    one_in_cov = torch.where(cleaner, known * levels.ratio.square(), 0)
    return _Matched(scale, x_in_x0, x0_in_x0, x_in_eps, eps_in_eps, x_in_v, v_in_v, one_in_cov, r**4)


class _CovarianceOnProcess(OnProcess):
    """Cov[x0 | x_t] is the same at equal σ/α, and σ²/α² ∂x̂0/∂(x/α) below t_min."""

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.mean_and_covariance(x, t, **cond)[1]

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        own, at = self._matched(Level.at(self.sde, t, x))
        mean, covariance = self.denoiser.mean_and_covariance(at.scale * x, own.time, **cond)
        return at.x_in_x0 * x + at.x0_in_x0 * mean, at.one_in_cov + at.cov_in_cov * covariance


class _FullCovarianceOnProcess(_CovarianceOnProcess):
    def covariance(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        own, at = self._matched(Level.at(self.sde, t, x))
        assert isinstance(self.denoiser, KnowsFullCovariance)
        covariance = self.denoiser.covariance(at.scale * x, own.time, **cond)
        of_one, of_cov = (torch.as_tensor(value).reshape(-1, 1, 1).to(covariance) for value in at[-2:])
        return of_one * torch.eye(covariance.shape[-1]).to(covariance) + of_cov * covariance
