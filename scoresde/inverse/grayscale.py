"""One combination of the channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.operators import KnowsSingularValues
from scoresde.inverse.shapes import event_shape


class Grayscale(KnowsSingularValues):
    """y = Σ_c w_c x_c with ‖w‖ = 1: a colour picture's grey values, times √3. Colourisation.

        A Aᵀ = I:   A⁺ y = Aᵀ y = w y;   V mixes channels by an orthogonal matrix whose first row is w

    Args:
        shape: Of an event, (C, *).
        weights: Of the channels, scaled to length 1; None: equal ones.
    """

    mixing: Tensor

    def __init__(self, shape: tuple[int, ...], weights: Any = None) -> None:
        super().__init__()
        self.shape = event_shape(self, shape)
        channels = self.shape[0]
        w = torch.ones(channels) if weights is None else torch.as_tensor(weights)
        w = w.double()
        if len(self.shape) < 2 or w.shape != (channels,) or not w.isfinite().all() or not bool((w != 0).any()):
            raise ValueError(
                f"Grayscale needs events (C, *) and C weights that are not all 0, got shape {self.shape} and weights "
                f"of shape {tuple(w.shape)}."
            )
        self.register_buffer("mixing", _first_row(w / w.norm()))

    def forward(self, x0: Tensor) -> Tensor:
        return torch.einsum("c,bc...->b...", self.mixing[0].to(x0), x0)[:, None]

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.einsum("c,bk...->bc...", self.mixing[0].to(y), y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def singular_values(self, like: Tensor) -> Tensor:
        s = torch.zeros(1, *self.shape, dtype=like.dtype, device=like.device)
        s[:, 0] = 1
        return s.flatten(1)

    def event_coordinates(self, x: Tensor) -> Tensor:
        return torch.einsum("kc,bc...->bk...", self.mixing.to(x), x).flatten(1)

    def event(self, coordinates: Tensor) -> Tensor:
        mixed = coordinates.reshape(-1, *self.shape)
        return torch.einsum("kc,bk...->bc...", self.mixing.to(mixed), mixed)

    def measurement_coordinates(self, y: Tensor) -> Tensor:
        rest = (*self.shape[1:],)
        return torch.cat([y.flatten(1), y.new_zeros(len(y), (self.shape[0] - 1) * math.prod(rest))], 1)

    def measurement(self, coordinates: Tensor) -> Tensor:
        return coordinates.reshape(-1, *self.shape)[:, :1]


def _first_row(w: Tensor) -> Tensor:
    """A symmetric orthogonal matrix whose first row is w, ‖w‖ = 1: Householder's reflection of the first axis to w."""
    axis = torch.zeros_like(w)
    axis[0] = 1
    v = axis - w
    square = v.dot(v)
    identity = torch.eye(len(w), dtype=w.dtype)
    return identity if square == 0 else identity - 2 * torch.outer(v, v) / square
