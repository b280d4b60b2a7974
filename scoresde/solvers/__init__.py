"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.base import Plan, Solver, Step, StepSolver
from scoresde.solvers.ddim import DDIM
from scoresde.solvers.ddpm import DDPM
from scoresde.solvers.dpm_solver_pp import DPMSolverPP2M
from scoresde.solvers.euler_maruyama import EulerMaruyama, ReverseDiffusion
from scoresde.solvers.langevin import AnnealedLangevin, Langevin, PredictorCorrector

__all__ = [
    "AnnealedLangevin",
    "DDIM",
    "DDPM",
    "DPMSolverPP2M",
    "EulerMaruyama",
    "Langevin",
    "Plan",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Solver",
    "Step",
    "StepSolver",
]
