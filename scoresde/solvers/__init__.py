"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.base import Plan, Solver, Step, StepSolver
from scoresde.solvers.ddim import DDIM
from scoresde.solvers.ddpm import DDPM
from scoresde.solvers.dpm_solver_pp import DPMSolverPP2M
from scoresde.solvers.euler_maruyama import EulerMaruyama, ReverseDiffusion
from scoresde.solvers.langevin import AnnealedLangevin, Langevin, PredictorCorrector
from scoresde.solvers.obelm import OBELM
from scoresde.solvers.reversible import Reversible, ReversibleState

__all__ = [
    "AnnealedLangevin",
    "DDIM",
    "DDPM",
    "DPMSolverPP2M",
    "EulerMaruyama",
    "Langevin",
    "OBELM",
    "Plan",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Reversible",
    "ReversibleState",
    "Solver",
    "Step",
    "StepSolver",
]
