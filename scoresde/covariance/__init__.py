"""Denoisers that know their spread: the diagonal of Cov[x0 | x_t], for solvers with an optimal reverse variance."""

import importlib
from typing import Any

from scoresde.covariance.base import CovarianceDenoiser
from scoresde.covariance.head import VarianceHead
from scoresde.covariance.learned import LearnedRange
from scoresde.covariance.moments import SecondMoment, second_moment
from scoresde.covariance.probing import HessianDiagonal, jacobian_diagonal
from scoresde.covariance.scalar import AnalyticVariance

__all__ = [
    "AnalyticVariance", "CovarianceDenoiser", "HessianDiagonal", "LearnedRange", "SecondMoment", "VarianceHead",
    "jacobian_diagonal", "second_moment",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "SecondMomentLoss":  # its place in configurations saved earlier
        return importlib.import_module("scoresde.losses").SecondMomentLoss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
