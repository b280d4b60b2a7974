"""The variance of a reverse step: fixed, learned, or optimal given the covariance of x0."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_pair
from scoresde.denoiser import Denoiser, KnowsCovariance, KnowsFullCovariance, PredictsRange
from scoresde.sde.levels import Interval, Levels

FIXED = ("small", "large")


@runtime_checkable
class ChoosesVariance(Protocol):
    """A solver with a choice of the reverse variance."""

    @property
    def variance(self) -> str: ...


class HasVariance(ChoosesVariance, Protocol):
    """A solver with DDPM's options of the variance."""

    @property
    def clip_denoised(self) -> tuple[float, float] | None: ...

    @property
    def clip_last_noise(self) -> float | None: ...


def removed(levels: Levels) -> Tensor:
    """1 − SNR_t / SNR_s of every step: the share of the noise that the step takes away."""
    return -torch.expm1(2 * (levels.lam[:-1] - levels.lam[1:]))


def posterior_std(levels: Levels) -> Tensor:
    """√β̃ of every step: the standard deviation of x_s given x_t and x0."""
    return levels.sigma[1:] * removed(levels).clamp_min(0).sqrt()


def learned_std(denoiser: Denoiser, x: Tensor, interval: Interval) -> tuple[Tensor, Any]:
    """x̂0 and √(β^v β̃^(1−v)) with one call of the denoiser; 0 to noise 0."""
    check_known(denoiser, "learned")
    assert isinstance(denoiser, PredictsRange)
    x0, v = denoiser.mean_and_range(x, interval.t.time)
    small, large = interval.s.sigma, interval.t.sigma
    noisy = small > 0
    small = torch.where(noisy, small, large) if isinstance(small, Tensor) else small or large
    return x0, small * interval.removed**0.5 * (large / small) ** v * noisy


def optimal(denoiser: Denoiser, x: Tensor, interval: Interval, std: Any, gain: Any) -> tuple[Tensor, Any]:
    """x̂0 and √(σ² + c² Cov[x0 | x_t]), for a step with c x̂0 + σ z: the variance of x_s is what is unknown of x0, too.

    Raises:
        TypeError: If the denoiser does not know its covariance.
    """
    check_known(denoiser, "optimal")
    if interval.to_data:  # without noise
        return denoiser.x0(x, interval.t), std
    x0, covariance = denoiser.mean_and_covariance(x, interval.t.time)
    return x0, (std**2 + gain**2 * covariance) ** 0.5 * (interval.s.sigma > 0)


def limited_std(std: Any, y: float, data_range: tuple[float, float] | None) -> Any:
    """The standard deviation of a last noise z with E|σ z| = σ √(2/π) ≤ y w, w = 1/255 of the data's range."""
    low, high = data_range or (-1.0, 1.0)
    most = y * (high - low) / 255 * math.sqrt(math.pi / 2)
    return std.clamp(max=most) if isinstance(std, Tensor) else min(std, most)


def check_known(denoiser: Denoiser, variance: str) -> None:
    """Raise TypeError, before any step, if the denoiser cannot give what the variance needs."""
    if variance == "optimal" and not isinstance(denoiser, KnowsCovariance):
        raise TypeError(
            f"variance='optimal' needs a denoiser that knows its covariance, got {type(denoiser).__name__}: "
            f"wrap it in AnalyticVariance, HessianDiagonal or a trained VarianceHead of scoresde.covariance."
        )
    if variance == "full" and not isinstance(denoiser, KnowsFullCovariance):
        raise TypeError(
            f"variance='full' needs a denoiser with a method covariance(x, t) that returns (B, d, d), as those of "
            f"scoresde.analytic have, got {type(denoiser).__name__}."
        )
    if variance == "learned" and not isinstance(denoiser, PredictsRange):
        raise TypeError(
            f"variance='learned' needs a network that predicts it, a LearnedRange of scoresde.covariance, got "
            f"{type(denoiser).__name__}."
        )


def check_variance(solver: HasVariance, allowed: tuple[str, ...]) -> None:
    """Raise ValueError if the options of the variance make no sense; `clip_denoised` becomes a pair of numbers."""
    check_choice(solver, "variance", solver.variance, allowed)
    check_numbers(solver, "0 < clip_last_noise < inf or null")
    if solver.clip_denoised is not None:
        clip = check_pair(solver, "clip_denoised", solver.clip_denoised, "-inf < low < high < inf")
        object.__setattr__(solver, "clip_denoised", clip)
