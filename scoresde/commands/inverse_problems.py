"""`task` of `sample.py`: what is measured of examples whose posterior is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_text, check_whole
from scoresde.commands.interfaces import InverseProblem
from scoresde.inverse import Blur, DownSample, Grayscale, Mask, NoiseLaw, Operator

HIDDEN = ("center", "left", "right", "top", "bottom", "random")


@dataclass(frozen=True, kw_only=True)
class NoTask:
    """Samples of the model; nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class Inpaint(InverseProblem):
    """Some entries are observed, with noise, the others hidden.

    Args:
        mask: The hidden part: center (the middle half of each axis), left, right, top, bottom (half), random; or a
            .npy file, 1 where observed and 0 where hidden, of the shape of an event or of its axes in space.
        hidden: Share of the entries that mask=random hides, others for each observation.
    """

    mask: str = "center"
    hidden: float = 0.5

    by_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text("task", "mask", self.mask, optional=False)
        check_numbers("task", "0 < hidden < 1", hidden=self.hidden)
        if self.mask != "random" and self.hidden != 0.5:
            raise ValueError(f"task.hidden is of mask=random, and mask={self.mask} hides what it says: leave it out.")
        if self.mask not in HIDDEN and not self.mask.endswith(".npy"):
            raise ValueError(f"task needs mask {', '.join(HIDDEN)} or a .npy file, got {self.mask!r}.")

    def operator(self, shape: tuple[int, ...], seeds: Sequence[int], present: Tensor | None) -> Mask:
        if self.mask == "random":
            return _masked(_random(shape, seeds, self.hidden), present, shape)
        if self.mask not in HIDDEN:
            return _masked(_of_file(Path(self.mask).expanduser(), shape), present, shape)
        return _masked(_half(self.mask, shape), present, shape)


@dataclass(frozen=True, kw_only=True)
class Imputation(InverseProblem):
    """Values that are missing, NaN or empty cells in the file, are drawn given those that are there.

    Args:
        noise: As of every task; 0: the values that are there are exact, and stay as they are.
        hidden: Share of the values of test examples that is hidden, without a path; of a file it is not for.
    """

    noise: float | NoiseLaw = 0.0
    hidden: float = 0.25

    by_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("task", "0 < hidden < 1", hidden=self.hidden)
        if self.path is not None and self.given == "observation" and self.hidden != 0.25:
            raise ValueError("task.hidden is of test examples: in a file, what is missing is NaN. Leave it out.")

    def operator(self, shape: tuple[int, ...], seeds: Sequence[int], present: Tensor | None) -> Mask:
        if self.path is not None and self.given == "observation":
            return _masked(torch.ones(len(seeds), *shape), present, shape)
        return _masked(_random(shape, seeds, self.hidden), present, shape)


@dataclass(frozen=True, kw_only=True)
class SuperResolution(InverseProblem):
    """A coarse version is observed: one place for each block of the grid.

    Args:
        factor: Side of a block.
        kernel: average, bicubic.
    """

    factor: int = 4
    kernel: str = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("task", "2 <= factor", factor=self.factor)
        check_choice("task", "kernel", self.kernel, ("average", "bicubic"))

    def operator(self, shape: tuple[int, ...], seeds: Sequence[int], present: Tensor | None) -> Operator:
        _check_grid("super_resolution", shape, present)
        return DownSample(shape, self.factor, self.kernel)


@dataclass(frozen=True, kw_only=True)
class Deblur(InverseProblem):
    """A blurred version is observed: convolved with a Gaussian.

    Args:
        std: Of the Gaussian, in places of the grid.
        boundary: How the data go on beyond their edge: reflect, periodic.
    """

    std: float = 1.0
    boundary: str = "reflect"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers("task", "0 < std <= 1000", std=self.std)
        check_choice("task", "boundary", self.boundary, ("reflect", "periodic"))

    def operator(self, shape: tuple[int, ...], seeds: Sequence[int], present: Tensor | None) -> Operator:
        _check_grid("deblur", shape, present)
        return Blur(shape, std=self.std, boundary=self.boundary)


@dataclass(frozen=True, kw_only=True)
class Colourisation(InverseProblem):
    """Grey values are observed: the mean of the channels; the noise is that of the mean times √channels."""

    def operator(self, shape: tuple[int, ...], seeds: Sequence[int], present: Tensor | None) -> Operator:
        _check_grid("colourisation", shape, present)
        if shape[0] == 1:
            raise ValueError(f"task=colourisation needs data with colours, got events of shape {shape}.")
        return Grayscale(shape)


def _check_grid(name: str, shape: tuple[int, ...], present: Tensor | None) -> None:
    if len(shape) < 2:
        raise ValueError(f"task={name} needs series, images or volumes, got events of shape {shape}.")
    if present is not None and not bool(present.all()):
        raise ValueError(f"task={name} needs examples without gaps, and some hold NaN: use task=imputation.")


def _masked(mask: Tensor, present: Tensor | None, shape: tuple[int, ...]) -> Mask:
    return Mask(mask if present is None or bool(present.all()) else mask.bool() & present, shape)


def _random(shape: tuple[int, ...], seeds: Sequence[int], hidden: float) -> Tensor:
    """One mask for each seed, (J, *shape), the same for all channels; at least one entry is hidden."""
    size = (1, *shape[1:]) if len(shape) > 1 else shape
    masks = []
    for seed in seeds:
        order = torch.rand(size, generator=torch.Generator().manual_seed(seed)).flatten().argsort().argsort()
        masks.append((order >= max(1, round(hidden * len(order)))).reshape(size))
    return torch.stack(masks).expand(len(seeds), *shape)


def _half(hidden: str, shape: tuple[int, ...]) -> Tensor:
    """1 where observed, (*shape)."""
    needed = {"center": 1, "left": 1, "right": 1, "top": 2, "bottom": 2}[hidden]
    if len(shape) - 1 < needed:
        kinds = "series, images or volumes" if needed == 1 else "images or volumes"
        raise ValueError(f"task.mask={hidden} needs {kinds}, got events of shape {shape}: use mask=random or a file.")
    mask = torch.ones(shape, dtype=torch.bool)
    part: list[Any] = [slice(None)] * len(shape)
    if hidden == "center":
        part[1:] = [slice(n // 4, max(n - n // 4, n // 4 + 1)) for n in shape[1:]]
    else:
        axis = -1 if hidden in ("left", "right") else -2
        half = shape[axis] // 2
        part[axis] = slice(0, half) if hidden in ("left", "top") else slice(half, None)
    mask[tuple(part)] = False
    return mask


def _of_file(path: Path, shape: tuple[int, ...]) -> Tensor:
    if not path.is_file():
        raise ValueError(f"task.mask={path} does not exist: give a .npy file, or one of {', '.join(HIDDEN)}.")
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"task.mask={path} cannot be read as a .npy file of numbers.") from error
    if values.dtype.kind not in "biuf" or values.shape not in (shape, shape[1:]) or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"task.mask={path} needs 0 and 1 of shape {shape}{f' or {shape[1:]}' if shape[1:] else ''}, got "
            f"{values.dtype} of shape {values.shape}."
        )
    return torch.from_numpy(values.astype(bool))
