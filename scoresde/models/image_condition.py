"""A condition on the grid of the data, as further channels of a network's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_flag, is_whole
from scoresde.models.condition_features import ConditionFeatures

OPTIONS = ("channels", "mean", "std", "categories", "optional")
LARGEST = 65536  # channels


class ImageCondition(nn.Module):
    """An image, a series or a volume as channels beside x: super-resolution, colours, segmentation maps. No parameters.

        value       (c − mean)/std
        category    e_c of K

    and then at the places of x: means over the area that a place of x covers, so that pixels of a coarser grid are
    repeated and those of a finer one averaged. "No image" is 0 everywhere, and a last channel that is 1 there.

    Args:
        owner: Name of the network, for messages.
        dims: Axes of the data: 1 for series, 2 for images, 3 for volumes.
        channels: Channels of the condition.
        mean, std: One per channel, or one for all; None: 0 and 1.
        categories: Per channel, 0 for values or K for K categories, which are 0..K−1; None: all are values.
        optional: Whether there may be no image, for networks that are trained without it now and then.

    References:
        Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021, arXiv:2104.07636.
    """

    def __init__(
        self, owner: str, dims: int, *, channels: int, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, categories: Sequence[int] | None = None, optional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not is_whole(channels) or not 1 <= channels <= LARGEST:
            raise ValueError(f"{owner} needs image.channels, a whole number from 1 to {LARGEST}, got {channels!r}.")
        check_flag(owner, "image.optional", optional)
        self.owner, self.dims, self.channels, self.optional = owner, dims, channels, bool(optional)
        self.features = ConditionFeatures(
            owner, channels, mean, std, categories, prefix="image.", size="image.channels"
        )  # fmt: skip
        self.out_channels = self.features.features + self.optional

    @classmethod
    def of(cls, owner: str, dims: int, options: Mapping[str, Any] | None) -> ImageCondition | None:
        """From the option `image` of a network; None for None.

        Raises:
            ValueError: If it has other keys, or lacks channels.
        """
        if options is None:
            return None
        known = checked_options(owner, "image", options, OPTIONS)
        if "channels" not in known:
            raise ValueError(f"{owner} needs image.channels, the number of channels of the image.")
        return cls(owner, dims, **known)

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        """The channels beside x.

        Args:
            x: The batch, (B, C, *), for its size, grid, dtype and device.
            image: Shape (B, channels, *), or (1, channels, *) for all, of any resolution. Where the network can do
                without, None is no image, and so is NaN everywhere in an example's.
        Returns:
            Shape (B, out_channels, *).
        Raises:
            ValueError: If the image does not fit the network, or is missing.
        """
        sizes = x.shape[2:]
        if image is None:
            if not self.optional:
                raise ValueError(
                    f"{self.owner} was trained with an image of {self.channels} channels as condition and never "
                    f"without: give it one, as denoiser.given(image=...), or train with loss.image_dropout."
                )
            nothing = x.new_zeros(x.shape[0], self.out_channels, *sizes)
            nothing[:, -1] = 1
            return nothing
        image = torch.as_tensor(image, device=x.device)
        if image.ndim != 2 + self.dims or image.shape[1] != self.channels or len(image) not in (1, len(x)):
            places = {1: "L", 2: "H, W", 3: "D, H, W"}[self.dims]
            raise ValueError(
                f"{self.owner} needs an image of shape ({len(x)}, {self.channels}, {places}) as condition for x of "
                f"shape {tuple(x.shape)}, got {tuple(image.shape)}."
            )
        wide = image if image.is_floating_point() else image.float()
        absent = wide.isnan().flatten(1).all(1) if self.optional else None
        rows = wide.movedim(1, -1)
        self._check(rows, absent)
        if absent is not None:
            rows = rows.masked_fill(absent.reshape(-1, *[1] * (rows.ndim - 1)), 0)
        channels = self.features(rows.reshape(-1, self.channels)).reshape(*rows.shape[:-1], -1).movedim(-1, 1)
        channels = channels if channels.shape[2:] == sizes else F.interpolate(channels, sizes, mode="area")
        if absent is not None:
            marks = absent.reshape(-1, *[1] * (channels.ndim - 1))
            one = marks.to(channels.dtype).expand(-1, 1, *sizes)
            channels = torch.cat([channels.masked_fill(marks, 0), one], 1)
        return channels.to(x.dtype).expand(len(x), -1, *sizes)

    def _check(self, rows: Tensor, absent: Tensor | None) -> None:
        """Raise for values that are no image (B, *, channels); only the CPU's are looked at."""
        flat = rows.flatten(1, -2)
        each = flat.reshape(-1, self.channels)
        gone = None if absent is None else absent.repeat_interleave(flat.shape[1])
        self.features.check(each, gone, "images", "channel", flat.shape[1])


def image_channels(owner: str, part: ImageCondition | None, x: Tensor, image: Tensor | None) -> Tensor | None:
    """What a network appends to x for an image; None for a network that takes none.

    Raises:
        ValueError: If such a network is given one, and as `ImageCondition`.
    """
    if part is not None:
        return part(x, image)  # type: ignore[no-any-return]
    if image is not None:
        raise ValueError(f"{owner} was built without image, so it takes no image as condition; set image.")
    return None


def checked_options(owner: str, name: str, options: Any, known: Sequence[str]) -> dict[str, Any]:
    """The options of a condition, by name.

    Raises:
        ValueError: If there are others.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"{owner} needs {name} to be options, {', '.join(known)}, or null, got {options!r}.")
    if wrong := [key for key in options if key not in known]:
        raise ValueError(f"{owner} has no option {name}.{wrong[0]}: there is {', '.join(known)}.")
    return dict(options)
