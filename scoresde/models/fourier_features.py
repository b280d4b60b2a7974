"""High frequencies of the data as further input channels, so that a network can tell quantisation levels apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_list, check_numbers


class FourierFeatures(nn.Module):
    """A network whose input also holds sines and cosines of it.

        F(x, c_noise) = net([x, sin(2^n π z), cos(2^n π z) for every n], c_noise),   z = scale · x

    For data with L levels on (−1, 1), n = log2 L has one period per level and n = log2(L) − 1 one per two levels: see
    `level_exponents`; 8 and 7 for 256. The frequencies must match the levels in the model's own scaling, while a
    network gets c_in x_t. Where the features matter, at noise below the level spacing, c_in is 1/sigma_data, so
    `scale` should be the parameterization's sigma_data; with more noise they are noise themselves.

    Args:
        net: Built for C (1 + 2 len(exponents)) input channels and C output channels (`out_channels`), where C is the
            length of the first axis of an event.
        exponents: The n, whole or not.
        scale: Factor from the network's input to the data.

    References:
        Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630, App. C.
    """

    def __init__(self, net: nn.Module, *, exponents: Sequence[float] = (7.0, 8.0), scale: float = 1.0) -> None:
        super().__init__()
        check_numbers(self, "0 < scale <= 1e9", scale=scale)
        self.net, self.scale = net, float(scale)
        self.exponents = tuple(float(n) for n in check_list(self, "exponents", exponents))
        if not self.exponents:
            raise ValueError("FourierFeatures needs one or more exponents, got none.")

    def forward(self, x: Tensor, c_noise: Tensor | float, **cond: Any) -> Tensor:
        """The network's output for x (B, C, *); c_noise and conditions are passed on."""
        return self.net(self.features(x), c_noise, **cond)

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, *) and its sines and cosines, (B, C (1 + 2 len(exponents)), *)."""
        return with_fourier_features(x, self.exponents, self.scale)

    def extra_repr(self) -> str:
        return f"exponents={self.exponents}, scale={self.scale:g}"


def with_fourier_features(x: Tensor, exponents: Sequence[float], scale: float) -> Tensor:
    """x (B, C, *), then sin(2^n π scale x) for every exponent n, then the cosines: (B, C (1 + 2 len(exponents)), *)."""
    phases = [(2**n * math.pi * scale) * x for n in exponents]
    return torch.cat([x, *(phase.sin() for phase in phases), *(phase.cos() for phase in phases)], 1)


def level_exponents(levels: int, value_range: tuple[float, float] = (-1.0, 1.0)) -> tuple[float, float]:
    """The exponents n of `FourierFeatures` for quantised data: 2^n π times the cell width is π and 2π.

    Args:
        levels, value_range: Number of levels and outer edges of the first and last cell, as of `Cells`.
    """
    low, high = value_range
    if levels < 2 or not low < high:
        raise ValueError(f"level_exponents needs levels >= 2 and low < high, got {levels} and {tuple(value_range)}.")
    n = math.log2(2 * levels / (high - low))
    return n - 1, n
