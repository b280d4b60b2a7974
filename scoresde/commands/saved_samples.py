"""Samples as arrays in the data's own values, type and layout: to be compared with the data, and scored."""

from __future__ import annotations

import csv
import io
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
    return laid_out(values, trained)


def laid_out(values: NDArray[Any], trained: TrainedModel) -> NDArray[Any]:
    """Values (N, C, *) with their channels where the data have them."""
    node = trained.config.get("data") or {}
    if node.get("_target_") == ARRAY:
        return np.moveaxis(values, 1, -1) if node.get("channels_last") and values.ndim > 2 else values
    if isinstance(trained.codec, Quantized) and values.ndim == 4 and values.shape[1] in (1, 3):
        return values[:, 0] if values.shape[1] == 1 else np.moveaxis(values, 1, -1)
    return values


def samples_csv(x: NDArray[Any], condition: Tensor | None, label: Tensor | None, trained: TrainedModel) -> bytes | None:
    """Samples of a table as CSV with its names of columns and categories; None if its columns have no names.

    Args:
        x: As `sample_values` gives them, (N, C).
        condition, label: What they are conditioned on, (N, conditions) and (N,), or None.
        trained: Their run.
    """
    names = trained.names
    if names.columns is None or x.ndim != 2 or len(names.columns) != x.shape[1]:
        return None
    header, columns = (
        [column.name for column in names.columns],
        [[_word(value, None) for value in part] for part in x.T.tolist()],
    )
    for k, column in enumerate(names.conditions or ()):
        if condition is not None:
            header.append(column.name)
            columns.append([_word(value, column.categories) for value in condition[:, k].tolist()])
    if label is not None and names.classes is not None:
        header.append((trained.config.get("data") or {}).get("label") or "label")
        columns.append([_word(value, names.classes) for value in label.tolist()])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *zip(*columns, strict=True)])
    return text.getvalue().encode()


def _word(value: float, categories: tuple[str, ...] | None) -> str:
    if categories is None:
        return repr(value).removesuffix(".0")
    return categories[int(value)] if value >= 0 else ""
