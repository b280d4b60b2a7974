"""What is wrong with a model: loss, consistency and symmetry of its score by noise level; calibration of posteriors."""

from scoresde.diagnostics.classification import Classification, classification
from scoresde.diagnostics.fokker_planck import FokkerPlanckResidual, fokker_planck_by_noise, fokker_planck_residual
from scoresde.diagnostics.loss_by_noise import LossByNoise, gaussian_loss, loss_by_noise, optimal_loss, optimum_by_noise
from scoresde.diagnostics.marginals import MarginalGap, marginal_gap, sliced_wasserstein
from scoresde.diagnostics.noise_bins import Curve, logsnr_edges
from scoresde.diagnostics.posterior import (
    Coverage,
    PosteriorCalibration,
    Tarp,
    Uniformity,
    c2st,
    coverage,
    ecdf_band,
    posterior_calibration,
    sbc_ranks,
    tarp,
    uniformity,
)
from scoresde.diagnostics.straightness import straightness
from scoresde.diagnostics.symmetry import Asymmetry, asymmetry_by_noise, jacobian_asymmetry

__all__ = [
    "Asymmetry", "Classification", "Coverage", "Curve", "FokkerPlanckResidual", "LossByNoise", "MarginalGap",
    "PosteriorCalibration", "Tarp", "Uniformity", "asymmetry_by_noise", "c2st", "classification", "coverage",
    "ecdf_band", "fokker_planck_by_noise", "fokker_planck_residual", "gaussian_loss", "jacobian_asymmetry",
    "logsnr_edges", "loss_by_noise", "marginal_gap", "optimal_loss", "optimum_by_noise", "posterior_calibration",
    "sbc_ranks", "sliced_wasserstein", "straightness", "tarp", "uniformity",
]  # fmt: skip
