"""A part of an event."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.operators import KnowsSingularValues
from scoresde.inverse.shapes import event_shape, space


class Crop(KnowsSingularValues):
    """y is a box of x: of a picture a rectangle of all channels, of a series some times. Out-painting, forecasts.

        A Aᵀ = I:   A⁺ = Aᵀ puts y in its place and 0 around it

    Args:
        shape: Of an event.
        start: First place of the box, one number per axis of space.
        size: Of the box, likewise.
    """

    def __init__(self, shape: tuple[int, ...], start: Any, size: Any) -> None:
        super().__init__()
        self.shape = event_shape(self, shape)
        sizes, start, size = space(self.shape), tuple(start), tuple(size)
        inside = len(start) == len(size) == len(sizes) and all(
            a >= 0 and n >= 1 and a + n <= whole for a, n, whole in zip(start, size, sizes, strict=True)
        )
        if not inside:
            raise ValueError(
                f"Crop needs a box inside events of {' × '.join(map(str, sizes))}, got start={list(start)} and "
                f"size={list(size)}."
            )
        self.start, self.size = start, size
        self.box: tuple[Any, ...] = (..., *(slice(a, a + n) for a, n in zip(start, size, strict=True)))

    def forward(self, x0: Tensor) -> Tensor:
        return x0[self.box]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.shape)
        x[self.box] = y
        return x

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def singular_values(self, like: Tensor) -> Tensor:
        s = torch.zeros(1, *self.shape, dtype=like.dtype, device=like.device)
        s[self.box] = 1
        return s.flatten(1)

    def event_coordinates(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def event(self, coordinates: Tensor) -> Tensor:
        return coordinates.reshape(-1, *self.shape)

    def measurement_coordinates(self, y: Tensor) -> Tensor:
        return self.adjoint(y).flatten(1)

    def measurement(self, coordinates: Tensor) -> Tensor:
        return self.event(coordinates)[self.box]
