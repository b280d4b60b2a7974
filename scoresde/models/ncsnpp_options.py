"""The choices of NCSN++, and what its constructor refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from scoresde.checks import check_choice, check_flag, check_list, check_numbers, check_sizes, check_whole, is_whole

Block = Literal["biggan", "ddpm"]
Embedding = Literal["positional", "fourier", "log_fourier"]
ProgressiveOutput = Literal["none", "output_skip", "residual"]
ProgressiveInput = Literal["none", "input_skip", "residual"]
Combination = Literal["sum", "cat"]


CHOICES: dict[str, Any] = {
    "block": Block,
    "embedding": Embedding,
    "progressive_output": ProgressiveOutput,
    "progressive_input": ProgressiveInput,
    "progressive_combine": Combination,
}
FLAGS = ("resample_with_conv", "fir", "skip_rescale", "time_conditional", "scale_by_sigma", "centered", "checkpoint")
WHOLE = (
    "channels >= 1", "out_channels >= 1 or null", "width >= 1", "num_res_blocks >= 1", "1 <= patch <= 64",
    "1 <= num_scales <= 1000000", "norm_groups >= 1 or null", "concat_channels >= 0",
)  # fmt: skip
NUMBERS = (
    "0 <= dropout < 1", "0 < fourier_scale <= 1e9", "0 <= init_scale <= 1e9", "0 < sigma_min < sigma_max <= 1e9",
    "0 < data_scale <= 1e9",
)  # fmt: skip


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the arguments of NCSN++, by name, make a network."""
    for name, literal in CHOICES.items():
        check_choice("NCSNpp", name, options[name], get_args(literal))
    for name in FLAGS:
        check_flag("NCSNpp", name, options[name])
    check_whole("NCSNpp", *WHOLE, **options)
    check_numbers("NCSNpp", *NUMBERS, **options)
    taps = check_list("NCSNpp", "fir_kernel", options["fir_kernel"])
    if len(taps) < 2 or sum(taps) == 0:
        raise ValueError(f"NCSNpp needs fir_kernel to be two or more taps with a sum other than 0, got {list(taps)}.")
    check_list("NCSNpp", "fourier_features", options["fourier_features"])
    _check_image_size(options["image_size"])
    check_sizes("NCSNpp", "channel_mults", options["channel_mults"])
    check_sizes("NCSNpp", "attention_resolutions", options["attention_resolutions"], empty=True)
    if options["scale_by_sigma"] and options["embedding"] == "fourier":
        raise ValueError("NCSNpp with scale_by_sigma=True needs embedding log_fourier or positional, got fourier.")
    embedded = any(options[name] for name in ("num_classes", "condition_dim", "sequence"))
    if embedded and not options["time_conditional"]:
        raise ValueError(
            "NCSNpp adds label, condition and sequence to the time embedding, so they need time_conditional=True."
        )


def _check_image_size(image_size: Any) -> None:
    sizes = image_size if isinstance(image_size, list | tuple) else [image_size]
    if not 1 <= len(sizes) <= 3 or not all(is_whole(size) and size >= 1 for size in sizes):
        raise ValueError(
            f"NCSNpp needs image_size to be a whole number from 1, or a list of one to three, got {image_size!r}."
        )


def check_stages(owner: str, image_size: int, channel_mults: Any, attention_resolutions: Any) -> None:
    """Raise ValueError unless there are stages, each of half the size of the one before."""
    stages = len(check_sizes(owner, "channel_mults", channel_mults))
    check_sizes(owner, "attention_resolutions", attention_resolutions, empty=True)
    if image_size % 2 ** (stages - 1):
        raise ValueError(
            f"{owner} with {stages} stages needs image_size divisible by {2 ** (stages - 1)}, "
            f"got {image_size}; use fewer channel_mults or pad the images."
        )
