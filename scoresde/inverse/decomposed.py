"""The singular value decomposition of any linear operator of small events."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.inverse.operators import SMALL, KnowsSingularValues, LinearOperator

LARGEST = 4096  # entries of an event: V then takes 128 MiB


def decomposed(operator: LinearOperator) -> KnowsSingularValues:
    """The operator itself if it knows its singular values, else with those of its matrix.

    Raises:
        TypeError: If it is not linear.
        ValueError: If its events are too large for a matrix.
    """
    if isinstance(operator, KnowsSingularValues):
        return operator
    if not isinstance(operator, LinearOperator):
        raise TypeError(f"decomposed needs a linear operator, got a {type(operator).__name__}.")
    return DecomposedMatrix(operator)


class DecomposedMatrix(KnowsSingularValues):
    """A linear operator with U, s and V of its matrix, found once in float64.

    Args:
        operator: Of events with at most 4096 entries, the same for every sample.
    """

    u: Tensor
    s: Tensor
    v: Tensor

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__()
        size = math.prod(operator.shape)
        if size > LARGEST:
            raise ValueError(
                f"decomposed needs events of at most {LARGEST} entries for a {type(operator).__name__}, got {size}: "
                f"use an operator that knows its singular values, or a method without them."
            )
        self.operator, self.shape = operator, operator.shape
        with torch.inference_mode(False), torch.no_grad():
            like = next((buffer for buffer in operator.buffers()), torch.zeros(()))
            zero = torch.zeros(1, *self.shape, dtype=torch.float64, device=like.device)
            self.measured = tuple(operator(zero).shape[1:])
            u, s, v = torch.linalg.svd(operator.matrix(zero).clone(), full_matrices=False)
            s = torch.where(s > SMALL * s.max(), s, 0)
            whole = torch.linalg.qr(v.T, mode="complete").Q  # V: the columns of v, up to sign, then the others
            whole[:, : len(v)] = v.T
        self.register_buffer("u", u * (s > 0))
        self.register_buffer("s", s)
        self.register_buffer("v", whole)

    @property
    def observed(self) -> Tensor | None:
        return self.operator.observed

    def forward(self, x0: Tensor) -> Tensor:
        return self.operator(x0)  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(y)

    def singular_values(self, like: Tensor) -> Tensor:
        return torch.nn.functional.pad(self.s, (0, len(self.v) - len(self.s)))[None].to(like)

    def event_coordinates(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.v.to(x)

    def event(self, coordinates: Tensor) -> Tensor:
        return (coordinates @ self.v.to(coordinates).T).reshape(-1, *self.shape)

    def measurement_coordinates(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y.flatten(1) @ self.u.to(y), (0, len(self.v) - len(self.s)))

    def measurement(self, coordinates: Tensor) -> Tensor:
        return (coordinates[:, : len(self.s)] @ self.u.to(coordinates).T).reshape(-1, *self.measured)
