"""Guidance scales: a number, one per sample, or a function of the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_pair
from scoresde.sde import expand
from scoresde.sde.levels import Level

Scale = float | Tensor | Callable[[Tensor], Tensor]  # also one per sample (B,), or a function of σ/α


@dataclass(frozen=True, kw_only=True)
class PowerScale:
    """A guidance scale that changes on the way from noise to data; linear with power 1.

        s = noise + (data − noise) (1 − u)^power,      u = (2/π) atan(σ/α), 1 at noise and 0 at the data

    u is the time of a cosine process, whatever the SDE.

    Args:
        noise, data: Scale at both ends.
        power: Larger: later.

    References:
        Wang et al., "Analysis of Classifier-Free Guidance Weight Schedulers", 2024, arXiv:2404.13040.
    """

    noise: float = 1.0
    data: float = 3.0
    power: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "-1e9 <= noise <= 1e9", "-1e9 <= data <= 1e9", "0 < power <= 1e6")

    def __call__(self, ratio: Tensor) -> Tensor:
        """The scale at noise levels σ/α, in their shape."""
        return self.noise + (self.data - self.noise) * (1 - angle(ratio)) ** self.power


@dataclass(frozen=True, kw_only=True)
class CosineScale:
    """A guidance scale that follows half a cosine on the way from noise to data, flat at both ends.

        s = noise + (data − noise) (1 + cos π u)/2,      u = (2/π) atan(σ/α), 1 at noise and 0 at the data

    Args:
        noise, data: Scale at both ends.

    References:
        Wang et al., "Analysis of Classifier-Free Guidance Weight Schedulers", 2024, arXiv:2404.13040.
    """

    noise: float = 1.0
    data: float = 3.0

    def __post_init__(self) -> None:
        check_numbers(self, "-1e9 <= noise <= 1e9", "-1e9 <= data <= 1e9")

    def __call__(self, ratio: Tensor) -> Tensor:
        """The scale at noise levels σ/α, in their shape."""
        return self.noise + (self.data - self.noise) * 0.5 * (1 + torch.cos(math.pi * angle(ratio)))


def angle(ratio: Tensor) -> Tensor:
    """(2/π) atan(σ/α), from 0 without noise to 1 without signal."""
    return ratio.atan() * (2 / math.pi)


@dataclass(frozen=True, eq=False)
class GuidanceScale:
    """A scale in an interval of noise levels, and 1 outside.

    Args:
        scale: A number, one per sample, or a function of σ/α.
        interval: (low, high] in σ/α; None: everywhere.
    """

    scale: Scale
    interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, owner: object, scale: Scale, interval: Any) -> GuidanceScale:
        """Checked: raises ValueError in the name of its owner."""
        if not isinstance(scale, Tensor) and not callable(scale):
            check_numbers(owner, "-inf < scale < inf", scale=scale)
        return cls(scale, None if interval is None else check_pair(owner, "interval", interval, "0 <= low < high"))

    def at(self, level: Level, x: Tensor) -> Any:
        """The scale at a level: a number in a run, a tensor that broadcasts against x if samples differ."""
        scale: Any = self.scale
        if isinstance(scale, Tensor):
            scale = expand(scale, x) if scale.ndim == 1 else scale
        elif callable(scale):
            scale = level.read("guidance scale", scale, lambda levels: (scale(levels.ratio),))[0]
        if self.interval is None:
            return scale
        heard = isinstance(level.alpha, Tensor) or level.alpha > 0
        ratio = level.sigma / level.alpha if heard else math.inf
        inside = (ratio > self.interval[0]) & (ratio <= self.interval[1])
        return 1 + (scale - 1) * inside

    def rows(self, index: Tensor, batch: int) -> Scale:
        """The scale of some samples of a batch."""
        scale = self.scale
        if isinstance(scale, Tensor) and scale.shape[:1] == (batch,):
            return scale[index.to(scale.device)]
        return scale
