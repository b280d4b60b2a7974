"""What a picture shows: samples, and data beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = {"table": 4000, "series": 1000, "image": 256, "volume": 16}  # examples that a picture is drawn from


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Samples and data of one kind, in the data's own values.

    Args:
        kind: "table" (N, C), "series" (N, C, L), "image" (N, C, H, W) or "volume" (N, C, D, H, W); others are tables.
        samples: The samples.
        data: Examples of the data; None: there are none to be shown.
        names: Of the columns of a table; None: their numbers.
        categories: Names of the categories by column, for columns that are no numbers.
        labels, data_labels: Classes of the samples and of the data, (N,); None if there are none.
        classes: Names of the classes; None: their numbers.
        note: A few words on the samples.
        captions, data_captions: Words below each image, as what it is conditioned on; None: none.
        ranges: Samples by which axes are chosen in place of those that are drawn, for animations.
    """

    kind: str
    samples: NDArray[Any]
    data: NDArray[Any] | None = None
    names: Sequence[str] | None = None
    categories: dict[int, Sequence[str]] | None = None
    labels: NDArray[np.integer[Any]] | None = None
    data_labels: NDArray[np.integer[Any]] | None = None
    classes: Sequence[str] | None = None
    note: str = ""
    captions: Sequence[str] | None = None
    data_captions: Sequence[str] | None = None
    ranges: NDArray[Any] | None = None

    def limited(self, most: int | None = None) -> Shown:
        """With no more examples than a picture is drawn from; those of the data from all over them."""
        most = MOST.get(self.kind, MOST["table"]) if most is None else most
        first = slice(None, most)
        data, data_labels = self.data, self.data_labels
        if data is not None and len(data) > most:
            rows = (np.arange(most) * (len(data) / most)).astype(int)
            data, data_labels = data[rows], None if data_labels is None else data_labels[rows]
        labels = None if self.labels is None else self.labels[first]
        return replace(self, samples=self.samples[first], labels=labels, data=data, data_labels=data_labels)

    @property
    def columns(self) -> NDArray[Any]:
        """The samples as a table (N, C)."""
        return np.asarray(self.samples, float).reshape(len(self.samples), -1)

    @property
    def ranged(self) -> NDArray[Any]:
        """The samples by which axes are chosen."""
        return self.samples if self.ranges is None else self.ranges

    @property
    def data_columns(self) -> NDArray[Any] | None:
        return None if self.data is None else np.asarray(self.data, float).reshape(len(self.data), -1)

    def name(self, column: int) -> str:
        """Of a column."""
        return f"x{column}" if self.names is None else self.names[column]

    def class_name(self, label: int) -> str:
        return str(label) if self.classes is None or label >= len(self.classes) else self.classes[label]
