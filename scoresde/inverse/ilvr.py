"""Iterative latent variable refinement."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.inverse.coordinates import check_linear_gaussian, check_states, fresh
from scoresde.inverse.operators import LinearOperator
from scoresde.inverse.stepped import AroundSolver, Change
from scoresde.noise.sources import NoiseSource
from scoresde.sde.levels import Level


@dataclass(frozen=True, kw_only=True)
class ILVR(AroundSolver):
    """Every update of a solver keeps what it does to details, and takes the rest from the noised reference.

        x_s = x'_s + φ(y_s) − φ(x'_s),      y_s = α_s A⁺y + σ_s z,      φ = A⁺A          (Choi et al. 2021, eq. 10)

    φ is the paper's down- and up-sampling if A is a down-sampling. A must be linear and y exact. With t_stop = 0 a
    sample ends with A x0 = y; above it the last steps are the model's own and only the coarse look is that of y. Biased
    like `Replacement`, which it is for an orthogonal A.

    Args:
        t_stop: The reference is used while t ≥ t_stop.

    References:
        Choi et al., "ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models", 2021, arXiv:2108.02938.
    """

    t_stop: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_linear_gaussian(self, self.measurement, exact=True)
        check_numbers(self, "0 <= t_stop < 1")

    def change(self, x: Tensor) -> Change:
        check_states(self, self.measurement, x)
        operator = self.measurement.operator
        assert isinstance(operator, LinearOperator)
        reference = operator.pseudo_inverse(self.measurement.y.to(x))

        def refine(x: Tensor, level: Level, noise: NoiseSource) -> Tensor:
            z = fresh(noise, level)
            y_s = level.alpha * reference + (0 if z is None else level.sigma * z)
            return x + (level.t >= self.t_stop) * operator.pseudo_inverse(operator(y_s - x))  # φ(y_s) − φ(x)

        return refine
