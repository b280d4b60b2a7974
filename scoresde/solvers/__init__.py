"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.adams import ExponentialAdams
from scoresde.solvers.base import Plan, Solver, Step, StepSolver
from scoresde.solvers.ddim import DDIM
from scoresde.solvers.ddpm import DDPM
from scoresde.solvers.dpm_solver_pp import DPMSolverPP2M
from scoresde.solvers.er_sde import ERSDE, er_sde_scale, power_scale
from scoresde.solvers.euler_maruyama import EulerMaruyama, ReverseDiffusion
from scoresde.solvers.sa_solver import SASolver
from scoresde.solvers.sde_dpm_solver import DPMSolverPPSDE, SDEDPMSolverPP
from scoresde.solvers.seeds import SEEDS

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolverPP2M",
    "DPMSolverPPSDE",
    "ERSDE",
    "EulerMaruyama",
    "ExponentialAdams",
    "Plan",
    "ReverseDiffusion",
    "SASolver",
    "SDEDPMSolverPP",
    "SEEDS",
    "Solver",
    "Step",
    "StepSolver",
    "er_sde_scale",
    "power_scale",
]
