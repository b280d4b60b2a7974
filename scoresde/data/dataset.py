"""The shape that every data set has, and the order in which its examples are used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.data.codec import Codec, Quantized
from scoresde.data.columns import NO_NAMES, Names
from scoresde.data.conditions import check_conditions
from scoresde.data.split import TEST_FRACTION as TEST_FRACTION
from scoresde.data.split import Split as Split
from scoresde.data.split import check_no_split as check_no_split
from scoresde.data.split import check_split as check_split
from scoresde.data.split import split_indices as split_indices
from scoresde.data.split import take as take
from scoresde.noise import stream_seed

KINDS = {1: "table", 2: "series", 3: "image", 4: "volume"}  # by the number of axes of one example, channels first


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A training and a test split with the codec between them and the model.

    Args:
        name: What messages and pictures call it.
        train: Training examples, at least one.
        test: Examples kept aside; may be empty.
        codec: Map between stored values and model space.
        num_classes: Labels are 0..num_classes−1; None if there are none.
        flip: Mirror training images at random, by `random_flip`.
        crop: Cut up to this share of the side off training images at random, by `random_crop`; 0: nothing.
        names: What classes, columns and conditions are called.
        missing: NaN in x are entries that are not known, see `MissingEntries`; otherwise they are refused.
        vocabulary: Tokens of sequences are 0..vocabulary−1; None if there are none.
        image_categories: Images hold categories 0..image_categories−1; None: they hold values.
    Raises:
        ValueError: If the splits disagree, or hold values or labels that the codec or num_classes exclude.
    """

    name: str
    train: Split
    test: Split
    codec: Codec
    num_classes: int | None = None
    flip: bool = False
    crop: float = 0.0
    names: Names = NO_NAMES
    missing: bool = False
    vocabulary: int | None = None
    image_categories: int | None = None

    def __post_init__(self) -> None:
        if len(self.train) == 0:
            raise ValueError(f"data {self.name!r} has no training examples")
        shapes: dict[str, tuple[Any, ...]] = {"examples": (self.shape, tuple(self.test.x.shape[1:]))}
        for name in ("condition", "image", "sequence"):
            of_splits = (getattr(split, name) for split in (self.train, self.test))
            start = 2 if name == "sequence" else 1  # which may be longer in one of them
            shapes[f"{name}s"] = tuple(None if part is None else tuple(part.shape[start:]) for part in of_splits)
        for what, (train, test) in shapes.items():
            if train != test:
                parts = f"training and test {what} of one shape, got {train} and {test}"
                raise ValueError(f"data {self.name!r} needs {parts}")
        for part, split in (("training", self.train), ("test", self.test)):
            if len(split) > 0:
                self._check_values(part, split)
                self._check_labels(part, split)
                if split.condition is not None:
                    check_conditions(split.condition, f"data {self.name!r}, {part} split", self.names.conditions)
                for name, count in (("sequence", self.vocabulary), ("image", self.image_categories)):
                    if (value := getattr(split, name)) is not None and count is not None:
                        check_categories(value, count, name, f"data {self.name!r}, {part} split")

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape, channels first."""
        return tuple(self.train.x.shape[1:])

    @property
    def kind(self) -> str:
        """table (C,), series (C, L), image (C, H, W) or volume (C, D, H, W); other shapes are tables."""
        return KINDS.get(len(self.shape), "table")

    @property
    def class_counts(self) -> list[int] | None:
        """How many training examples each class has; None if there are no classes."""
        if self.train.label is None or self.num_classes is None:
            return None
        return torch.bincount(self.train.label, minlength=self.num_classes).tolist()

    @property
    def unseen_classes(self) -> list[str]:
        """The classes without a training example, by name if they have one."""
        names = self.names.classes
        return [
            names[label] if names is not None and label < len(names) else str(label)
            for label, count in enumerate(self.class_counts or [])
            if count == 0
        ]

    @property
    def is_image(self) -> bool:
        """Whether one example can be drawn: levels of shape (1 or 3, H, W)."""
        return self.levels is not None and len(self.shape) == 3 and self.shape[0] in (1, 3)

    @property
    def levels(self) -> int | None:
        """Number of levels per entry, or None for continuous data."""
        return self.codec.levels if isinstance(self.codec, Quantized) else None

    def _check_values(self, part: str, split: Split) -> None:
        if not isinstance(self.codec, Quantized):
            if not split.x.is_floating_point():
                raise ValueError(
                    f"data {self.name!r} is continuous and needs floating-point values, got {split.x.dtype}"
                )
            check_finite(split.x, f"data {self.name!r}, {part} split", gaps=self.missing)
            for rows, reason in self.codec.refusals(split.x):
                row = int(rows.nonzero()[0])
                raise ValueError(f"data {self.name!r} {reason}: {int(rows.sum())} {part} examples (first: {row})")
            return
        if split.x.is_floating_point():
            raise ValueError(f"data {self.name!r} has {self.levels} levels and needs integers, got {split.x.dtype}")
        low, high = int(split.x.min()), int(split.x.max())
        if low < 0 or high >= self.codec.levels:
            raise ValueError(
                f"data {self.name!r} with levels={self.levels} needs integers in 0..{self.codec.levels - 1}, "
                f"got {low}..{high} in the {part} split"
            )

    def _check_labels(self, part: str, split: Split) -> None:
        if self.num_classes is None:
            if split.label is not None:
                raise ValueError(f"data {self.name!r} has labels in its {part} split and needs num_classes")
            return
        if split.label is None:
            raise ValueError(
                f"data {self.name!r} has num_classes={self.num_classes}, but its {part} split has no labels"
            )
        outside = (split.label < 0) | (split.label >= self.num_classes)
        if outside.any():
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"data {self.name!r} needs labels in 0..{self.num_classes - 1}, got "
                f"{int(split.label[index])} in the {part} split (index {index}; {int(outside.sum())} such)"
            )


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Which examples optimisation step `step` uses: a function of its arguments alone, so that runs resume.

    Epochs are independent permutations of 0..n−1 drawn from (seed, epoch), laid end to end; step k takes
    positions k·batch_size to (k+1)·batch_size − 1. Each example is used once per epoch, and a batch may
    straddle two epochs.

    Args:
        n: Number of examples.
        batch_size: Examples per step, at most n.
        step: Step, counted from 0.
        seed: Seed of the order, not negative.
    Returns:
        int64 indices, (batch_size,).
    """
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"the batch size must be between 1 and the number of training examples: got a batch of "
            f"{batch_size} with {n} examples; set another batch size"
        )
    if step < 0:
        raise ValueError(f"batch_indices needs step >= 0, got {step}")
    epoch, start = divmod(step * batch_size, n)
    first = _epoch_order(n, epoch, seed)[start : start + batch_size]
    if len(first) == batch_size:
        return first.clone()
    return torch.cat([first, _epoch_order(n, epoch + 1, seed)[: batch_size - len(first)]])


def random_flip(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image along its last axis with probability ½.

    Args:
        x: Images, (B, *, W), stored levels or encoded values.
        generator: Source of the coin flips.
    """
    device = x.device if generator is None else generator.device
    coin = torch.rand(len(x), generator=generator, device=device).to(x.device) < 0.5
    return torch.where(coin.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def random_crop(x: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """A random window of each image, scaled back to the size of the whole, by linear interpolation.

        side = (1 − share u) of each axis at a uniform place,      u ~ U(0, 1), one per image

    Args:
        x: Images, (B, C, H, W); stored levels are rounded to levels.
        share: Largest share of the side that is cut off, in [0, 1).
        generator: Source of the windows.
    """
    device = x.device if generator is None else generator.device
    u, across, down = torch.rand(3, len(x), generator=generator, device=device).to(x.device)
    zero, side = torch.zeros_like(u), 1 - share * u
    across, down = (2 * across - 1) * (1 - side), (2 * down - 1) * (1 - side)  # middles of windows of [-1, 1]
    rows = torch.stack([side, zero, across, zero, side, down], dim=1).reshape(-1, 2, 3)
    wide = x if x.is_floating_point() else x.float()
    places = F.affine_grid(rows.to(wide.dtype), list(x.shape), align_corners=False)
    cut = F.grid_sample(wide, places, padding_mode="border", align_corners=False)
    return cut if x.is_floating_point() else cut.round().to(x.dtype)


def check_categories(value: Tensor, count: int, name: str, where: str) -> None:
    """Raise ValueError unless images or sequences hold whole numbers in 0..count−1, sequences −1 too, as padding."""
    low = -1 if name == "sequence" else 0
    if bool((value != value.round()).any()) or int(value.min()) < low or int(value.max()) >= count:
        raise ValueError(
            f"{where} needs whole numbers in 0..{count - 1} in {name}, got values from {float(value.min()):g} to "
            f"{float(value.max()):g}"
        )


def check_finite(x: Tensor, where: str, *, gaps: bool = False, hint: str = "") -> None:
    """Raise ValueError with the number of rows that hold NaN or infinity, and the first of them.

    Args:
        x: Values, (N, *).
        where: What holds them.
        gaps: NaN may be, but not alone in a row.
        hint: What else can be done.
    """
    flat = x.flatten(1)
    bad = flat.isinf().any(1) | flat.isnan().all(1) if gaps else ~flat.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"{where}: {int(bad.sum())} of {len(x)} rows hold NaN or infinity "
            f"(first at index {int(bad.nonzero()[0])}); remove or repair them{hint}"
        )


def find(path: str | Path | None, needs: str) -> Path:
    """The path, if it exists.

    Args:
        path: Path given by the user, ~ allowed; None if there is none.
        needs: Start of the message, "data=... needs ...; set data.path to it".
    """
    if path is None:
        raise FileNotFoundError(f"{needs}; none was given")
    if not isinstance(path, str | Path):
        raise ValueError(f"{needs}; got {path!r}")
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{needs}; {found} does not exist")
    return found


@lru_cache(maxsize=4)
def _epoch_order(n: int, epoch: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(n))
