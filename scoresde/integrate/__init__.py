"""Adaptive integration of ordinary differential equations with steps per sample: knows no network and no solver."""

from scoresde.integrate.adaptive import Solution

__all__ = ["Solution"]
