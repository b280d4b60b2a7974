"""Fitting the times and weights of a solver to one model, from a few of its own paths."""

from scoresde.fitting.calibrated import CalibratedMultistep, Calibration
from scoresde.fitting.fit import OptimisedGrid, calibrate, optimise_grid
from scoresde.fitting.gaussian_flow import GaussianFlow
from scoresde.fitting.optimal_grid import optimal_grid
from scoresde.fitting.reference_paths import ReferencePaths, reference_paths

__all__ = [
    "CalibratedMultistep", "Calibration", "GaussianFlow", "OptimisedGrid", "ReferencePaths", "calibrate",
    "optimal_grid", "optimise_grid", "reference_paths",
]  # fmt: skip
