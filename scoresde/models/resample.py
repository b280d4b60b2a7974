"""Up- and downsampling by two: FIR filters, nearest neighbour and mean, with or without a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.models.layers import conv3x3


class FIRFilter(nn.Module):
    """A fixed separable low-pass filter, applied to each channel (StyleGAN2's `upfirdn2d`).

        K = k kᵀ / (Σ k)²

    The filter runs in float32 or better, also under autocast: rounding its sums would cost accuracy and
    saves no time.

    Args:
        taps: The one-dimensional filter k, e.g. (1, 3, 3, 1).

    References:
        Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020, arXiv:1912.04958.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        total = sum(taps)
        if len(taps) < 2 or total == 0:
            raise ValueError(f"A fir_kernel needs two or more taps and a sum other than 0, got {tuple(taps)}.")
        k = torch.tensor([float(tap) / total for tap in taps], dtype=torch.float64)
        self.register_buffer("kernel", torch.outer(k, k).to(torch.get_default_dtype()), persistent=False)

    @property
    def length(self) -> int:
        return self.kernel.shape[-1]

    def blur(self, x: Tensor, padding: tuple[int, int], stride: int = 1) -> Tensor:
        """Convolve x, zero-padded by (before, after) on both axes, and keep every stride-th pixel."""
        with torch.autocast(x.device.type, enabled=False):
            y, kernel = self._promote(x)
            before, after = padding
            if before != after:
                y, before = F.pad(y, (before, after, before, after)), 0
            y = F.conv2d(y, kernel.flip(2, 3), stride=stride, padding=before, groups=x.shape[1])
            return y.to(x.dtype)

    def downsample(self, x: Tensor) -> Tensor:
        """Blur, then keep every second pixel: (B, C, H, W) to (B, C, H/2, W/2)."""
        excess = self.length - 2
        return self.blur(x, ((excess + 1) // 2, excess // 2), stride=2)

    def upsample(self, x: Tensor) -> Tensor:
        """Insert zeros, then blur with gain 4, which keeps the mean: (B, C, H, W) to (B, C, 2H, 2W)."""
        height, width = 2 * x.shape[2], 2 * x.shape[3]
        with torch.autocast(x.device.type, enabled=False):
            y, kernel = self._promote(x)
            padding = self.length - 2 - (self.length - 1) // 2
            y = F.conv_transpose2d(y, 4 * kernel, stride=2, padding=padding, groups=x.shape[1])
            return y[:, :, :height, :width].to(x.dtype)

    def _promote(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        kernel = self.kernel.to(dtype).expand(x.shape[1], 1, self.length, self.length)
        return x.to(dtype), kernel


class Resampling(nn.Module):
    """A step between stages, with a FIR filter of these taps, or without if they are None."""

    def __init__(self, taps: Sequence[float] | None) -> None:
        super().__init__()
        self.fir = None if taps is None else FIRFilter(taps)


class Up(Resampling):
    """Weightless upsampling, (B, C, H, W) to (B, C, 2H, 2W): FIR, or nearest neighbour if taps is None."""

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.fir is None else self.fir.upsample(x)


class Down(Resampling):
    """Weightless downsampling, (B, C, H, W) to (B, C, H/2, W/2): FIR, or the mean of 2×2 if taps is None."""

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        return F.avg_pool2d(x, 2) if self.fir is None else self.fir.downsample(x)


class ConvUp(Resampling):
    """Upsampling with a 3×3 convolution, after nearest neighbour; or transposed and before FIR.

    Args:
        in_channels, out_channels: (B, in_channels, H, W) to (B, out_channels, 2H, 2W).
        taps: FIR filter, or None.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float] | None) -> None:
        super().__init__(taps)
        if self.fir is None:
            self.Conv_0 = conv3x3(in_channels, out_channels)
        else:
            self.Conv2d_0 = conv3x3(in_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        if self.fir is None:
            return self.Conv_0(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        weight, bias = self.Conv2d_0.weight, self.Conv2d_0.bias
        h = F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), stride=2)
        excess = self.fir.length - 4
        h = 4 * self.fir.blur(h, ((excess + 1) // 2 + 1, excess // 2 + 1))
        return h if bias is None else h + bias[:, None, None]


class ConvDown(Resampling):
    """Downsampling by a 3×3 convolution of stride 2, after a FIR blur if taps is not None.

    Args:
        in_channels, out_channels: (B, in_channels, H, W) to (B, out_channels, H/2, W/2).
        taps: FIR filter, or None.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float] | None) -> None:
        super().__init__(taps)
        if self.fir is None:
            self.Conv_0 = conv3x3(in_channels, out_channels, stride=2, padding=0)
        else:
            self.Conv2d_0 = conv3x3(in_channels, out_channels, stride=2, padding=0)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: x, and an embedding that is ignored (every step between stages takes one)."""
        if self.fir is None:
            return self.Conv_0(F.pad(x, (0, 1, 0, 1)))
        return self.Conv2d_0(self.fir.blur(x, ((self.fir.length + 1) // 2, self.fir.length // 2)))
