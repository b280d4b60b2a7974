"""The one object that solvers, likelihoods and losses consume: E[x0 | x_t = x]."""

from __future__ import annotations

from abc import ABC
from typing import Any, Protocol, SupportsFloat, runtime_checkable

import torch
from torch import Tensor, nn

from scoresde.denoiser.inference_mode import ordinary
from scoresde.sde import SDE, expand
from scoresde.sde.levels import Level, Levels


def as_time(t: Tensor | float, x: Tensor) -> Tensor:
    """A time as a tensor beside states x: a number stands for itself, for every sample.

    A tensor is looked at where that costs nothing, on the CPU; an accelerator would have to be waited for.

    Raises:
        TypeError: If it is neither a tensor nor a number.
        ValueError: If it is outside [0, 1].
    """
    if isinstance(t, Tensor):
        if t.device.type == "cpu" and not torch.compiler.is_compiling() and (wrong := _outside(t)) is not None:
            raise ValueError(f"t must hold times in [0, 1], got {wrong:g}.")
        return t
    if isinstance(t, bool) or not isinstance(t, SupportsFloat):
        raise TypeError(f"t must be a time in [0, 1], a number or a tensor of shape () or ({len(x)},), got {t!r}.")
    if not 0 <= float(t) <= 1:
        raise ValueError(f"t must be a time in [0, 1], got {t!r}.")
    return torch.tensor(float(t), dtype=x.dtype if x.is_floating_point() else None, device=x.device)


def _outside(t: Tensor) -> float | None:
    """A time that is not in [0, 1], if that can be said: not of tensors inside torch.func.vmap."""
    try:
        ends = (t,) if t.ndim == 0 else t.detach().aminmax()
        return next((float(time) for time in ends if not 0 <= time.item() <= 1), None)
    except RuntimeError:
        return None


class Denoiser(nn.Module, ABC):
    """The posterior mean of the data, and the score and velocity that follow from it.

        x̂0       = E[x0 | x_t = x]
        ε̂        = (x − α x̂0) / σ
        score    = ∇ log p_t(x) = −ε̂ / σ                            (Tweedie's formula)
        v        = α ε̂ − σ x̂0                                       (Salimans & Ho 2022, App. D)
        velocity = α̇ x̂0 + σ̇ ε̂ = f x − ½ g² score                    (probability-flow ODE, Song et al. 2021, eq. 13)

    A subclass has an `sde` and writes `forward`, or `x0` if it asks other denoisers or wants α and σ; the other of the
    two follows. Conditions are keyword tensors that both receive. `x0`, `eps_at`, `v_at` and `score_at` take a
    `Level`, whose α and σ a run has read once for the whole grid. Where there is no signal, α = 0, x̂0, v and the
    velocity say what is known of the data, and ε̂ = x/σ and the score say nothing.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    sde: SDE

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.forward is Denoiser.forward and cls.x0 is Denoiser.x0:
            raise TypeError(f"{cls.__name__} needs a formula: write forward(x, t) or x0(x, level).")

    def __call__(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[x0 | x_t = x]: x (B, *), t () or (B,) or a number -> (B, *), in x's dtype."""
        return super().__call__(x, as_time(t, x), **cond)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x_t = x]: x (B, *), t () or (B,) -> (B, *), in x's dtype."""
        return self.x0(x, Level.at(self.sde, t, x), **cond)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        """E[x0 | x_t = x] at a level, shape (B, *)."""
        return self(x, level.time, **cond)  # type: ignore[no-any-return]

    def eps(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[ε | x_t = x], shape (B, *)."""
        return self.eps_at(x, Level.at(self.sde, as_time(t, x), x), **cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        """E[ε | x_t = x] at a level, shape (B, *)."""
        if type(self).eps is not Denoiser.eps:  # it has a formula of its own
            return self.eps(x, level.time, **cond)
        return (x - level.alpha * self.x0(x, level, **cond)) / level.sigma

    def v(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """E[α ε − σ x0 | x_t = x], shape (B, *)."""
        return self.v_at(x, Level.at(self.sde, as_time(t, x), x), **cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        """E[α ε − σ x0 | x_t = x] at a level, shape (B, *): the one of these that is regular at both ends."""
        alpha, sigma = level.alpha, level.sigma
        if type(self).eps is Denoiser.eps or self.sde.ends_silent:
            return (alpha * x - (alpha**2 + sigma**2) * self.x0(x, level, **cond)) / sigma
        return ((alpha**2 + sigma**2) * self.eps_at(x, level, **cond) - sigma * x) / alpha

    def score(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """∇ log p_t(x), shape (B, *)."""
        t = as_time(t, x)
        return -self.eps(x, t, **cond) / expand(self.sde.sigma(t), x)

    def score_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        """∇ log p_t(x) at a level, shape (B, *)."""
        if type(self).score is not Denoiser.score:
            return self.score(x, level.time, **cond)
        return -self.eps_at(x, level, **cond) / level.sigma

    def velocity(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """dx/dt of the probability-flow ODE, shape (B, *)."""
        return self.velocity_at(x, Level.at(self.sde, as_time(t, x), x), **cond)

    def velocity_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        """dx/dt of the probability-flow ODE at a level, shape (B, *).

        α̇ x̂0 + σ̇ ε̂ = ((α α̇ + σ σ̇) x + (α σ̇ − σ α̇) v) / (α² + σ²)
        """
        of_x, of_v = level.read("velocity", None, _velocity_coefficients)
        return of_x * x + of_v * self.v_at(x, level, **cond)

    @property
    def unguided(self) -> Denoiser:
        """What is left without gradients of a likelihood; for diagnoses of a run. Itself, if there are none."""
        return self

    def narrowest(self, x: Tensor) -> float | None:
        """The smallest standard deviation that a likelihood leaves of x0, for states x (B, *), if that is known.

        Solvers ask, to say whether they resolve it.
        """
        return None

    def given(self, **cond: Any) -> Denoiser:
        """The same denoiser with conditions bound; parameters are shared.

        Bound conditions stay: the same condition passed to a later call is ignored, so that
        `Guided(model, model.given(label=None), 2.0)` can be called with labels.
        """
        kinds = ((KnowsFullCovariance, _GivenFullCovariance), (KnowsCovariance, _GivenCovariance))
        if isinstance(self, PredictsRange):
            return _GivenRange(self, cond)
        return next((kind for protocol, kind in kinds if isinstance(self, protocol)), _Given)(self, cond)

    def unbound(self, **cond: Any) -> tuple[Denoiser, dict[str, Any]]:
        """The denoiser inside `given`, and all conditions that it is asked with when these are passed to a call."""
        return self, cond

    def on(self, sde: SDE) -> Denoiser:
        """The same denoiser on another process, whose times and states it is then asked with: see `OnProcess`."""
        from scoresde.denoiser.on_process import OnProcess  # which is a denoiser

        return self if sde == self.sde else OnProcess.of(self, sde)

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """x̂0 (B, *) and the diagonal of Cov[x0 | x_t = x], which broadcasts against x.

        For denoisers that know it (`KnowsCovariance`); one that gets both from one call overrides this.

        Raises:
            TypeError: If the denoiser knows no covariance.
        """
        if not isinstance(self, KnowsCovariance):
            raise TypeError(
                "The covariance of x0 was asked of a denoiser that knows only x̂0: wrap it in AnalyticVariance, "
                "HessianDiagonal or a trained VarianceHead of scoresde.covariance."
            )
        return self(x, t, **cond), self.covariance_diag(x, t, **cond)

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        """The same denoiser for some rows of a batch, or None if it may hold something per sample that it cannot split.

        Adaptive solvers ask, to go on without the samples that have arrived. A subclass that treats every row alike
        returns itself.

        Args:
            index: Rows to keep, (b,).
            batch: Size of the whole batch.
        """
        return None


def _velocity_coefficients(levels: Levels) -> tuple[Tensor, Tensor]:
    (alpha_rate, sigma_rate), alpha, sigma = levels.sde.rates(levels.t), levels.alpha, levels.sigma
    norm = alpha.square() + sigma.square()
    return (alpha * alpha_rate + sigma * sigma_rate) / norm, (alpha * sigma_rate - sigma * alpha_rate) / norm


@runtime_checkable
class KnowsCovariance(Protocol):
    """A denoiser that knows the diagonal of Cov[x0 | x_t = x], which broadcasts against x."""

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor: ...


@runtime_checkable
class KnowsFullCovariance(Protocol):
    """A denoiser that knows Cov[x0 | x_t = x] of the flattened event, (B, d, d)."""

    def covariance(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor: ...


@runtime_checkable
class KnowsDirections(Protocol):
    """A part of a denoiser that knows directions, the same at every level, in which its Jacobian is nearly diagonal."""

    def in_directions(self, coordinates: Tensor) -> Tensor:
        """What has these coordinates (B, *shape) along the directions, an orthogonal map; in the same shape."""
        ...


@runtime_checkable
class PredictsRange(Protocol):
    """A denoiser that predicts where between β̃ (v = 0) and β (v = 1) the reverse variance lies, as Improved DDPM's."""

    def mean_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]: ...


class _Given(Denoiser):
    def __init__(self, denoiser: Denoiser, cond: dict[str, Any]) -> None:
        super().__init__()
        self.denoiser, self.sde, self.cond = denoiser, denoiser.sde, ordinary(cond)

    def unbound(self, **cond: Any) -> tuple[Denoiser, dict[str, Any]]:
        return self.denoiser.unbound(**{**cond, **self.cond})

    @property
    def unguided(self) -> Denoiser:
        plain = self.denoiser.unguided
        return self if plain is self.denoiser else plain.given(**self.cond)

    def narrowest(self, x: Tensor) -> float | None:
        return self.denoiser.narrowest(x)

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.x0(x, level, **{**cond, **self.cond})

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.eps_at(x, level, **{**cond, **self.cond})

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.v_at(x, level, **{**cond, **self.cond})

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self.denoiser.mean_and_covariance(x, t, **{**cond, **self.cond})

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        """Conditions whose leading size is the batch are one per sample; numbers, other tensors and a single condition
        vector, which may be as long as the batch, are shared.
        """
        inner = self.denoiser.select(index, batch)
        if inner is None or not all(isinstance(c, Tensor | int | float | str | None) for c in self.cond.values()):
            return None
        return type(self)(inner, {key: _rows_of(key, value, index, batch) for key, value in self.cond.items()})

    def _ask(self, method: Any, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Any:
        """A method that only some denoisers have, with the conditions bound."""
        return method(x, t, **{**cond, **self.cond})


class _GivenCovariance(_Given):
    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self._ask(self.denoiser.covariance_diag, x, t, cond)


class _GivenFullCovariance(_GivenCovariance):
    def covariance(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self._ask(self.denoiser.covariance, x, t, cond)


class _GivenRange(_GivenCovariance):
    def mean_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self._ask(self.denoiser.mean_and_range, x, t, cond)

    def eps_and_range(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self._ask(self.denoiser.eps_and_range, x, t, cond)


def _rows_of(key: str, value: Any, index: Tensor, batch: int) -> Any:
    if not isinstance(value, Tensor) or value.shape[:1] != (batch,) or (key == "condition" and value.ndim == 1):
        return value
    return value[index.to(value.device)]
