"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.base import Plan, Solver, Step, StepSolver
from scoresde.solvers.ddim import DDIM
from scoresde.solvers.ddpm import DDPM
from scoresde.solvers.dpm_solver_pp import DPMSolverPP2M
from scoresde.solvers.euler_maruyama import EulerMaruyama, ReverseDiffusion

__all__ = ["DDIM", "DDPM", "DPMSolverPP2M", "EulerMaruyama", "Plan", "ReverseDiffusion", "Solver", "Step", "StepSolver"]
