"""Named transforms of columns or channels, with their Jacobian: heavy tails, positive values, angles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.data.circular import Circular
from scoresde.data.codec import Codec, Points, Standardized

KNOTS = 33  # of the quantile transform, at most
EXAMPLES_PER_KNOT = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform(ABC):
    """A monotone function of one number y = h(x), the same kind for some columns, or channels, of the data.

    Args:
        columns: Which, by number along the second axis.
        values: Its parameters, (len(columns), P) float64.
    """

    columns: tuple[int, ...]
    values: Tensor

    name: ClassVar[str]

    @classmethod
    def fit(cls, x: Tensor, columns: Sequence[int]) -> Transform:
        """Parameters from training data (N, C, *); places of one channel are taken together."""
        wide = x[:, list(columns)].double().transpose(0, 1).flatten(1)
        return cls(
            columns=tuple(columns), values=torch.stack([cls.parameters(column[~column.isnan()]) for column in wide])
        )

    @staticmethod
    @abstractmethod
    def parameters(x: Tensor) -> Tensor:
        """Of the values (M,) of one column, NaN left out."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """h of the transform's own columns, (B, len(columns), *) float64."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """h⁻¹, of the same shape."""

    @abstractmethod
    def log_slope(self, x: Tensor) -> Tensor:
        """log h'(x), of the same shape."""

    def refuses(self, x: Tensor) -> Tensor:
        """Which values have no h, of the same shape."""
        return torch.zeros_like(x, dtype=torch.bool)

    def of(self, k: int, like: Tensor) -> Tensor:
        """Parameter k, (len(columns), 1, ...), to broadcast."""
        return self.values[:, k].to(like.device).reshape(-1, *[1] * (like.ndim - 2))


class Log(Transform):
    """y = log x, of positive values."""

    name = "log"

    @staticmethod
    def parameters(x: Tensor) -> Tensor:
        return torch.zeros(0, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return x.log()

    def inverse(self, y: Tensor) -> Tensor:
        return y.exp()

    def log_slope(self, x: Tensor) -> Tensor:
        return -x.log()

    def refuses(self, x: Tensor) -> Tensor:
        return x <= 0


class Asinh(Transform):
    """y = asinh((x − m)/s), with the median m and half the distance s of the 16 % and 84 % quantiles.

    Linear within s of the median and logarithmic beyond, on both sides.
    """

    name = "asinh"

    @staticmethod
    def parameters(x: Tensor) -> Tensor:
        low, middle, high = _quantiles(x, torch.tensor([0.16, 0.5, 0.84], dtype=torch.float64))
        scale = (high - low) / 2
        scale = scale if scale > 0 else x.std(correction=0)
        return torch.stack([middle, scale if scale > 0 else torch.ones_like(middle)])

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.of(0, x)) / self.of(1, x)).asinh()

    def inverse(self, y: Tensor) -> Tensor:
        return y.sinh() * self.of(1, y) + self.of(0, y)

    def log_slope(self, x: Tensor) -> Tensor:
        z = (x - self.of(0, x)) / self.of(1, x)
        return -self.of(1, x).log() - 0.5 * z.square().log1p()


class Quantile(Transform):
    """y = the standard normal quantile of the training data's share below x, linear between knots and beyond them.

    The knots lie at equal steps of y, from about −Φ⁻¹(1/N) to Φ⁻¹(1/N), at most 33 and one per 20 examples; a value
    that many examples share is one knot.
    """

    name = "quantile"

    @staticmethod
    def parameters(x: Tensor) -> Tensor:
        """Knots x and y, one after the other, (2 KNOTS,); the last of them are repeated."""
        count = min(KNOTS, max(3, len(x) // EXAMPLES_PER_KNOT))
        end = -float(torch.special.ndtri(torch.tensor(1 / (len(x) + 1), dtype=torch.float64)))
        y = torch.linspace(-end, end, count, dtype=torch.float64)
        at = _quantiles(x, torch.special.ndtr(y))
        distinct, place = at.unique(return_inverse=True)
        mean = torch.zeros_like(distinct).index_add_(0, place, y) / place.bincount()
        if len(distinct) == 1:
            distinct, mean = torch.stack([distinct[0], distinct[0] + 1]), torch.tensor([0.0, 1.0], dtype=y.dtype)
        fill = KNOTS - len(distinct)
        return torch.cat([distinct, distinct[-1:].expand(fill), mean, mean[-1:].expand(fill)])

    def forward(self, x: Tensor) -> Tensor:
        return self._pieces(x, 0)[0]

    def inverse(self, y: Tensor) -> Tensor:
        return self._pieces(y, KNOTS)[0]

    def log_slope(self, x: Tensor) -> Tensor:
        return self._pieces(x, 0)[1].log()

    def _pieces(self, value: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The line through the knots on either side of each value, and its slope; `first`: where its knots start."""
        flat = value.transpose(0, 1).flatten(1).contiguous()
        ends, slopes = torch.empty_like(flat), torch.empty_like(flat)
        for row, knots in enumerate(self.values.to(value.device)):
            from_, to = knots[:KNOTS], knots[KNOTS:]
            last = int((from_ < from_[-1]).sum()) + 1
            from_, to = (from_[:last], to[:last]) if first == 0 else (to[:last], from_[:last])
            k = torch.searchsorted(from_, flat[row], right=True).clamp(1, last - 1)
            slopes[row] = (to[k] - to[k - 1]) / (from_[k] - from_[k - 1])
            ends[row] = to[k - 1] + slopes[row] * (flat[row] - from_[k - 1])
        shape = value.transpose(0, 1).shape
        return ends.reshape(shape).transpose(0, 1), slopes.reshape(shape).transpose(0, 1)


TRANSFORMS: dict[str, type[Transform]] = {kind.name: kind for kind in (Log, Asinh, Quantile)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Transformed(Codec):
    """Named transforms of some columns, or channels, then `Standardized`.

        z = (h(x) − mean)/std,     log p(x) = log p_model(z) + Σ log h'(x) − Σ log std

    Args:
        transforms: Of different columns; the others stay.
        circular: Columns of angles, or None.
        standardized: Of h(x).
    """

    transforms: tuple[Transform, ...]
    circular: Circular | None
    standardized: Standardized

    @classmethod
    def fit(
        cls,
        x: Tensor,
        transforms: Mapping[int, str],
        circular: Mapping[int, float],
        *,
        standardize: bool = True,
        names: Sequence[str] | None = None,
    ) -> Transformed:
        """From training data (N, C, *).

        Args:
            x: The data.
            transforms: A name of `TRANSFORMS` for some columns, by number.
            circular: The period of columns of angles, by number.
            standardize: Whether to standardise what is transformed.
            names: Of the columns or channels, for messages; None: their numbers.
        """
        parts = tuple(
            kind.fit(x, columns)
            for name, kind in TRANSFORMS.items()
            if (columns := [column for column, chosen in transforms.items() if chosen == name])
        )
        angles = Circular.fit(x, circular) if circular else None
        flat = Standardized(mean=x.new_zeros(()), std=x.new_ones(()), shape=tuple(x.shape[1:]))
        y = cls(transforms=parts, circular=angles, standardized=flat)._forward(x, x.double(), None)
        fitted = Standardized.fit(y.to(x.dtype), names) if standardize else flat
        if angles is not None and standardize:
            mean, std = fitted.mean.clone(), fitted.std.clone()
            columns = list(angles.columns)
            mean[columns], std[columns] = (value.to(x.dtype) for value in angles.moments(x[:, columns].double()))
            fitted = Standardized(mean=mean, std=std)
        return cls(transforms=parts, circular=angles, standardized=fitted)

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None, dequantize: bool = True) -> Tensor:
        """z, float32; angles at one of their two turns by the generator, and without one at that near the centre."""
        wide = x.double()
        drawn = None
        if self.circular is not None and generator is not None:
            drawn = self.circular.draw(wide[:, list(self.circular.columns)], generator)
        return self.standardized.encode(self._forward(x, wide, drawn))

    def decode(self, x: Tensor) -> Tensor:
        y = self.standardized.decode(x)
        found = y.double()
        for part in self.transforms:
            found[:, list(part.columns)] = part.inverse(y[:, list(part.columns)].double())
        if self.circular is not None:
            columns = list(self.circular.columns)
            found[:, columns] = self.circular.wrap(y[:, columns].double())
        return found.to(y.dtype)

    def points(self, x: Tensor) -> Points:
        if self.circular is None:
            return super().points(x)
        columns = list(self.circular.columns)
        near, wide = self.circular.near(x[:, columns].double()), x.double()
        points, weights = [], []
        for turns in product((-1, 0, 1), repeat=len(columns)):
            y = near + torch.tensor(turns, device=x.device) * self.circular.periods.to(x.device)
            points.append(self.standardized.encode(self._forward(x, wide, y)))
            weights.append(self.circular.weight(y).prod(1))
        return Points(torch.stack(points), torch.stack(weights))

    def log_jacobian(self, x: Tensor) -> Tensor:
        found = self.standardized.log_jacobian(x)
        for part in self.transforms:
            own = x[:, list(part.columns)].double()
            found = found + part.log_slope(own).masked_fill(own.isnan(), 0.0).flatten(1).sum(1)
        return found

    def refusals(self, x: Tensor) -> list[tuple[Tensor, str]]:
        found = []
        for part in self.transforms:
            refused = part.refuses(x[:, list(part.columns)])
            for k, column in enumerate(part.columns):
                where = refused[:, k].flatten(1).any(1) if refused.ndim > 2 else refused[:, k]
                if where.any():
                    found.append((where, f"holds values without a {part.name} in column {column}"))
        return found

    def state(self) -> dict[str, Any]:
        return {
            "codec": "transformed",
            "transforms": [
                {"name": part.name, "columns": list(part.columns), "values": part.values} for part in self.transforms
            ],
            "circular": None if self.circular is None else {
                "columns": list(self.circular.columns), "values": self.circular.values,
            },
            "standardized": self.standardized.state(),
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Transformed:
        parts, circular = [], state["circular"]
        for part in state["transforms"]:
            parts.append(TRANSFORMS[part["name"]](columns=tuple(part["columns"]), values=part["values"].double()))
        angles = None
        if circular is not None:
            angles = Circular(columns=tuple(circular["columns"]), values=circular["values"].double())
        return cls(
            transforms=tuple(parts), circular=angles, standardized=Standardized.from_state(state["standardized"])
        )

    def _forward(self, x: Tensor, wide: Tensor, angles: Tensor | None) -> Tensor:
        """h(x) in float64; angles (B, columns) at the turns that are given, or near the centre."""
        found = wide.clone()
        for part in self.transforms:
            found[:, list(part.columns)] = part.forward(wide[:, list(part.columns)])
        if self.circular is not None:
            columns = list(self.circular.columns)
            found[:, columns] = self.circular.near(wide[:, columns]) if angles is None else angles
        return found


def _quantiles(x: Tensor, p: Tensor) -> Tensor:
    """Linear between order statistics, as numpy's, for any number of values."""
    ordered = x.sort().values
    place = p * (len(x) - 1)
    low = place.floor().long().clamp(0, len(x) - 1)
    high = (low + 1).clamp_max(len(x) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
