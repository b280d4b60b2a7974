"""Weights of the squared ε-error over noise levels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.sde import SDE
from scoresde.sde.clock import SignalClock

Weighting = Callable[[SDE, Tensor], Tensor]  # (sde, t (B,)) -> weight (B,) of the squared ε-error


def simple_weighting(sde: SDE, t: Tensor) -> Tensor:
    """1: DDPM's L_simple, ‖ε − ε̂‖² (arXiv:2006.11239, eq. 14); σ²-weighted score matching."""
    return torch.ones_like(t)


def likelihood_weighting(sde: SDE, t: Tensor) -> Tensor:
    """g² / σ²: g²-weighted score matching, a bound on −log p under uniform times (arXiv:2101.09258)."""
    return (sde.g(t) / sde.sigma(t)).square()


def importance_weighting(sde: SDE, t: Tensor) -> Tensor:
    """Z/(1 − t_min), Z = logsnr(t_min) − logsnr(1): `likelihood_weighting` for times drawn by `logsnr_times`.

    Times have the density (g²/σ²)/Z, so that both pairs have the same expectation

        1/(1 − t_min) ∫ (g²/σ²) ‖ε − ε̂‖² dt                          (Song et al. 2021, arXiv:2101.09258, §5.1)

    and this one a smaller variance. Z is 23.864 on VP and 37.679 on sub-VP with their defaults. Where a process ends
    without signal it is the range of 2 log(α/σ + 0.01), and the weight has a factor 1 + 0.01 σ/α (`SignalClock`).
    """
    clock = SignalClock(sde)
    ends = clock.at(torch.tensor([sde.t_min, 1.0], dtype=torch.float64, device=t.device))
    return ((ends[0] - ends[1]) / (1 - sde.t_min) * clock.rate(t.double())).to(t.dtype)


def snr_weighting(sde: SDE, t: Tensor, *, power: float = 1.0, low: float = 0.0, high: float = float("inf")) -> Tensor:
    """clamp(SNR, low, high)^power on the x0-error, SNR = α²/σ²; the same divided by SNR on the ε-error.

    power 0 is the plain x0-loss; power 1 the ε-loss; low=1 the truncated SNR of arXiv:2202.00512;
    high=5 the min-SNR weighting of arXiv:2303.09556.
    """
    check_numbers("snr_weighting", "-10 <= power <= 10", "0 <= low <= high", power=power, low=low, high=high)
    check_numbers("snr_weighting", "low < inf", "high > 0", low=low, high=high)
    snr = sde.logsnr(t).exp()
    return snr.clamp(low, min(high, torch.finfo(snr.dtype).max)) ** power / snr


def edm_weighting(sde: SDE, t: Tensor, *, sigma_data: float = 0.5) -> Tensor:
    """(s² + sigma_data²) / (s sigma_data)² on the x0-error, s = σ/α (arXiv:2206.00364, Table 1).

    With the EDM parameterization every noise level then starts at unit loss.
    """
    check_numbers("edm_weighting", "0 < sigma_data <= 1e9", sigma_data=sigma_data)
    noise_to_signal = torch.exp(-sde.logsnr(t))
    return (noise_to_signal + sigma_data**2) / sigma_data**2


def velocity_weighting(sde: SDE, t: Tensor) -> Tensor:
    """(α² + σ²)²/α², that is 1/α² on VP: the squared error of v = α ε − σ x0 (arXiv:2202.00512)."""
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    return ((alpha.square() + sigma.square()) / alpha).square()


def flow_weighting(sde: SDE, t: Tensor) -> Tensor:
    """(α + σ)²/α², that is 1/α² on the straight path: the squared error of u = ε − x0 (arXiv:2210.02747, eq. 23)."""
    alpha = sde.alpha(t)
    return ((alpha + sde.sigma(t)) / alpha).square()
