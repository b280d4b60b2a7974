"""Coverage of credible regions: central intervals, and balls around random references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scoresde.checks import check_list
from scoresde.diagnostics.posterior.ranks import pairs, ranks_of

LEVELS = tuple(k / 20 for k in range(1, 20))


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often central credible intervals hold the truth.

    Attributes:
        levels: Of the intervals, (L,).
        value: Share of truths inside, (L, *) for every entry of an event.
        std_error: Of `value`, from the n truths, (L, *).
        mean, mean_std_error: Over all entries of an event, whose truths are not independent, (L,).
    """

    levels: Tensor
    value: Tensor
    std_error: Tensor
    mean: Tensor
    mean_std_error: Tensor


@dataclass(frozen=True, kw_only=True)
class Tarp:
    """Expected coverage of balls around random references.

    Attributes:
        levels: Credibility, (L,).
        value: Share of truths inside the ball of that credibility, (L,); levels for exact posteriors.
        std_error: Of `value`, (L,).
        ranks: How many draws are nearer to the reference than the truth, (n,); uniform on 0..S for exact posteriors.
    """

    levels: Tensor
    value: Tensor
    std_error: Tensor
    ranks: Tensor


def coverage(
    samples: Tensor | ArrayLike, truth: Tensor | ArrayLike, levels: Sequence[float] | Tensor = LEVELS, *,
    generator: torch.Generator | None = None,
) -> Coverage:  # fmt: skip
    """Coverage of the central intervals between the quantiles (1 ∓ level)/2 of the draws, entry by entry.

        value = 1/n Σ_i P_u(|2 (r_i + u)/(S + 1) − 1| <= level),    r_i the rank of the truth, u ~ U(0, 1)

    whose expectation is `level` for exact posteriors, whatever S is: intervals between two of the draws would be too
    narrow by 1/S. A Gaussian posterior of k times the right standard deviation has 2 Φ(k Φ⁻¹((1 + level)/2)) − 1.

    Args:
        samples, truth, generator: As for `sbc_ranks`.
        levels: In (0, 1).
    """
    samples, truth = pairs("coverage", samples, truth)
    level = _levels("coverage", levels)
    inside = covered(ranks_of(samples, truth, generator).cpu(), len(samples), (1 - level) / 2, (1 + level) / 2)
    over = inside.flatten(2).mean(2)
    return Coverage(
        levels=level, value=inside.mean(1), std_error=_std_error(inside), mean=over.mean(1),
        mean_std_error=_std_error(over),
    )  # fmt: skip


def tarp(
    samples: Tensor | ArrayLike, truth: Tensor | ArrayLike, references: Tensor | ArrayLike | None = None, *,
    levels: Sequence[float] | Tensor = LEVELS, generator: torch.Generator | None = None,
) -> Tarp:  # fmt: skip
    """Tests of accuracy with random points: coverage of all entries of an event together.

        f_i = #{s : ‖θ_s − ρ_i‖ < ‖θ*_i − ρ_i‖}/S,   value(level) = P(f < level)      (Lemos et al. 2023, Algorithm 2)

    Distances are in units of the truths' range, entry by entry. With references that depend on the observation alone,
    value = level for all of them if and only if the posteriors are exact. Too narrow ones are below at levels above ½
    and above at levels below ½ for references far away; for references at the centre they are below everywhere.

    Args:
        samples, truth: As for `sbc_ranks`.
        references: ρ, (n, *) or one for all (*); None: uniform in the box of the truths.
        levels: In (0, 1).
        generator: For references and for equal distances, on the CPU.
    References:
        Lemos et al., "Sampling-Based Accuracy Testing of Posterior Estimators for General Inference", 2023,
        arXiv:2302.03026.
    """
    samples, truth = pairs("tarp", samples, truth)
    level = _levels("tarp", levels)
    low, high = truth.amin(0), truth.amax(0)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    if references is None:
        u = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(truth)
        references = low + width * u
    points = torch.as_tensor(references).detach().to(truth)
    if points.shape not in (truth.shape, truth.shape[1:]) or not bool(torch.isfinite(points).all()):
        raise ValueError(
            f"tarp needs finite references of shape {tuple(truth.shape)}, one for each truth, or one of shape "
            f"{tuple(truth.shape[1:])} for all, got {tuple(points.shape)}."
        )
    near, at = (_distance((values - points) / width, truth.ndim - 1) for values in (samples, truth))
    ranks = ranks_of(near, at, generator).cpu()
    inside = covered(ranks, len(samples), torch.zeros_like(level), level)
    return Tarp(levels=level, value=inside.mean(1), std_error=_std_error(inside), ranks=ranks)


def covered(ranks: Tensor, draws: int, low: Tensor, high: Tensor) -> Tensor:
    """P_u(low <= (r + u)/(S + 1) <= high) for every interval and rank: (L,), (n, *) -> (L, n, *)."""
    ends = ((draws + 1) * end.reshape(-1, *[1] * ranks.ndim) for end in (low, high))
    first, last = ends
    return (torch.minimum(last, ranks + 1.0) - torch.maximum(first, ranks.double())).clamp(0, 1)


def _distance(values: Tensor, axes: int) -> Tensor:
    """Euclidean, over the last axes."""
    return values.square() if axes == 0 else values.square().flatten(-axes).sum(-1)


def _std_error(inside: Tensor) -> Tensor:
    return inside.std(1) / inside.shape[1] ** 0.5


def _levels(owner: str, levels: Any) -> Tensor:
    values = check_list(owner, "levels", levels.tolist() if isinstance(levels, Tensor) else levels)
    if not values or not all(0 < value < 1 for value in values):
        raise ValueError(f"{owner} needs levels between 0 and 1, got {list(values)}.")
    return torch.tensor(values, dtype=torch.float64)
