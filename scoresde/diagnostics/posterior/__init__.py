"""Whether posteriors are calibrated: ranks, coverage and random references, from draws and the truths behind them."""

from scoresde.diagnostics.posterior.bands import ecdf_band
from scoresde.diagnostics.posterior.calibration import PosteriorCalibration, posterior_calibration
from scoresde.diagnostics.posterior.coverage import Coverage, Tarp, coverage, tarp
from scoresde.diagnostics.posterior.ranks import Uniformity, sbc_ranks, uniformity
from scoresde.diagnostics.posterior.two_samples import c2st

__all__ = [
    "Coverage", "PosteriorCalibration", "Tarp", "Uniformity", "c2st", "coverage", "ecdf_band", "posterior_calibration",
    "sbc_ranks", "tarp", "uniformity",
]  # fmt: skip
