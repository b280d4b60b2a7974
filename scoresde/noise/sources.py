"""Sources of noise: functions (t, s) -> z ~ N(0, I) for the step from t to s; t = s asks for a fresh draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from scoresde.noise.keyed import deliver, keyed_normals, mix, sample_keys

NoiseSource = Callable[[Tensor, Tensor], Tensor]


def standard_normal(x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """A draw of the shape, dtype and device of x, from torch's global generator if there is no other."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


class PathNoise(ABC):
    """A `NoiseSource` whose draws are the standardised increments of one path per sample, whoever asks in which order.

    Adaptive solvers ask it with one time per sample, and go on with the samples that have not arrived.
    """

    @abstractmethod
    def __call__(self, t: Tensor, s: Tensor) -> Tensor:
        """z (B, *) for the step from t to s, each () or (B,)."""

    @abstractmethod
    def select(self, index: Any) -> PathNoise:
        """The paths of some samples; `index` as for the first axis of a tensor."""


def gaussian_noise(x: Tensor, generator: torch.Generator | None = None) -> NoiseSource:
    """Independent draws of the shape, dtype and device of x."""
    return partial(standard_normal, x, generator=generator)


def per_sample_noise(x: Tensor, seeds: int | Sequence[int] | Tensor) -> NoiseSource:
    """Independent draws in which sample k's j-th draw is a function of (its seed, j) alone.

    It depends neither on the batch that the sample is drawn in nor on the device; float64 gets the float32 draw.

    Args:
        x: Gives shape (B, *), dtype and device. Draws are made on the CPU and moved.
        seeds: One seed per sample, or one for all, from which `sample_seeds` derives theirs.
    """
    keys = sample_keys(seeds, x.shape[0], "per_sample_noise")
    generator, draws = torch.Generator(), count()

    def draw(t: Tensor, s: Tensor) -> Tensor:
        number = mix(next(draws))
        rows = keyed_normals([mix(key ^ number) for key in keys], x.shape[1:].numel(), generator)
        return deliver(rows, x.shape, x.dtype, x.device)

    return draw
