"""The choices of NCSN++, and what its constructor refuses."""

from __future__ import annotations

from typing import Any, Literal, get_args

Block = Literal["biggan", "ddpm"]
Embedding = Literal["positional", "fourier", "log_fourier"]
ProgressiveOutput = Literal["none", "output_skip", "residual"]
ProgressiveInput = Literal["none", "input_skip", "residual"]
Combination = Literal["sum", "cat"]


_CHOICES: dict[str, Any] = {
    "block": Block,
    "embedding": Embedding,
    "progressive_output": ProgressiveOutput,
    "progressive_input": ProgressiveInput,
    "progressive_combine": Combination,
}


def check_choices(*choices: str) -> None:
    """Raise ValueError unless every value, in the order above, is one of its Literal's."""
    for (name, literal), value in zip(_CHOICES.items(), choices, strict=True):
        if value not in get_args(literal):
            raise ValueError(f"NCSNpp needs {name} to be one of {', '.join(get_args(literal))}, got {value!r}.")


def check_sizes(
    channels: int,
    out_channels: int | None,
    image_size: int,
    width: int,
    channel_mults: tuple[int, ...],
    num_res_blocks: int,
    num_scales: int,
    concat_channels: int,
) -> None:
    """Raise ValueError unless the sizes make a network."""
    stages = len(channel_mults)
    if min(channels, width, stages, num_res_blocks, num_scales, concat_channels + 1, *channel_mults) < 1:
        raise ValueError(
            f"NCSNpp needs positive sizes, got channels={channels}, width={width}, "
            f"channel_mults={channel_mults}, num_res_blocks={num_res_blocks}, num_scales={num_scales}, "
            f"concat_channels={concat_channels}."
        )
    if image_size < 1 or image_size % 2 ** (stages - 1):
        raise ValueError(
            f"NCSNpp with {stages} stages needs image_size divisible by {2 ** (stages - 1)}, "
            f"got {image_size}; use fewer channel_mults or pad the images."
        )
    if out_channels is not None and out_channels < 1:
        raise ValueError(f"NCSNpp needs out_channels >= 1, or None for the channels of the data, got {out_channels}.")


def check_embedding(embedding: Embedding, scale_by_sigma: bool, sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless the noise level is embedded as the other options need it."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"NCSNpp needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
    if scale_by_sigma and embedding == "fourier":
        raise ValueError("NCSNpp with scale_by_sigma=True needs embedding log_fourier or positional, got fourier.")
