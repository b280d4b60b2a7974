"""Simultaneous bands for the empirical distribution function of uniform numbers, and exact p-values from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.checks import check_numbers, check_whole

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
SMALLEST = 1e-12  # of a pointwise tail


def ecdf_band(n: int, places: Sequence[float] | Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """A band that holds the empirical distribution function of n uniform numbers at all places at once.

        low_k = Q(γ/2), high_k = Q(1 − γ/2) of Binomial(n, z_k)/n,     P(low_k <= F_n(z_k) <= high_k for all k) >= level

    with γ as large as that allows, which is found by the exact probability: no simulation.

    Args:
        n: How many numbers.
        places: z_k, increasing, in (0, 1).
        level: Of the band.
    Returns:
        low and high, float64, (K,).
    References:
        Säilynoja, Bürkner and Vehtari, "Graphical Test for Discrete Uniformity", 2022, arXiv:2103.10522, §2.2.
    """
    check_whole("ecdf_band", "1 <= n <= 10000000", n=n)
    check_numbers("ecdf_band", "0 < level < 1", level=level)
    z = np.asarray(places, dtype=np.float64).reshape(-1)
    if not (len(z) and bool((np.diff(z) > 0).all()) and z[0] > 0 and z[-1] < 1):
        raise ValueError("ecdf_band needs places that increase strictly inside (0, 1).")
    low, high = _band(n, tuple(z.tolist()), float(level))
    return torch.from_numpy(low / n), torch.from_numpy(high / n)


@lru_cache(maxsize=64)
def _band(n: int, places: tuple[float, ...], level: float) -> tuple[Counts, Counts]:
    z = np.asarray(places)
    least, most = np.log(SMALLEST), np.log1p(-level)  # one place alone has γ = 1 − level
    for _ in range(30):
        middle = 0.5 * (least + most)
        if stay_probability(*_quantiles(n, z, float(np.exp(middle))), z, n) >= level:
            least = middle
        else:
            most = middle
    return _quantiles(n, z, float(np.exp(least)))


def _quantiles(n: int, places: Floats, gamma: float) -> tuple[Counts, Counts]:
    """The least and the largest count with a tail of at least γ/2 beyond it, at every place."""
    binom = _scipy().binom
    low, high = binom.ppf(0.5 * gamma, n, places), binom.isf(0.5 * gamma, n, places)
    return low.astype(np.int64), high.astype(np.int64)


def stay_probability(low: Counts, high: Counts, places: Floats, n: int) -> float:
    """P(low_k <= C_k <= high_k for all k), with C_k how many of n independent uniform numbers are below z_k.

    C is a Poisson process of rate n that has n points at 1: its increments are independent, so that every step from
    z_k to z_{k+1} is a convolution.
    """
    poisson = _scipy().poisson
    mass, first = np.ones(1), 0  # of the counts first, first + 1, ...
    ends = np.append(places, 1.0), np.append(low, n), np.append(high, n)
    before = 0.0
    for place, least, most in zip(*ends, strict=True):
        start, stop = max(int(least), first), int(most)
        if stop < start:
            return 0.0
        kernel = poisson.pmf(np.arange(stop - first + 1), n * (place - before))
        mass = np.convolve(mass, kernel)[start - first : stop - first + 1]
        first, before = start, place
    return float(min(1.0, mass[0] / poisson.pmf(n, n)))


def kolmogorov_smirnov(counts: Counts, places: Floats, n: int) -> tuple[float, float]:
    """D = max_k |C_k/n − z_k| and P(D or more) of uniform numbers; exact for these places."""
    away = n * places
    distance = float(np.abs(counts - away).max())
    low = np.floor(away - distance + 1e-9).astype(np.int64) + 1
    high = np.ceil(away + distance - 1e-9).astype(np.int64) - 1
    return distance / n, 1 - stay_probability(np.maximum(low, 0), np.minimum(high, n), places, n)


def band_p_value(counts: Counts, places: Floats, n: int) -> float:
    """P(a place with a tail as small as the smallest one here) of uniform numbers: below 0.05, they leave the band."""
    binom = _scipy().binom
    tails = np.minimum(binom.cdf(counts, n, places), binom.sf(counts - 1, n, places))
    smallest = float(np.clip(tails.min() * (1 + 1e-9), SMALLEST, 1.0))
    low, high = binom.ppf(smallest, n, places), binom.isf(smallest, n, places)
    return 1 - stay_probability(low.astype(np.int64), high.astype(np.int64), places, n)


def _scipy() -> Any:
    """scipy.stats, which takes half a second to import."""
    import scipy.stats

    return scipy.stats
