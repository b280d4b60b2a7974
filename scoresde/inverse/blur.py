"""Convolution with a kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers
from scoresde.inverse.operators import KnowsSingularValues
from scoresde.inverse.shapes import along_axes, event_shape, space

REACH = 4  # standard deviations of a Gaussian kernel


def gaussian_kernel(std: float) -> Tensor:
    """exp(−r²/(2 std²)) at whole r up to 4 std, with sum 1; std = 0 is no blur."""
    check_numbers("gaussian_kernel", "0 <= std < inf", std=std)
    r = torch.arange(-math.ceil(REACH * std), math.ceil(REACH * std) + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (r / std).square()) if std > 0 else torch.ones_like(r)
    return weights / weights.sum()


class Blur(KnowsSingularValues):
    """y(p) = Σ_r k(r) x(p − r): every channel is convolved with the same kernel; y has the shape of x.

    What lies beyond the edge is stated by `boundary`, and gives an exact decomposition:

        periodic   x goes on from its other side;    A = F* diag(k̂) F,  F the Fourier transform
        reflect    x is mirrored at its edges;       A = Dᵀ diag(k̂) D,  D the cosine transform; kernels that are even

    For the first, V are the columns of the Hartley transform Re F − Im F, which is real, and s = |k̂|.

    Args:
        shape: Of an event: (C, *) with any number of axes in space, or a vector.
        std: Of a Gaussian kernel, in grid points, cut at 4 std.
        kernel: In place of `std`: one along each axis, (r,), or one over all axes in space; r odd, its middle is r = 0.
        boundary: periodic, reflect.
    """

    spectrum: Tensor

    def __init__(
        self, shape: tuple[int, ...], *, std: float | None = None, kernel: Any = None, boundary: str = "reflect"
    ) -> None:
        super().__init__()
        self.shape, self.boundary = event_shape(self, shape), boundary
        check_choice(self, "boundary", boundary, ("periodic", "reflect"))
        if (std is None) == (kernel is None):
            raise ValueError("Blur needs either std or kernel.")
        if std is not None:
            check_numbers(self, "0 <= std < inf", std=std)
            kernel = gaussian_kernel(std)
        kernel = torch.as_tensor(kernel, dtype=torch.float64)
        sizes = space(self.shape)
        self.axes = tuple(range(-len(sizes), 0))
        if kernel.ndim not in (1, len(sizes)) or not all(n % 2 for n in kernel.shape) or not kernel.isfinite().all():
            raise ValueError(
                f"Blur needs a finite kernel of 1 or {len(sizes)} axes of odd sizes for events of shape {self.shape}, "
                f"got shape {tuple(kernel.shape)}."
            )
        if kernel.ndim < len(sizes):
            kernel = _outer([kernel] * len(sizes))
        if boundary == "reflect" and not all(torch.allclose(kernel, kernel.flip(axis)) for axis in self.axes):
            raise ValueError("Blur with boundary=reflect needs a kernel that is even along every axis: use periodic.")
        waves = _fourier if boundary == "periodic" else _cosines
        spectrum = along_axes([waves(n, r) for n, r in zip(sizes, kernel.shape, strict=True)], kernel.to(torch.cdouble))
        self.register_buffer("spectrum", spectrum if boundary == "periodic" else spectrum.real)
        for k, n in enumerate(sizes if boundary == "reflect" else ()):
            self.register_buffer(f"cosines_{k}", _cosine_transform(n), persistent=False)

    def forward(self, x0: Tensor) -> Tensor:
        return self._scaled(x0, self.spectrum)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._scaled(y, self.spectrum.conj())

    def singular_values(self, like: Tensor) -> Tensor:
        return self.spectrum.abs().to(like).expand(self.shape).flatten()[None]

    def event_coordinates(self, x: Tensor) -> Tensor:
        return self._transform(x).flatten(1)

    def event(self, coordinates: Tensor) -> Tensor:
        x = coordinates.reshape(-1, *self.shape)
        return self._transform(x, back=True)

    def measurement_coordinates(self, y: Tensor) -> Tensor:
        return self.event_coordinates(self._scaled(y, self._phase().conj()))

    def measurement(self, coordinates: Tensor) -> Tensor:
        return self._scaled(self.event(coordinates), self._phase())

    def _phase(self) -> Tensor:
        """k̂/|k̂|, 0 where k̂ is."""
        return torch.where(self.spectrum == 0, 0, self.spectrum / self.spectrum.abs())

    def _scaled(self, x: Tensor, spectrum: Tensor) -> Tensor:
        if self.boundary == "reflect":
            return self._transform(spectrum.to(x) * self._transform(x), back=True)
        kind = torch.promote_types(x.dtype, torch.complex64)
        waves = spectrum.to(x.device, kind) * torch.fft.fftn(x, dim=self.axes)
        return torch.fft.ifftn(waves, dim=self.axes).real

    def _transform(self, x: Tensor, *, back: bool = False) -> Tensor:
        if self.boundary == "reflect":
            matrices = [self.get_buffer(f"cosines_{k}") for k in range(len(self.axes))]
            return along_axes([matrix.T for matrix in matrices] if back else matrices, x)
        waves = torch.fft.fftn(x, dim=self.axes, norm="ortho")
        return waves.real - waves.imag  # its own inverse


def _outer(kernels: list[Tensor]) -> Tensor:
    product = kernels[0]
    for kernel in kernels[1:]:
        product = product[..., None] * kernel
    return product


def _fourier(n: int, r: int) -> Tensor:
    """e^(−2πi j p/n) of frequency j at place p of a kernel of r places, (n, r)."""
    j, p = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(r, dtype=torch.float64) - r // 2
    return torch.exp(-2j * math.pi * (j * p % n) / n)


def _cosines(n: int, r: int) -> Tensor:
    """cos(π j p/n), (n, r)."""
    j, p = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(r, dtype=torch.float64) - r // 2
    return torch.cos(math.pi * (j * p % (2 * n)) / n).to(torch.cdouble)


def _cosine_transform(n: int) -> Tensor:
    """The orthogonal cosine transform (DCT-II), (n, n): row j is √(2/n) cos(π j (p + ½)/n), row 0 is 1/√n."""
    j, p = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64) + 0.5
    rows = math.sqrt(2 / n) * torch.cos(math.pi * (j * p % (2 * n)) / n)
    rows[0] /= math.sqrt(2)
    return rows
