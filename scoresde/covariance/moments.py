"""E‖ε̂‖²/d at a table of noise levels, by Monte Carlo over the data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import SDE, DiscreteVPSDE
from scoresde.sde.clock import FAINT

MANY = 20  # examples from which on more than one control variate is fitted
Examples = Iterable[Tensor | tuple[Tensor, dict[str, Any]]]  # batches x0 (B, *), or (x0, conditions)


@dataclass(frozen=True, kw_only=True)
class SecondMoment:
    """A table of E‖ε̂‖²/d over noise levels, from little to much noise; all tensors (N,), float64.

        Γ_t = E‖∇ log p_t‖²/d = E‖ε̂‖²/(d σ_t²)                      (Bao et al. 2022)

    ε̂ depends on the noise level alone, so the table holds for every SDE and clock.

    Args:
        logsnr: Levels, strictly decreasing.
        value: E‖ε̂‖²/d at the levels.
        std_error: Monte-Carlo standard errors of `value`.
        error: E‖ε − ε̂‖²/d. Equal to 1 − value where ε̂ is the exact E[ε | x_t], larger where it is not.
        samples: Number M of noisy examples behind each level.
    """

    logsnr: Tensor
    value: Tensor
    std_error: Tensor
    error: Tensor
    samples: int

    def __post_init__(self) -> None:
        shape = self.logsnr.shape
        if len(shape) != 1 or shape[0] < 2 or not bool((self.logsnr.diff() < 0).all()):
            raise ValueError(f"SecondMoment needs two or more levels with decreasing logsnr, got shape {tuple(shape)}.")
        if any(tensor.shape != shape for tensor in (self.value, self.std_error, self.error)):
            raise ValueError(f"SecondMoment needs one value, std_error and error for each of its {shape[0]} levels.")

    def at(self, logsnr: Tensor) -> Tensor:
        """E‖ε̂‖²/d at any levels: linear in logsnr, constant beyond the table."""
        return interpolate(logsnr, self.logsnr, self.value)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers, as checkpoints hold them."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SecondMoment:
        return cls(**{name: state[name] for name in ("logsnr", "value", "std_error", "error", "samples")})


@torch.no_grad()
def second_moment(
    denoiser: Denoiser,
    data: Examples,
    *,
    levels: Tensor | int | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> SecondMoment:
    """Estimate E‖ε̂(x_t, t)‖²/d over x_t ~ q(x_t | x0), x0 from the data.

        n = ‖ε‖²/d has mean 1, so with c the regression coefficient of ‖ε̂‖²/d on n
        E‖ε̂‖²/d ≈ mean(‖ε̂‖²/d − c (n − 1))

    The control variate n lowers the standard error where there is much noise, from √(2/(d M)) to
    2 √((1 − E‖ε̂‖²/d)/(d M)). E‖ε − ε̂‖²/d comes with it. Network calls: levels times batches.

    Where a process ends without signal, what counts there is how 1 − E‖ε̂‖²/d vanishes: ε·x0/d and ε·x̄/d, x̄ the mean x̂0
    of the batch's other examples, are two more control variates, which leave a standard error proportional to it.

    Args:
        denoiser: The model.
        data: Batches of x0 (B, *) in the model's scaling, or of pairs (x0, conditions), on the model's device.
        levels: Times (N,); or their number, equally spaced in logsnr; None: all states of a `DiscreteVPSDE`, otherwise
            200. Where a process ends without signal they end at α/σ = 0.01, and given ones without signal are left out.
        samples: Stop after so many examples; None uses all.
        generator: For the noise, on the data's device.
    Raises:
        ValueError: If there are fewer than three examples: their scatter is the error bar.

    References:
        Bao et al., "Analytic-DPM", 2022, arXiv:2201.06503.
    """
    times = levels.double().cpu() if isinstance(levels, Tensor) else noise_levels(denoiser.sde, levels)
    if denoiser.sde.ends_silent:
        times = times[denoiser.sde.alpha(times) > 0]
    sums, drawn = None, 0
    for batch in data:
        x0, cond = batch if isinstance(batch, tuple) else (batch, {})
        if samples is not None and drawn + len(x0) > samples:
            kept = samples - drawn
            x0, cond = x0[:kept], {key: v[:kept] if isinstance(v, Tensor) else v for key, v in cond.items()}
        if len(x0) == 0:
            break
        rows = torch.stack([_sums(denoiser, x0, t, generator, cond) for t in times.to(x0.device)])
        sums = rows if sums is None else sums + rows
        drawn += len(x0)
    if sums is None or drawn < 3:
        raise ValueError(
            f"second_moment needs at least 3 examples to estimate a mean and its standard error, got {drawn}: "
            f"give it more data; 100 usually suffice for images, vectors need more."
        )
    value, std_error = _regressed(sums[:, :-1].cpu() / drawn, drawn)
    return SecondMoment(
        logsnr=denoiser.sde.logsnr(times),
        value=value,
        std_error=std_error,
        error=sums[:, -1].cpu() / drawn,
        samples=drawn,
    )


def _sums(denoiser: Denoiser, x0: Tensor, t: Tensor, generator: torch.Generator | None, cond: dict[str, Any]) -> Tensor:
    """Sums over the batch of all products of 1, q = ‖ε̂‖²/d − 1 and the control variates, and of ‖ε − ε̂‖²/d."""
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    eps = denoiser.eps(denoiser.sde.perturb(x0, t, noise), t, **cond).double()
    q, n = (value.double().square().flatten(1).mean(1) - 1 for value in (eps, noise))
    error = (noise - eps).square().flatten(1).mean(1)
    columns = [torch.ones_like(q), q, n]
    if denoiser.sde.ends_silent:
        x0_hat = denoiser.sde.sigma(t) / denoiser.sde.alpha(t) * (noise - eps) + x0
        others = (x0_hat.sum(0) - x0_hat) / max(len(x0) - 1, 1)  # independent of the noise of each
        columns += [(noise * centre).double().flatten(1).mean(1) for centre in (x0, others)]
    table = torch.stack(columns)
    return torch.cat([(table[:, None] * table).flatten(0, 1), error[None].to(table)]).sum(1)


def _regressed(products: Tensor, drawn: int) -> tuple[Tensor, Tensor]:
    """E‖ε̂‖²/d by regression on the control variates, and its standard error, from means of products (N, m²)."""
    size = math.isqrt(products.shape[1])
    kept = size if drawn >= MANY else 3
    moments = products.unflatten(1, (size, size))[:, :kept, :kept]
    means = moments[:, 0, 1:]
    covariance = moments[:, 1:, 1:] - means[:, :, None] * means[:, None]
    least = 1e-9 * covariance.diagonal(dim1=1, dim2=2)
    for k in range(1, kept - 1):  # one after the other, each without what it shares with those before
        pivot = covariance[:, k, k]
        slopes = torch.where(pivot > least[:, k], 1 / pivot, 0)[:, None] * covariance[:, :, k]
        means = means - slopes * means[:, k : k + 1]
        covariance = covariance - slopes[:, :, None] * covariance[:, k : k + 1]
    return 1 + means[:, 0], (covariance[:, 0, 0].clamp_min(0) / (drawn - kept + 1)).sqrt()


def noise_levels(sde: SDE, count: int | None = None) -> Tensor:
    """Times from little to much noise: the states of a table of β, or `count` equally spaced in logsnr."""
    if count is None and isinstance(sde, DiscreteVPSDE):
        return torch.arange(1, len(sde.betas) + 1, dtype=torch.float64) / len(sde.betas)
    first, last = sde.logsnr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64)).unbind()
    if sde.ends_silent:
        last = 2 * torch.tensor(FAINT, dtype=torch.float64).log()
    times = sde.time(torch.linspace(first, last, 200 if count is None else count, dtype=torch.float64))
    times[0] = sde.t_min
    if not sde.ends_silent:
        times[-1] = 1.0
    return times


def interpolate(logsnr: Tensor, levels: Tensor, values: Tensor) -> Tensor:
    """Values at logsnr from a table over decreasing levels: linear between them, constant beyond."""
    upper = torch.searchsorted(-levels, -logsnr.to(levels).contiguous()).clamp(1, len(levels) - 1)
    weight = (logsnr.to(levels) - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
    return torch.lerp(values[upper - 1], values[upper], weight.clamp(0, 1))
