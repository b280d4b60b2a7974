"""The U-Net of DDPM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scoresde.models.ncsnpp import NCSNpp


def DDPMUNet(
    *,
    channels: int = 3, out_channels: int | None = None, image_size: int | Sequence[int] = 32,
    width: int = 128, channel_mults: Sequence[int] = (1, 2, 2, 2), num_res_blocks: int = 2,
    attention_resolutions: Sequence[int] = (16,), dropout: float = 0.1, resample_with_conv: bool = True,
    scale_by_sigma: bool = False, centered: bool = True, num_scales: int = 1000,
    sigma_min: float = 0.01, sigma_max: float = 50.0, norm_groups: int | None = 32,
    num_classes: int | None = None, condition_dim: int | None = None,
    condition_mean: Sequence[float] | None = None, condition_std: Sequence[float] | None = None,
    condition_categories: Sequence[int] | None = None, condition_width: int | None = None,
    condition_optional: bool | None = None, concat_channels: int = 0,
    image: Mapping[str, Any] | None = None, sequence: Mapping[str, Any] | None = None,
    checkpoint: bool = False,
) -> NCSNpp:  # fmt: skip
    """DDPM's network: `NCSNpp` with DDPM blocks, plain resampling, sinusoidal time and unscaled sums.

    Args:
        norm_groups: Groups of every normalisation: 32 in DDPM, so that widths are multiples of 32; None for
            min(C/4, 32).

    All other arguments are those of `NCSNpp`.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """
    return NCSNpp(
        block="ddpm", fir=False, skip_rescale=False, embedding="positional",
        channels=channels, out_channels=out_channels, image_size=image_size,
        width=width, channel_mults=channel_mults, num_res_blocks=num_res_blocks,
        attention_resolutions=attention_resolutions, dropout=dropout, resample_with_conv=resample_with_conv,
        scale_by_sigma=scale_by_sigma, centered=centered, num_scales=num_scales,
        sigma_min=sigma_min, sigma_max=sigma_max, norm_groups=norm_groups,
        num_classes=num_classes, condition_dim=condition_dim, condition_mean=condition_mean,
        condition_std=condition_std, condition_categories=condition_categories, condition_width=condition_width,
        condition_optional=condition_optional, concat_channels=concat_channels, image=image,
        sequence=sequence, checkpoint=checkpoint,
    )  # fmt: skip
