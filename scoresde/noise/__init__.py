"""Sources of noise, and the one place that derives a random stream."""

from scoresde.noise.brownian_motion import BrownianMotion, brownian_motion
from scoresde.noise.brownian_path import BrownianPath, brownian_noise
from scoresde.noise.sources import NoiseSource, PathNoise, gaussian_noise, per_sample_noise
from scoresde.noise.streams import sample_seeds, stream_generator, stream_seed

__all__ = [
    "BrownianMotion", "BrownianPath", "NoiseSource", "PathNoise", "brownian_motion", "brownian_noise", "gaussian_noise",
    "per_sample_noise", "sample_seeds", "stream_generator", "stream_seed",
]  # fmt: skip
