"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.base import Plan, Solver, Step, StepSolver
from scoresde.solvers.ddim import DDIM
from scoresde.solvers.ddpm import DDPM
from scoresde.solvers.dpm_solver import DPMSolver, DPMSolverFast, DPMSolverPP2S, DPMSolverPP3S
from scoresde.solvers.dpm_solver_pp import DPMSolverMultistep, DPMSolverPP2M, DPMSolverPP3M
from scoresde.solvers.euler_maruyama import EulerMaruyama, ReverseDiffusion
from scoresde.solvers.heun import Heun
from scoresde.solvers.ipndm import IPNDM
from scoresde.solvers.langevin import AnnealedLangevin, Langevin, PredictorCorrector
from scoresde.solvers.obelm import OBELM
from scoresde.solvers.reversible import Reversible, ReversibleState
from scoresde.solvers.unipc import UniPC

__all__ = [
    "AnnealedLangevin", "Langevin", "PredictorCorrector", "OBELM", "Reversible", "ReversibleState",
    "DDIM", "DDPM", "IPNDM", "DPMSolver", "DPMSolverFast", "DPMSolverMultistep", "DPMSolverPP2M", "DPMSolverPP2S",
    "DPMSolverPP3M", "DPMSolverPP3S", "EulerMaruyama", "Heun", "Plan", "ReverseDiffusion", "Solver", "Step",
    "StepSolver", "UniPC",
]  # fmt: skip
