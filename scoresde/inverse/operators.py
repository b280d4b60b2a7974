"""Operators A of a measurement y = A(x0) + noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from scoresde.denoiser.inference_mode import differentiates

SMALL = 1e-10  # of the largest singular value: what is below counts as 0 in a pseudo-inverse


class Operator(nn.Module, ABC):
    """What is measured of an event, before noise: x0 (B, *shape) -> A(x0) (B, *measured). Any differentiable function.

    Attributes:
        shape: Of an event x0.
        observed: 1 where an entry of y says something, 0 where it is always 0; broadcasts against y. None: everywhere.
    """

    shape: tuple[int, ...]

    @property
    def observed(self) -> Tensor | None:
        return None

    @abstractmethod
    def forward(self, x0: Tensor) -> Tensor:
        """A(x0), (B, *measured)."""

    def select(self, index: Tensor, batch: int) -> Operator:
        """The same operator for some rows of a batch; one that holds something per sample splits it."""
        return self


class LinearOperator(Operator):
    """A matrix, given by what it does to events and, with `adjoint`, to measurements.

    `check_operator` tests ⟨A x, y⟩ = ⟨x, Aᵀ y⟩. `adjoint`, `pseudo_inverse` and `matrix` have general defaults; an
    operator with a formula of its own writes them again.
    """

    @differentiates
    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y: (B, *measured) -> (B, *shape); here the gradient of ⟨A x, y⟩ by x."""
        through = torch.is_grad_enabled() and y.requires_grad
        with torch.enable_grad():
            x = y.new_zeros((len(y), *self.shape), requires_grad=True)
            return torch.autograd.grad(self(x), x, y, create_graph=through)[0]

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y, the smallest x0 with the smallest ‖A x0 − y‖: (B, *measured) -> (B, *shape)."""
        inverse = torch.linalg.pinv(self.matrix(y), rtol=SMALL)
        return (y.flatten(1) @ inverse.T).reshape(len(y), *self.shape)

    def matrix(self, like: Tensor) -> Tensor:
        """A as a matrix (m, d) of flattened events and measurements, in the dtype and on the device of `like`."""
        size = math.prod(self.shape)
        basis = torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, *self.shape)
        return self(basis).flatten(1).T


class KnowsSingularValues(LinearOperator, ABC):
    """A = U diag(s) Vᵀ with one s for every coordinate of an event, 0 where nothing is measured.

        x = V c,   A x = U (s ∘ c),   Uᵀ A x = s ∘ Vᵀ x,   A⁺ y = V (Uᵀ y / s where s > 0)

    V is orthogonal; the columns of U are orthonormal where s > 0. `decomposed` gives any linear operator of small
    events these methods.
    """

    @abstractmethod
    def singular_values(self, like: Tensor) -> Tensor:
        """s, (1, d), or (B, d) of an operator with one matrix per sample, in the dtype and on the device of `like`."""

    @abstractmethod
    def event_coordinates(self, x: Tensor) -> Tensor:
        """Vᵀ x: (B, *shape) -> (B, d)."""

    @abstractmethod
    def event(self, coordinates: Tensor) -> Tensor:
        """V c: (B, d) -> (B, *shape)."""

    @abstractmethod
    def measurement_coordinates(self, y: Tensor) -> Tensor:
        """Uᵀ y: (B, *measured) -> (B, d), 0 where s is 0."""

    @abstractmethod
    def measurement(self, coordinates: Tensor) -> Tensor:
        """U c: (B, d) -> (B, *measured); coordinates where s is 0 have no effect."""

    def forward(self, x0: Tensor) -> Tensor:
        return self.measurement(self.singular_values(x0) * self.event_coordinates(x0))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.event(self.singular_values(y) * self.measurement_coordinates(y))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        s = self.singular_values(y)
        least = max(SMALL, 10 * torch.finfo(s.dtype).eps)
        inverse = torch.where(s > least * s.max(), 1 / s, 0)
        return self.event(inverse * self.measurement_coordinates(y))


class Matrix(LinearOperator):
    """y = A x of flattened events.

    Args:
        matrix: A, (m, d).
        shape: Of an event, with d entries; None: (d,).
    """

    values: Tensor
    inverse: Tensor | None

    def __init__(self, matrix: Tensor, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        matrix = torch.as_tensor(matrix)
        if matrix.ndim != 2 or not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"Matrix needs a finite matrix (m, d), got one of shape {tuple(matrix.shape)}.")
        self.shape = (matrix.shape[1],) if shape is None else tuple(shape)
        if math.prod(self.shape) != matrix.shape[1]:
            raise ValueError(
                f"Matrix needs events with one entry for each of its {matrix.shape[1]} columns, got {self.shape}."
            )
        self.register_buffer("values", matrix.double())
        self.register_buffer("inverse", None, persistent=False)

    def forward(self, x0: Tensor) -> Tensor:
        return x0.flatten(1) @ self.values.to(x0).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.values.to(y)).reshape(len(y), *self.shape)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        if self.inverse is None:
            with torch.inference_mode(False), torch.no_grad():
                self.inverse = torch.linalg.pinv(self.values.clone(), rtol=SMALL)
        return (y @ self.inverse.to(y).T).reshape(len(y), *self.shape)

    def matrix(self, like: Tensor) -> Tensor:
        return self.values.to(like)


class Mask(KnowsSingularValues):
    """y = m ∘ x: some entries are observed, the others are 0 in y. Inpainting, missing values, a forecast.

    Args:
        mask: 1 or True where an entry is observed: of an event (*shape), or one per sample (B, *shape).
        shape: Of an event, if `mask` is one per sample or broadcasts to events; None: that of `mask`.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        mask = torch.as_tensor(mask)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("Mask needs 1 where an entry is observed and 0 elsewhere, got other values.")
        self.shape = tuple(mask.shape if shape is None else shape)
        try:
            torch.broadcast_shapes(mask.shape[-len(self.shape) :], self.shape)
        except RuntimeError:
            raise ValueError(
                f"Mask needs a mask that broadcasts to events of shape {self.shape}, got {tuple(mask.shape)}."
            ) from None
        self.register_buffer("mask", mask.bool())

    @property
    def observed(self) -> Tensor:
        return self.mask

    def forward(self, x0: Tensor) -> Tensor:
        return torch.where(self.mask, x0, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self(y)

    def singular_values(self, like: Tensor) -> Tensor:
        per_sample = self.mask.ndim > len(self.shape)
        batch = len(self.mask) if per_sample else 1
        return self.mask.expand(batch, *self.shape).flatten(1).to(like)

    def event_coordinates(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def event(self, coordinates: Tensor) -> Tensor:
        return coordinates.reshape(-1, *self.shape)

    def measurement_coordinates(self, y: Tensor) -> Tensor:
        return self(y).flatten(1)

    def measurement(self, coordinates: Tensor) -> Tensor:
        return self(self.event(coordinates))

    def select(self, index: Tensor, batch: int) -> Operator:
        per_sample = self.mask.ndim > len(self.shape) and len(self.mask) == batch
        return Mask(self.mask[index.to(self.mask.device)], self.shape) if per_sample else self
