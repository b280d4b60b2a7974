"""What is wrong with a model, by noise level: loss against optimum, consistency and symmetry of its score."""

from scoresde.diagnostics.fokker_planck import FokkerPlanckResidual, fokker_planck_by_noise, fokker_planck_residual
from scoresde.diagnostics.loss_by_noise import LossByNoise, gaussian_loss, loss_by_noise, optimal_loss, optimum_by_noise
from scoresde.diagnostics.marginals import MarginalGap, marginal_gap, sliced_wasserstein
from scoresde.diagnostics.noise_bins import Curve, logsnr_edges
from scoresde.diagnostics.straightness import straightness
from scoresde.diagnostics.symmetry import Asymmetry, asymmetry_by_noise, jacobian_asymmetry

__all__ = [
    "Asymmetry", "Curve", "FokkerPlanckResidual", "LossByNoise", "MarginalGap", "asymmetry_by_noise",
    "fokker_planck_by_noise", "fokker_planck_residual", "gaussian_loss", "jacobian_asymmetry", "logsnr_edges",
    "loss_by_noise", "marginal_gap", "optimal_loss", "optimum_by_noise", "sliced_wasserstein", "straightness",
]  # fmt: skip
