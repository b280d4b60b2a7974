"""Denoisers that know the diagonal of Cov[x0 | x_t], for solvers with an optimal reverse variance."""

from scoresde.covariance.covariance_denoiser import CovarianceDenoiser
from scoresde.covariance.head import VarianceHead
from scoresde.covariance.learned_range import LearnedRange
from scoresde.covariance.moments import SecondMoment, second_moment
from scoresde.covariance.probing import HessianDiagonal, jacobian_diagonal
from scoresde.covariance.scalar import AnalyticVariance

__all__ = [
    "AnalyticVariance", "CovarianceDenoiser", "HessianDiagonal", "LearnedRange", "SecondMoment", "VarianceHead",
    "jacobian_diagonal", "second_moment",
]  # fmt: skip
