"""Solvers of the reverse SDE and of the probability-flow ODE."""

from scoresde.solvers.adams import ExponentialAdams
from scoresde.solvers.adaptive import Solution
from scoresde.solvers.adaptive_sde import AdaptiveSDE
from scoresde.solvers.ancestral import DDIM, DDPM, EulerMaruyama, ReverseDiffusion
from scoresde.solvers.base import Plan, Solver, Step, StepSolver
from scoresde.solvers.brownian import BrownianPath, brownian_noise
from scoresde.solvers.calibrated import CalibratedMultistep, Calibration
from scoresde.solvers.dpm_solver import DPMSolver, DPMSolverFast, DPMSolverPP2S, DPMSolverPP3S
from scoresde.solvers.exponential_sde import ERSDE, SEEDS, er_sde_scale, power_scale
from scoresde.solvers.gaussian_flow import GaussianFlow
from scoresde.solvers.grids import (
    Grid,
    few_step_grid,
    karras_grid,
    logsnr_grid,
    quadratic_grid,
    subsequence_grid,
    uniform_grid,
    vp_grid,
)
from scoresde.solvers.heun import Heun
from scoresde.solvers.langevin import AnnealedLangevin, Langevin, PredictorCorrector
from scoresde.solvers.levels import Levels
from scoresde.solvers.motion import BrownianMotion, brownian_motion
from scoresde.solvers.multistep import IPNDM, DPMSolverMultistep, DPMSolverPP2M, DPMSolverPP3M
from scoresde.solvers.noise import NoiseSource, gaussian_noise, per_sample_noise
from scoresde.solvers.ode import ProbabilityFlowODE
from scoresde.solvers.reverse_sde import ReverseSDE
from scoresde.solvers.reversible import OBELM, Reversible, ReversibleState
from scoresde.solvers.sa_solver import SASolver
from scoresde.solvers.sde_dpm_solver import DPMSolverPPSDE, SDEDPMSolverPP
from scoresde.solvers.tabulated import TabulatedSolver
from scoresde.solvers.trajectories import optimal_grid
from scoresde.solvers.unipc import UniPC

__all__ = [
    "AdaptiveSDE",
    "AnnealedLangevin",
    "BrownianMotion",
    "BrownianPath",
    "CalibratedMultistep",
    "Calibration",
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
    "GaussianFlow",
    "Grid",
    "Heun",
    "IPNDM",
    "Langevin",
    "Levels",
    "NoiseSource",
    "OBELM",
    "Plan",
    "PredictorCorrector",
    "ProbabilityFlowODE",
    "ReverseDiffusion",
    "ReverseSDE",
    "Reversible",
    "ReversibleState",
    "SASolver",
    "SDEDPMSolverPP",
    "SEEDS",
    "Solution",
    "Solver",
    "Step",
    "StepSolver",
    "TabulatedSolver",
    "UniPC",
    "brownian_motion",
    "brownian_noise",
    "er_sde_scale",
    "few_step_grid",
    "gaussian_noise",
    "karras_grid",
    "logsnr_grid",
    "optimal_grid",
    "per_sample_noise",
    "power_scale",
    "quadratic_grid",
    "subsequence_grid",
    "uniform_grid",
    "vp_grid",
]
