"""The standard error of an estimate that is a sum of independent parts, each with an estimated variance."""

from __future__ import annotations

from torch import Tensor

from scoresde.likelihood.trace import student_factor


def standard_error(variances: Tensor, freedom: int | Tensor) -> Tensor:
    """Standard error of a sum, such that ± 2 of it holds the expectation with 95 %.

        error = c(ν) √Σ v_k,     c(ν) = t_ν(0.977) / 2
        ν     = (Σ v_k)² / Σ v_k²/(ν_k + 2) − 2          (Satterthwaite 1946, corrected for estimated v_k)

    Where few parts carry the variance, few degrees of freedom tell it, whatever the number of parts.

    Args:
        variances: Unbiased estimates of the parts' variances, (K, B).
        freedom: Degrees of freedom ν_k of each, () or (K, 1).
    Returns:
        (B,).
    """
    total = variances.sum(0)
    weights = (variances / total.clamp_min(1e-300)).square() / (freedom + 2)
    combined = (1 / weights.sum(0).clamp_min(1e-12) - 2).clamp_min(1)
    return total.sqrt() * student_factor(combined)
