"""Codecs: the maps between stored data and the numbers a score model sees."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from warnings import warn

import torch
from torch import Tensor

from scoresde.likelihood.cells import Cells


class Points(NamedTuple):
    """The points of model space that stand for the same example.

    Attributes:
        x: Shape (K, B, *); K is 1 for most codecs.
        weight: Share of training examples that are put at each point, (K, B), 1 in all.
    """

    x: Tensor
    weight: Tensor


class Codec(ABC):
    """A map between stored data and the numbers that a model sees.

    log p(x) = log Σ_k p_model(z_k) + log_jacobian(x),        z_k = points(x) in model space
    """

    @abstractmethod
    def encode(self, x: Tensor, *, generator: torch.Generator | None = None, dequantize: bool = True) -> Tensor:
        """Stored values (B, *) in model space, float32; the generator serves codecs that draw."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Values of model space as stored ones."""

    @abstractmethod
    def log_jacobian(self, x: Tensor) -> Tensor:
        """log |∂z/∂x| of stored values (B, *), in nats, (B,) float64; 0 of levels, which have probabilities."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain numbers, lists and tensors, which `codec_from_state` reads."""

    def points(self, x: Tensor) -> Points:
        """The points of model space that stand for stored values (B, *); for most codecs the one of `encode`."""
        z = self.encode(x, dequantize=False)[None]
        return Points(z, torch.ones(z.shape[:2], dtype=torch.float64, device=z.device))

    def refusals(self, x: Tensor) -> list[tuple[Tensor, str]]:
        """Which of stored values (B, *) it cannot take, (B,) each, and why: "holds ..."."""
        return []


@dataclass(frozen=True, kw_only=True)
class Quantized(Codec):
    """Codec of data with a finite number of levels per entry, such as images.

        cell k = [lo + k w, lo + (k+1) w),   w = (hi − lo) / levels,   (lo, hi) = value_range

    A density p on the range gives the levels the probabilities P(k) = ∫_cell p, so bits/dim of dequantised
    data bounds the bits/dim of the levels (Theis et al. 2016, §3.1). Values stay in their
    cells when they are rounded to float32: `decode(encode(k))` is k for every level and every draw.

    Args:
        levels: Number of levels, 2 to 65536.
        value_range: (lo, hi), the outer edges of the first and the last cell.

    References:
        Theis et al., "A note on the evaluation of generative models", 2016, arXiv:1511.01844.
    """

    levels: int = 256
    value_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or not 2 <= self.levels <= 2**16:
            raise ValueError(f"Quantized needs an integer number of levels from 2 to 65536, got {self.levels!r}")
        lo, hi = (float(value) for value in self.value_range)
        object.__setattr__(self, "value_range", (lo, hi))
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise ValueError(f"Quantized needs a finite value_range with lo < hi, got {self.value_range}")
        edges = lo + torch.arange(self.levels + 1, dtype=torch.float64) * self.cells.width
        if (edges.float().diff() <= 0).any():
            raise ValueError(
                f"Quantized cannot tell {self.levels} cells of value_range={self.value_range} apart in "
                f"float32; use a range that is centred on 0"
            )

    def encode(self, k: Tensor, *, generator: torch.Generator | None = None, dequantize: bool = True) -> Tensor:
        """Place levels in their cells.

        Args:
            k: Levels 0..levels−1, any integer dtype, any shape.
            generator: Source of the uniform noise.
            dequantize: True: lo + (k + u) w with u ~ U[0, 1). False: the centre of the cell, u = ½.
        Returns:
            float32, the shape and device of k.
        """
        if k.is_floating_point():
            raise TypeError(f"Quantized.encode needs integer levels, got {k.dtype}")
        k = k.long()
        return self.cells.inside(k, _uniform(k, generator)) if dequantize else self.cells.centre(k)

    def decode(self, x: Tensor) -> Tensor:
        """The level whose cell holds x, int64; values outside the range belong to the outermost cells."""
        return self.cells.level(x)

    def log_jacobian(self, x: Tensor) -> Tensor:
        """0: levels have probabilities."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def state(self) -> dict[str, Any]:
        return {"codec": "quantized", "levels": self.levels, "value_range": list(self.value_range)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Quantized:
        lo, hi = state["value_range"]
        return cls(levels=state["levels"], value_range=(lo, hi))

    def to_uint8(self, x: Tensor) -> Tensor:
        """Decode x and stretch the levels over 0..255, as pictures are written."""
        return (self.decode(x) * 255 / (self.levels - 1)).round().to(torch.uint8)

    @property
    def cells(self) -> Cells:
        return Cells(levels=self.levels, value_range=self.value_range)


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardized(Codec):
    """Codec of continuous data: the model sees x_model = (x − mean) / std.

        log p(x) = log p_model(x_model) − log_det,   log_det = Σ log std over the entries of one event

    Args:
        mean: Mean, of the event's shape or a scalar, in the units of the data.
        std: Standard deviation, positive, like mean.
        shape: Event shape; None: the shape of std.
    """

    mean: Tensor
    std: Tensor
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        mean, std = (torch.as_tensor(value).detach().cpu() for value in (self.mean, self.std))
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        shape = tuple(std.shape if self.shape is None else self.shape)
        object.__setattr__(self, "shape", shape)
        if not (mean.is_floating_point() and std.is_floating_point()):
            raise TypeError(f"Standardized needs floating-point mean and std, got {mean.dtype} and {std.dtype}")
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise ValueError("Standardized needs a finite mean and a finite, positive std in every entry")
        try:
            mean.expand(shape)
            std.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"Standardized needs mean and std that fit events of shape {shape}, "
                f"got {tuple(mean.shape)} and {tuple(std.shape)}"
            ) from error

    @classmethod
    def fit(cls, x: Tensor, names: Sequence[str] | None = None) -> Standardized:
        """The mean and standard deviation of training data: of each column of a table, else of each channel.

        Series (C, L), images (C, H, W) and volumes (C, D, H, W) have one mean and one standard deviation per channel,
        over examples and places alike: places of one channel share a unit, channels need not.

        Args:
            x: Training data, (N, C, *).
            names: Of the columns or channels, for messages; None: their numbers.
        Raises:
            ValueError: If all rows are equal.
        """
        shape = tuple(x.shape[1:])
        if (x.amin(0) == x.amax(0)).all():
            raise ValueError(
                f"standardisation needs data that vary: all {len(x)} training rows are equal; "
                f"check the array, or pass standardize=false"
            )
        over = (0, *range(2, x.ndim))
        if bool((gaps := x.isnan()).any()):
            return cls._fit_with_gaps(x.double(), gaps, over, x.dtype, names)
        constant = x.amin(over) == x.amax(over)
        if constant.any():
            parts, first = "columns" if x.ndim == 2 else "channels", int(constant.nonzero()[0])
            warn(
                f"{int(constant.sum())} of {constant.numel()} {parts} are constant in the training data "
                f"(first: {first if names is None else names[first]}); their std is set to 1",
                stacklevel=2,
            )
        wide, places = x.double(), (-1, *[1] * (x.ndim - 2))
        std = wide.std(over, correction=0).masked_fill(constant, 1.0)
        mean = torch.where(constant, wide.amin(over), wide.mean(over))
        return cls(mean=mean.reshape(places).to(x.dtype), std=std.reshape(places).to(x.dtype), shape=shape)

    @classmethod
    def _fit_with_gaps(
        cls, x: Tensor, gaps: Tensor, over: tuple[int, ...], dtype: torch.dtype, names: Sequence[str] | None
    ) -> Standardized:
        """The same of data with NaN, which are left out; a column that is constant where it is there has std 1."""
        count = (~gaps).sum(over)
        if bool((count == 0).any()):
            first = int((count == 0).nonzero()[0])
            raise ValueError(f"column {first if names is None else names[first]} of the training data has no value")
        places = (-1, *[1] * (x.ndim - 2))
        mean = x.nansum(over) / count
        std = (x - mean.reshape(places)).square().nansum(over).div(count).sqrt()
        std = std.masked_fill(std <= 1e-12 * mean.abs(), 1.0)
        shape = tuple(x.shape[1:])
        return cls(mean=mean.reshape(places).to(dtype), std=std.reshape(places).to(dtype), shape=shape)

    @property
    def log_det(self) -> float:
        """Σ log std over one event, in nats: log p_model minus this is the density in data units."""
        assert self.shape is not None
        return float(self.std.double().log().expand(self.shape).sum())

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None, dequantize: bool = True) -> Tensor:
        """(x − mean) / std in float32; the keywords serve other codecs and do nothing here."""
        return ((x - self.mean.to(x)) / self.std.to(x)).float()

    def decode(self, x: Tensor) -> Tensor:
        """Compute std x + mean, in the data's own units, and in float64 if the data were."""
        dtype = torch.promote_types(x.dtype, self.mean.dtype)
        return x.to(dtype) * self.std.to(x.device, dtype) + self.mean.to(x.device, dtype)

    def log_jacobian(self, x: Tensor) -> Tensor:
        """−log_det for every example, and of its observed entries if some are NaN."""
        if x.is_floating_point() and bool((gaps := x.isnan()).any()):
            log_std = self.std.double().log().expand(x.shape[1:]).to(x.device)
            return -torch.where(gaps, 0.0, log_std).flatten(1).sum(1)
        return torch.full((len(x),), -self.log_det, dtype=torch.float64, device=x.device)

    def state(self) -> dict[str, Any]:
        assert self.shape is not None
        return {"codec": "standardized", "mean": self.mean, "std": self.std, "shape": list(self.shape)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Standardized:
        return cls(mean=state["mean"], std=state["std"], shape=tuple(state["shape"]))


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)
