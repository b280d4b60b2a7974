"""Operators made from a function of the user's."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scoresde.inverse.operators import LinearOperator, Operator
from scoresde.inverse.shapes import event_shape


class Function(Operator):
    """y = f(x) of any differentiable function, row by row: saturation, phase retrieval, a network, a simulator.

    Args:
        function: (B, *shape) -> (B, *measured).
        shape: Of an event.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        _check_callable(self, function)
        self.function, self.shape = function, event_shape(self, shape)

    def forward(self, x0: Tensor) -> Tensor:
        return self.function(x0)


class LinearFunction(LinearOperator):
    """y = f(x) of a linear function: Aᵀ y is its gradient by autograd, and A⁺ needs its matrix.

    Args:
        function: (B, *shape) -> (B, *measured), linear and row by row; `check_operator` sees whether it is.
        shape: Of an event.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        _check_callable(self, function)
        self.function, self.shape = function, event_shape(self, shape)

    def forward(self, x0: Tensor) -> Tensor:
        return self.function(x0)


def _check_callable(owner: Operator, function: object) -> None:
    if not callable(function):
        raise TypeError(f"{type(owner).__name__} needs a function of events, got {function!r}.")
