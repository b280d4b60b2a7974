"""Conditions that are none: how a batch says which of its examples are not conditioned."""

from __future__ import annotations

import torch
from torch import Tensor

CONDITIONS = ("label", "condition", "image", "sequence")  # keyword tensors of networks, one row per example


def without(key: str, value: Tensor, rows: Tensor) -> Tensor:
    """A condition of a batch in which some examples have none.

        label −1;   sequence of whole numbers: −1 at every place;   anything else: NaN everywhere

    Args:
        key: Which condition, one of CONDITIONS.
        value: Shape (B, *).
        rows: Those without, booleans (B,).
    """
    whole = not value.is_floating_point()
    if whole and key in ("condition", "image"):
        value = value.double() if key == "condition" else value.float()
    none = -1 if key == "label" or (key == "sequence" and whole) else float("nan")
    if none == -1 and value.dtype == torch.uint8:
        value = value.long()
    return value.masked_fill(rows.to(value.device).reshape(-1, *[1] * (value.ndim - 1)), none)
