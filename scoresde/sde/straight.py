"""The straight path from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.sde.base import SDE


@dataclass(frozen=True, kw_only=True)
class StraightSDE(SDE):
    """The straight path between data and noise: rectified flow and flow matching, α_1 = 0 included.

        x_t = (1 − t) x0 + t ε,      dx_t/dt = u = ε − x0           (Lipman et al. 2023, eq. 22; Liu et al. 2023, eq. 1)
        α_t = 1 − t
        σ_t = t
        f   = −1/(1 − t),   g² = 2t/(1 − t)

    x_1 is pure noise: logsnr is −∞ there, f and g are infinite, and the probability flow E[u | x_t] is not. Such
    papers often count time from noise to data; here t = 0 is data, as for every process.

    Args:
        t_min: Numerical end of the data side.

    References:
        Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv:2210.02747.
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
    """

    t_min: float = 1e-5
    prior_std = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "0 < t_min < 1")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def f(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(2 * t / (1 - t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * logsnr)
