"""The variance of a reverse step: fixed, learned, or optimal given the covariance of x0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde.levels import Levels

FIXED = ("small", "large")


def removed(levels: Levels) -> Tensor:
    """1 − SNR_t / SNR_s of every step: the share of the noise that the step takes away."""
    return -torch.expm1(2 * (levels.lam[:-1] - levels.lam[1:]))


def posterior_std(levels: Levels) -> Tensor:
    """√β̃ of every step: the standard deviation of x_s given x_t and x0."""
    return levels.sigma[1:] * removed(levels).clamp_min(0).sqrt()


def covariance_gain(levels: Levels, eta: float) -> Tensor:
    """Standard deviation that the step hands on from that of x0 given x_t: the factor of x0 − x̂0 in x_s.

        α_s − √(σ_s² − λ²) α_t/σ_t = α_s (1 − √(r (1 − η² (1 − r)))),      λ² = η² β̃,   r = SNR_t/SNR_s

    With η = 1 it is α_s (1 − r).
    """
    log_r = 2 * (levels.lam[:-1] - levels.lam[1:])
    return -levels.alpha[1:] * torch.expm1(0.5 * (log_r + torch.log1p(eta**2 * torch.expm1(log_r))))


def variance_columns(levels: Levels, variance: str, eta: float, limit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `mean_and_std` needs in every step, with `limit` on the standard deviation.

    "small", "large"   η √β̃ or √β, already limited;   0;            limit
    "optimal"          η² β̃;                          gain²;        limit
    "learned"          log β̃;                         log β/β̃;      limit
    """
    kept, sigma_t, sigma_s = removed(levels).clamp_min(0), levels.sigma[:-1], levels.sigma[1:]
    if variance in FIXED:
        std = (eta * sigma_s if variance == "small" else sigma_t) * kept.sqrt()
        return torch.minimum(std, limit), torch.zeros_like(std), limit
    if variance == "optimal":
        return eta**2 * sigma_s.square() * kept, covariance_gain(levels, eta).square(), limit
    sigma_s = torch.where(sigma_s > 0, sigma_s, sigma_t)  # no noise there: only to keep the logarithm finite
    return (sigma_s.square() * kept).log(), 2 * (sigma_t / sigma_s).log(), limit


def noise_limit(levels: Levels, clip_denoised: tuple[float, float] | None, levels_of_8_bits: float | None) -> Tensor:
    """The largest standard deviation of every step's noise: 0 for the step to σ_s = 0, otherwise infinite.

    For the step before that one it is y w √(π/2), so that E|σ z| = σ √(2/π) ≤ y w for w = 1/255 of the data's range.
    """
    limit = torch.where(levels.sigma[1:] > 0, torch.inf, 0.0)
    if levels_of_8_bits is not None and len(limit) > 1:
        low, high = clip_denoised or (-1.0, 1.0)
        last = levels_of_8_bits * (high - low) / 255 * math.sqrt(math.pi / 2)
        before = (limit[1:] == 0) & (limit[:-1] > 0)
        limit[:-1] = torch.where(before, last, limit[:-1])
    return limit


def mean_and_std(
    denoiser: Denoiser, x: Tensor, t: Tensor, variance: str, base: Any, gain: Any, limit: Any
) -> tuple[Tensor, Any]:
    """x̂0 and the standard deviation of a step's noise, with one call of the denoiser; see `variance_columns`."""
    if variance in FIXED or (isinstance(limit, float) and limit == 0):
        return denoiser(x, t), base if variance in FIXED else 0.0
    if variance == "optimal":
        x0_hat, covariance = denoiser.mean_and_covariance(x, t)
        step_variance = base + gain * covariance
    else:
        require_spread(denoiser, variance)
        x0_hat, share = getattr(denoiser, "mean_and_range")(x, t)  # noqa: B009  # nn.Module types attributes as modules
        step_variance = torch.exp(base + gain * share)
    std = step_variance.sqrt()
    return x0_hat, std.clamp(max=limit) if isinstance(limit, float) else torch.minimum(std, limit.to(std.dtype))


def require_spread(denoiser: Denoiser, variance: str) -> None:
    """Raise TypeError, before any step, if the denoiser cannot give what the variance needs."""
    if variance == "optimal" and not hasattr(denoiser, "covariance_diag"):
        raise TypeError(
            f"variance='optimal' needs a denoiser that knows its covariance, got {type(denoiser).__name__}: "
            f"wrap it in AnalyticVariance, HessianDiagonal or a trained VarianceHead of scoresde.covariance."
        )
    if variance == "learned" and not hasattr(denoiser, "mean_and_range"):
        raise TypeError(
            f"variance='learned' needs a network that predicts it, a LearnedRange of scoresde.covariance, got "
            f"{type(denoiser).__name__}."
        )


def check_variance(solver: object, variance: str, allowed: tuple[str, ...]) -> None:
    if variance not in allowed:
        names = ", ".join(f"'{name}'" for name in allowed[:-1])
        raise ValueError(f"{type(solver).__name__} needs variance {names} or '{allowed[-1]}', got {variance!r}.")


def checked_clipping(solver: object, clip: Any, last_noise: float | None) -> tuple[float, float] | None:
    """`clip_denoised` as a pair of numbers, or None; ValueError if either option makes no sense."""
    if last_noise is not None and not last_noise > 0:
        raise ValueError(
            f"{type(solver).__name__} needs clip_last_noise > 0, in levels of 8 bits, or None, got {last_noise}."
        )
    if clip is None:
        return None
    if len(clip) != 2 or not clip[0] < clip[1]:
        raise ValueError(f"{type(solver).__name__} needs clip_denoised (low, high) with low < high, got {clip}.")
    return float(clip[0]), float(clip[1])
