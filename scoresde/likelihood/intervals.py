"""Intervals from standard errors: what factor holds a share of the cases, by how many values told the error."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

MOST_FREEDOM = 1e6  # Student's t is normal to 1e-6 above
HALVINGS = 60


def coverage_factor(freedom: float | Tensor, level: float = 0.95) -> Tensor:
    """How many standard errors on either side hold the expectation in a share `level` of cases: Student's quantile.

        P(|T_ν| < c) = level         12.71 for one degree of freedom, 3.18 for 3, 1.96 for many, at 95 %

    A standard error from K draws has ν = K − 1: it is itself uncertain, all the more the fewer they are.

    Args:
        freedom: Degrees of freedom ν, at least 1, one number or any shape.
        level: Between 0 and 1.
    Returns:
        c in float64, shape of freedom.
    """
    if not 0 < level < 1:
        raise ValueError(f"coverage_factor needs a level between 0 and 1, for example 0.95, got {level!r}.")
    nu = torch.as_tensor(freedom, dtype=torch.float64).clamp(1, MOST_FREEDOM)
    # T = √ν tan θ has the density 2 Γ((ν + 1)/2) / (√π Γ(ν/2)) cos^(ν−1) θ for θ > 0
    scale = 2 / math.sqrt(math.pi) * (torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2)).exp()
    nodes, weights = (part.to(nu.device) for part in _gauss_legendre())
    low, high = torch.zeros_like(nu), (40 / nu.sqrt()).clamp(max=math.pi / 2)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        angle = middle[..., None] * nodes
        share = scale * middle * (weights * angle.cos() ** (nu[..., None] - 1)).sum(-1)
        low, high = torch.where(share < level, middle, low), torch.where(share < level, high, middle)
    return nu.sqrt() * torch.tan(0.5 * (low + high))


def interval(value: Tensor, std_error: Tensor, freedom: float | Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of value ± c std_error, c the `coverage_factor`; NaN where the error is not known."""
    half = (coverage_factor(freedom, level).to(std_error.device) * std_error).to(value.dtype)
    return value - half, value + half


def pooled_freedom(variances: Tensor, freedom: int | Tensor) -> Tensor:
    """Degrees of freedom of a sum of estimated variances.

        ν = (Σ v_k)² / Σ v_k²/(ν_k + 2) − 2          (Satterthwaite 1946, corrected for estimated v_k)

    Where few parts carry the variance, few degrees of freedom tell it, whatever the number of parts.

    Args:
        variances: Unbiased estimates of the parts' variances, (K, B).
        freedom: Degrees of freedom ν_k of each, () or (K, 1).
    Returns:
        (B,), at least 1.
    """
    weights = (variances / variances.sum(0).clamp_min(1e-300)).square() / (freedom + 2)
    return (1 / weights.sum(0).clamp_min(1e-12) - 2).clamp_min(1)


@cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)
