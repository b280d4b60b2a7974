"""Forward processes dx = f(t) x dt + g(t) dw on t in [0, 1]: 0 is data, 1 is noise."""

from scoresde.sde.base import SDE, Kernel, expand
from scoresde.sde.continuous import EDMSDE, VESDE, VPSDE, CosineSDE, SubVPSDE
from scoresde.sde.discrete import (
    DiscreteVPSDE,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    rescale_zero_terminal_snr,
    scaled_linear_betas,
    sigmoid_betas,
)
from scoresde.sde.grids import (
    BalancedGrid,
    Grid,
    balanced_grid,
    few_step_grid,
    karras_grid,
    logsnr_grid,
    long_step_grid,
    quadratic_grid,
    subsequence_grid,
    uniform_grid,
    vp_grid,
)
from scoresde.sde.learned_vpsde import LearnedVPSDE
from scoresde.sde.levels import Interval, Level, Levels
from scoresde.sde.straight import StraightSDE

__all__ = [
    "BalancedGrid", "EDMSDE", "SDE", "VESDE", "VPSDE", "CosineSDE", "DiscreteVPSDE", "Grid", "Interval", "Kernel",
    "LearnedVPSDE", "Level", "Levels", "StraightSDE", "SubVPSDE", "balanced_grid", "cosine_betas", "expand",
    "few_step_grid", "karras_grid", "linear_betas", "logsnr_grid", "long_step_grid", "quadratic_betas",
    "quadratic_grid", "rescale_zero_terminal_snr", "scaled_linear_betas", "sigmoid_betas", "subsequence_grid",
    "uniform_grid", "vp_grid",
]  # fmt: skip
