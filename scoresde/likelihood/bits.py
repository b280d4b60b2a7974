"""Bits per dimension of quantised data, for any number of levels on any range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.likelihood.cells import Cells


def bits_per_dim(
    log_prob: Tensor, shape: Sequence[int], *, levels: int | None = 256, value_range: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """Bits per entry of quantised data, from the log density of its uniformly dequantised version.

        bits/dim = −log p / (d log 2) − log2(w),     w = (high − low) / levels, the width of one level's cell

    For 256 levels on (−1, 1) the second term is +7, on (0, 1) it is +8. It is 0 for levels=None, when log_prob is a log
    probability of the levels: that of `discrete_log_prob`, or of a decoder over levels.

    Args:
        log_prob: Nats, (B,), of x in which level k fills [low + k w, low + (k+1) w).
        shape: Event shape, without the batch.
        levels: Number of levels an entry can have, 256 for 8-bit images; None: log_prob is log P(k) already.
        value_range: (low, high) of the model's scaling.
    """
    bits = -log_prob / (math.prod(shape) * math.log(2))
    if levels is None:
        return bits
    return bits - math.log2(Cells(levels=levels, value_range=value_range).width)


def check_dequantized(x: Tensor, cells: Cells) -> str | None:
    """A warning if data of finitely many levels were not dequantised, or None.

    The density of such data has no bound, and a good model's bits/dim fall below 0. They are recognised by all entries
    lying at the centres or edges of the cells, or on `levels` values that include both ends of the range.

    Args:
        x: Data in the model's own scaling, any shape.
        cells: Its levels and range.
    """
    wide = x.detach().double()
    wide = wide[wide.isfinite()]
    if wide.numel() < 2:
        return None
    low, high = cells.value_range
    cell = (wide - low) / cells.width
    rounding = 8 * torch.finfo(x.dtype).eps * float(wide.abs().max()) / cells.width
    lattices = (("centres", cell - 0.5), ("edges", cell), ("places", cell * (cells.levels - 1) / cells.levels))
    for words, steps in lattices:
        if bool(((steps - steps.round()).abs() <= max(1e-3, rounding)).all()):
            return (
                f"every value lies on the {words} of {cells.levels} levels in [{low:g}, {high:g}], so the data were "
                f"not dequantised: their density has no bound, and the symptom is bits/dim below 0. Add noise of one "
                f"cell with UniformDequantization, or give the integer levels to discrete_log_prob."
            )
    return None
