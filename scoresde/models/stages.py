"""Stages of the score U-Nets: what happens at one resolution, on the way down and on the way up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.models.blocks import AttentionBlock, CrossAttentionBlock, ResidualBlock, add_skip
from scoresde.models.layers import conv1, conv3, group_norm
from scoresde.models.ncsnpp_options import Block, Combination, ProgressiveInput, ProgressiveOutput
from scoresde.models.resample import ConvDown, ConvUp, Down, Up
from scoresde.models.sequence_condition import Tokens


class DownStage(nn.Module):
    """One resolution on the way down.

        h ← block(h, e), n times;   h ← down(h, e);   (h, pyramid) ← entry of the input pyramid

    Args:
        layers: Options of the network.
        in_channels, channels: Widths of h at its start and in its blocks.
        blocks: Number n of blocks.
        attends: Whether the blocks attend.
        pyramid_channels: Channels of the input pyramid.
        last: Whether this is the stage of the lowest resolution, which ends with its blocks.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        blocks: int,
        attends: bool,
        pyramid_channels: int,
        *,
        last: bool,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (blocks - 1)
        self.blocks = nn.ModuleList(layers.block(width, channels, attends) for width in widths)
        self.resample = self.pyramid = None
        self.out_channels, self.skip_channels = channels, [channels] * blocks
        self.pyramid_channels = pyramid_channels
        if not last:
            self.resample = layers.down(channels)
            self.pyramid = layers.input_pyramid(pyramid_channels, channels)
            if self.pyramid is not None:
                self.out_channels, self.pyramid_channels = self.pyramid.out_channels, self.pyramid.pyramid_channels
            self.skip_channels.append(self.out_channels)

    def forward(
        self, h: Tensor, pyramid: Tensor, skips: list[Tensor], embedding: Tensor | None, tokens: Tokens | None
    ) -> tuple[Tensor, Tensor]:
        """Args: h and pyramid, which are returned for the next stage; skips, to which the way up's are added."""
        for block in self.blocks:
            h = block(h, embedding, tokens)
            skips.append(h)
        if self.resample is not None:
            h = self.resample(h, embedding)
            if self.pyramid is not None:
                h, pyramid = self.pyramid(h, pyramid)
            skips.append(h)
        return h, pyramid


class UpStage(nn.Module):
    """One resolution on the way up.

        h ← block([h, skip], e), once per skip;   (h, image) ← exit to the output pyramid;   h ← up(h, e)

    Args:
        layers: Options of the network.
        in_channels, channels: Widths of h at its start and in its blocks.
        skip_channels: Channels of the skips, in the order of the blocks; the last block attends if any.
        attends: Whether it does.
        first, last: Whether this is the stage of the lowest, of the full resolution.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        skip_channels: Sequence[int],
        attends: bool,
        *,
        first: bool,
        last: bool,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * (len(skip_channels) - 1)
        self.blocks = nn.ModuleList()
        for width, skip in zip(widths, skip_channels, strict=True):
            self.blocks.append(layers.block(width + skip, channels, attends and len(self.blocks) == len(widths) - 1))
        self.pyramid = layers.output_pyramid(None if first else in_channels, channels)
        self.resample = None if last else layers.up(channels)

    def forward(
        self, h: Tensor, image: Tensor | None, skips: list[Tensor], embedding: Tensor | None, tokens: Tokens | None
    ) -> tuple[Tensor, Tensor | None]:
        """Args: h and image, which are returned for the next stage; skips, whose last ones are taken off."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, tokens)
        if self.pyramid is not None:
            h, image = self.pyramid(h, image)
        return (h if self.resample is None else self.resample(h, embedding)), image


class AttendingBlock(nn.Module):
    """A residual block, and after it attention to itself, and to the tokens of a sequence, if there is any."""

    def __init__(
        self, residual: ResidualBlock, attention: AttentionBlock | None, cross: CrossAttentionBlock | None = None
    ) -> None:
        super().__init__()
        self.residual, self.attention, self.cross = residual, attention, cross

    def forward(self, h: Tensor, embedding: Tensor | None, tokens: Tokens | None) -> Tensor:
        h = self.residual(h, embedding)
        h = h if self.attention is None else self.attention(h)
        return h if self.cross is None or tokens is None else self.cross(h, tokens.features, tokens.present)


class InputSkip(nn.Module):
    """Brings the downsampled input into a stage: a 1×1 convolution, then the sum or the concatenation."""

    def __init__(self, pyramid_channels: int, channels: int, method: Combination, down: Down, dims: int) -> None:
        super().__init__()
        self.down, self.method = down, method
        self.out_channels = 2 * channels if method == "cat" else channels
        self.pyramid_channels = pyramid_channels
        self.Conv_0 = conv1(pyramid_channels, channels, dims=dims)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.down(pyramid)
        entry = self.Conv_0(pyramid)
        return torch.cat([entry, h], dim=1) if self.method == "cat" else entry + h, pyramid


class InputResidual(nn.Module):
    """Adds features of the input, convolved and downsampled from stage to stage."""

    def __init__(self, down: ConvDown, channels: int, rescale: bool) -> None:
        super().__init__()
        self.down, self.rescale = down, rescale
        self.out_channels = self.pyramid_channels = channels

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = add_skip(self.down(pyramid), h, self.rescale)
        return h, h


class OutputSkip(nn.Module):
    """Sums an image of every stage: image ← up(image) + head(h)."""

    def __init__(self, head: nn.Sequential, up: Up) -> None:
        super().__init__()
        self.head, self.up = head, up

    def forward(self, h: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        own: Tensor = self.head(h)
        return h, own if image is None else self.up(image) + own


class OutputResidual(nn.Module):
    """Hands features on from stage to stage: h ← up(features) + h."""

    def __init__(self, up: ConvUp, rescale: bool) -> None:
        super().__init__()
        self.up, self.rescale = up, rescale

    def forward(self, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        h = add_skip(self.up(features), h, self.rescale)
        return h, h


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Builds the layers of a network with the options that all its stages share.

    Args:
        dims: Axes of the data: 1 for series, 2 for images, 3 for volumes.
        embed_dim: Width of the embedding.
        out_channels: Channels of the images of an output pyramid.
        taps: FIR filter of all resampling, or None for nearest neighbour and mean.
        token_width: Width of the tokens that are attended to, or None.

    All others are those of `NCSNpp`.
    """

    dims: int
    embed_dim: int
    out_channels: int
    style: Block
    taps: tuple[float, ...] | None
    token_width: int | None
    resample_with_conv: bool
    dropout: float
    progressive_output: ProgressiveOutput
    progressive_input: ProgressiveInput
    progressive_combine: Combination
    init_scale: float
    skip_rescale: bool
    norm_groups: int | None
    checkpoint: bool

    def block(self, in_channels: int, out_channels: int, attends: bool) -> AttendingBlock:
        residual = self.residual(in_channels, out_channels)
        if not attends:
            return AttendingBlock(residual, None)
        width, attention = self.token_width, AttentionBlock(out_channels, **self._common)
        cross = None if width is None else CrossAttentionBlock(out_channels, width, **self._common)
        return AttendingBlock(residual, attention, cross)

    def residual(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResidualBlock:
        own: dict[str, Any] = {"dims": self.dims, "style": self.style, "resample": resample, "dropout": self.dropout}
        return ResidualBlock(in_channels, out_channels, self.embed_dim, **own, **self._common)

    def down(self, channels: int) -> nn.Module:
        return self._resample(channels, Down, ConvDown)

    def up(self, channels: int) -> nn.Module:
        return self._resample(channels, Up, ConvUp)

    def head(self, channels: int, out_channels: int, init_scale: float | None = None) -> nn.Sequential:
        """conv(silu(norm(h)))."""
        scale = self.init_scale if init_scale is None else init_scale
        norm = group_norm(channels, self.norm_groups)
        conv = conv3(channels, out_channels, dims=self.dims, init_scale=scale)
        return nn.Sequential(OrderedDict(norm=norm, activation=nn.SiLU(), conv=conv))

    def input_pyramid(self, pyramid_channels: int, channels: int) -> InputSkip | InputResidual | None:
        if self.progressive_input == "none":
            return None
        if self.progressive_input == "residual":
            return InputResidual(ConvDown(pyramid_channels, channels, *self._taps), channels, self.skip_rescale)
        return InputSkip(pyramid_channels, channels, self.progressive_combine, Down(*self._taps), self.dims)

    def output_pyramid(self, pyramid_channels: int | None, channels: int) -> OutputSkip | OutputResidual | None:
        if self.progressive_output == "none":
            return None
        if self.progressive_output == "output_skip":
            return OutputSkip(self.head(channels, self.out_channels), Up(*self._taps))
        if pyramid_channels is None:  # the first stage starts the features
            return OutputSkip(self.head(channels, channels, 1.0), Up(*self._taps))
        return OutputResidual(ConvUp(pyramid_channels, channels, *self._taps), self.skip_rescale)

    @property
    def _taps(self) -> tuple[tuple[float, ...] | None, int]:
        return self.taps, self.dims

    @property
    def _common(self) -> dict[str, Any]:
        return {
            "init_scale": self.init_scale,
            "skip_rescale": self.skip_rescale,
            "norm_groups": self.norm_groups,
            "checkpoint": self.checkpoint,
        }

    def _resample(self, channels: int, plain: type[Up | Down], conv: type[ConvUp | ConvDown]) -> nn.Module:
        if self.style == "biggan":
            return self.residual(channels, channels, plain(*self._taps))
        return conv(channels, channels, *self._taps) if self.resample_with_conv else plain(*self._taps)
