"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.adams import IPNDM, ExponentialAdams
from scoresde.solvers.adaptive_sde import AdaptiveSDE
from scoresde.solvers.base import Plan, Solver, Step, StepSolver
from scoresde.solvers.ddim import DDIM
from scoresde.solvers.ddpm import DDPM
from scoresde.solvers.dpm_solver import DPMSolver, DPMSolverFast, DPMSolverPP2S, DPMSolverPP3S
from scoresde.solvers.dpm_solver_pp import DPMSolverMultistep, DPMSolverPP2M, DPMSolverPP3M
from scoresde.solvers.er_sde import ERSDE, er_sde_scale, power_scale
from scoresde.solvers.euler_maruyama import EulerMaruyama, ReverseDiffusion
from scoresde.solvers.heun import Heun
from scoresde.solvers.langevin import AnnealedLangevin, Langevin, PredictorCorrector
from scoresde.solvers.mean_shift import GaussianStepSolver, MeanShift
from scoresde.solvers.obelm import OBELM
from scoresde.solvers.ode import ProbabilityFlowODE
from scoresde.solvers.reverse_sde import ReverseSDE
from scoresde.solvers.reversible import Reversible, ReversibleState
from scoresde.solvers.runge_kutta import RungeKutta
from scoresde.solvers.sa_solver import SASolver
from scoresde.solvers.sde_dpm_solver import DPMSolverPPSDE, SDEDPMSolverPP
from scoresde.solvers.seeds import SEEDS
from scoresde.solvers.unipc import UniPC

__all__ = [
    "AdaptiveSDE",
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
    "DPMSolverPPSDE",
    "ERSDE",
    "EulerMaruyama",
    "ExponentialAdams",
    "GaussianStepSolver",
    "Heun",
    "IPNDM",
    "Langevin",
    "MeanShift",
    "OBELM",
    "Plan",
    "PredictorCorrector",
    "ProbabilityFlowODE",
    "ReverseDiffusion",
    "ReverseSDE",
    "Reversible",
    "ReversibleState",
    "RungeKutta",
    "SASolver",
    "SDEDPMSolverPP",
    "SEEDS",
    "Solver",
    "Step",
    "StepSolver",
    "UniPC",
    "er_sde_scale",
    "power_scale",
]
