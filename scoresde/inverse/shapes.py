"""Shapes of events, and matrices along their axes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_sizes


def event_shape(owner: object, shape: Any) -> tuple[int, ...]:
    """The shape of an event as a tuple of whole numbers from 1."""
    return tuple(map(operator.index, check_sizes(owner, "shape", shape)))


def space(shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes of an event's axes in space or time: all but the channels, which vectors have none of."""
    return tuple(shape[1:] or shape)


def along_axes(matrices: Sequence[Tensor], x: Tensor) -> Tensor:
    """(M₁ ⊗ M₂ ⊗ ...) x of the last axes: matrix (m, n) k takes axis k of size n to size m."""
    for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.to(x).T, -1, axis)
    return x
