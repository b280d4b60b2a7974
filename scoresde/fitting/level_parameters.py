"""Where a fit may place noise levels: parameters, and levels with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.sde import SDE
from scoresde.sde.levels import Levels

MARGIN = 1e-3  # in log-SNR, between the ends of a process and the levels of a first guess
SMALLEST_SHARE = 1e-5  # of the range of a process, between two levels
FARTHEST = 60.0  # minus log-SNR that stands for no signal at all


def first_guess(std: float, count: int, *, within: tuple[float, float] = (-math.inf, math.inf)) -> Tensor:
    """Log-SNR of levels with equal steps in (σ/α)^(1/3), from 8 times the data's standard deviation to 0.03 times.

    Args:
        std: The data's standard deviation.
        count: Number of levels.
        within: Log-SNR at both ends of the process, which the levels do not leave.
    """
    most, least = math.exp(-0.5 * within[0]), math.exp(-0.5 * within[1])
    high, low = min(8 * std, most), max(0.03 * std, least)
    if not low < high:
        high, low = most, least
    roots = torch.linspace(high ** (1 / 3), low ** (1 / 3), count, dtype=torch.float64)
    return -6 * roots.log()


class Places:
    """Increasing log-SNR levels inside a process, as shares of its whole range: any logits give a valid grid."""

    def __init__(self, ends: tuple[float, float], logsnr: Tensor, *, free_start: bool) -> None:
        first, last = ends
        inner = logsnr.clamp(first + MARGIN if free_start else first, last - MARGIN)
        gaps = torch.cat([inner[:1] - first, inner.diff(), last - inner[-1:]])[0 if free_start else 1 :]
        self.first, self.span, self.free = first, last - first, free_start
        shares = (gaps / self.span).clamp_min(1.01 * SMALLEST_SHARE)
        self.logits = (shares / shares.sum() - SMALLEST_SHARE).log().requires_grad_()

    def __call__(self, logits: Tensor | None = None) -> Tensor:
        """The levels, for logits (n, ...)."""
        logits = self.logits if logits is None else logits
        shares = SMALLEST_SHARE + (1 - len(logits) * SMALLEST_SHARE) * logits.softmax(0)
        shares = shares if self.free else torch.cat([torch.zeros_like(shares[:1]), shares])
        return self.first + self.span * shares[:-1].cumsum(0)

    def differentiated(self, table: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """table(levels), differentiable by the logits whether or not the table itself is: by central differences.

        Tables branch at noise 0 and at the start of a run, where automatic differentiation gives 0 · ∞.
        """
        step, here = 1e-4, self.logits.detach()
        with torch.no_grad():
            moves = step * torch.eye(len(here), dtype=here.dtype)
            values, moved = table(self(here)), table(self(torch.cat([here[:, None] + moves, here[:, None] - moves], 1)))
            slopes = []
            for value, around in zip(values, moved, strict=True):
                ahead, behind = around.reshape(len(value), -1).expand(-1, 2 * len(here)).chunk(2, 1)
                slope = (ahead - behind) / (2 * step)
                slopes.append(torch.where(torch.isfinite(slope), slope, 0).to(here))  # of entries that no step uses
        return tuple(value + slope @ (self.logits - here) for value, slope in zip(values, slopes, strict=True))


def level_range(sde: SDE, t_end: float) -> tuple[float, float]:
    """Log-SNR at t = 1 and at t_end, finite."""
    first, last, least = sde.logsnr(torch.tensor([1.0, t_end, sde.t_min], dtype=torch.float64)).tolist()
    return first if math.isfinite(first) else -FARTHEST, last if math.isfinite(last) else least


def differentiable_levels(sde: SDE, logsnr: Tensor) -> Levels:
    """Levels with gradients by the log-SNR, whether or not the process can differentiate its `time`."""
    with torch.no_grad():
        t = sde.time(logsnr)
    with torch.enable_grad():
        moved = t.clone().requires_grad_()
        slope = torch.autograd.grad(sde.logsnr(moved).sum(), moved)[0]
    t = t + (logsnr - logsnr.detach()) / slope
    alpha = sde.alpha(t)
    return Levels(sde, t, alpha, alpha * torch.exp(-0.5 * logsnr), 0.5 * logsnr)
