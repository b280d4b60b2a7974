"""Steps that are too long for their order, told by standard normal data, whose probability flow is known.

There x_t = n_t z for one z along a path, n² = α² + σ², and the predictions are ε̂ = σ x/n² and x̂0 = α x/n²: a step of
any method multiplies x by a number that its weights give, where n_s/n_t is right. Second-order steps with ε̂ go wrong
where σ/α falls far at once: in a step to (nearly) no noise, or in the first of two from σ/α = 150, their further terms
are many times the data. In a run such a step is taken with the first order; a step by hand is always the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.sde.levels import Levels

MOST = 2.0  # relative error: no step of the grids that the papers use comes near


def norm(levels: Levels) -> Tensor:
    """n: standard deviation of x_t for standard normal data, (n, ...)."""
    return torch.hypot(levels.alpha, levels.sigma)


def share(levels: Levels, prediction: str) -> Tensor:
    """q/x_t for standard normal data: that of ε̂ (eps) or x̂0 (data), (n, ...)."""
    return (levels.sigma if prediction == "eps" else levels.alpha) / norm(levels).square()


def too_long(t: Levels, s: Levels, first: Tensor, factor: Tensor, most: float = MOST) -> Tensor:
    """Whether steps of a run err by more than `most` of the truth, and by more than first-order ones, (n, ...).

    Args:
        t, s: The levels where they begin and end.
        first, factor: x_s/x_t for standard normal data, of the first-order steps and of the steps themselves.
        most: Relative error.
    """
    if not s.whole:
        return torch.zeros_like(factor, dtype=torch.bool)
    right = norm(s) / norm(t)
    errors = [(value / right - 1).abs() for value in (first, factor)]
    return errors[1] > errors[0].clamp_min(most)
