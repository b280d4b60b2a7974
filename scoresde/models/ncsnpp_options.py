"""The choices of NCSN++, and what its constructor refuses."""

from __future__ import annotations

from typing import Any, Literal, get_args

Block = Literal["biggan", "ddpm"]
Embedding = Literal["positional", "fourier", "log_fourier"]
ProgressiveOutput = Literal["none", "output_skip", "residual"]
ProgressiveInput = Literal["none", "input_skip", "residual"]
Combination = Literal["sum", "cat"]


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise ValueError unless value is one of a Literal's choices."""
    if value not in get_args(choices):
        raise ValueError(f"NCSNpp needs {name} to be one of {', '.join(get_args(choices))}, got {value!r}.")


def check_sizes(
    channels: int,
    image_size: int,
    width: int,
    channel_mults: tuple[int, ...],
    num_res_blocks: int,
    num_scales: int,
    concat_channels: int,
) -> None:
    """Raise ValueError unless the sizes make a network."""
    levels = len(channel_mults)
    if min(channels, width, levels, num_res_blocks, num_scales, concat_channels + 1, *channel_mults) < 1:
        raise ValueError(
            f"NCSNpp needs positive sizes, got channels={channels}, width={width}, "
            f"channel_mults={channel_mults}, num_res_blocks={num_res_blocks}, num_scales={num_scales}, "
            f"concat_channels={concat_channels}."
        )
    if image_size < 1 or image_size % 2 ** (levels - 1):
        raise ValueError(
            f"NCSNpp with {levels} levels needs image_size divisible by {2 ** (levels - 1)}, "
            f"got {image_size}; use fewer channel_mults or pad the images."
        )
