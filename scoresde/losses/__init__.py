"""Training objectives: a weighting over noise levels, a law of times, and the losses that use them."""

from scoresde.losses.denoising import DenoisingLoss
from scoresde.losses.times import TimeLaw, discrete_times, lognormal_times, uniform_times
from scoresde.losses.weightings import (
    Weighting,
    edm_weighting,
    likelihood_weighting,
    simple_weighting,
    snr_weighting,
)

__all__ = [
    "DenoisingLoss", "TimeLaw", "Weighting", "discrete_times", "edm_weighting", "likelihood_weighting",
    "lognormal_times", "simple_weighting", "snr_weighting", "uniform_times",
]  # fmt: skip
