"""Likelihoods of data under a denoiser: the density of the probability flow, bounds, and bits per dimension."""

from scoresde.likelihood.bits import bits_per_dim, check_dequantized
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.cells import Cells
from scoresde.likelihood.class_posterior import ClassPosterior, class_posterior
from scoresde.likelihood.decoder import CategoricalDecoder, Decoder, DiscretizedGaussian, gaussian_decoder
from scoresde.likelihood.dequantization import (
    Dequantization,
    Dequantized,
    TruncatedNormalDequantization,
    UniformDequantization,
)
from scoresde.likelihood.discrete_log_prob import DiscreteLogProb, discrete_log_prob
from scoresde.likelihood.elbo import elbo
from scoresde.likelihood.flow_density import LogProb, log_prob
from scoresde.likelihood.intervals import coverage_factor
from scoresde.likelihood.report import Report, ReportRow, likelihood_report
from scoresde.likelihood.summary import RunningMean, Summary, summarize
from scoresde.likelihood.variational import VariationalDequantization
from scoresde.likelihood.vlb import vlb

__all__ = [
    "Bound", "CategoricalDecoder", "Cells", "ClassPosterior", "Decoder", "Dequantization", "Dequantized",
    "DiscreteLogProb", "DiscretizedGaussian", "LogProb", "Report", "ReportRow", "RunningMean", "Summary",
    "TruncatedNormalDequantization", "UniformDequantization", "VariationalDequantization", "bits_per_dim",
    "check_dequantized", "class_posterior", "coverage_factor", "discrete_log_prob", "elbo", "gaussian_decoder",
    "likelihood_report", "log_prob", "summarize", "vlb",
]  # fmt: skip
