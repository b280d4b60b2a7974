"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.adams import ExponentialAdams
from scoresde.solvers.ancestral import DDIM, DDPM, EulerMaruyama, ReverseDiffusion
from scoresde.solvers.base import Plan, Solver, Step, StepSolver, TabulatedSolver
from scoresde.solvers.grids import Grid, karras_grid, logsnr_grid, quadratic_grid, subsequence_grid, uniform_grid
from scoresde.solvers.langevin import AnnealedLangevin, Langevin, PredictorCorrector
from scoresde.solvers.multistep import DPMSolverPP2M, Heun
from scoresde.solvers.noise import NoiseSource, brownian_noise, gaussian_noise, per_sample_noise
from scoresde.solvers.ode import ProbabilityFlowODE
from scoresde.solvers.reverse_sde import ReverseSDE

__all__ = [
    "AnnealedLangevin",
    "DDIM",
    "DDPM",
    "DPMSolverPP2M",
    "EulerMaruyama",
    "ExponentialAdams",
    "Grid",
    "Heun",
    "Langevin",
    "NoiseSource",
    "Plan",
    "PredictorCorrector",
    "ProbabilityFlowODE",
    "ReverseDiffusion",
    "ReverseSDE",
    "Solver",
    "Step",
    "StepSolver",
    "TabulatedSolver",
    "brownian_noise",
    "gaussian_noise",
    "karras_grid",
    "logsnr_grid",
    "per_sample_noise",
    "quadratic_grid",
    "subsequence_grid",
    "uniform_grid",
]
