"""Laws of the data whose score is known exactly, and the error of a solver against their exact flow."""

from scoresde.analytic.base import AnalyticDenoiser
from scoresde.analytic.empirical import EmpiricalDenoiser
from scoresde.analytic.exact_flow import FlowError, exact_flow, flow_error
from scoresde.analytic.gaussian import GaussianDenoiser
from scoresde.analytic.mixture import GaussianMixtureDenoiser

__all__ = [
    "AnalyticDenoiser", "EmpiricalDenoiser", "FlowError", "GaussianDenoiser", "GaussianMixtureDenoiser", "exact_flow",
    "flow_error",
]  # fmt: skip
