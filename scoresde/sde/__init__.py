"""Forward processes dx = f(t) x dt + g(t) dw on t in [0, 1]: 0 is data, 1 is noise."""

from scoresde.sde.base import SDE, Kernel, expand
from scoresde.sde.continuous import EDMSDE, VESDE, VPSDE, CosineSDE, SubVPSDE
from scoresde.sde.discrete import (
    DiscreteVPSDE,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
)
from scoresde.sde.learned import LearnedVPSDE

__all__ = [
    "EDMSDE", "SDE", "VESDE", "VPSDE", "CosineSDE", "DiscreteVPSDE", "Kernel", "LearnedVPSDE", "SubVPSDE",
    "cosine_betas", "expand", "linear_betas", "quadratic_betas", "scaled_linear_betas", "sigmoid_betas",
]  # fmt: skip
