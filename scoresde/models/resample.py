"""Up- and downsampling by two: FIR filters, nearest neighbour and mean, with or without a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.models.layers import CONVOLVE, CONVOLVE_TRANSPOSED, conv3

MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class FIRFilter(nn.Module):
    """A fixed separable low-pass filter, applied to each channel (StyleGAN2's `upfirdn2d`).

        K = k kᵀ / (Σ k)²                                           (k / Σ k for series, three factors for volumes)

    The filter runs in float32 or better, also under autocast: rounding its sums would cost accuracy and
    saves no time.

    Args:
        taps: The one-dimensional filter k, e.g. (1, 3, 3, 1).
        dims: Axes of the data: 1 for series, 2 for images, 3 for volumes.

    References:
        Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, arXiv:1912.04958.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], dims: int = 2) -> None:
        super().__init__()
        total = sum(taps)
        if len(taps) < 2 or total == 0:
            raise ValueError(f"A fir_kernel needs two or more taps and a sum other than 0, got {tuple(taps)}.")
        k = torch.tensor([float(tap) / total for tap in taps], dtype=torch.float64)
        kernel = k
        for _ in range(dims - 1):
            kernel = kernel[..., None] * k
        self.register_buffer("kernel", kernel.to(torch.get_default_dtype()), persistent=False)

    @property
    def length(self) -> int:
        return self.kernel.shape[-1]

    def blur(self, x: Tensor, padding: tuple[int, int], stride: int = 1) -> Tensor:
        """Convolve x, zero-padded by (before, after) on all axes, and keep every stride-th pixel."""
        with torch.autocast(x.device.type, enabled=False):
            y, kernel = self._promote(x)
            before, after = padding
            if before != after:
                y, before = F.pad(y, (before, after) * self.kernel.ndim), 0
            flipped = kernel.flip(tuple(range(2, kernel.ndim)))
            y = CONVOLVE[self.kernel.ndim](y, flipped, stride=stride, padding=before, groups=x.shape[1])
            return y.to(x.dtype)

    def downsample(self, x: Tensor) -> Tensor:
        """Blur, then keep every second place: (B, C, H, W) to (B, C, H/2, W/2)."""
        excess = self.length - 2
        return self.blur(x, ((excess + 1) // 2, excess // 2), stride=2)

    def upsample(self, x: Tensor) -> Tensor:
        """Insert zeros, then blur with gain 2 per axis, which keeps the mean: (B, C, H, W) to (B, C, 2H, 2W)."""
        dims = self.kernel.ndim
        with torch.autocast(x.device.type, enabled=False):
            y, kernel = self._promote(x)
            padding = self.length - 2 - (self.length - 1) // 2
            y = CONVOLVE_TRANSPOSED[dims](y, 2**dims * kernel, stride=2, padding=padding, groups=x.shape[1])
            return cropped(y, [2 * size for size in x.shape[2:]]).to(x.dtype)

    def _promote(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        kernel = self.kernel.to(dtype).expand(x.shape[1], 1, *self.kernel.shape)
        return x.to(dtype), kernel


def cropped(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first entries of x (B, C, *) along each axis of places, as many as `sizes` says."""
    for axis, size in enumerate(sizes, 2):
        x = x.narrow(axis, 0, size)
    return x


def padded(x: Tensor, factor: int) -> Tensor:
    """x (B, C, *), continued by its last entries until `factor` divides the size of every axis of places."""
    for axis in range(2, x.ndim):
        lacking = -x.shape[axis] % factor
        if lacking:
            x = torch.cat([x, *[x.narrow(axis, x.shape[axis] - 1, 1)] * lacking], dim=axis)
    return x


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, *) with sizes that `patch` divides to (B, C patch^d, */patch): the d-dimensional pixel unshuffle."""
    if patch == 1:
        return x
    dims = x.ndim - 2
    split = x.reshape(*x.shape[:2], *[part for size in x.shape[2:] for part in (size // patch, patch)])
    inner = split.permute(0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2))
    return inner.reshape(x.shape[0], -1, *[size // patch for size in x.shape[2:]])


def from_patches(x: Tensor, patch: int) -> Tensor:
    """The inverse of `to_patches`."""
    if patch == 1:
        return x
    dims = x.ndim - 2
    split = x.reshape(x.shape[0], -1, *[patch] * dims, *x.shape[2:])
    outer = split.permute(0, 1, *[axis for i in range(dims) for axis in (2 + dims + i, 2 + i)])
    return outer.reshape(x.shape[0], -1, *[size * patch for size in x.shape[2:]])


class Resampling(nn.Module):
    """A step between stages, with a FIR filter of these taps along `dims` axes, or without if they are None."""

    def __init__(self, taps: Sequence[float] | None, dims: int = 2) -> None:
        super().__init__()
        self.fir = None if taps is None else FIRFilter(taps, dims)


class Up(Resampling):
    """Weightless upsampling, (B, C, H, W) to (B, C, 2H, 2W): FIR, or nearest neighbour if taps is None."""

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.fir is None else self.fir.upsample(x)


class Down(Resampling):
    """Weightless downsampling, (B, C, H, W) to (B, C, H/2, W/2): FIR, or if taps is None the mean of neighbours."""

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        return MEAN[x.ndim - 2](x, 2) if self.fir is None else self.fir.downsample(x)


class ConvUp(Resampling):
    """Upsampling with a 3×3 convolution, after nearest neighbour; or transposed and before FIR.

    Args:
        in_channels, out_channels: (B, in_channels, H, W) to (B, out_channels, 2H, 2W).
        taps: FIR filter, or None.
        dims: Axes of the data.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float] | None, dims: int = 2) -> None:
        super().__init__(taps, dims)
        if self.fir is None:
            self.Conv_0 = conv3(in_channels, out_channels, dims=dims)
        else:
            self.Conv2d_0 = conv3(in_channels, out_channels, dims=dims)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        if self.fir is None:
            return self.Conv_0(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        weight, bias, dims = self.Conv2d_0.weight, self.Conv2d_0.bias, x.ndim - 2
        flipped = weight.flip(tuple(range(2, weight.ndim))).transpose(0, 1)
        h = CONVOLVE_TRANSPOSED[dims](x, flipped, stride=2)
        excess = self.fir.length - 4
        h = 2**dims * self.fir.blur(h, ((excess + 1) // 2 + 1, excess // 2 + 1))
        return h if bias is None else h + bias.reshape(-1, *[1] * dims)


class ConvDown(Resampling):
    """Downsampling by a 3×3 convolution of stride 2, after a FIR blur if taps is not None.

    Args:
        in_channels, out_channels: (B, in_channels, H, W) to (B, out_channels, H/2, W/2).
        taps: FIR filter, or None.
        dims: Axes of the data.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float] | None, dims: int = 2) -> None:
        super().__init__(taps, dims)
        if self.fir is None:
            self.Conv_0 = conv3(in_channels, out_channels, dims=dims, stride=2, padding=0)
        else:
            self.Conv2d_0 = conv3(in_channels, out_channels, dims=dims, stride=2, padding=0)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        if self.fir is None:
            return self.Conv_0(F.pad(x, (0, 1) * (x.ndim - 2)))
        return self.Conv2d_0(self.fir.blur(x, ((self.fir.length + 1) // 2, self.fir.length // 2)))
