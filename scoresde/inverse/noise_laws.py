"""Laws of noise that are not Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.inverse.measurement import NoiseLaw

DARK = 1e-3  # counts: the smallest rate of a Poisson law, which estimates below 0 have


class PoissonNoise(NoiseLaw):
    """Counts: y = gain k − offset,  k ~ Poisson((A x0 + offset)/gain).

    Its mean is A x0 and its variance gain (A x0 + offset). Rates below 0.001 count as 0.001, with gradient 0.

    Args:
        gain: Units of the measurement per count: the smaller, the less noise.
        offset: What makes A x0 + offset ≥ 0: 1 for averages of pictures in [−1, 1].
    """

    def __init__(self, gain: float, offset: float = 0.0) -> None:
        super().__init__()
        self.gain, self.offset = gain, offset
        check_numbers(self, "0 < gain < inf", "-inf < offset < inf")

    def log_prob(self, y: Tensor, clean: Tensor, observed: Tensor | None = None) -> Tensor:
        count, rate = (y + self.offset) / self.gain, self._rate(clean)
        each = torch.where(count < -1e-6, -math.inf, torch.xlogy(count.clamp_min(0), rate) - rate)
        each = each - torch.lgamma(count.clamp_min(0) + 1)
        return _total(each, observed)

    def covariance_times(self, vector: Tensor, clean: Tensor) -> Tensor:
        return self.gain**2 * self._rate(clean) * vector

    def sample(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.gain * torch.poisson(self._rate(clean, 0.0), generator) - self.offset

    def _rate(self, clean: Tensor, least: float = DARK) -> Tensor:
        return ((clean + self.offset) / self.gain).clamp_min(least)


class QuantisedNoise(NoiseLaw):
    """y = step · round((A x0 + n)/step),  n ~ N(0, std²): rounded readings of an instrument.

        P(y | A x0) = Φ((y + step/2 − A x0)/std) − Φ((y − step/2 − A x0)/std)

    As a Gaussian it has the variance std² + step²/12.

    Args:
        step: Between readings.
        std: Of the noise before rounding, positive.
    """

    def __init__(self, step: float, std: float) -> None:
        super().__init__()
        self.step, self.std = step, std
        check_numbers(self, "0 < step < inf", "0 < std < inf")

    def log_prob(self, y: Tensor, clean: Tensor, observed: Tensor | None = None) -> Tensor:
        distance = (y - clean).abs() / self.std  # the law is even: both bounds on the side where Φ is small
        upper, lower = 0.5 * self.step / self.std - distance, -0.5 * self.step / self.std - distance
        high, low = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
        return _total(high + torch.log(-torch.expm1(low - high)), observed)

    def covariance_times(self, vector: Tensor, clean: Tensor) -> Tensor:
        return (self.std**2 + self.step**2 / 12) * vector

    def sample(self, clean: Tensor, generator: torch.Generator | None = None) -> Tensor:
        z = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        return self.step * torch.round((clean + self.std * z) / self.step)


def _total(each: Tensor, observed: Tensor | None) -> Tensor:
    return (each if observed is None else torch.where(observed, each, 0)).flatten(1).sum(1)
