"""Two-dimensional toy distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from scoresde.checks import check_choice, check_numbers, check_whole
from scoresde.data.codec import Standardized
from scoresde.data.dataset import Dataset, Split

Points = tuple[NDArray[np.float64], NDArray[np.int64] | None]


def toy(name: str = "moons", size: int = 10_000, noise: float | None = None, seed: int = 0) -> Dataset:
    """A distribution on the plane, drawn anew from its formula.

    Args:
        name: moons, checkerboard, spirals, eight_gaussians or swiss_roll; moons and spirals have two classes,
            the Gaussians eight, the others none.
        size: Number of training examples; the test split has as many, drawn independently.
        noise: Standard deviation of the Gaussian noise around the shape. None: what is usual for the shape.
        seed: Seed of all draws.
    """
    check_choice("data=toy", "name", name, tuple(_TOYS))
    check_whole("data=toy", "2 <= size <= 100000000", "seed >= 0", size=size, seed=seed)
    check_numbers("data=toy", "0 <= noise <= 1e9 or null", noise=noise)
    draw, num_classes, usual_noise = _TOYS[name]
    std = usual_noise if noise is None else noise

    def split(part: int) -> Split:
        rng = np.random.default_rng((seed, part))
        points, label = draw(rng, size)
        x = points + std * rng.standard_normal((size, 2))
        return Split(x=torch.from_numpy(x.astype(np.float32)), label=None if label is None else torch.from_numpy(label))

    train, test = split(0), split(1)
    return Dataset(name=name, train=train, test=test, codec=Standardized.fit(train.x), num_classes=num_classes)


def _moons(rng: Generator, n: int) -> Points:
    """Two half circles of radius 1, the second upside down and shifted by (1, ½)."""
    label, angle = rng.integers(2, size=n), math.pi * rng.random(n)
    x = np.where(label == 0, np.cos(angle), 1 - np.cos(angle))
    y = np.where(label == 0, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], axis=1), label


def _checkerboard(rng: Generator, n: int) -> Points:
    """The squares of [−2, 2]² in which ⌊x⌋ + ⌊y⌋ is even."""
    x = 4 * rng.random(n) - 2
    y = rng.random(n) + 2 * rng.integers(2, size=n) - 2 + np.floor(x) % 2
    return np.stack([x, y], axis=1), None


def _spirals(rng: Generator, n: int) -> Points:
    """Two arms r = φ/3π of one and a half turns, the second the first turned by π; about even along each."""
    label, radius = rng.integers(2, size=n), np.sqrt(rng.random(n))
    angle = 3 * math.pi * radius + math.pi * label
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), label


def _eight_gaussians(rng: Generator, n: int) -> Points:
    """Centres at the angles kπ/4 on the unit circle; the noise is the width of each."""
    label = rng.integers(8, size=n)
    return np.stack([np.cos(label * math.pi / 4), np.sin(label * math.pi / 4)], axis=1), label


def _swiss_roll(rng: Generator, n: int) -> Points:
    """One arm φ (cos φ, sin φ)/10 with φ from 3π/2 to 9π/2."""
    angle = 1.5 * math.pi * (1 + 2 * rng.random(n))
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 10, None


_TOYS: dict[str, tuple[Callable[[Generator, int], Points], int | None, float]] = {
    "moons": (_moons, 2, 0.05),
    "checkerboard": (_checkerboard, None, 0.0),
    "spirals": (_spirals, 2, 0.02),
    "eight_gaussians": (_eight_gaussians, 8, 0.125),
    "swiss_roll": (_swiss_roll, None, 0.03),
}
