"""Examples in memory, and how they are split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_whole

TEST_FRACTION = 0.1  # share of the examples that is kept for the test split, unless told


@dataclass(frozen=True, kw_only=True)
class Split:
    """Examples in memory, as stored: levels of a `Quantized` codec, or values in the data's own units.

    Args:
        x: Examples, (N, *); channels first for images.
        label: Class labels, (N,) int64, or None.
        condition: Numbers and categories that they are conditioned on, (N, *), or None.
        image: Images, series or volumes that they are conditioned on, (N, C, *), in their own units, or None.
        sequence: Sequences that they are conditioned on, numbers of tokens (N, L) with −1 for padding, or vectors
            (N, L, C) with NaN, or None.
    """

    x: Tensor
    label: Tensor | None = None
    condition: Tensor | None = None
    image: Tensor | None = None
    sequence: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.ndim < 2:
            raise ValueError(f"Split needs x of shape (N, *) with at least two axes, got {tuple(self.x.shape)}")
        if self.label is not None and (self.label.dtype != torch.int64 or self.label.shape != (len(self),)):
            raise ValueError(
                f"Split needs one int64 label per example: expected shape ({len(self)},), "
                f"got {tuple(self.label.shape)} of {self.label.dtype}"
            )
        for name, value in self.given.items():
            if len(value) != len(self):
                raise ValueError(f"Split needs one {name} per example: {len(self)}, got {len(value)}")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def given(self) -> dict[str, Tensor]:
        """What the examples are conditioned on beside labels, by name; what there is."""
        has = {"condition": self.condition, "image": self.image, "sequence": self.sequence}
        return {name: value for name, value in has.items() if value is not None}

    def each(self, change: Callable[[Tensor], Tensor]) -> Split:
        """Examples of which every part is changed in the same way, as by taking some rows."""
        label = None if self.label is None else change(self.label)
        return Split(x=change(self.x), label=label, **{name: change(value) for name, value in self.given.items()})


def take(split: Split, index: Tensor) -> Split:
    """Some of the examples of a split."""
    return split.each(lambda value: value[index])


def check_split(owner: str, test_fraction: float, seed: int) -> None:
    check_numbers(owner, "0 <= test_fraction < 1", test_fraction=test_fraction)
    check_whole(owner, "seed >= 0", seed=seed)


def check_no_split(because: str, test_fraction: float) -> None:
    """Raise if a share is asked for where the test split is given."""
    if test_fraction != TEST_FRACTION:
        raise ValueError(f"{because} has no use for test_fraction={test_fraction}: leave it out.")


def split_indices(n: int, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """A fixed random split of n examples: (training, test) indices, both shuffled.

    Files are often sorted by class; shuffled, any first part of a split stands for the whole.
    """
    check_split("data", test_fraction, seed)
    if n == 1 and test_fraction > 0:
        raise ValueError("1 example is too little to train on and to test with: give more, or set data.test_fraction=0")
    num_test = max(1, round(n * test_fraction)) if test_fraction > 0 else 0
    if num_test >= n:
        raise ValueError(
            f"{n} examples cannot be split with data.test_fraction={test_fraction}: none is left for training"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    return order[num_test:], order[:num_test]
