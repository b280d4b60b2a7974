"""Bits per dimension, for any number of levels on any range."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def bits_per_dim(
    log_prob: Tensor, shape: Sequence[int], *, levels: int = 256, value_range: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """Bits per entry of quantised data, from the log density of its uniformly dequantised version.

        bits/dim = −log p / (D log 2) − log2(w),     w = (high − low) / levels, the width of one level's cell

    For 256 levels on (−1, 1) the second term is +7, on (0, 1) it is +8.

    Args:
        log_prob: Nats, (B,), of x in which level k fills [low + k w, low + (k+1) w).
        shape: Event shape, without the batch.
        levels: Number of levels an entry can have: 256 for 8-bit images.
        value_range: (low, high) of the model's scaling.
    """
    low, high = value_range
    if levels < 2 or not low < high:
        raise ValueError(
            f"bits_per_dim needs levels >= 2 and low < high, got levels={levels}, value_range={value_range}."
        )
    return -log_prob / (math.prod(shape) * math.log(2)) - math.log2((high - low) / levels)
