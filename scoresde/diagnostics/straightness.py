"""How straight the paths of a flow are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.denoiser import Denoiser


@torch.no_grad()
def straightness(denoiser: Denoiser, x: Tensor, *, steps: int = 50, **cond: Any) -> Tensor:
    """∫ ‖x_1 − x_0 − dx_t/dt‖² dt along a flow's own paths: x (B, *) at t = 1 -> (B,) (Liu et al. 2023, §2.2).

    0 where one step of Euler's method is exact. By the midpoint rule in t, second order in 1/steps; x_1 − x_0 is the
    mean velocity. It is of paths that can be straight, as those of the straight path are: dx_t/dt is bounded.

    Args:
        denoiser: The model.
        x: Noise; its mean over ‖x_1 − x_0‖² is the scale to compare with.
        steps: Steps of the midpoint rule, of two network calls each.
        cond: Conditions.
    References:
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
    """
    check_whole("straightness", "steps >= 2", steps=steps)
    times = torch.linspace(1, denoiser.sde.t_min, 2 * steps + 1, dtype=torch.float64, device=x.device)
    h, total, squares = times[0] - times[2], torch.zeros_like(x), x.new_zeros(len(x))
    for t, middle in zip(times[:-1:2], times[1::2], strict=True):
        half = x - 0.5 * h * denoiser.velocity(x, t, **cond)
        velocity = denoiser.velocity(half, middle, **cond)
        x, total, squares = x - h * velocity, total + velocity, squares + velocity.square().flatten(1).sum(1)
    return squares / steps - (total / steps).square().flatten(1).sum(1)
