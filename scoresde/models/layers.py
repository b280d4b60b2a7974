"""Linear, convolution and normalisation layers with the initialisation of DDPM, for series, images and volumes."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", nn.Linear, Conv)
CONVOLUTIONS: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by the number of axes of the data
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def fan_avg_uniform_(weight: Tensor, scale: float) -> None:
    """Fill a weight in place with the initialisation that DDPM uses for every layer.

        w ~ U(−b, b),   b² = 6 scale / (fan_in + fan_out)

    A scale of 0 stands for 1e-10, so that a layer that starts silent still has distinct weights.
    """
    nn.init.xavier_uniform_(weight, gain=(scale or 1e-10) ** 0.5)


def linear(in_features: int, out_features: int) -> nn.Linear:
    return _initialised(nn.Linear(in_features, out_features))


def conv3(
    in_channels: int, out_channels: int, *, dims: int = 2, stride: int = 1, padding: int = 1, init_scale: float = 1.0
) -> Conv:
    """A convolution with a kernel of 3 along each of `dims` axes."""
    layer = CONVOLUTIONS[dims](in_channels, out_channels, 3, stride=stride, padding=padding)
    return _initialised(layer, init_scale)


def conv1(in_channels: int, out_channels: int, *, dims: int = 2) -> Conv:
    """A linear map of the channels, as a convolution with a kernel of 1."""
    return _initialised(CONVOLUTIONS[dims](in_channels, out_channels, 1))


def _initialised(layer: Layer, scale: float = 1.0) -> Layer:
    fan_avg_uniform_(layer.weight, scale)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class NIN(nn.Module):
    """Network in network: one linear map of the channels, shared by all places.

        y[:, o, ...] = Σᵢ W[i, o] x[:, i, ...] + b[o]

    Args:
        in_channels: Channels of x, shape (B, in_channels, *), with one to three axes of places.
        out_channels: Channels of y.
        init_scale: Scale of `fan_avg_uniform_`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, init_scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(in_channels, out_channels))
        self.b = nn.Parameter(torch.zeros(out_channels))
        fan_avg_uniform_(self.W, init_scale)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.W.t().reshape(*self.W.t().shape, *[1] * (x.ndim - 2))
        return CONVOLVE[x.ndim - 2](x, kernel, self.b)


def group_norm(channels: int, groups: int | None) -> nn.GroupNorm:
    """Group normalisation with ε = 1e-6.

    Args:
        channels: Number of channels C.
        groups: Number of groups; None is NCSN++'s rule, min(C/4, 32), lowered to a divisor of C.
    """
    if groups is None:
        groups = next(g for g in range(max(1, min(channels // 4, 32)), 0, -1) if channels % g == 0)
    elif channels % groups:
        raise ValueError(
            f"norm_groups={groups} must divide the channels of every layer, got a layer of {channels}. "
            f"Choose a width that is a multiple of {groups}, or norm_groups=None."
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)
