"""iPNDM: DDIM with the noise extrapolated as by Adams and Bashforth."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, karras_grid
from scoresde.sde.levels import Interval
from scoresde.solvers.base import StepSolver, check_choice, linear
from scoresde.solvers.exponential import transfer

ADAMS_BASHFORTH = {  # of equal steps, by order
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True, kw_only=True)
class IPNDM(StepSolver):
    """Improved pseudo linear multistep method: DDIM with ε̂ extrapolated as by Adams and Bashforth.

        x_s = α_s/α_t x_t + (σ_s − α_s σ_t/α_t) ε',      ε' = (55 ε̂ − 59 ε̂' + 37 ε̂'' − 9 ε̂''')/24

    The weights are those of equal steps: of full order on a grid that is uniform in σ/α, of second order on others. The
    first steps, and a step to σ_s = 0, are of lower order.

    Args:
        order: From 1 to 4.

    References:
        Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, arXiv:2202.09778.
        Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023, arXiv:2204.13902.
    """

    steps: int = 20
    grid: Grid = karras_grid
    order: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, (1, 2, 3, 4))

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        history = (denoiser.eps_at(x, interval.t), *(state or ()))[: self.order]
        keep, gain = transfer(interval.t, interval.s, interval.decay, "eps")
        now, *past = ADAMS_BASHFORTH[len(history)]
        noisy = gain * (interval.s.sigma > 0)  # to noise 0 ε̂ itself is taken
        weights = (gain + noisy * (now - 1), *(noisy * weight for weight in past))
        return linear((keep, x), *zip(weights, history, strict=True)), history
