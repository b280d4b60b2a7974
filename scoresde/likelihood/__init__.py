"""Likelihoods of data under a denoiser: the density of the probability flow, bounds, and bits per dimension."""

from scoresde.likelihood.bits import bits_per_dim
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.cells import Cells
from scoresde.likelihood.decoder import CategoricalDecoder, Decoder, DiscretizedGaussian, gaussian_decoder
from scoresde.likelihood.probability_flow import LogProb, log_prob

__all__ = [
    "Bound", "CategoricalDecoder", "Cells", "Decoder", "DiscretizedGaussian", "LogProb", "bits_per_dim",
    "gaussian_decoder", "log_prob",
]  # fmt: skip
