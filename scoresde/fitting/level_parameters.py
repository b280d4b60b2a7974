"""Where a fit may place noise levels: parameters, and levels with gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.sde import SDE
from scoresde.sde.levels import Levels

MARGIN = 1e-3  # in log-SNR, between the ends of a process and the levels of a first guess
SMALLEST_SHARE = 1e-5  # of the range of a process, between two levels
STEP = 1e-4  # of a logit, for differences
FARTHEST = 60.0  # minus log-SNR that stands for no signal at all: that of less than LEAST_SIGNAL


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


class LevelParameters:
    """Increasing log-SNR levels inside a process, as shares of its whole range: any logits give a valid grid.

    Whatever is a function of the levels is differentiated by central differences in the logits: coefficients branch at
    noise 0 and at the start of a run, where automatic differentiation gives 0 · ∞, and some processes know their
    `time` by bisection alone. So a fit computes everything at `stencil` levels, and `unbind` makes numbers with
    gradients of it.
    """

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

    @torch.no_grad()
    def stencil(self, sde: SDE) -> Levels:
        """The levels of these logits, of each logit moved up, and of each moved down: (n, 1 + 2 len(logits))."""
        moves = STEP * torch.eye(len(self.logits), dtype=torch.float64)
        moves = torch.cat([torch.zeros_like(moves[:, :1]), moves, -moves], 1)
        return Levels.of(sde, sde.time(self(self.logits[:, None] + moves)))

    def differentiable(self, values: Tensor) -> Tensor:
        """The first of values (..., 1 + 2 len(logits)) over a stencil, with the gradient by the logits that they show.

        Constant, and entries that no step uses, where the slope is not finite.
        """
        ahead, behind = values[..., 1:].detach().chunk(2, -1)
        slope = (ahead - behind) / (2 * STEP)
        slope = torch.where(torch.isfinite(slope), slope, 0)
        return values[..., 0] + slope @ (self.logits - self.logits.detach()).to(slope)

    def unbind(self, column: Tensor) -> list[Tensor]:
        """The entries of a column over a stencil, (m, 1 + 2 len(logits)) or (m,), those that do not move as constants.

        At noise 0 a formula may have no derivative, which nothing needs there.
        """
        if column.ndim == 1:
            return list(column.unbind())
        moves = (column != column[:, :1]).any(1).tolist()
        moving = self.differentiable(column)
        return [moving[i] if moved else column[i, 0] for i, moved in enumerate(moves)]


def level_range(sde: SDE, t_end: float) -> tuple[float, float]:
    """Log-SNR at t = 1 and at t_end, finite: `FARTHEST` stands for no signal."""
    first, last, least = sde.logsnr(torch.tensor([1.0, t_end, sde.t_min], dtype=torch.float64)).tolist()
    return first if math.isfinite(first) else -FARTHEST, last if math.isfinite(last) else least
