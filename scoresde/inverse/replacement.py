"""The known part of the state replaced by freshly noised data: inpainting and colourisation as in score_sde."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.inverse.coordinates import Coordinates, check_linear_gaussian, is_exact
from scoresde.inverse.stepped import AroundSolver, Change
from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Interval, Level


@dataclass(frozen=True, kw_only=True)
class Replacement(AroundSolver):
    """After every update of a solver the known part of the state is replaced by freshly noised data.

        c_s = α_s y + σ_s z                    in the coordinates that y says something of  (Song et al. 2021, App. I.2)
        c_s = α_s ȳ + √(σ_s² − α_s² std²) z    for a y with noise, while α_s std ≤ σ_s; then c_s is the solver's own

    The second is for solvers that draw noise, which find what is left of y's own. Coordinates are those in which a
    linear operator is a set of numbers (see `Coordinates`): the pixels of a mask, the grey channel of a colour
    projection, the block means of a down-sampling. Then the known part of a sample is y itself where that is exact, and
    else a draw given y.

    Exact where known and unknown parts are independent. Where they are correlated the network sees known parts whose
    noise is not that of the unknown ones: for correlated Gaussians 35 to 50 % of the shift of the unknown part's mean
    are missing, whatever the number of steps. `RePaint` misses less, for more calls.

    As published, which is score_sde's code, a run starts from clean known and pure-noise unknown coordinates, the known
    part after a step is that of the level where it began, and the last denoising reaches no unknown coordinate: they
    keep the noise of t_end, while the known ones are α y.

    Args:
        as_published: Whether to run as score_sde's code; needs a y without noise.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    as_published: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_linear_gaussian(self, self.measurement, exact=self.as_published)
        if self.solver.deterministic and not is_exact(self.measurement):
            raise ValueError(
                f"Replacement needs a solver that draws noise for a y with noise, got {type(self.solver).__name__}: "
                f"use DDPM, or DDRM in its place."
            )

    @property
    def moves(self) -> bool:
        return not self.as_published

    def change(self, x: Tensor) -> Change:
        return Coordinates.of(self, self.measurement, x).noised

    def start(self, change: Change, x: Tensor, level: Level, noise: NoiseSource) -> Tensor:
        return change(x, replace(level, alpha=1.0, sigma=0.0) if self.as_published else level, noise)

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        if self.as_published and interval.denoising and state is not None:
            change, *_ = state
            return change(x, replace(interval.t, sigma=0.0), noise), state
        return super().step(denoiser, x, interval, noise, state)
