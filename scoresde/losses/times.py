"""Distributions of training times, as quantile functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_whole
from scoresde.sde import SDE
from scoresde.sde.clock import SignalClock

TimeLaw = Callable[[SDE, Tensor], Tensor]  # (sde, u (B,) uniform in [0, 1)) -> t (B,)


def with_signal(sde: SDE, t: Tensor) -> Tensor:
    """The same times, but the one before 1 in place of 1 where the process ends without signal: weights are finite."""
    if not sde.ends_silent or not t.is_floating_point():
        return t
    return t.clamp(max=1 - torch.finfo(t.dtype).eps / 2)


def uniform_times(sde: SDE, u: Tensor) -> Tensor:
    """t uniform on [t_min, 1]."""
    return sde.t_min + (1 - sde.t_min) * u


def discrete_times(sde: SDE, u: Tensor, *, steps: int = 1000) -> Tensor:
    """t uniform on {1/steps, 2/steps, ..., 1}: the states of a discrete DDPM chain."""
    check_whole("discrete_times", "1 <= steps <= 1000000", steps=steps)
    return (torch.floor(u * steps) + 1).clamp(1, steps) / steps


def lognormal_times(sde: SDE, u: Tensor, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """log(σ/α) ~ N(mean, std²), the noise distribution of arXiv:2206.00364, cut to [t_min, 1]."""
    check_numbers("lognormal_times", "-30 <= mean <= 30", "0 <= std <= 30", mean=mean, std=std)
    return _at_noise(sde, mean + std * _normal_quantile(u), u)


def logit_normal_times(sde: SDE, u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit r ~ N(mean, std²), r = σ/(α + σ): t itself on the straight path (arXiv:2403.03206, eq. 19).

    logit r is log(σ/α), so this is `lognormal_times` by the name and with the numbers of flow matching.
    """
    check_numbers("logit_normal_times", "-30 <= mean <= 30", "0 <= std <= 30", mean=mean, std=std)
    return _at_noise(sde, mean + std * _normal_quantile(u), u)


def mode_times(sde: SDE, u: Tensor, *, scale: float = 1.29) -> Tensor:
    """Mode sampling with heavy tails: r = u − scale (sin²(πu/2) − u), r = σ/(α + σ)     (arXiv:2403.03206, eq. 20).

    r is t on the straight path. scale 0 is uniform in r; positive ones favour the middle, negative ones the ends.
    """
    check_numbers("mode_times", "-1 <= scale <= 1.751938", scale=scale)  # 2/(π − 2): where r still rises with u
    wide = u.double()
    r = (wide - scale * ((0.5 * math.pi * wide).sin().square() - wide)).clamp(0, 1)
    return _at_noise(sde, torch.logit(r), u)


def shifted_times(
    sde: SDE,
    u: Tensor,
    *,
    base: TimeLaw = uniform_times,
    shift: float | None = 3.0,
    size: int | None = None,
    base_size: int = 1024,
) -> Tensor:
    """Another law at `shift` times its noise σ/α: larger images lose their signal at more noise.

        t' = s t / (1 + (s − 1) t),    s = shift, or √(size/base_size)          (arXiv:2403.03206, eq. 23)

    The formula is for the straight path; on every process σ/α at t' is s times σ/α at t.

    Args:
        sde, u: As for every law.
        base: The law that is shifted.
        shift: s; above 1 towards noise, below 1 towards data. None: √(size/base_size).
        size: Entries per channel of the data, m; `train.py` fills it in.
        base_size: n, the size that `base` suits: 1024 for 32×32 images, and for the latents of 256×256 ones.
    """
    check_numbers("shifted_times", "1e-6 <= shift <= 1e6 or null", shift=shift)
    check_whole("shifted_times", "size >= 1 or null", "base_size >= 1", size=size, base_size=base_size)
    if not callable(base):
        raise ValueError(f"shifted_times needs base to be a law of times, a function (sde, u) -> t, got {base!r}.")
    if shift is None:
        if size is None:
            raise ValueError("shifted_times with shift=null needs size, the entries per channel of the data.")
        shift = (size / base_size) ** 0.5
    return _at_noise(sde, math.log(shift) - 0.5 * sde.logsnr(base(sde, u).double()), u)


def logsnr_times(sde: SDE, u: Tensor) -> Tensor:
    """logsnr uniform from t_min to 1: importance sampling for likelihood weighting, p(t) ∝ g²/σ² (arXiv:2101.09258).

    On every linear SDE g²/σ² = −d logsnr/dt. For VP this is B(t) = log(1 + (e^B_ε − 1)((e^B_1 − 1)/(e^B_ε − 1))^u).
    Where a process ends without signal logsnr falls to −∞; there 2 log(α/σ + 0.01) is uniform. Its companion is
    `importance_weighting`.
    """
    clock = SignalClock(sde)
    ends = clock.at(torch.tensor([sde.t_min, 1.0], dtype=torch.float64, device=u.device))
    return clock.time(torch.lerp(ends[0], ends[1], u.double())).clamp(sde.t_min, 1).to(u.dtype)


def _normal_quantile(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))


def _at_noise(sde: SDE, log_noise: Tensor, u: Tensor) -> Tensor:
    """The times at which log(σ/α) has these values, float64, in [t_min, 1] and in u's dtype."""
    return sde.time(-2 * log_noise.clamp(-40, 40)).clamp(sde.t_min, 1).to(u.dtype)
