"""Linear, convolution and normalisation layers with the initialisation of DDPM."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def fan_avg_uniform_(weight: Tensor, scale: float) -> None:
    """Fill a weight in place with the initialisation that DDPM uses for every layer.

        w ~ U(−b, b),   b² = 6 scale / (fan_in + fan_out)

    A scale of 0 stands for 1e-10, so that a layer that starts silent still has distinct weights.
    """
    nn.init.xavier_uniform_(weight, gain=(scale or 1e-10) ** 0.5)


def linear(in_features: int, out_features: int) -> nn.Linear:
    return _initialised(nn.Linear(in_features, out_features))


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 1, init_scale: float = 1.0
) -> nn.Conv2d:
    return _initialised(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=padding), init_scale)


def conv1x1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return _initialised(nn.Conv2d(in_channels, out_channels, 1))


def _initialised(layer: Layer, scale: float = 1.0) -> Layer:
    fan_avg_uniform_(layer.weight, scale)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class NIN(nn.Module):
    """Network in network: one linear map of the channels, shared by all pixels.

        y[:, o, h, w] = Σᵢ W[i, o] x[:, i, h, w] + b[o]

    Args:
        in_channels: Channels of x, shape (B, in_channels, H, W).
        out_channels: Channels of y.
        init_scale: Scale of `fan_avg_uniform_`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, init_scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(in_channels, out_channels))
        self.b = nn.Parameter(torch.zeros(out_channels))
        fan_avg_uniform_(self.W, init_scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.t()[:, :, None, None], self.b)


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
