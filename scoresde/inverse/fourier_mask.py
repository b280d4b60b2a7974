"""Some frequencies of an event."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.operators import SMALL, KnowsSingularValues
from scoresde.inverse.shapes import event_shape, space


class FourierMask(KnowsSingularValues):
    """y = (Re, Im) of the observed frequencies of each channel, 0 where unobserved. Magnetic resonance, interferometry.

        y = m ∘ (Re F x, Im F x),   F the Fourier transform over space with F F* = I

    x is real, so that frequency −k says the same as k: with both observed they are two measurements of one number.
    V are the columns of the Hartley transform Re F − Im F, and s(k)² = (m(k) + m(−k))/2.

    Args:
        shape: Of an event: (C, *) with any number of axes in space, or a vector.
        mask: 1 or True where a frequency is observed, in the order of `torch.fft.fftn`, over the axes in space.
    """

    mask: Tensor

    def __init__(self, shape: tuple[int, ...], mask: Any) -> None:
        super().__init__()
        self.shape = event_shape(self, shape)
        mask, sizes = torch.as_tensor(mask), space(self.shape)
        if mask.shape != sizes or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                f"FourierMask needs a mask of 0 and 1 of shape {sizes} for events of shape {self.shape}, got one of "
                f"shape {tuple(mask.shape)}."
            )
        self.axes = tuple(range(-len(sizes), 0))
        self.register_buffer("mask", mask.bool())

    @property
    def observed(self) -> Tensor:
        return self.mask

    def forward(self, x0: Tensor) -> Tensor:  # the default would go there and back
        waves = torch.fft.fftn(x0, dim=self.axes, norm="ortho")
        return torch.where(self.mask, torch.stack([waves.real, waves.imag], 1), 0)

    def adjoint(self, y: Tensor) -> Tensor:
        real, imaginary = torch.where(self.mask, y, 0).unbind(1)
        return torch.fft.ifftn(torch.complex(real, imaginary), dim=self.axes, norm="ortho").real

    def singular_values(self, like: Tensor) -> Tensor:
        other = torch.roll(self.mask.flip(self.axes), [1] * len(self.axes), self.axes)  # m(−k)
        s = ((self.mask.to(like) + other.to(like)) / 2).sqrt()
        return s.expand(self.shape).flatten()[None]

    def event_coordinates(self, x: Tensor) -> Tensor:
        return self._hartley(x).flatten(1)

    def event(self, coordinates: Tensor) -> Tensor:
        return self._hartley(coordinates.reshape(-1, *self.shape))

    def measurement_coordinates(self, y: Tensor) -> Tensor:
        return self._over_s(self.event_coordinates(self.adjoint(y)))  # U = A V / s

    def measurement(self, coordinates: Tensor) -> Tensor:
        return self(self.event(self._over_s(coordinates)))

    def _over_s(self, coordinates: Tensor) -> Tensor:
        s = self.singular_values(coordinates)
        return torch.where(s > SMALL, coordinates / s, 0)

    def _hartley(self, x: Tensor) -> Tensor:
        waves = torch.fft.fftn(x, dim=self.axes, norm="ortho")
        return waves.real - waves.imag  # its own inverse
