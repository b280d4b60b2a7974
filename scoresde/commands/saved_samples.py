"""Samples as arrays in the data's own values, type and layout: to be compared with the data, and scored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scoresde.commands.load import TrainedModel
from scoresde.data import Quantized

ARRAY = "scoresde.data.array"


def sample_values(x: Tensor, trained: TrainedModel) -> NDArray[Any]:
    """Samples from model space as the data have them.

    Args:
        x: Samples, (N, C, *).
        trained: Their run.
    Returns:
        (N, C, *) of `data=array`, or (N, *, C) with its channels_last. Pictures of other data are (N, H, W) in grey and
        (N, H, W, 3) in colour. Levels are uint8, or uint16 beyond 256; other values are in the data's own units.
    """
    values = trained.codec.decode(x).numpy()
    if isinstance(trained.codec, Quantized):
        values = values.astype(np.uint8 if trained.codec.levels <= 256 else np.uint16)
    node = trained.config.get("data") or {}
    if node.get("_target_") == ARRAY:
        return np.moveaxis(values, 1, -1) if node.get("channels_last") and values.ndim > 2 else values
    if isinstance(trained.codec, Quantized) and len(trained.shape) == 3 and trained.shape[0] in (1, 3):
        return values[:, 0] if trained.shape[0] == 1 else np.moveaxis(values, 1, -1)
    return values
