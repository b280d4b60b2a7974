"""Ranks, coverage and random references together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scoresde.diagnostics.posterior.coverage import LEVELS, Coverage, Tarp, coverage, tarp
from scoresde.diagnostics.posterior.ranks import Uniformity, pairs, ranks_of, uniformity


@dataclass(frozen=True, kw_only=True)
class PosteriorCalibration:
    """Result of `posterior_calibration`.

    Attributes:
        draws: S, of every posterior.
        ranks: (n, *).
        uniformity: Of the ranks.
        coverage: Of central intervals.
        tarp: Of balls around random references.
        tarp_p: Exact p-value of its ranks, as `Uniformity.band_p`.
    """

    draws: int
    ranks: Tensor
    uniformity: Uniformity
    coverage: Coverage
    tarp: Tarp
    tarp_p: float


def posterior_calibration(
    samples: Tensor | ArrayLike, truth: Tensor | ArrayLike, references: Tensor | ArrayLike | None = None, *,
    generator: torch.Generator | None = None,
) -> PosteriorCalibration:  # fmt: skip
    """Whether n posteriors are what their draws should be: `sbc_ranks`, `uniformity`, `coverage` and `tarp`.

    Calibrated is not the same as sharp: the prior itself passes ranks and coverage. TARP with references that depend
    on the observation notices it.

    Args:
        samples, truth: As for `sbc_ranks`.
        references: As for `tarp`.
        generator: For equal values and references, on the CPU.
    """
    samples, truth = pairs("posterior_calibration", samples, truth)
    draws = len(samples)
    ranks = ranks_of(samples, truth, generator).cpu()
    balls = tarp(samples, truth, references, levels=LEVELS, generator=generator)
    return PosteriorCalibration(
        draws=draws, ranks=ranks, uniformity=uniformity(ranks, draws),
        coverage=coverage(samples, truth, generator=generator), tarp=balls,
        tarp_p=float(uniformity(balls.ranks, draws).band_p),
    )  # fmt: skip
