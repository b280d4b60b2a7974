"""Where the levels of quantised data lie in the model's scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.checks import check_pair, check_whole


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Equal cells of quantised data, one per level.

        cell k = [lo + k w, lo + (k+1) w),   w = (hi − lo)/levels,   centre = lo + (k + ½) w

    The default is 8-bit images on (−1, 1), as in VDM (arXiv:2107.00630). DDPM's values 2k/255 − 1 are the centres of
    value_range (−256/255, 256/255).

    Args:
        levels: Number of levels, at least 2.
        value_range: (lo, hi), the outer edges of the first and last cell.
    """

    levels: int = 256
    value_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        check_whole(self, "levels >= 2")
        edges = check_pair(self, "value_range", self.value_range, "-inf < low < high < inf")
        object.__setattr__(self, "value_range", edges)

    @property
    def width(self) -> float:
        """w, the width of a cell."""
        low, high = self.value_range
        return (high - low) / self.levels

    def centre(self, k: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The middle of the cells of levels k, any shape."""
        low, high = self.value_range
        return (low + (k.double() + 0.5) * ((high - low) / self.levels)).to(dtype)

    def level(self, x: Tensor) -> Tensor:
        """The level whose cell holds x, int64; values outside the range belong to the outermost cells."""
        return ((x.double() - self.value_range[0]) / self.width).floor().clamp(0, self.levels - 1).long()

    def inside(self, k: Tensor, u: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x = lo + (k + u) w in `dtype`, strictly inside cell k even after rounding; differentiable in u.

        Args:
            k: Levels, int64, any shape.
            u: Position within the cell, in [0, 1], the shape of k.
        """
        low, high = self.value_range
        x = (low + (k + u.double().clamp(2**-30, 1 - 2**-30)) * self.width).to(dtype)
        rounded = x.detach()
        level = self.level(rounded)
        above = (level > k) | (rounded >= high)
        neighbour = torch.nextafter(rounded, torch.where(above, -math.inf, math.inf).to(dtype))
        inside = torch.where(above | (level < k), neighbour, rounded)
        return x + (inside - rounded)
