"""Fitting the times and weights of a solver to one model, from a few of its own paths."""

from scoresde.calibration.fit import OptimisedGrid, calibrate, optimise_grid
from scoresde.calibration.pilots import Pilots, pilot_paths

__all__ = ["OptimisedGrid", "Pilots", "calibrate", "optimise_grid", "pilot_paths"]
