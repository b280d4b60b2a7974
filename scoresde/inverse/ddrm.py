"""Denoising diffusion restoration models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.denoiser import Denoiser
from scoresde.inverse.coordinates import Coordinates, check_linear_gaussian
from scoresde.inverse.measurement import Measurement
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, balanced_grid
from scoresde.sde.levels import Interval
from scoresde.solvers.base import StepSolver


@dataclass(frozen=True, kw_only=True)
class DDRM(StepSolver):
    """Denoising diffusion restoration: DDIM in the singular directions of A, each at its own level of noise.

        c = Vᵀ x,   ȳ = Uᵀ y/s = Vᵀ x0 + std n,   std = σ_y/s,   ĉ = Vᵀ x̂0(x_t),   ε̂ = (c_t − α_t ĉ)/σ_t
        c_s ~ N(α_s ĉ + √(1 − η²) σ_s ε̂,               η² σ_s²)                       where y says nothing
        c_s ~ N(α_s ĉ + √(1 − η²) σ_s (ȳ − ĉ)/std,     η² σ_s²)                       while σ_s < α_s std
        c_s ~ N(α_s ((1 − η_b) ĉ + η_b ȳ),             σ_s² − η_b² α_s² std²)         while σ_s ≥ α_s std
                                                                    (Kawar et al. 2022, eq. 7-8, for x/α; c_1 as eq. 4)

    Every c_s has the noise of its level in all, given x0; but x̂0 stands for x0, so the law is narrower than p(x0 | y):
    of N(0, 1) data of which nothing is known (1 + √(1 − η²))/2 of the variance is left after many steps, 0.76 for the
    paper's η = 0.85, and 0.66 after 20. Unknown coordinates follow known ones late, as with `Replacement`.

    Args:
        measurement: What is known of each sample: any linear operator, Gaussian noise.
        eta: η, from 0 to 1.
        eta_b: η_b, from 0 to 1; 1 puts ȳ in place of the prediction while y is the better one.

    References:
        Kawar et al., "Denoising Diffusion Restoration Models", 2022, arXiv:2201.11793.
    """

    measurement: Measurement
    steps: int = 20
    grid: Grid = balanced_grid
    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_linear_gaussian(self, self.measurement)
        check_numbers(self, "0 <= eta <= 1", "0 <= eta_b <= 1")

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Coordinates | None
    ) -> tuple[Tensor, Coordinates]:
        t, s, y = interval.t, interval.s, state
        if y is None:
            y = Coordinates.of(self, self.measurement, x)
            x = y.noised(x, t, noise)
        c, c0, std = y.along(x), y.along(denoiser.x0(x, t)), s.alpha * y.std
        clear, rest = std <= s.sigma, s.sigma * (1 - self.eta**2) ** 0.5
        noisy = (y.value - c0) / torch.where(clear, 1, y.std)
        mean = s.alpha * c0 + rest * torch.where(y.known, noisy, (c - t.alpha * c0) / t.sigma)
        mean = torch.where(y.known & clear, s.alpha * (c0 + self.eta_b * (y.value - c0)), mean)
        if interval.to_data is True and not isinstance(s.sigma, Tensor):
            return y.event(mean), y
        left = (s.sigma**2 - (self.eta_b * std).square()).clamp_min(0).sqrt()
        std_s = torch.where(y.known & clear, left, self.eta * s.sigma)
        return y.event(mean + std_s * y.along(noise(t.host_time, s.host_time))), y
