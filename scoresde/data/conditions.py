"""What is known of the conditions of examples: their sizes, and which of them are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.data.columns import Column

MOST_COLUMNS = 1024  # with a mean and std of their own; more have one for all
LOST = 1e-4  # of a column's spread: what float32 may round away


def stored_condition(values: NDArray[np.generic]) -> Tensor:
    """Conditions (N, *) as they are kept, (N, C) where each is one number: in float32, unless that loses some of them.

    Times in seconds since 1970, or 1e8 + small, need float64.
    """
    values = values[:, None] if values.ndim == 1 else values
    wide = np.asarray(values, dtype=np.float64, order="C")
    single = torch.from_numpy(wide.astype(np.float32))
    if values.dtype.kind == "f" and values.dtype.itemsize <= 4:
        return single
    double = torch.from_numpy(wide)
    error = (double - single.double()).flatten(1).abs().amax(0)
    return double if bool((error > LOST * double.flatten(1).std(0, correction=0)).any()) else single


def condition_columns(condition: Tensor, columns: Sequence[Column] | None = None) -> dict[str, Any]:
    """What a network is told of the conditions that it is trained on, (N, *): the arguments of `ConditionEmbedding`.

    Mean and std are to four digits of the std. A column that never changes has its own size in place of a std.

    Args:
        condition: Of the training examples.
        columns: Their names and categories; None: all are numbers.
    """
    flat = condition.flatten(1).double()
    counts = [len(column.categories or ()) for column in columns or ()]
    if flat.shape[1] > MOST_COLUMNS and not any(counts):
        mean, std = flat.mean(0, keepdim=True).mean(1), flat.std(correction=0)[None]
    else:
        mean = flat.mean(0)
        std = (flat - mean).square().mean(0).sqrt()
    scales = [_rounded(m, s) for m, s in zip(mean.tolist(), std.tolist(), strict=True)]
    scales = [(0.0, 1.0) if count else scale for count, scale in zip(counts or [0] * len(scales), scales, strict=True)]
    return {
        "condition_dim": flat.shape[1], "condition_mean": [m for m, _ in scales],
        "condition_std": [s for _, s in scales], "condition_categories": counts if any(counts) else None,
    }  # fmt: skip


def constant_columns(condition: Tensor, columns: Sequence[Column] | None = None) -> list[str]:
    """Names of the columns that are the same in all examples, and so tell a model nothing."""
    flat = condition.flatten(1)
    same = (flat == flat[:1]).all(0).nonzero().flatten().tolist()
    return [column_name(j, columns) for j in same]


def check_conditions(condition: Tensor, where: str, columns: Sequence[Column] | None = None) -> None:
    """Raise ValueError, with row and column, for conditions (N, *) with NaN, infinity or no category of theirs.

    Args:
        condition: The values.
        where: What holds them, for the message.
        columns: Their names and categories; None: all are numbers.
    """
    flat = condition.flatten(1)
    if columns is not None and len(columns) != flat.shape[1]:
        raise ValueError(f"{where} needs {len(columns)} conditions per example, as it names, got {flat.shape[1]}")
    bad, what = ~flat.isfinite(), "hold NaN or infinity in a condition"
    counts = torch.tensor([len(column.categories or ()) for column in columns or ()])
    if not bool(bad.any()) and bool(counts.any()):
        bad = ((flat != flat.round()) | (flat < 0) | (flat >= counts)) & (counts > 0)
        what = "hold a category that the column does not have"
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{where}: {int(bad.any(1).sum())} of {len(flat)} rows {what} (first {flat[row, column]:g} in row {row}, "
            f"{column_name(column, columns)}); remove or repair them"
        )


def column_name(index: int, columns: Sequence[Column] | None) -> str:
    return f"column {index}" if columns is None else f"column {index} ({columns[index].name})"


def _rounded(mean: float, std: float) -> tuple[float, float]:
    """Both to four digits of std, so that they do not depend on the order of a sum."""
    if std <= 1e-12 * abs(mean) or std == 0:
        return mean, abs(mean) or 1.0
    digits = 4 - math.floor(math.log10(std))
    return round(mean, digits), float(f"{std:.4g}")
