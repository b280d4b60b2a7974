"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.adams import ExponentialAdams
from scoresde.solvers.ancestral import DDIM, DDPM, EulerMaruyama, ReverseDiffusion
from scoresde.solvers.base import Plan, Solver, Step, StepSolver, TabulatedSolver
from scoresde.solvers.calibrated import CalibratedMultistep, Calibration
from scoresde.solvers.dpm_solver import DPMSolver, DPMSolverFast, DPMSolverPP2S, DPMSolverPP3S
from scoresde.solvers.gaussian_flow import GaussianFlow
from scoresde.solvers.grids import Grid, karras_grid, logsnr_grid, quadratic_grid, subsequence_grid, uniform_grid
from scoresde.solvers.heun import Heun
from scoresde.solvers.langevin import AnnealedLangevin, Langevin, PredictorCorrector
from scoresde.solvers.levels import Levels
from scoresde.solvers.multistep import IPNDM, DPMSolverMultistep, DPMSolverPP2M, DPMSolverPP3M
from scoresde.solvers.noise import NoiseSource, brownian_noise, gaussian_noise, per_sample_noise
from scoresde.solvers.ode import ProbabilityFlowODE
from scoresde.solvers.reverse_sde import ReverseSDE
from scoresde.solvers.unipc import UniPC

__all__ = [
    "Levels",
    "GaussianFlow",
    "Calibration",
    "CalibratedMultistep",
    "AnnealedLangevin",
    "DDIM",
    "DDPM",
    "DPMSolver",
    "DPMSolverFast",
    "DPMSolverMultistep",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "DPMSolverPP3S",
    "EulerMaruyama",
    "ExponentialAdams",
    "Grid",
    "Heun",
    "IPNDM",
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
    "UniPC",
    "brownian_noise",
    "gaussian_noise",
    "karras_grid",
    "logsnr_grid",
    "per_sample_noise",
    "quadratic_grid",
    "subsequence_grid",
    "uniform_grid",
]
