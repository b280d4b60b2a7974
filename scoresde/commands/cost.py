"""What a network costs, from its options: parameters, and operations of one training example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

PASSES = 3  # forward, and twice as much backward


class Cost(NamedTuple):
    """Trained parameters of a network, and multiplications and additions that one training example takes."""

    parameters: int
    operations: float


def unet_cost(
    channels: int, sizes: Sequence[int], *, width: int, channel_mults: Sequence[int], num_res_blocks: int,
    attends: Sequence[bool], patch: int = 1,
) -> Cost:  # fmt: skip
    """Cost of an `NCSNpp` of BigGAN's blocks, without FIR filters and progressive inputs.

    Convolutions, linear maps and attention are counted; normalisations, biases and activations only as parameters.

    Args:
        channels, sizes: Shape of the data, (channels, *sizes).
        width, channel_mults, num_res_blocks, patch: As for `NCSNpp`.
        attends: Whether each stage attends.
    """
    count = _Count(len(sizes), 4 * width)
    entries, stages = channels * patch ** len(sizes), len(channel_mults)
    widths = [width * mult for mult in channel_mults]
    places = [math.prod(-(-size // (patch * 2 ** (stages - 1))) * 2 ** (stages - 1 - s) for size in sizes)
              for s in range(stages)]  # fmt: skip
    count.linear(2 * width, 4 * width)
    count.linear(4 * width, 4 * width)
    count.conv(entries, width, places[0])
    c, skips = width, [width]
    for stage, wide in enumerate(widths):
        for _ in range(num_res_blocks):
            count.block(c, wide, places[stage], attends[stage])
            c = wide
            skips.append(c)
        if stage < stages - 1:
            count.block(c, c, places[stage + 1], resampled=places[stage + 1])
            skips.append(c)
    count.block(c, c, places[-1], True)
    count.block(c, c, places[-1])
    for stage in reversed(range(stages)):
        for left in reversed(range(num_res_blocks + 1)):
            count.block(c + skips.pop(), widths[stage], places[stage], attends[stage] and left == 0)
            c = widths[stage]
        if stage > 0:
            count.block(c, c, places[stage - 1], resampled=places[stage - 1])
    count.parameters += 2 * c
    count.conv(c, entries, places[0])
    return Cost(count.parameters, 2 * PASSES * count.products)


def mlp_cost(entries: int, *, width: int, depth: int) -> Cost:
    """Cost of an `MLP`.

    Args:
        entries: Numbers in one example.
        width, depth: As for `MLP`.
    """
    count = _Count(0, width)
    count.linear(2 * (width // 2), width)
    count.linear(width, width)
    count.linear(entries, width)
    for _ in range(depth):
        count.linear(width, width)
        count.linear(width, width)
        count.linear(width, 2 * width)
    count.linear(width, entries)
    return Cost(count.parameters, 2 * PASSES * count.products)


class _Count:
    """Sums of parameters and products of the layers of a network of `dims` axes."""

    def __init__(self, dims: int, embed_dim: int) -> None:
        self.dims, self.embed_dim = dims, embed_dim
        self.parameters, self.products = 0, 0

    def linear(self, inputs: int, outputs: int, places: int = 1) -> None:
        self.parameters += (inputs + 1) * outputs
        self.products += inputs * outputs * places

    def conv(self, inputs: int, outputs: int, places: int) -> None:
        taps = 3**self.dims
        self.parameters += (taps * inputs + 1) * outputs
        self.products += taps * inputs * outputs * places

    def block(self, inputs: int, outputs: int, places: int, attends: bool = False, *, resampled: int = 0) -> None:
        """A residual block, and attention; `resampled` places if it changes the size."""
        self.parameters += 2 * inputs + 2 * outputs
        self.conv(inputs, outputs, places)
        self.linear(self.embed_dim, outputs)
        self.conv(outputs, outputs, places)
        if inputs != outputs or resampled:
            self.linear(inputs, outputs, places)
        if attends:
            self.parameters += 2 * outputs
            for _ in range(4):
                self.linear(outputs, outputs, places)
            self.products += 2 * outputs * places**2
