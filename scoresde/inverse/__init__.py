"""Inverse problems y = A(x0) + noise: operators, measurements, and the denoisers and samplers of p(x0 | y)."""

from scoresde.inverse.measurement import GaussianNoise, Measurement, NoiseLaw
from scoresde.inverse.operators import LinearOperator, Mask, Matrix, Operator

__all__ = ["GaussianNoise", "LinearOperator", "Mask", "Matrix", "Measurement", "NoiseLaw", "Operator"]
