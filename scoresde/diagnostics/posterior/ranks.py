"""Rank statistics of simulation-based calibration, and tests of their uniformity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.diagnostics.posterior.bands import band_p_value, kolmogorov_smirnov

MOST_PLACES = 128  # at which the distribution function of ranks is compared
MOST_BINS, PER_BIN = 20, 20


def sbc_ranks(
    samples: Tensor | ArrayLike, truth: Tensor | ArrayLike, *, generator: torch.Generator | None = None
) -> Tensor:
    """How many draws of a posterior are below the truth that its observation was made from.

        r = #{s : θ_s < θ*},   uniform on 0, ..., S for exact posteriors             (Talts et al. 2018, Theorem 1)

    Many small and many large ranks: the posterior is too narrow. Ranks in the middle: too wide. A slope: biased. Equal
    values share their places at random. Other test quantities, as log p(θ | x), are more entries of samples and truth.

    Args:
        samples: S draws of each of n posteriors, (S, n, *).
        truth: The parameters behind the n observations, (n, *), drawn from the prior.
        generator: For equal values, on the CPU.
    Returns:
        int64, (n, *), in 0..S.
    References:
        Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based Calibration", 2018,
        arXiv:1804.06788.
    """
    samples, truth = pairs("sbc_ranks", samples, truth)
    return ranks_of(samples, truth, generator)


def ranks_of(samples: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> Tensor:
    ranks, ties = (samples < truth).sum(0), (samples == truth).sum(0)
    if bool(ties.any()):
        u = torch.rand(ties.shape, generator=generator, dtype=torch.float64).to(ties.device)
        ranks = ranks + (u * (ties + 1)).long()
    return ranks


@dataclass(frozen=True, kw_only=True)
class Uniformity:
    """Result of `uniformity`; all but `expected` have one column for every entry of an event, of shape (*).

    Attributes:
        chi_square, chi_square_p: Pearson's statistic of the histogram, and its p-value for many ranks.
        distance, distance_p: Of Kolmogorov and Smirnov, with the exact p-value of discrete ranks.
        band_p: Exact p-value of the band: below 0.05 the distribution function leaves `ecdf_band`. The sharpest of the
            three for posteriors that are too narrow or too wide.
        counts: The histogram, (bins, *).
        expected: Of every bin, (bins,).
    """

    chi_square: Tensor
    chi_square_p: Tensor
    distance: Tensor
    distance_p: Tensor
    band_p: Tensor
    counts: Tensor
    expected: Tensor

    def counts_band(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Counts that all bins of a histogram of uniform ranks stay between, with a probability of `level` at least."""
        import scipy.stats  # which takes half a second

        n, bins = float(self.expected.sum()), len(self.expected)
        tail, shares = (1 - level) / (2 * bins), self.expected.numpy() / n
        low, high = scipy.stats.binom.ppf(tail, n, shares), scipy.stats.binom.isf(tail, n, shares)
        return torch.from_numpy(low), torch.from_numpy(high)

    @property
    def p(self) -> float:
        """The smallest `band_p` times the number of entries (Bonferroni), at most 1."""
        return min(1.0, float(self.band_p.min()) * self.band_p.numel())


def uniformity(ranks: Tensor | ArrayLike, draws: int, *, bins: int | None = None) -> Uniformity:
    """Whether ranks are uniform on 0, ..., draws.

    Args:
        ranks: Whole numbers, (n, *), n >= 2.
        draws: S.
        bins: Of the histogram, 2 to draws + 1; None: 20, and fewer where there are fewer than 20 ranks for each.
    """
    check_whole("uniformity", "1 <= draws <= 10000000", draws=draws)
    ranks = torch.as_tensor(ranks).cpu()
    if ranks.is_floating_point() or ranks.ndim < 1 or len(ranks) < 2:
        raise ValueError(
            f"uniformity needs whole ranks of shape (n, *) with n >= 2, got {ranks.dtype} of shape "
            f"{tuple(ranks.shape)}."
        )
    if int(ranks.min()) < 0 or int(ranks.max()) > draws:
        raise ValueError(f"uniformity needs ranks in 0..draws={draws}, got {int(ranks.min())} to {int(ranks.max())}.")
    n, shape = len(ranks), ranks.shape[1:]
    if bins is None:
        bins = _bins(n, draws + 1)
    check_whole("uniformity", "2 <= bins <= most", bins=bins, most=max(draws + 1, 2))
    edges = np.linspace(0, draws + 1, bins + 1).round().astype(np.int64)
    expected = torch.from_numpy(n * np.diff(edges) / (draws + 1))
    columns = ranks.reshape(n, -1).T.numpy()
    counts = torch.from_numpy(np.stack([np.histogram(c, edges - 0.5)[0] for c in columns], 1)).double()
    chi = ((counts - expected[:, None]).square() / expected[:, None]).sum(0)
    ends = np.unique(np.linspace(0, draws + 1, min(MOST_PLACES, draws + 1) + 1).round().astype(np.int64))[1:-1]
    places = ends / (draws + 1)
    below = [np.searchsorted(np.sort(column), ends) for column in columns]  # ranks 0 ... end − 1
    tests = torch.tensor([(*kolmogorov_smirnov(c, places, n), band_p_value(c, places, n)) for c in below])
    distance, distance_p, band_p = (column.reshape(shape).double() for column in tests.T)
    return Uniformity(
        chi_square=chi.reshape(shape),
        chi_square_p=torch.special.gammaincc(torch.tensor(0.5 * (bins - 1)).double(), 0.5 * chi).reshape(shape),
        distance=distance, distance_p=distance_p, band_p=band_p, counts=counts.reshape(bins, *shape), expected=expected,
    )  # fmt: skip


def _bins(n: int, ranks: int) -> int:
    """As many as there are ranks for, and of one size if that leaves more than half of them."""
    most = max(2, min(MOST_BINS, n // PER_BIN, ranks))
    return next((bins for bins in range(most, most // 2, -1) if ranks % bins == 0), most)


def pairs(owner: str, samples: Tensor | ArrayLike, truth: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
    """Samples (S, n, *) and truth (n, *) as tensors of one kind.

    Raises:
        ValueError: If they do not fit together, or are not finite.
    """
    samples, truth = torch.as_tensor(samples).detach(), torch.as_tensor(truth).detach()
    if samples.ndim < 2 or samples.shape[1:] != truth.shape or truth.ndim < 1 or len(truth) < 2:
        raise ValueError(
            f"{owner} needs samples of shape (S, n, *), S draws of each of n >= 2 posteriors, and truth of shape "
            f"(n, *), got {tuple(samples.shape)} and {tuple(truth.shape)}."
        )
    for name, values in (("samples", samples), ("truth", truth)):
        if values.numel() == 0 or not bool(torch.isfinite(values).all()):
            raise ValueError(f"{owner} needs finite {name}, got {_bad(values)} of {values.numel()} that are not.")
    dtype = torch.promote_types(samples.dtype, truth.dtype)
    return samples.to(dtype), truth.to(samples.device, dtype)


def _bad(values: Tensor) -> int:
    return int((~torch.isfinite(values)).sum())
