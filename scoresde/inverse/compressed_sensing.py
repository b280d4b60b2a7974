"""Random combinations of all entries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.inverse.operators import LinearOperator
from scoresde.inverse.shapes import event_shape


class CompressedSensing(LinearOperator):
    """y = A x with m random orthonormal rows, uniform among all such, a function of the seed.

        A Aᵀ = I:   A⁺ = Aᵀ, and all singular values are 1

    Args:
        shape: Of an event with d entries; A takes m d numbers.
        measurements: m, at most d.
        seed: Of A.
    """

    rows: Tensor

    def __init__(self, shape: tuple[int, ...], measurements: int, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.seed = event_shape(self, shape), seed
        size = math.prod(self.shape)
        check_whole(self, f"1 <= measurements <= {size}", measurements=measurements)
        check_whole(self, "0 <= seed")
        generator = torch.Generator().manual_seed(seed % 2**63)
        normal = torch.randn(size, measurements, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        self.register_buffer("rows", (q * r.diagonal().sign()).T.contiguous())

    def forward(self, x0: Tensor) -> Tensor:
        return x0.flatten(1) @ self.rows.to(x0).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.rows.to(y)).reshape(len(y), *self.shape)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def matrix(self, like: Tensor) -> Tensor:
        return self.rows.to(like)
