"""Fewer grid points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice, check_whole
from scoresde.inverse.operators import KnowsSingularValues
from scoresde.inverse.shapes import along_axes, event_shape, space


class DownSample(KnowsSingularValues):
    """y has one grid point for every block of `factor` along each axis in space; channels stay.

        A = A₁ ⊗ A₂ ⊗ ...,  one matrix per axis, so that U, s and V are products as well

    The average of a block has A⁺ y = y repeated over the block, and all s > 0 equal to factor^(−axes/2).

    Args:
        shape: Of an event: (C, *) with any number of axes in space, or a vector. Each size is a multiple of factor.
        factor: Grid points per block and axis.
        kernel: average: of the block; bicubic: as torch's interpolate with antialias=True.
    """

    def __init__(self, shape: tuple[int, ...], factor: int, kernel: str = "average") -> None:
        super().__init__()
        self.shape, self.factor, self.kernel = event_shape(self, shape), factor, kernel
        check_whole(self, "1 <= factor")
        check_choice(self, "kernel", kernel, ("average", "bicubic"))
        self.sizes = space(self.shape)
        if any(n % factor for n in self.sizes):
            raise ValueError(
                f"DownSample needs events whose sizes are multiples of factor={factor}, got shape {self.shape}."
            )
        self.channels = self.shape[: len(self.shape) - len(self.sizes)]
        for k, n in enumerate(self.sizes):
            matrix = _average(n, factor) if kernel == "average" else _bicubic(n, factor)
            u, s, v = torch.linalg.svd(matrix)
            for name, value in {"matrix": matrix, "u": u, "s": s, "v": v}.items():
                self.register_buffer(f"{name}_{k}", value, persistent=False)

    def forward(self, x0: Tensor) -> Tensor:
        return along_axes(self._each("matrix"), x0)

    def adjoint(self, y: Tensor) -> Tensor:
        return along_axes([matrix.T for matrix in self._each("matrix")], y)

    def singular_values(self, like: Tensor) -> Tensor:
        s = torch.ones((), dtype=torch.float64, device=like.device)
        for n, values in zip(self.sizes, self._each("s"), strict=True):
            s = s[..., None] * nn.functional.pad(values.to(like.device), (0, n - len(values)))
        return s.to(like).expand(self.shape).flatten()[None]

    def event_coordinates(self, x: Tensor) -> Tensor:
        return along_axes(self._each("v"), x).flatten(1)

    def event(self, coordinates: Tensor) -> Tensor:
        return along_axes([v.T for v in self._each("v")], coordinates.reshape(-1, *self.shape))

    def measurement_coordinates(self, y: Tensor) -> Tensor:
        small = along_axes([u.T for u in self._each("u")], y)
        padding: list[int] = []
        for n in reversed(self.sizes):
            padding += [0, n - n // self.factor]
        return nn.functional.pad(small, padding).flatten(1)

    def measurement(self, coordinates: Tensor) -> Tensor:
        box: tuple[Any, ...] = (..., *(slice(n // self.factor) for n in self.sizes))
        return along_axes(self._each("u"), coordinates.reshape(-1, *self.shape)[box])

    def _each(self, name: str) -> list[Tensor]:
        return [self.get_buffer(f"{name}_{k}") for k in range(len(self.sizes))]


def _average(n: int, factor: int) -> Tensor:
    return torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor


def _bicubic(n: int, factor: int) -> Tensor:
    identity = torch.eye(n, dtype=torch.float64)[None, None]
    return nn.functional.interpolate(identity, size=(n // factor, n), mode="bicubic", antialias=True)[0, 0]
